/* The update of every policy in nanoseconds an element and gigabytes a second, beside this machine's best
 * copy rate measured in the same run: rounds alternate over all rows, medians and bests are shown (on a
 * busy machine only the bests mean something). Usage: bench_update
 * [thousands (2^10) of elements [rounds [threads]]]. Bytes are those read plus written; a copy reads and
 * writes its bytes once. */
#include "device.h"
#include "kernels.h"
#include "optimizer.h"

#include <immintrin.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROWS_MAX = 24, ROUNDS_MAX = 101 };

struct row {
    char name[96];
    double bytes; /* moved for an element */
    double ns[ROUNDS_MAX];
};

struct bench {
    struct device device;
    int64_t n;
    int threads;
    char *state;        /* 12 bytes an element, and what extra arrays need */
    void *gradients[2]; /* fp32, bf16 */
    void *scratch;
    struct update_measures *measures;
};

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double copy_ns(struct bench *b, bool stream)
{
    char *from = b->state, *to = b->state + b->n * 6; /* half of the state each */
    int64_t bytes = b->n * 6, slice = bytes / b->threads / 64 * 64;
    double begin = now_ns();
#pragma omp parallel num_threads(b->threads)
    {
        int64_t at = omp_get_thread_num() * slice;
        if (!stream) {
            memcpy(to + at, from + at, (size_t)slice);
        } else {
            for (int64_t i = 0; i < slice; i += 64)
                _mm512_stream_si512((void *)(to + at + i), _mm512_load_si512(from + at + i));
            _mm_sfence();
        }
    }
    return (now_ns() - begin) / (double)b->n;
}

static double update_ns(struct bench *b, const struct policy *policy)
{
    char *at = b->state;
    void *arrays[3][2];
    enum dtype dtypes[3][2] = {{weight_storage[policy->weight][0], weight_storage[policy->weight][1]},
                               {moment_storage[policy->m][0], moment_storage[policy->m][1]},
                               {moment_storage[policy->v][0], moment_storage[policy->v][1]}};
    for (int part = 0; part < 3; part++)
        for (int extra = 0; extra < 2; extra++) {
            arrays[part][extra] = dtypes[part][extra] == DTYPE_COUNT ? NULL : at;
            if (arrays[part][extra])
                at += b->n * (int64_t)dtype_bytes(dtypes[part][extra]) / (part > 0 && extra ? Q8_GROUP : 1);
        }
    struct state_view view = {policy->weight, policy->m,    policy->v,    arrays[0][0], arrays[0][1],
                              arrays[1][0],   arrays[1][1], arrays[2][0], arrays[2][1]};
    struct optimizer_settings settings = optimizer_settings_default();
    struct update_scalars scalars = optimizer_scalars(&settings, 1e-4, 1.0, 5, 5, 0, true);
    double begin = now_ns();
    b->device.kernels->update(b->device.queue, b->measures, &view,
                              b->gradients[policy->accumulate == DTYPE_BF16], policy->accumulate, b->n, 0,
                              &scalars, b->scratch);
    return (now_ns() - begin) / (double)b->n;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void fill(struct bench *b)
{
    device_zero(&b->device, b->state, (size_t)b->n * 12);
    b->device.kernels->init_normal(b->device.queue, b->gradients[0], b->n, 0, 1, 0.01);
    b->device.kernels->cast(b->device.queue, b->gradients[1], b->gradients[0], b->n, DTYPE_BF16, DTYPE_F32);
}

int main(int argc, char **argv)
{
    static const char *const policies[] = {"fp32-master",
                                           "fp32-master+accumulate=bf16",
                                           "fp32-lean",
                                           "fp32-q8",
                                           "fp24-q8",
                                           "bf16-kahan",
                                           "bf16-sr",
                                           "bf16",
                                           "bf16+m=fp32+v=fp32",
                                           "fp32-master+m=bf16+v=bf16"};
    enum { POLICIES = sizeof policies / sizeof *policies };
    struct bench b = {.n = (argc > 1 ? atoll(argv[1]) : 16384) << 10};
    int rounds = argc > 2 ? atoi(argv[2]) : 15;
    char why[256];
    if (rounds < 1 || rounds > ROUNDS_MAX || b.n < 1 ||
        device_open(&b.device, "cpu", argc > 3 ? atoi(argv[3]) : 0, why, sizeof why) != 0)
        return 1;
    b.threads = b.device.threads;
    b.state = device_allocate(&b.device, (size_t)b.n * 12);
    b.gradients[0] = device_allocate(&b.device, (size_t)b.n * 4);
    b.gradients[1] = device_allocate(&b.device, (size_t)b.n * 2);
    b.scratch = device_allocate(&b.device, b.device.kernels->update_scratch(b.n));
    b.measures = device_allocate(&b.device, sizeof *b.measures);
    if (!b.state || !b.gradients[0] || !b.gradients[1] || !b.scratch || !b.measures)
        return 1;
    static struct row rows[ROWS_MAX] = {{.name = "copy, memcpy", .bytes = 12},
                                        {.name = "copy, non-temporal", .bytes = 12}};
    struct policy parsed[POLICIES];
    for (int p = 0; p < POLICIES; p++) {
        struct err err = ERR_INIT;
        if (!policy_parse(&parsed[p], policies[p], NULL, &err))
            return 1;
        snprintf(rows[2 + p].name, sizeof rows[2 + p].name, "%s", policies[p]);
        rows[2 + p].bytes =
            2 * policy_bytes_per_parameter(&parsed[p]) + (double)dtype_bytes(parsed[p].accumulate);
    }
    fill(&b);
    for (int round = -1; round < rounds; round++) /* the first warms up */
        for (int i = 0; i < 2 + POLICIES; i++) {
            if (i >= 2)
                device_zero(&b.device, b.state, (size_t)b.n * 12);
            if (i >= 2)
                update_ns(&b, &parsed[i - 2]); /* from zeros: sane values for the timed one */
            double ns = i < 2 ? copy_ns(&b, i == 1) : update_ns(&b, &parsed[i - 2]);
            if (round >= 0)
                rows[i].ns[round] = ns;
        }
    double best_copy = 0;
    printf("%s, %d threads, %lld elements, %d rounds\n", b.device.description, b.threads, (long long)b.n,
           rounds);
    printf("%-32s %10s %10s %10s %12s %12s\n", "", "B/element", "ns median", "ns best", "GB/s median",
           "of the copy");
    for (int i = 0; i < 2 + POLICIES; i++) {
        qsort(rows[i].ns, (size_t)rounds, sizeof(double), compare_doubles);
        double median = rows[i].ns[rounds / 2], rate = rows[i].bytes / rows[i].ns[0];
        best_copy = i < 2 && rate > best_copy ? rate : best_copy;
        printf("%-32s %10.3f %10.4f %10.4f %12.1f %12.2f\n", rows[i].name, rows[i].bytes, median,
               rows[i].ns[0], rate, rate / best_copy);
    }
    return 0;
}
