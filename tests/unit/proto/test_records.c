/* What runs leave on disk, read back: order, damage, names that would leave the folder. */
#include "check.h"
#include "file.h"
#include "records.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char folder[] = "/tmp/test-records-XXXXXX";

static void write_run(const char *name, const char *text)
{
    struct err err = ERR_INIT;
    char path[256];
    snprintf(path, sizeof path, "%s/runs/%s", folder, name);
    check_ok(file_make_folder(path, 0700, &err), &err);
    if (!text)
        return;
    snprintf(path, sizeof path, "%s/runs/%s/run.json", folder, name);
    check_ok(file_replace(path, text, strlen(text), &err), &err);
}

static void test_runs_oldest_first_and_damaged_ones_left_out(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    Trainerd__Runs *runs;
    check_ok(records_runs(&runs, "/nonexistent/folder", &err), &err);
    assert_int_equal(runs->n_runs, 0);
    trainerd__runs__free_unpacked(runs, NULL);

    write_run("b", "{\"run\":\"b\",\"started\":\"2026-01-01T00:00:00Z\",\"step\":5,\"loss\":0.5}");
    write_run("a", "{\"started\":\"2026-01-02T00:00:00Z\"}");
    write_run("cut", "{\"run\":\"cu");
    write_run("none", NULL);
    check_ok(records_runs(&runs, folder, &err), &err);
    assert_int_equal(runs->n_runs, 2);
    assert_string_equal(runs->runs[0]->run, "b");
    assert_int_equal(runs->runs[0]->step, 5);
    assert_string_equal(runs->runs[1]->run, "a");
    assert_true(isnan(runs->runs[1]->loss));
    trainerd__runs__free_unpacked(runs, NULL);
}

/* run.json of a run that was cut off is from its start: its last whole event tells how far it came. */
static void test_how_far_a_run_came(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    Trainerd__Runs *runs;
    char path[256];
    FILE *file;
    write_run("z",
              "{\"run\":\"z\",\"state\":\"interrupted\",\"started\":\"2026-02-01T00:00:00Z\",\"step\":0}");
    snprintf(path, sizeof path, "%s/runs/z/events.jsonl", folder);
    file = fopen(path, "we");
    assert_non_null(file);
    for (int k = 1; k <= 1000; k++) /* longer than what is looked through */
        fprintf(file, "{\"event\":\"step\",\"step\":%d,\"loss\":%g,\"lr\":0.001}\n", k, 2.0 / k);
    fprintf(file, "{\"event\":\"evaluation\",\"step\":1000,\"loss\":9}\n{\"event\":\"step\",\"st");
    fclose(file);
    check_ok(records_runs(&runs, folder, &err), &err);
    const Trainerd__Run *last = runs->runs[runs->n_runs - 1];
    assert_string_equal(last->run, "z");
    assert_int_equal(last->step, 1000);
    check_close(last->loss, 0.002, 0, 0);
    trainerd__runs__free_unpacked(runs, NULL);
}

static void test_names_cannot_leave_the_folder(void **state)
{
    (void)state;
    static const char *const bad[] = {"", ".", "..", "../x", "a/b", ".hidden"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct err err = ERR_INIT;
        char path[256];
        check_refused(records_path(path, sizeof path, folder, bad[i], "run.json", &err), &err, ERR_INVALID);
    }
}

static void test_lines(void **state)
{
    (void)state;
    static const char *const others[] = {"", "{", "{\"event\":\"warning\",\"step\":1,\"lr\":0}", "[1]",
                                         "{\"lr\":1}"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        assert_null(records_step(others[i], strlen(others[i])));
    const char *line = "{\"step\":7,\"lr\":0.5,\"skipped\":2}";
    Trainerd__Step *step = records_step(line, strlen(line));
    assert_non_null(step);
    assert_int_equal(step->step, 7);
    assert_int_equal(step->skipped, 2);
    trainerd__step__free_unpacked(step, NULL);
}

int main(void)
{
    if (!mkdtemp(folder))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_oldest_first_and_damaged_ones_left_out),
        cmocka_unit_test(test_how_far_a_run_came),
        cmocka_unit_test(test_names_cannot_leave_the_folder),
        cmocka_unit_test(test_lines),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    struct err err = ERR_INIT;
    return file_remove_tree(folder, &err) ? failed : 1;
}
