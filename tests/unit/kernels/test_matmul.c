/* Products by oneDNN: bits do not depend on the number of threads, nor on how a product is cut into tiles,
 * for all three directions, odd shapes and sums over many tokens; and values against double. */
#include "check.h"
#include "device_main.h"
#include "rig.h"

#include <stdio.h>

struct product {
    int64_t m, n, k;
    unsigned flags;
};

static const struct product products[] = {
    {512, 1024, 256, MATMUL_B_TRANSPOSED}, /* forward */
    {300, 384, 128, MATMUL_B_TRANSPOSED},
    {1, 1000, 128, MATMUL_B_TRANSPOSED}, /* one token */
    {17, 129, 1024, MATMUL_B_TRANSPOSED},
    {130, 256, 8192, MATMUL_B_TRANSPOSED}, /* a long sum */
    {512, 256, 1024, 0},                   /* gradient of x */
    {1000, 128, 384, 0},
    {65, 63, 4099, 0},
    {128, 128, 8192, MATMUL_A_TRANSPOSED}, /* gradient of w: a sum over tokens */
    {384, 128, 5003, MATMUL_A_TRANSPOSED},
    {1024, 256, 2048, MATMUL_A_TRANSPOSED},
    {64, 32, 8192, MATMUL_A_TRANSPOSED}, /* little output: where a library would split the sum */
    {16, 16, 8191, MATMUL_A_TRANSPOSED},
    {1, 128, 8192, MATMUL_A_TRANSPOSED},
    {3000, 64, 192, MATMUL_A_TRANSPOSED | MATMUL_ADD},
    {200, 1300, 64, MATMUL_A_TRANSPOSED | MATMUL_B_TRANSPOSED | MATMUL_ADD},
};

static void *multiply(const struct product *p, int threads, enum dtype in, enum dtype out, const void *a,
                      const void *b)
{
    struct queue q = {.threads = threads};
    uint64_t random = 99;
    void *c = rig_random(&random, p->m * p->n, out, 1.0f);
    void *scratch = rig_array((int64_t)device.kernels->matmul_scratch(p->m, p->n, p->k, in, out, p->flags));
    device.kernels->matmul(&q, c, a, b, p->m, p->n, p->k, in, out, p->flags, scratch);
    free(scratch);
    return c;
}

static void check_bits(const struct product *p, enum dtype in, enum dtype out)
{
    static const int threads[] = {2, 3, 5};
    uint64_t random = 5;
    void *a = rig_random(&random, p->m * p->k, in, 1.0f), *b = rig_random(&random, p->n * p->k, in, 1.0f);
    void *want = multiply(p, 1, in, out, a, b);
    for (int r = 0; r < 3; r++) {
        void *got = multiply(p, threads[r], in, out, a, b);
        if (memcmp(got, want, (size_t)(p->m * p->n) * dtype_bytes(out)) != 0)
            fail_msg("%ld x %ld x %ld, flags %u, %s to %s: %d threads give other bits than one", (long)p->m,
                     (long)p->n, (long)p->k, p->flags, dtype_name(in), dtype_name(out), threads[r]);
        free(got);
    }
    free(want);
    free(a);
    free(b);
}

static void test_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        check_bits(&products[i], DTYPE_F32, DTYPE_F32);
        check_bits(&products[i], DTYPE_BF16, DTYPE_F32);
        check_bits(&products[i], DTYPE_BF16, DTYPE_BF16);
    }
}

/* Sampled elements against double; the error of an fp32 sum of k products, |a||b| <= 1. */
static void check_values(const struct product *p, enum dtype in, enum dtype out)
{
    uint64_t random = 5, pick = 8, before_random = 99;
    void *a = rig_random(&random, p->m * p->k, in, 1.0f), *b = rig_random(&random, p->n * p->k, in, 1.0f);
    void *before = rig_random(&before_random, p->m * p->n, out, 1.0f), *c = multiply(p, 2, in, out, a, b);
    for (int sample = 0; sample < 200; sample++) {
        int64_t i = (int64_t)(rig_bits(&pick) % (uint64_t)p->m),
                j = (int64_t)(rig_bits(&pick) % (uint64_t)p->n);
        double want = p->flags & MATMUL_ADD ? (double)rig_get(before, i * p->n + j, out) : 0;
        for (int64_t k = 0; k < p->k; k++)
            want += (double)rig_get(a, p->flags & MATMUL_A_TRANSPOSED ? k * p->m + i : i * p->k + k, in) *
                    (double)rig_get(b, p->flags & MATMUL_B_TRANSPOSED ? j * p->k + k : k * p->n + j, in);
        double got = (double)rig_get(c, i * p->n + j, out);
        double allowed = 0x1p-24 * sqrt((double)p->k) * 30 + (out == DTYPE_BF16 ? 0x1p-8 * fabs(want) : 0);
        if (!(fabs(got - want) <= allowed))
            fail_msg("%ld x %ld x %ld, flags %u, %s to %s: [%ld][%ld] got %.9g, want %.9g", (long)p->m,
                     (long)p->n, (long)p->k, p->flags, dtype_name(in), dtype_name(out), (long)i, (long)j, got,
                     want);
    }
    free(a);
    free(b);
    free(c);
    free(before);
}

static void test_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        check_values(&products[i], DTYPE_F32, DTYPE_F32);
        check_values(&products[i], DTYPE_BF16, DTYPE_F32);
        check_values(&products[i], DTYPE_BF16, DTYPE_BF16);
    }
}

/* Sizes of nothing: an empty sum is zero, added to nothing it changes nothing. */
static void test_empty(void **state)
{
    (void)state;
    struct queue q = {.threads = 2};
    float out[4] = {1, 2, 3, 4};
    device.kernels->matmul(&q, out, NULL, NULL, 2, 2, 0, DTYPE_F32, DTYPE_F32, MATMUL_ADD, NULL);
    assert_true(out[3] == 4);
    device.kernels->matmul(&q, out, NULL, NULL, 0, 2, 5, DTYPE_F32, DTYPE_F32, 0, NULL);
    assert_true(out[3] == 4);
    device.kernels->matmul(&q, out, NULL, NULL, 2, 2, 0, DTYPE_F32, DTYPE_F32, 0, NULL);
    assert_true(out[0] == 0 && out[3] == 0);
}

/* More shapes than the cache holds, and the first ones again. */
static void test_cache_turns_over(void **state)
{
    (void)state;
    uint64_t random = 5;
    enum { SHAPES = 1300 };
    float *a = rig_random(&random, SHAPES + 8, DTYPE_F32, 1.0f),
          *b = rig_random(&random, SHAPES + 8, DTYPE_F32, 1.0f);
    for (int round = 0; round < 2; round++)
        for (int64_t k = 1; k <= SHAPES; k += round == 0 ? 1 : 97) {
            struct product p = {1, 1, k, 0};
            float *c = multiply(&p, 1, DTYPE_F32, DTYPE_F32, a, b);
            double want = 0;
            for (int64_t i = 0; i < k; i++)
                want += (double)a[i] * (double)b[i];
            check_close((double)c[0], want, 1e-5, 1e-5);
            free(c);
        }
    free(a);
    free(b);
}

int main(void)
{
    if (!test_device_open("cpu", 5))
        return 1;
    printf("%s; %s\n", device.description, device.products);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_cache_turns_over),
    };
    return test_device_close(cmocka_run_group_tests(tests, NULL, NULL));
}
