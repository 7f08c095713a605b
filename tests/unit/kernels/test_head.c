/* What small problems of the head do not reach: several chunks of tokens, and a micro-batch without a label.
 */
#include "check.h"
#include "device.h"
#include "rig.h"

#include <stdio.h>

enum { T = 600, H = 3, V = 40000 }; /* two chunks: one holds 384 rows of 40000 logits */

static struct device device;

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
static void check_head(const struct kernels *k, int every_th)
{
    struct queue q = {.threads = 2};
    struct head_shape shape = {T, H, V};
    uint64_t random = 4;
    float *x = rig_random(&random, T * H, DTYPE_F32, 1), *w = rig_random(&random, V * H, DTYPE_F32, 1);
    int32_t labels[T];
    for (int t = 0; t < T; t++)
        labels[t] = every_th > 0 && t % every_th == 0 ? (int32_t)(rig_bits(&random) % V) : -100;
    float *logprob = rig_array(T * 4), *dx = rig_array(T * H * 4), *dw = rig_array(V * H * 4);
    void *scratch = rig_array((int64_t)k->head_loss_scratch(&shape, true, DTYPE_F32));
    k->head_loss(&q, logprob, dx, dw, x, w, labels, &shape, DTYPE_F32, scratch);

    double *want = rig_array(T * 8), *want_dx = rig_array(T * H * 8), *want_dw = rig_array(V * H * 8);
    naive(x, w, labels, want, want_dx, want_dw);
    check_tensor("logprob", logprob, want, T);
    check_tensor("dx", dx, want_dx, T * H);
    check_tensor("dw", dw, want_dw, V * H);
    void *all[] = {x, w, logprob, dx, dw, scratch, want, want_dx, want_dw};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static void test_chunks(void **state)
{
    (void)state;
    check_head(&kernels_reference, 1);
    check_head(device.kernels, 1);
}

static void test_few_labels(void **state)
{
    (void)state;
    check_head(&kernels_reference, 7);
    check_head(device.kernels, 7);
}

static void test_no_label(void **state)
{
    (void)state;
    check_head(&kernels_reference, 0);
    check_head(device.kernels, 0);
}

int main(void)
{
    char why[256] = "";
    if (device_open(&device, "cpu", 2, why, sizeof why) != 0) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_few_labels),
        cmocka_unit_test(test_no_label),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close(&device);
    return failed;
}
