/* Times a model's forward and backward alone: no ranks, no optimizer, weights in memory.
 *
 *     step [quickstart|512|2048] [bf16|fp32] [none|block] [threads] [runs]
 *
 * Prints one line a run and the medians: seconds forward and backward, model FLOPs a second. The timings are
 * of model_run with a host that hands out its memory as it is. */
#include "rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RUNS_MAX 101

/* The device's table once more, each row with a clock around it: of the processor's time, all threads
 * together, so that what else the machine does counts little. */
static const struct kernels *real;
static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
static struct row {
    const char *name;
    double seconds;
    long calls;
} clocked[] = {
#define X(name, ...) {#name, 0, 0},
    KERNELS(X) KERNEL_SCRATCHES(X)
#undef X
};
enum {
#define X(name, ...) ROW_##name,
    KERNELS(X) KERNEL_SCRATCHES(X)
#undef X
        ROWS
};
#define X(name, parameters, arguments)                                                                       \
    static void timed_##name parameters                                                                      \
    {                                                                                                        \
        double start = now_s();                                                                              \
        real->name arguments;                                                                                \
        clocked[ROW_##name].seconds += now_s() - start;                                                      \
        clocked[ROW_##name].calls++;                                                                         \
    }
KERNELS(X)
#undef X
/* Products by their purpose: forward, the input's gradient, the weight's. */
static struct row products[] = {
    {.name = "  forward"}, {.name = "  input gradient"}, {.name = "  weight gradient"}};
static double product_flops[3];
static void timed_product(struct queue *q, void *out, const void *a, const void *b, int64_t m, int64_t n,
                          int64_t k, enum dtype in, enum dtype result, unsigned flags, void *scratch)
{
    int kind = flags & MATMUL_A_TRANSPOSED ? 2 : flags & MATMUL_B_TRANSPOSED ? 0 : 1;
    double start = clocked[ROW_matmul].seconds;
    timed_matmul(q, out, a, b, m, n, k, in, result, flags, scratch);
    products[kind].seconds += clocked[ROW_matmul].seconds - start;
    products[kind].calls++;
    product_flops[kind] += 2.0 * (double)m * (double)n * (double)k;
}

static size_t timed_matmul_scratch(int64_t m, int64_t n, int64_t k, enum dtype in, enum dtype out,
                                   unsigned flags)
{
    double start = now_s();
    size_t bytes = real->matmul_scratch(m, n, k, in, out, flags);
    clocked[ROW_matmul_scratch].seconds += now_s() - start;
    clocked[ROW_matmul_scratch].calls++;
    return bytes;
}
static struct kernels timed_table(const struct kernels *table)
{
    struct kernels timed = *table;
    real = table;
#define X(name, parameters, arguments) timed.name = timed_##name;
    KERNELS(X)
#undef X
    timed.matmul = timed_product;
    timed.matmul_scratch = timed_matmul_scratch;
    return timed;
}

static int by_seconds(const void *a, const void *b)
{
    double x = ((const struct row *)a)->seconds, y = ((const struct row *)b)->seconds;
    return (x < y) - (x > y);
}

static void print_shares(double seconds, int runs)
{
    double rest = seconds;
    qsort(clocked, ROWS, sizeof *clocked, by_seconds);
    for (int i = 0; i < ROWS && clocked[i].calls > 0; i++) {
        printf("%-28s %8.3f ms %5.1f %% %6ld calls\n", clocked[i].name, 1e3 * clocked[i].seconds / runs,
               100 * clocked[i].seconds / seconds, clocked[i].calls / runs);
        rest -= clocked[i].seconds;
    }
    for (int i = 0; i < 3; i++)
        printf("%-28s %8.3f ms %5.1f %% %6ld calls %6.1f GFLOP/s a thread\n", products[i].name,
               1e3 * products[i].seconds / runs, 100 * products[i].seconds / seconds,
               products[i].calls / runs, 1e-9 * product_flops[i] / products[i].seconds);
    printf("%-28s %8.3f ms %5.1f %%\n", "between kernels", 1e3 * rest / runs, 100 * rest / seconds);
}

static const struct preset {
    const char *name;
    int64_t hidden, layers, q_heads, kv_heads, head_dim, ffn, vocabulary;
    int64_t sequences, length;
} presets[] = {
    {"quickstart", 128, 4, 4, 2, 32, 384, 259, 64,
     80}, /* the quickstart's model, a global batch of short chats */
    {"512", 1024, 8, 16, 8, 128, 3072, 8192, 1, 512},
    {"2048", 1024, 8, 16, 8, 128, 3072, 8192, 1, 2048},
};

static struct model_config config_of(const struct preset *p)
{
    return (struct model_config){
        .architecture = "Qwen3ForCausalLM",
        .hidden = p->hidden,
        .layers = p->layers,
        .q_heads = p->q_heads,
        .kv_heads = p->kv_heads,
        .head_dim = p->head_dim,
        .ffn = p->ffn,
        .vocabulary = p->vocabulary,
        .positions = 4096,
        .rms_eps = 1e-6,
        .rope_theta = 1e6,
        .initializer_range = 0.02,
        .tied = true,
        .eos_token = -1,
    };
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, ascending);
    return values[count / 2];
}

static void measure(struct rig *rig, int runs, double flops)
{
    struct tape_host tape = test_host_tape(&rig->host);
    struct tape_plan plan = model_plan(&rig->model, rig->batch.batch.tokens, rig->batch.batch.sequences,
                                       rig->batch.batch.longest, true);
    double forward[RUNS_MAX], backward[RUNS_MAX], both[RUNS_MAX], sum = 0;
    const struct kernels timed = timed_table(rig->device.kernels);
    rig->device.kernels = &timed;
    rig->host.kind = true;
    rig_arenas(rig, plan);
    printf("%s, %s; arenas %.1f + %.1f MB\n", rig->device.description, rig->device.products,
           (double)plan.activation_bytes * 1e-6, (double)plan.gradient_bytes * 1e-6);
    for (int run = -2; run < runs; run++) { /* two warm up: primitives are made, pages come */
        struct model_pass pass;
        test_host_forget(&rig->host);
        double start = now_s();
        model_run(&rig->model, &rig->batch.batch, &tape, rig_memory(rig), rig->sum, true, &pass);
        if (run < 0) {
            for (int i = 0; i < ROWS; i++)
                clocked[i] = (struct row){.name = clocked[i].name};
            for (int i = 0; i < 3; i++) {
                products[i] = (struct row){.name = products[i].name};
                product_flops[i] = 0;
            }
            continue;
        }
        sum += now_s() - start;
        forward[run] = pass.forward_s;
        backward[run] = pass.backward_s;
        both[run] = pass.forward_s + pass.backward_s;
        printf("run %d: forward %.4f s, backward %.4f s, %.1f GFLOP/s\n", run, pass.forward_s,
               pass.backward_s, 1e-9 * flops / both[run]);
    }
    double least = median(both, runs);
    printf("median: forward %.4f s, backward %.4f s, %.1f GFLOP/s; best %.1f GFLOP/s\n",
           median(forward, runs), median(backward, runs), 1e-9 * flops / least, 1e-9 * flops / both[0]);
    print_shares(sum, runs);
    rig->device.kernels = real;
}

int main(int count, char **arguments)
{
    const struct preset *preset = NULL;
    for (size_t i = 0; count > 1 && i < sizeof presets / sizeof *presets; i++)
        if (strcmp(arguments[1], presets[i].name) == 0)
            preset = &presets[i];
    int runs = count > 5 ? atoi(arguments[5]) : 9;
    if (!preset || runs < 1 || runs > RUNS_MAX) {
        fprintf(stderr,
                "usage: step quickstart|512|2048 [bf16|fp32] [none|block] [threads] [runs, 1 to %d]\n",
                RUNS_MAX);
        return 2;
    }
    bool bf16 = count < 3 || strcmp(arguments[2], "bf16") == 0;
    bool recompute = count > 3 && strcmp(arguments[3], "block") == 0;
    int64_t lengths[65] = {0};
    for (int64_t s = 0; s < preset->sequences; s++)
        lengths[s] = preset->length;
    struct rig rig;
    struct model_config config = config_of(preset);
    rig_open(&rig, &config,
             &(struct rig_want){bf16 ? DTYPE_BF16 : DTYPE_F32, recompute, count > 4 ? atoi(arguments[4]) : 0,
                                lengths, 0, test_weights});
    double squares = (double)(preset->sequences * preset->length * preset->length);
    measure(&rig, runs, model_config_flops(&config, preset->sequences * preset->length, squares));
    rig_close(&rig);
    return 0;
}
