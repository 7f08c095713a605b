/* What small problems of the head do not reach: several chunks of tokens, a micro-batch without a label, and
 * the vocabulary cut into ranges, an empty one and labels at their edges among them. */
#include "check.h"
#include "device_main.h"
#include "head.h"
#include "rig.h"

#include <stdio.h>

enum { T = 600, H = 3, V = 40000, CHUNK = 384 };

/* logprob, dx and dw in double, by the definition. */
static void naive(const float *x, const float *w, const int32_t *labels, double *logprob, double *dx,
                  double *dw)
{
    double *p = rig_array(V * 8);
    memset(dx, 0, T * H * sizeof(double));
    memset(dw, 0, (size_t)V * H * sizeof(double));
    for (int t = 0; t < T; t++) {
        double total = 0;
        logprob[t] = 0;
        if (labels[t] < 0)
            continue;
        for (int v = 0; v < V; v++) {
            double logit = 0;
            for (int i = 0; i < H; i++)
                logit += (double)x[t * H + i] * (double)w[v * H + i];
            p[v] = exp(logit);
            total += p[v];
        }
        logprob[t] = log(p[labels[t]] / total);
        for (int v = 0; v < V; v++)
            for (int i = 0; i < H; i++) {
                double d = p[v] / total - (v == labels[t]);
                dx[t * H + i] += d * (double)w[v * H + i];
                dw[v * H + i] += d * (double)x[t * H + i];
            }
    }
    free(p);
}

static void check_tensor(const char *name, const float *got, const double *want, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(want[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= 3e-5 * largest))
            fail_msg("%s[%ld]: got %.9g, want %.9g, largest %.9g", name, (long)i, (double)got[i], want[i],
                     largest);
}

