/* Which layouts a model can have, and what a refusal proposes. */
#include "check.h"

#include "fit.h"

#include <string.h>

static const struct model_config config = {
    .hidden = 24, .layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .ffn = 40, .vocabulary = 97};

static void names_what_fits(void **state)
{
    (void)state;
    char text[256];
    assert_int_equal(fit_list(&config, 4, text, sizeof text), 5);
    assert_string_equal(text, "d4, d2p2, d2t2, t2p2, t4");
    assert_int_equal(fit_list(&config, 6, text, sizeof text), 5); /* not t3, t6 nor p6 */
    assert_string_equal(text, "d6, d3p2, d3t2, d2p3, t2p3");
    assert_int_equal(fit_list(&config, 1, text, sizeof text), 1);
    assert_string_equal(text, "d1");
    assert_int_equal(fit_list(&config, 67, text, sizeof text), 0); /* too many for d, and prime */
}

static void refused(struct layout layout, const char *what, const char *hint)
{
    struct err err = ERR_INIT;
    assert_false(fit_layout(&layout, &config, &err));
    if (!strstr(err.what, what) || !strstr(err.hint, hint))
        fail_msg("'%s', '%s' without '%s', '%s'", err.what, err.hint, what, hint);
}

static void refuses_with_what_fits(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    assert_true(fit_layout(&(struct layout){.d = 1, .t = 4, .p = 3, .c = 2}, &config, &err));
    refused((struct layout){.d = 1, .t = 8, .p = 1, .c = 1}, "t = 8", "of 8 ranks d8, d4p2, d4t2,");
    refused((struct layout){.d = 2, .t = 3, .p = 1, .c = 1}, "t = 3", "d3t2");
    refused((struct layout){.d = 1, .t = 1, .p = 4, .c = 1}, "3 layers", "d2p2");
    refused((struct layout){.d = 1, .t = 67, .p = 1, .c = 1}, "t = 67", "no layout of 67 ranks");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names_what_fits),
                                       cmocka_unit_test(refuses_with_what_fits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
