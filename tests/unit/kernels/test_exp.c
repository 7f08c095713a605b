/* exp_float against exp in double, and the bf16 conversions against their definition, over all of fp32's
 * range. */
#include "check.h"
#include "exp.h"

static double ulp(double x) /* of the fp32 nearest to x */
{
    double magnitude = fmax(fabs(x), 0x1p-126);
    int exponent;
    frexp(magnitude, &exponent);
    return ldexp(1.0, exponent - 24);
}

static void test_exp(void **state)
{
    (void)state;
    double worst = 0;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 509) {
        float x = float_from_bits((uint32_t)bits);
        if (!(x > -104.0f && x < 88.722f)) /* up to where the result leaves fp32 */
            continue;
        double want = exp((double)x), off = fabs((double)exp_float(x) - want) / ulp(want);
        if (off > 1.1)
            fail_msg("exp(%.9g): got %.9g, want %.9g, off by %.3f ulp", (double)x, (double)exp_float(x), want,
                     off);
        worst = fmax(worst, off);
    }
    assert_true(worst > 0.5); /* else the loop did not run */
}

static void test_exp_ends(void **state)
{
    (void)state;
    assert_true(exp_float(0.0f) == 1.0f);
    assert_true(exp_float(89.0f) == INFINITY);
    assert_true(exp_float(INFINITY) == INFINITY);
    assert_true(exp_float(-INFINITY) == 0.0f);
    assert_true(exp_float(-200.0f) == 0.0f);
    assert_true(isnan(exp_float(NAN)));
    assert_true(exp_float(-100.0f) > 0.0f); /* a denormal, kept */
}

/* The nearest of the two neighbours, found by trying; the even one in a tie. */
static uint16_t bf16_by_definition(float x)
{
    uint16_t below = (uint16_t)(float_bits(x) >> 16), above = (uint16_t)(below + 1);
    double b = (double)bf16_to_float(below), a = (double)bf16_to_float(above);
    if ((below & 0x7fff) == 0x7f7f)
        a = x > 0 ? 0x1p128 : -0x1p128; /* infinity stands where the next number would */
    double to_below = fabs((double)x - b), to_above = fabs(a - (double)x);
    if (to_below != to_above)
        return to_below < to_above ? below : above;
    return below & 1 ? above : below;
}

static void test_bf16(void **state)
{
    (void)state;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 127) {
        float x = float_from_bits((uint32_t)bits);
        uint16_t got = bf16_from_float(x);
        if (isnan(x))
            assert_true(isnan(bf16_to_float(got)));
        else if (isinf(x))
            assert_true(bf16_to_float(got) == x);
        else if (got != bf16_by_definition(x))
            fail_msg("%a: got %#x, want %#x", (double)x, got, bf16_by_definition(x));
    }
    static const uint32_t nans[] = {0x7f800001, 0x7fffffff, 0xff800001, 0xffffffff, 0x7fc00000};
    for (int i = 0; i < 5; i++)
        assert_true(isnan(bf16_to_float(bf16_from_float(float_from_bits(nans[i])))));
    for (uint32_t i = 0; i < 65536; i++) /* what bf16 holds, denormals included, comes back */
        if (!isnan(bf16_to_float((uint16_t)i)))
            assert_int_equal(bf16_from_float(bf16_to_float((uint16_t)i)), i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_exp_ends),
        cmocka_unit_test(test_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
