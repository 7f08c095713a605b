/* Lists, order, retention, deletion and marks, from the folder alone. */
#include "store_fixture.h"

#include <jansson.h>

static const struct checkpoint_formats plain = {WEIGHT_FP32, MOMENT_FP32, MOMENT_FP32};

static void save_as(const struct fixture *f, const char *name, int64_t total_steps)
{
    struct err err = ERR_INIT;
    struct saving s = {.name = name, .ranks = 1, .formats = plain};
    s.about = (struct checkpoint_about){
        .run = "r1", .policy = "bf16", .automatic = true, .total_steps = total_steps};
    check_ok(save(f, &s, &err), &err);
}

static void newest_is_saved_last(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    struct checkpoint_list list;
    fixture_make(&f, TINY_CONFIG);
    check_ok(checkpoint_list_read(&list, temp_path(&f.folder, "absent"), &err), &err);
    assert_int_equal(list.count, 0);
    save_as(&f, "a", 300);
    save_as(&f, "b", 20); /* fewer steps: an older state went on */
    check_ok(file_make_folder(temp_path(&f.folder, "c.partial"), 0700, &err), &err);
    check_ok(file_make_folder(temp_path(&f.folder, "notes"), 0700, &err), &err);
    check_ok(checkpoint_list_read(&list, f.folder.path, &err), &err);
    assert_int_equal(list.count, 2);
    assert_string_equal(list.items[0].name, "b");
    assert_string_equal(list.items[0].policy, "bf16");
    assert_int_equal(list.items[0].total_steps, 20);
    assert_int_equal(list.items[0].serial, 2);
    assert_true(list.items[0].bytes > 0 && list.items[0].time_s > 1600000000 && list.items[0].automatic);
    assert_int_equal(list.items[0].health, CHECKPOINT_UNKNOWN);
    assert_non_null(checkpoint_list_find(&list, "a"));
    assert_null(checkpoint_list_find(&list, "c"));
    checkpoint_list_done(&list);
    fixture_done(&f);
}

static void marks_belong_to_their_manifest(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    struct checkpoint_list list;
    fixture_make(&f, TINY_CONFIG);
    save_as(&f, "a", 1);
    save_as(&f, "b", 2);
    check_ok(checkpoint_list_read(&list, f.folder.path, &err), &err);
    check_ok(checkpoint_mark(f.folder.path, "b", list.items[0].hash, CHECKPOINT_CORRUPT, &err), &err);
    check_ok(checkpoint_mark(f.folder.path, "a", list.items[1].hash, CHECKPOINT_VERIFIED, &err), &err);
    checkpoint_list_done(&list);
    check_ok(checkpoint_list_read(&list, f.folder.path, &err), &err);
    assert_int_equal(list.items[0].health, CHECKPOINT_CORRUPT);
    assert_int_equal(list.items[1].health, CHECKPOINT_VERIFIED);
    assert_int_equal(checkpoint_list_newest(&list, 0), 1);
    assert_int_equal(checkpoint_list_newest(&list, 2), -1);
    /* Another checkpoint's mark says nothing about this one. */
    check_ok(checkpoint_mark(f.folder.path, "b", list.items[1].hash, CHECKPOINT_VERIFIED, &err), &err);
    checkpoint_list_done(&list);
    check_ok(checkpoint_list_read(&list, f.folder.path, &err), &err);
    assert_int_equal(list.items[0].health, CHECKPOINT_UNKNOWN);
    checkpoint_list_done(&list);
    fixture_done(&f);
}

static void the_unreadable_are_shown(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    struct checkpoint_list list;
    fixture_make(&f, TINY_CONFIG);
    save_as(&f, "a", 1);
    save_as(&f, "b", 2);
    assert_int_equal(truncate(temp_path(&f.folder, "b/manifest.json"), 100), 0);
    check_ok(checkpoint_list_read(&list, f.folder.path, &err), &err);
    assert_int_equal(list.count, 2);
    assert_string_equal(list.items[1].name, "b");
    assert_int_equal(list.items[1].health, CHECKPOINT_CORRUPT);
    assert_int_equal(list.items[1].total_steps, -1);
    assert_true(strstr(list.items[1].problem, "b/manifest.json") != NULL);
    assert_int_equal(checkpoint_list_newest(&list, 0), 0);
    checkpoint_list_done(&list);
    save_as(&f, "c", 3); /* a serial above the readable ones */
    check_ok(checkpoint_list_read(&list, f.folder.path, &err), &err);
    assert_string_equal(list.items[0].name, "c");
    checkpoint_list_done(&list);
    check_ok(checkpoint_delete(f.folder.path, "b", &err), &err); /* what cannot be read can be deleted */
    fixture_done(&f);
}

static void deletion(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    fixture_make(&f, TINY_CONFIG);
    save_as(&f, "a", 1);
    check_ok(file_make_folder(temp_path(&f.folder, "mine"), 0700, &err), &err);
    check_ok(checkpoint_delete(f.folder.path, "a", &err), &err);
    const struct {
        const char *name;
        enum err_code code;
    } rows[] = {{"a", ERR_NOT_FOUND}, {"mine", ERR_NOT_FOUND},    {"../a", ERR_INVALID},
                {"", ERR_INVALID},    {"..", ERR_INVALID},        {".", ERR_INVALID},
                {"a/b", ERR_INVALID}, {"a.partial", ERR_INVALID}, {".hidden", ERR_INVALID}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err refused = ERR_INIT;
        check_refused(checkpoint_delete(f.folder.path, rows[i].name, &refused), &refused, rows[i].code);
    }
    assert_int_equal(entries_ending(f.folder.path, ""), 1);
    fixture_done(&f);
}

/* Newest first: 'v' verified, 'u' unknown, 'c' corrupt, capitals of another run, 'm' by hand (and verified).
 */
static void retention(void **unused)
{
    (void)unused;
    const struct {
        const char *list;
        int64_t keep;
        const char *goes; /* 'x' where it may go */
    } rows[] = {
        {"vvvv", 2, "..xx"}, {"uvvv", 2, "...x"}, /* the newest is not verified yet: one more stays */
        {"uuuu", 1, "...."}, {"cvvv", 1, "..xx"}, {"vuvv", 1, ".xxx"}, {"vmvm", 1, "..x."},
        {"VvVv", 1, "...x"}, {"v", 1, "."},       {"", 3, ""},         {"vvv", 3, "..."},
        {"mmvv", 1, "...x"}, {"vcuv", 1, ".xxx"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct checkpoint_about items[8] = {0};
        struct checkpoint_list list = {(int64_t)strlen(rows[i].list), items};
        for (int64_t j = 0; j < list.count; j++) {
            char c = rows[i].list[j];
            items[j].automatic = c != 'm';
            items[j].health = c == 'u'   ? CHECKPOINT_UNKNOWN
                              : c == 'c' ? CHECKPOINT_CORRUPT
                                         : CHECKPOINT_VERIFIED;
            snprintf(items[j].run, sizeof items[j].run, "%s", c == 'V' ? "other" : "r1");
        }
        int64_t surplus[8];
        char goes[9] = "........";
        int64_t count = checkpoint_list_surplus(&list, "r1", rows[i].keep, surplus);
        for (int64_t j = 0; j < count; j++)
            goes[surplus[j]] = 'x';
        goes[list.count] = '\0';
        assert_string_equal(goes, rows[i].goes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(newest_is_saved_last),
        cmocka_unit_test(marks_belong_to_their_manifest),
        cmocka_unit_test(the_unreadable_are_shown),
        cmocka_unit_test(deletion),
        cmocka_unit_test(retention),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
