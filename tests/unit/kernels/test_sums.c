/* The sums whose order is promised, against their definitions: equal bits. */
#include "check.h"
#include "device_main.h"
#include "rig.h"

#include <stdio.h>

static struct queue two = {.threads = 2};
static const struct kernels *tables[2]; /* the reference's and the device's */

static void test_sum_double(void **state)
{
    (void)state;
    enum { N = 10007 };
    uint64_t random = 3;
    float *x = rig_random(&random, N, DTYPE_F32, 1e6f);
    double want = 0;
    for (int i = 0; i < N; i++)
        want += (double)x[i];
    for (int t = 0; t < 2; t++) {
        double got = -1;
        tables[t]->sum_double(&two, &got, x, N);
        assert_true(got == want);
        tables[t]->sum_double(&two, &got, x, 0);
        assert_true(got == 0);
    }
    free(x);
}

static void test_block_squares(void **state)
{
    (void)state;
    enum { N = 256 * 40 + 77 };
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    for (int d = 0; d < 2; d++) {
        uint64_t random = 3;
        void *x = rig_random(&random, N, dtypes[d], 1e3f);
        for (int t = 0; t < 2; t++) {
            double squares[41];
            tables[t]->block_squares(&two, squares, x, N, dtypes[d]);
            for (int b = 0; b < 41; b++) {
                double want = 0;
                for (int i = b * 256; i < (b + 1) * 256 && i < N; i++)
                    want += (double)rig_get(x, i, dtypes[d]) * (double)rig_get(x, i, dtypes[d]);
                check_close(squares[b], want, 1e-14, 0);
            }
        }
        free(x);
    }
}

/* The tree as the design defines it: the sum over parts first … first + size - 1, *there false if all are
 * absent. */
static float tree(const void *parts, int64_t i, int64_t stride, int first, int size, int count,
                  uint64_t present, enum dtype dtype, bool *there)
{
    if (size == 1) {
        *there = first < count && (present >> first & 1);
        return *there ? rig_get(parts, first * stride + i, dtype) : 0;
    }
    bool left_there, right_there;
    float left = tree(parts, i, stride, first, size / 2, count, present, dtype, &left_there);
    float right = tree(parts, i, stride, first + size / 2, size / 2, count, present, dtype, &right_there);
    *there = left_there || right_there;
    if (left_there && right_there)
        return left + right;
    return left_there ? left : right;
}

static void check_tree(const struct kernels *k, int count, uint64_t present, enum dtype dtype, bool in_place)
{
    enum { N = 777, STRIDE = 800 };
    uint64_t random = (uint64_t)count;
    char *parts = rig_random(&random, (int64_t)STRIDE * count, dtype, 1e3f);
    float want[N], *sum = in_place ? (float *)(void *)parts : rig_array(N * 4);
    bool there;
    for (int i = 0; i < N; i++)
        want[i] = tree(parts, i, STRIDE, 0, 64, count, present, dtype, &there);
    k->tree_sum(&two, sum, parts, N, STRIDE, count, present, dtype);
    for (int i = 0; i < N; i++)
        if (float_bits(sum[i]) != float_bits(want[i]))
            fail_msg("tree of %d, present %lx, [%d]: got %.9g, want %.9g", count, (unsigned long)present, i,
                     (double)sum[i], (double)want[i]);
    if (!in_place)
        free(sum);
    free(parts);
}

static void test_tree_sum(void **state)
{
    (void)state;
    static const struct {
        int count;
        uint64_t present;
    } cases[] = {{1, 1},
                 {2, 3},
                 {2, 2},
                 {3, 7},
                 {6, 0x3f},
                 {7, 0x5a},
                 {8, 0x80},
                 {13, 0x1fff},
                 {31, 0x70f3},
                 {64, UINT64_MAX},
                 {64, 1ull << 63},
                 {64, 0x8000000100010002},
                 {33, 1ull << 32 | 1}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (int t = 0; t < 2; t++) {
            check_tree(tables[t], cases[c].count, cases[c].present, DTYPE_F32, false);
            check_tree(tables[t], cases[c].count, cases[c].present, DTYPE_F32, true);
            check_tree(tables[t], cases[c].count, cases[c].present, DTYPE_BF16, false);
        }
}

/* A sum over an absent part is not the sum with zero: -0 stays -0. */
static void test_tree_skips(void **state)
{
    (void)state;
    float parts[3] = {1.0f, -0.0f, 2.0f}, sum = 1.0f;
    for (int t = 0; t < 2; t++) {
        tables[t]->tree_sum(&two, &sum, parts, 1, 1, 3, 2, DTYPE_F32);
        assert_true(float_bits(sum) == 0x80000000u);
    }
}

static void test_elementwise(void **state)
{
    (void)state;
    enum { N = 20011 };
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    uint64_t random = 9;
    float *part = rig_random(&random, N, DTYPE_F32, 3.0f);
    part[5] = 1e-40f; /* a denormal */
    for (int t = 0; t < 2; t++)
        for (int d = 0; d < 2; d++) {
            void *total = rig_random(&random, N, dtypes[d], 1.0f), *before = rig_array(N * 4),
                 *sum = rig_array(N * 4);
            memcpy(before, total, N * dtype_bytes(dtypes[d]));
            tables[t]->accumulate(&two, total, part, N, dtypes[d]);
            tables[t]->add(&two, sum, before, total, N, dtypes[d]);
            uint16_t *narrow = rig_array(N * 2);
            tables[t]->cast(&two, narrow, part, N, DTYPE_BF16, DTYPE_F32);
            for (int i = 0; i < N; i++) {
                float b = rig_get(before, i, dtypes[d]), a = b + part[i], got = rig_get(total, i, dtypes[d]);
                assert_true(got == (d == 0 ? a : bf16_to_float(bf16_from_float(a))));
                float s = b + got;
                assert_true(rig_get(sum, i, dtypes[d]) == (d == 0 ? s : bf16_to_float(bf16_from_float(s))));
                assert_int_equal(narrow[i], bf16_from_float(part[i]));
            }
            free(total);
            free(before);
            free(sum);
            free(narrow);
        }
    free(part);
}

int main(void)
{
    if (!test_device_open("cpu", 2))
        return 1;
    tables[0] = &kernels_reference;
    tables[1] = device.kernels;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_double),  cmocka_unit_test(test_block_squares),
        cmocka_unit_test(test_tree_sum),    cmocka_unit_test(test_tree_skips),
        cmocka_unit_test(test_elementwise),
    };
    return test_device_close(cmocka_run_group_tests(tests, NULL, NULL));
}
