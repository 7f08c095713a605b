/* The update of every policy beside this machine's best copy rate: rounds alternate over all rows, after one
 * that warms up.
 *
 *     bench_update [thousands (2^10) of elements [rounds [threads]]]
 *
 * Prints one JSON object: a row each with its name, the bytes of an element that it reads plus writes, and
 * nanoseconds an element of each round. "fp32-master, unmeasured" is the same kernel compiled without the
 * precision measures. */
#include "device.h"
#include "kernels.h"
#include "optimizer.h"
#include "tables.h"

#include <immintrin.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS_MAX = 101 };

void overlay_update_unmeasured(struct kernels *table); /* update_avx512.c, compiled once more */

struct row {
    char name[96];
    double bytes; /* moved for an element */
    double ns[ROUNDS_MAX];
    struct policy policy;          /* of an update */
    const struct kernels *kernels; /* of an update, or NULL: a copy */
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

static double update_ns(struct bench *b, const struct row *row)
{
    const struct policy *policy = &row->policy;
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
    struct state_view view = {.w_format = policy->weight,
                              .m_format = policy->m,
                              .v_format = policy->v,
                              .w = arrays[0][0],
                              .w_extra = arrays[0][1],
                              .m = arrays[1][0],
                              .m_extra = arrays[1][1],
                              .v = arrays[2][0],
                              .v_extra = arrays[2][1]};
    struct optimizer_settings settings = optimizer_settings_default();
    struct update_scalars scalars = optimizer_scalars(&settings, 1e-4, 1.0, 5, 5, 0, true);
    double begin = now_ns();
    row->kernels->update(b->device.queue, b->measures, &view, b->gradients[policy->accumulate == DTYPE_BF16],
                         policy->accumulate, b->n, &(struct index_map){0}, &scalars, b->scratch);
    return (now_ns() - begin) / (double)b->n;
}

static void fill(struct bench *b)
{
    device_zero(&b->device, b->state, (size_t)b->n * 12);
    b->device.kernels->init_normal(b->device.queue, b->gradients[0], b->n, &(struct index_map){0}, 1, 0.01);
    b->device.kernels->cast(b->device.queue, b->gradients[1], b->gradients[0], b->n, DTYPE_BF16, DTYPE_F32);
}

static const char *const POLICY_TEXTS[] = {"fp32-master",
                                           "fp32-master+accumulate=bf16",
                                           "fp32-lean",
                                           "fp32-q8",
                                           "fp24-q8",
                                           "fp32-split",
                                           "bf16-kahan",
                                           "bf16-sr",
                                           "bf16",
                                           "bf16+m=fp32+v=fp32",
                                           "fp32-master+m=bf16+v=bf16"};
enum { POLICIES = sizeof POLICY_TEXTS / sizeof *POLICY_TEXTS, COPIES = 2, ROWS = COPIES + 1 + POLICIES };
enum { UNMEASURED = COPIES };

static bool rows_fill(struct row rows[ROWS], const struct kernels *kernels, const struct kernels *unmeasured)
{
    rows[0] = (struct row){.name = "copy, memcpy", .bytes = 12};
    rows[1] = (struct row){.name = "copy, non-temporal", .bytes = 12};
    for (int i = COPIES; i < ROWS; i++) {
        const char *text = i == UNMEASURED ? POLICY_TEXTS[0] : POLICY_TEXTS[i - UNMEASURED - 1];
        struct err err = ERR_INIT;
        rows[i] = (struct row){.kernels = i == UNMEASURED ? unmeasured : kernels};
        if (!policy_parse(&rows[i].policy, text, NULL, &err))
            return false;
        snprintf(rows[i].name, sizeof rows[i].name, "%s%s", text, i == UNMEASURED ? ", unmeasured" : "");
        rows[i].bytes =
            2 * policy_bytes_per_parameter(&rows[i].policy) + (double)dtype_bytes(rows[i].policy.accumulate);
    }
    return true;
}

static void measure(struct bench *b, struct row rows[ROWS], int rounds)
{
    for (int round = -1; round < rounds; round++)
        for (int i = 0; i < ROWS; i++) {
            if (rows[i].kernels) {
                device_zero(&b->device, b->state, (size_t)b->n * 12);
                update_ns(b, &rows[i]); /* from zeros: sane values for the timed one */
            }
            double ns = rows[i].kernels ? update_ns(b, &rows[i]) : copy_ns(b, i == 1);
            if (round >= 0)
                rows[i].ns[round] = ns;
        }
}

static void print(const struct bench *b, const struct row rows[ROWS], int rounds)
{
    printf("{\"elements\": %lld, \"threads\": %d, \"rows\": [", (long long)b->n, b->threads);
    for (int i = 0; i < ROWS; i++) {
        printf("%s\n{\"name\": \"%s\", \"bytes\": %.4g, \"ns\": [", i ? "," : "", rows[i].name,
               rows[i].bytes);
        for (int round = 0; round < rounds; round++)
            printf("%s%.5f", round ? ", " : "", rows[i].ns[round]);
        printf("]}");
    }
    printf("]}\n");
}

int main(int argc, char **argv)
{
    static struct row rows[ROWS];
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
    struct kernels unmeasured = *b.device.kernels;
    overlay_update_unmeasured(&unmeasured);
    if (!b.state || !b.gradients[0] || !b.gradients[1] || !b.scratch || !b.measures ||
        !rows_fill(rows, b.device.kernels, &unmeasured))
        return 1;
    fill(&b);
    measure(&b, rows, rounds);
    print(&b, rows, rounds);
    return 0;
}
