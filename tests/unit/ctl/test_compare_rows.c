/* compare's rows out of step events: which steps count, what the final loss is, who is best. */
#include "check.h"
#include "compare_rows.h"

#include <stdio.h>
#include <stdlib.h>

/* n updates: loss i (from 1), lr 1 but for the last, which is below a hundredth; quality 0.5, there 0; one
 * skipped attempt in the middle. */
static json_t *run_of(int n)
{
    json_t *steps = json_array();
    for (int i = 1; i <= n; i++) {
        double lr = i == n ? 0.009 : 1.0, quality = i == n ? 0.0 : 0.5;
        json_t *step =
            json_pack("{s:i,s:f,s:f,s:f,s:f,s:f}", "step", i, "loss", (double)i, "lr", lr, "update_quality",
                      quality, "lost_update_share", 0.25, "stalled_v_share", 0.125);
        json_array_append_new(steps, step);
        if (i == n / 2)
            json_array_append(steps, step);
    }
    return steps;
}

static double real(const json_t *row, const char *field)
{
    return json_number_value(json_object_get(row, field));
}

static void test_a_row(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    json_t *steps = run_of(30), *row = NULL;
    check_ok(compare_row(&row, "bf16", "r1", 6, steps, &err), &err);
    assert_int_equal(json_array_size(json_object_get(row, "losses")), 30); /* without the skipped attempt */
    assert_true(real(row, "final_loss") == 25.5);                          /* the mean of 21 … 30 */
    assert_true(real(row, "last_loss") == 30);
    assert_true(real(row, "update_quality") == 0.5); /* the last update is not counted */
    assert_true(real(row, "lost_update_share") == 0.25);
    assert_true(json_is_null(json_object_get(row, "ratio")));
    json_decref(row);
    json_decref(steps);
}

static void test_short_runs_and_none(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    json_t *steps = run_of(4), *none = json_array(), *row = NULL;
    check_ok(compare_row(&row, "bf16", "r1", 6, steps, &err), &err);
    assert_true(real(row, "final_loss") == 2.5);
    check_refused(compare_row(&row, "bf16", "r1", 6, none, &err), &err, ERR_RUN);
    json_decref(row);
    json_decref(none);
    json_decref(steps);
}

static void test_ranks_and_prints(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    json_t *rows = json_array(), *row = NULL, *steps = run_of(20), *better = run_of(10);
    char *text = NULL;
    size_t bytes = 0;
    check_ok(compare_row(&row, "fp32-master+weight=bf16", "r1", 12, steps, &err), &err);
    json_array_append_new(rows, row);
    check_ok(compare_row(&row, "fp32-master", "r2", 12, better, &err), &err);
    json_array_append_new(rows, row);
    compare_rows_rank(rows);
    assert_true(real(json_array_get(rows, 1), "ratio") == 1);
    assert_true(real(json_array_get(rows, 0), "ratio") == 15.5 / 5.5);
    FILE *out = open_memstream(&text, &bytes);
    compare_rows_print(out, rows);
    compare_rows_csv(out, rows);
    fclose(out);
    assert_non_null(
        strstr(text, "fp32-master+weight=bf16               12.000    15.50000   20.00000   2.82"));
    assert_non_null(strstr(text, "\nfp32-master,r2,12,5.5,10,1,"));
    free(text);
    struct plot plot;
    check_ok(compare_rows_plot(&plot, rows, &err), &err);
    assert_int_equal(plot.panel_count, 2);
    assert_int_equal(plot.panels[0].curves[0].count, 20);
    assert_true(plot.panels[0].curves[1].y[9] == 10);
    plot_done(&plot);
    json_decref(rows);
    json_decref(steps);
    json_decref(better);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_row),
        cmocka_unit_test(test_short_runs_and_none),
        cmocka_unit_test(test_ranks_and_prints),
    };
    return cmocka_run_group_tests_name("compare_rows", tests, NULL, NULL);
}
