/* Layouts in any order of letters; nonsense is refused with what would be right. */
#include "check.h"

#include "layout.h"

#include <string.h>

static void reads_any_order(void **state)
{
    (void)state;
    static const char *const same[] = {"", "d8", "d8t1p1c1", "c1p1t1d8", "t1d8"};
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        struct layout layout = {0};
        struct err err = ERR_INIT;
        char text[64];
        assert_true(layout_parse(&layout, same[i], 8, &err));
        layout_print(&layout, text, sizeof text);
        assert_string_equal(text, "d8t1p1c1");
    }
    struct layout layout = {0};
    struct err err = ERR_INIT;
    assert_true(layout_parse(&layout, "p2t4c3", 24, &err));
    assert_true(layout.d == 1 && layout.t == 4 && layout.p == 2 && layout.c == 3);
}

static void refuses(const char *text, int ranks, enum err_code code, const char *hint)
{
    struct layout layout = {.d = 77};
    struct err err = ERR_INIT;
    assert_false(layout_parse(&layout, text, ranks, &err));
    assert_int_equal(err.code, code);
    assert_non_null(strstr(err.hint, hint));
    assert_int_equal(layout.d, 77); /* outputs only on success */
}

static void refuses_nonsense(void **state)
{
    (void)state;
    refuses("d2d4", 8, ERR_INVALID, "d8t1p1c1");
    refuses("x8", 8, ERR_INVALID, "d8t1p1c1");
    refuses("d0", 8, ERR_INVALID, "d8t1p1c1");
    refuses("d-8", 8, ERR_INVALID, "d8t1p1c1");
    refuses("d99999999999", 8, ERR_INVALID, "d8t1p1c1");
    refuses("d4", 8, ERR_INVALID, "-n 4");
}

/* t fastest, then c, d, p (design section 6). */
static void places_ranks(void **state)
{
    (void)state;
    const struct layout layout = {.d = 3, .t = 2, .p = 2, .c = 4};
    for (int32_t rank = 0; rank < 48; rank++) {
        struct layout_place at = layout_place(&layout, rank);
        assert_int_equal(at.t + 2 * (at.c + 4 * (at.d + 3 * at.p)), rank);
        assert_in_range(at.t, 0, 1);
        assert_in_range(at.c, 0, 3);
        assert_in_range(at.d, 0, 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(reads_any_order), cmocka_unit_test(refuses_nonsense),
                                       cmocka_unit_test(places_ranks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
