/* Curves out of step events, the script for gnuplot, and pictures that are whole or absent. */
#include "check.h"
#include "plot_draw.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static json_t *steps_of(const char *text)
{
    json_error_t error;
    json_t *steps = json_loads(text, 0, &error);
    if (steps == NULL)
        fail_msg("%s", error.text);
    return steps;
}

/* Three updates, one skipped attempt, and a swap before the third. */
static json_t *three_steps(void)
{
    return steps_of(
        "[{\"step\":1,\"loss\":2.0,\"policy\":\"bf16\"},{\"step\":2,\"loss\":0.5,\"policy\":\"bf16\"},"
        "{\"step\":2,\"loss\":9.0,\"policy\":\"bf16\"},{\"step\":3,\"loss\":null,\"policy\":\"fp32-master\"}"
        "]");
}

static void test_curve_from_steps(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct plot plot = {.panel_count = 1};
    json_t *steps = three_steps();
    check_ok(plot_panel_add(&plot.panels[0], "a run", steps, "loss", &err), &err);
    const struct plot_curve *curve = &plot.panels[0].curves[0];
    assert_int_equal(curve->count, 3); /* the skipped attempt draws nothing */
    assert_true(curve->x[1] == 2 && curve->y[1] == 0.5);
    assert_true(isnan(curve->y[2])); /* null is a gap */
    plot_mark_policies(&plot, steps);
    assert_int_equal(plot.mark_count, 1);
    assert_true(plot.marks[0].x == 2.5);
    assert_string_equal(plot.marks[0].text, "fp32-master");
    json_decref(steps);
    plot_done(&plot);
}

static void test_no_steps_are_refused(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct plot plot = {.panel_count = 1};
    json_t *steps = json_array();
    check_refused(plot_panel_add(&plot.panels[0], "a run", steps, "loss", &err), &err, ERR_NOT_FOUND);
    json_decref(steps);
    plot_done(&plot);
}

static void test_script(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct plot plot = {
        .panel_count = 1, .panels = {{.title = "loss", .log_scale = true}}, .title = "two \"runs\"`x`"};
    json_t *steps = three_steps();
    char *script = NULL;
    const char *paths[] = {"a.png", "a.svg"}, *wrong[] = {"a.pdf"}, *evil[] = {"a\";system(\"x\").png"};
    check_ok(plot_panel_add(&plot.panels[0], "bf16", steps, "loss", &err), &err);
    check_ok(plot_script(&plot, paths, 2, &script, &err), &err);
    assert_non_null(strstr(script, "set logscale y"));
    assert_non_null(strstr(script, "pngcairo"));
    assert_non_null(strstr(script, "terminal svg"));
    assert_non_null(strstr(script, "\n1 2\n2 0.5\n\nEND\n"));
    assert_non_null(strstr(script, "\"two runsx\"")); /* nothing that ends the string or runs a command */
    free(script);
    check_refused(plot_script(&plot, wrong, 1, &script, &err), &err, ERR_INVALID);
    err = (struct err)ERR_INIT;
    check_refused(plot_script(&plot, evil, 1, &script, &err), &err, ERR_INVALID);
    json_decref(steps);
    plot_done(&plot);
}

static void test_nothing_positive_on_a_log_scale(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct plot plot = {.panel_count = 1, .panels = {{.title = "loss", .log_scale = true}}};
    json_t *steps = steps_of("[{\"step\":1,\"loss\":0},{\"step\":2,\"loss\":-1}]");
    const char *paths[] = {"a.png"};
    char *script = NULL;
    check_ok(plot_panel_add(&plot.panels[0], "x", steps, "loss", &err), &err);
    check_refused(plot_script(&plot, paths, 1, &script, &err), &err, ERR_INVALID);
    json_decref(steps);
    plot_done(&plot);
}

static void test_pictures_are_whole_or_absent(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct plot plot = {
        .panel_count = 2,
        .panels = {{.title = "loss", .log_scale = true}, {.title = "update quality", .unit_range = true}}};
    char folder[] = "/tmp/test-plot-XXXXXX", png[64], svg[64], lost[64], head[8] = {0};
    assert_non_null(mkdtemp(folder));
    snprintf(png, sizeof png, "%s/a.png", folder);
    snprintf(svg, sizeof svg, "%s/a.svg", folder);
    snprintf(lost, sizeof lost, "%s/none/a.svg", folder);
    json_t *steps = three_steps();
    check_ok(plot_panel_add(&plot.panels[0], "x", steps, "loss", &err), &err);
    check_ok(plot_panel_add(&plot.panels[1], "x", steps, "step", &err), &err);
    const char *paths[] = {png, svg}, *unwritable[] = {lost};
    if (system("gnuplot --version >/dev/null 2>&1") != 0)
        skip();
    check_ok(plot_write(&plot, paths, 2, &err), &err);
    FILE *file = fopen(png, "re");
    assert_non_null(file);
    assert_int_equal(fread(head, 1, 4, file), 4);
    assert_memory_equal(head, "\x89PNG", 4);
    fclose(file);
    assert_int_equal(access(svg, R_OK), 0);
    assert_false(plot_write(&plot, unwritable, 1, &err));
    unlink(png);
    unlink(svg);
    assert_int_equal(rmdir(folder), 0); /* nothing else was left there */
    json_decref(steps);
    plot_done(&plot);
}

static void test_events_file(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    char path[] = "/tmp/test-events-XXXXXX";
    int fd = mkstemp(path);
    const char text[] =
        "{\"step\":1,\"grad_norm\":1.5,\"loss\":2}\n{\"event\":\"state\",\"state\":\"idle\"}\n"
        "{\"step\":2,\"grad_norm\":null,\"loss\":1}\n{\"step\":3,\"grad_n";
    json_t *steps = NULL;
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    check_ok(plot_read_events(path, &steps, &err), &err);
    assert_int_equal(json_array_size(steps), 2);
    json_decref(steps);
    unlink(path);
    check_refused(plot_read_events(path, &steps, &err), &err, ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_curve_from_steps),
        cmocka_unit_test(test_no_steps_are_refused),
        cmocka_unit_test(test_script),
        cmocka_unit_test(test_nothing_positive_on_a_log_scale),
        cmocka_unit_test(test_pictures_are_whole_or_absent),
        cmocka_unit_test(test_events_file),
    };
    return cmocka_run_group_tests_name("plot", tests, NULL, NULL);
}