/* Runs in fp32 and compares; every_th row has a label, none where it is 0. */
static void check_head(const struct kernels *k, int every_th, int ranges)
{
    struct queue q = {.threads = 2};
    uint64_t random = 4;
    float *x = rig_random(&random, T * H, DTYPE_F32, 1), *w = rig_random(&random, V * H, DTYPE_F32, 1);
    int32_t labels[T];
    for (int t = 0; t < T; t++) {
        int32_t edge = (int32_t)(V / (ranges > 1 ? ranges : 1));
        labels[t] = every_th > 0 && t % every_th == 0 ? (int32_t)(rig_bits(&random) % V) : -100;
        if (labels[t] >= 0 && t % 5 == 0)
            labels[t] = (t % 3 == 0 ? 0 : edge - 1 + t % 2) % V;
    }
    float *logprob = rig_array(T * 4), *dx = rig_array(T * H * 4), *dw = rig_array(V * H * 4);
    struct head h = {.k = k, .q = &q, .dtype = DTYPE_F32, .T = T, .C = H, .V = V};
    h.ranges = ranges, h.chunk = CHUNK, h.x = x, h.w = w, h.labels = labels;
    head_run(&h, logprob, dx, dw);

    double *want = rig_array(T * 8), *want_dx = rig_array(T * H * 8), *want_dw = rig_array(V * H * 8);
    naive(x, w, labels, want, want_dx, want_dw);
    check_tensor("logprob", logprob, want, T);
    check_tensor("dx", dx, want_dx, T * H);
    check_tensor("dw", dw, want_dw, V * H);
    head_run(&h, dx, NULL, NULL); /* without a gradient the same */
    assert_memory_equal(dx, logprob, T * sizeof(float));
    void *all[] = {x, w, logprob, dx, dw, want, want_dx, want_dw};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

/* Stats, merge and d logits of one range are the fused row. */
static void check_fused(const struct kernels *k, enum dtype dtype)
{
    enum { ROWS = 37, N = 515, PADDED = 40 };
    struct queue q = {.threads = 2};
    uint64_t random = 9;
    float *logits = rig_random(&random, ROWS * N, DTYPE_F32, 20), *again = rig_array(PADDED * N * 4);
    memcpy(again, logits, ROWS * N * 4);
    logits = realloc(logits, PADDED * N * 4);
    int32_t list[ROWS], labels[2 * ROWS];
    for (int r = 0; r < ROWS; r++) {
        list[r] = 2 * r;
        labels[2 * r] = (int32_t)(rig_bits(&random) % N);
    }
    float logprob[2 * ROWS] = {0}, split[2 * ROWS] = {0};
    struct head_stats own[ROWS], merged[ROWS];
    void *d = rig_array(PADDED * N * 4), *d_split = rig_array(PADDED * N * 4);
    k->head_softmax(&q, logprob, d, logits, labels, list, ROWS, PADDED, N, dtype);
    k->head_stats(&q, own, again, labels, list, ROWS, 0, N);
    k->head_merge(&q, merged, own, 1, ROWS);
    k->head_dlogits(&q, split, d_split, again, own, merged, labels, list, ROWS, PADDED, 0, N, dtype);
    assert_memory_equal(own, merged, sizeof own);
    assert_memory_equal(logprob, split, sizeof logprob);
    assert_memory_equal(d, d_split, PADDED * N * dtype_bytes(dtype));
    for (int64_t i = ROWS * N; i < PADDED * N; i++)
        assert_true(rig_get(d, i, dtype) == 0.0f);
    free(logits), free(again), free(d), free(d_split);
}

static void test_chunks(void **state)
{
    (void)state;
    check_head(&kernels_reference, 1, 1);
    check_head(device.kernels, 1, 1);
}

static void test_few_labels(void **state)
{
    (void)state;
    check_head(&kernels_reference, 7, 1);
    check_head(device.kernels, 7, 1);
}

static void test_no_label(void **state)
{
    (void)state;
    check_head(&kernels_reference, 0, 1);
    check_head(device.kernels, 0, 1);
}

static void test_ranges(void **state)
{
    (void)state;
    static const int ranges[] = {0, 2, 7};
    for (int i = 0; i < 3; i++) {
        check_head(&kernels_reference, 1, ranges[i]);
        check_head(device.kernels, 1, ranges[i]);
    }
    check_head(device.kernels, 0, 2);
}

/* More ranges than tokens in the vocabulary: all but one are empty, and give nothing. */
static void test_empty_ranges(void **state)
{
    (void)state;
    struct queue q = {.threads = 2};
    float x[] = {1, 2, 3, 4}, w[] = {0.5f, -1, 0.25f, 2, 1, 1}; /* T 2, hidden 2, vocabulary 3 */
    int32_t labels[] = {2, 0};
    float logprob[2][2], dx[2][4], dw[2][6];
    for (int i = 0; i < 2; i++)
        head_run(&(struct head){.k = device.kernels,
                                .q = &q,
                                .dtype = DTYPE_F32,
                                .T = 2,
                                .C = 2,
                                .V = 3,
                                .ranges = i == 0 ? 1 : 4,
                                .chunk = 2,
                                .x = x,
                                .w = w,
                                .labels = labels},
                 logprob[i], dx[i], dw[i]);
    for (int i = 0; i < 6; i++) {
        check_close((double)dw[1][i], (double)dw[0][i], 1e-6, 1e-6);
        check_close((double)dx[1][i % 4], (double)dx[0][i % 4], 1e-6, 1e-6);
        check_close((double)logprob[1][i % 2], (double)logprob[0][i % 2], 1e-6, 1e-6);
    }
}

static void test_fused(void **state)
{
    (void)state;
    const struct kernels *tables[] = {&kernels_reference, device.kernels};
    for (int i = 0; i < 4; i++)
        check_fused(tables[i / 2], i % 2 ? DTYPE_BF16 : DTYPE_F32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks), cmocka_unit_test(test_few_labels),   cmocka_unit_test(test_no_label),
        cmocka_unit_test(test_ranges), cmocka_unit_test(test_empty_ranges), cmocka_unit_test(test_fused),
    };
    return test_device_run(tests, "cpu", 2);
}
