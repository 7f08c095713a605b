/* One table of rows drives three comparisons, in fp32 and bf16:
 *  - the rows of the cpu device (oneDNN, AVX-512, …) against the plain C reference, to a stated tolerance;
 *  - the reference compiled for AVX2 and AVX-512 against the reference: equal bits;
 *  - one thread against two and three, for every table: equal bits.
 * A new fast row is tested by being in the device's table. */
#include "check.h"
#include "device.h"
#include "head.h"
#include "rig.h"
#include "tables.h"

#include <stdio.h>

enum { OUTPUTS = 4 };

/* One run of a case: where it runs, and what came out. */
struct run {
    const struct kernels *k;
    struct queue *q;
    enum dtype dtype;
    uint64_t random;
    int outputs;
    struct {
        void *data;
        int64_t n;
        enum dtype dtype;
    } output[OUTPUTS];
};

static void *output(struct run *r, int64_t n, enum dtype dtype)
{
    void *data = rig_array(n * (int64_t)dtype_bytes(dtype));
    r->output[r->outputs].data = data;
    r->output[r->outputs].n = n;
    r->output[r->outputs].dtype = dtype;
    r->outputs++;
    return data;
}

/* An output that holds something before: in place, or added to. */
static void *output_from(struct run *r, int64_t n, enum dtype dtype)
{
    void *data = output(r, n, dtype), *from = rig_random(&r->random, n, dtype, 1.0f);
    memcpy(data, from, (size_t)n * dtype_bytes(dtype));
    free(from);
    return data;
}

/* Inputs are freed at the end of a run. */
static void *kept[64];
static int kept_count;

static void *keep(void *array)
{
    assert_in_range(kept_count, 0, 63);
    return kept[kept_count++] = array;
}

static void *input(struct run *r, int64_t n)
{
    return keep(rig_random(&r->random, n, r->dtype, 1.0f));
}

static float *input_f32(struct run *r, int64_t n)
{
    return keep(rig_random(&r->random, n, DTYPE_F32, 1.0f));
}

static int32_t *input_below(struct run *r, int64_t n, int32_t limit)
{
    int32_t *array = keep(rig_array(n * 4));
    for (int64_t i = 0; i < n; i++)
        array[i] = (int32_t)(rig_bits(&r->random) % (uint64_t)limit);
    return array;
}

static void *scratch(size_t bytes)
{
    return keep(rig_array((int64_t)bytes));
}

struct shape {
    int64_t a, b, c, d; /* what they mean is the case's own */
};

static void run_matmul(struct run *r, const struct shape *s)
{
    unsigned flags = (unsigned)s->d;
    void *out = flags & MATMUL_ADD ? output_from(r, s->a * s->b, r->dtype) : output(r, s->a * s->b, r->dtype);
    float *wide =
        flags & MATMUL_ADD ? output_from(r, s->a * s->b, DTYPE_F32) : output(r, s->a * s->b, DTYPE_F32);
    void *a = input(r, s->a * s->c), *b = input(r, s->c * s->b);
    void *room = scratch(r->k->matmul_scratch(s->a, s->b, s->c, r->dtype, r->dtype, flags));
    r->k->matmul(r->q, out, a, b, s->a, s->b, s->c, r->dtype, r->dtype, flags, room);
    room = scratch(r->k->matmul_scratch(s->a, s->b, s->c, r->dtype, DTYPE_F32, flags));
    r->k->matmul(r->q, wide, a, b, s->a, s->b, s->c, r->dtype, DTYPE_F32, flags, room);
}

static void run_embed(struct run *r, const struct shape *s) /* T, vocabulary, hidden, first row here */
{
    int64_t cut = s->d < s->b ? s->d : s->b; /* rows 0 … cut-1 elsewhere */
    int32_t *tokens = input_below(r, s->a, (int32_t)s->b);
    r->k->embed_forward(r->q, output(r, s->a * s->c, r->dtype), input(r, s->b * s->c), tokens, s->a, cut,
                        s->b - cut, s->c, r->dtype);
    r->k->embed_backward(r->q, output(r, (s->b - cut) * s->c, DTYPE_F32), input(r, s->a * s->c), tokens, s->a,
                         cut, s->b - cut, s->c, r->dtype);
}

/* Every third row of x gathered, with some zero rows after them, and scattered. */
static void run_gather(struct run *r, const struct shape *s) /* T, n */
{
    int64_t count = (s->a + 2) / 3;
    int32_t *list = keep(rig_array(count * 4));
    for (int64_t i = 0; i < count; i++)
        list[i] = (int32_t)(3 * i);
    void *rows = output(r, (count + 5) * s->b, r->dtype);
    r->k->rows_gather(r->q, rows, input(r, s->a * s->b), list, count, count + 5, s->b, r->dtype);
    r->k->rows_scatter(r->q, output_from(r, s->a * s->b, r->dtype), rows, list, count, s->b, r->dtype);
}

static void run_rmsnorm(struct run *r, const struct shape *s) /* rows, n, add */
{
    int64_t rows = s->a, n = s->b;
    void *x = input(r, rows * n), *w = input(r, n), *dout = input(r, rows * n);
    float *rstd = output(r, rows, DTYPE_F32);
    r->k->rmsnorm_forward(r->q, output(r, rows * n, r->dtype), rstd, x, w, rows, n, 1e-6f, r->dtype);
    float *dw = output(r, n, DTYPE_F32);
    void *dx = s->c ? output_from(r, rows * n, r->dtype) : output(r, rows * n, r->dtype);
    r->k->rmsnorm_backward(r->q, dx, dw, dout, x, w, rstd, rows, n, s->c, r->dtype,
                           scratch(r->k->rmsnorm_backward_scratch(rows, n)));
}

static void run_rmsnorm_in_place(struct run *r, const struct shape *s)
{
    int64_t rows = s->a, n = s->b;
    void *x = output_from(r, rows * n, r->dtype), *w = input(r, n), *before = input(r, rows * n);
    float *rstd = output(r, rows, DTYPE_F32);
    r->k->rmsnorm_forward(r->q, x, rstd, x, w, rows, n, 1e-6f, r->dtype);
    void *dx = output_from(r, rows * n, r->dtype);
    r->k->rmsnorm_backward(r->q, dx, output(r, n, DTYPE_F32), dx, before, w, rstd, rows, n, false, r->dtype,
                           scratch(r->k->rmsnorm_backward_scratch(rows, n)));
}

static void run_add_rmsnorm(struct run *r, const struct shape *s)
{
    int64_t rows = s->a, n = s->b;
    void *a = input(r, rows * n), *b = input(r, rows * n), *w = input(r, n);
    void *sum = output(r, rows * n, r->dtype), *out = output(r, rows * n, r->dtype);
    r->k->add_rmsnorm_forward(r->q, sum, out, output(r, rows, DTYPE_F32), a, b, w, rows, n, 1e-6f, r->dtype);
}

static void run_rope(struct run *r, const struct shape *s) /* T, heads, head_dim, inverse */
{
    enum { POSITIONS = 50 };
    void *x = output_from(r, s->a * s->b * s->c, r->dtype);
    float *cosines = input_f32(r, POSITIONS * s->c / 2), *sines = input_f32(r, POSITIONS * s->c / 2);
    r->k->rope(r->q, x, cosines, sines, input_below(r, s->a, POSITIONS), s->a, s->b, s->c, s->d, r->dtype);
}

/* Sequences of lengths 1, 17, 64, 65, 3, the rest, and some rows of padding. */
static void run_attention(struct run *r, const struct shape *s) /* T, q_heads, kv_heads, head_dim */
{
    static const int32_t starts[] = {0, 1, 18, 82, 147, 150};
    int64_t T = s->a, heads = s->b, kv = s->c, D = s->d;
    int32_t *sequences = keep(rig_array(7 * 4));
    memcpy(sequences, starts, sizeof starts);
    sequences[6] = (int32_t)(T - 5);
    struct attention_shape shape = {.tokens = T,
                                    .key_rows = T,
                                    .sequences = 6,
                                    .longest = T - 155 > 65 ? T - 155 : 65,
                                    .q_heads = (int32_t)heads,
                                    .kv_heads = (int32_t)kv,
                                    .head_dim = (int32_t)D,
                                    .scale = 1.0f / sqrtf((float)D)};
    void *qs = input(r, T * heads * D), *ks = input(r, T * kv * D), *vs = input(r, T * kv * D);
    void *out = output(r, T * heads * D, r->dtype), *dout = input(r, T * heads * D);
    float *lse = keep(rig_array(T * heads * 4));
    r->k->attention_forward(r->q, out, lse, qs, ks, vs, sequences, NULL, &shape, r->dtype,
                            scratch(r->k->attention_forward_scratch(&shape, r->dtype)));
    void *dq = output(r, T * heads * D, r->dtype), *dk = output(r, T * kv * D, r->dtype);
    r->k->attention_backward(r->q, dq, dk, output(r, T * kv * D, r->dtype), dout, out, lse, qs, ks, vs,
                             sequences, NULL, &shape, r->dtype,
                             scratch(r->k->attention_backward_scratch(&shape, r->dtype)));
}

static void run_swiglu(struct run *r, const struct shape *s)
{
    void *gate = output_from(r, s->a, r->dtype), *up = output_from(r, s->a, r->dtype);
    r->k->swiglu_forward(r->q, output(r, s->a, r->dtype), gate, up, s->a, r->dtype);
    r->k->swiglu_backward(r->q, gate, up, input(r, s->a), gate, up, s->a, r->dtype);
}

/* Results among the denormals, where conversions of some processors give zero. */
static void run_denormals(struct run *r, const struct shape *s)
{
    void *gate = keep(rig_random(&r->random, s->a, r->dtype, 1e-19f));
    void *up = keep(rig_random(&r->random, s->a, r->dtype, 1e-19f)), *one = input(r, s->a);
    void *down = keep(rig_random(&r->random, s->a, r->dtype, 1e-39f)), *out = output(r, s->a, r->dtype);
    r->k->swiglu_forward(r->q, out, gate, up, s->a, r->dtype);
    void *dgate = output(r, s->a, r->dtype);
    r->k->swiglu_backward(r->q, dgate, output(r, s->a, r->dtype), down, one, one, s->a, r->dtype);
    float *rstd = keep(rig_array(s->a * 4));
    r->k->rmsnorm_forward(r->q, output(r, s->a, r->dtype), rstd, one, down, 1, s->a, 1e-6f, r->dtype);
}

static void run_add(struct run *r, const struct shape *s)
{
    r->k->add(r->q, output(r, s->a, r->dtype), input(r, s->a), input(r, s->a), s->a, r->dtype);
    r->k->accumulate(r->q, output_from(r, s->a, r->dtype), input_f32(r, s->a), s->a, r->dtype);
}

static void run_head(struct run *r, const struct shape *s) /* T, hidden, vocabulary, one label in d */
{
    int32_t *labels = input_below(r, s->a, (int32_t)s->c);
    for (int64_t t = 0; t < s->a; t++)
        if (s->d == 0 || t % s->d != 0)
            labels[t] = -100;
    struct head h = {.k = r->k,
                     .q = r->q,
                     .dtype = r->dtype,
                     .T = s->a,
                     .C = s->b,
                     .V = s->c,
                     .ranges = 1,
                     .chunk = 384,
                     .labels = labels};
    h.x = input(r, s->a * s->b), h.w = input(r, s->b * s->c);
    float *logprob = output(r, s->a, DTYPE_F32);
    void *dx = output(r, s->a * s->b, r->dtype);
    head_run(&h, logprob, dx, output(r, s->b * s->c, DTYPE_F32));
    head_run(&h, output(r, s->a, DTYPE_F32), NULL, NULL);
}

static void run_sums(struct run *r, const struct shape *s)
{
    r->k->sum_double(r->q, output(r, 1, DTYPE_F64), input_f32(r, s->a), s->a);
    r->k->block_squares(r->q, output(r, (s->a + 255) / 256, DTYPE_F64), input(r, s->a), s->a, r->dtype);
    r->k->cast(r->q, output(r, s->a, DTYPE_BF16), input(r, s->a), s->a, DTYPE_BF16, r->dtype);
    r->k->cast(r->q, output(r, s->a, DTYPE_F32), input(r, s->a), s->a, DTYPE_F32, r->dtype);
}

static void run_tree(struct run *r, const struct shape *s) /* n, stride, count, present */
{
    r->k->tree_sum(r->q, output(r, s->a, DTYPE_F32), input(r, s->b * s->c), s->a, s->b, (int32_t)s->c,
                   (uint64_t)s->d, r->dtype);
}

/* Under a sanitizer, where this one shape would take minutes, of fewer products. */
#if CHECK_SLOW
#define HEAD_OF_TWO_CHUNKS                                                                                   \
    {                                                                                                        \
        260, 4, 66000, 1                                                                                     \
    }
#else
#define HEAD_OF_TWO_CHUNKS                                                                                   \
    {                                                                                                        \
        700, 32, 40000, 1                                                                                    \
    }
#endif

static const struct row_case {
    const char *name;
    void (*run)(struct run *r, const struct shape *s);
    double fp32,
        bf16; /* |fast - reference| over the largest |reference| of the output; bf16: a few last places */
    struct shape shapes[8];
} cases[] = {
    {"matmul",
     run_matmul,
     1e-6,
     8e-3,
     {{33, 65, 17, 0},
      {1, 200, 96, MATMUL_B_TRANSPOSED},
      {300, 128, 128, MATMUL_B_TRANSPOSED},
      {128, 96, 301, MATMUL_A_TRANSPOSED},
      {77, 1, 300, MATMUL_ADD},
      {96, 130, 64, MATMUL_A_TRANSPOSED | MATMUL_ADD},
      {65, 33, 129, MATMUL_A_TRANSPOSED | MATMUL_B_TRANSPOSED},
      {520, 1100, 40, MATMUL_B_TRANSPOSED | MATMUL_ADD}}},
    {"embed",
     run_embed,
     0,
     0,
     {{7, 11, 5, 0}, {500, 37, 96, 0}, {1, 3, 128, 0}, {500, 37, 96, 20}, {9, 4, 8, 4}}},
    {"gather", run_gather, 0, 0, {{1, 5, 0, 0}, {100, 33, 0, 0}, {700, 128, 0, 0}}},
    {"rmsnorm",
     run_rmsnorm,
     0,
     0,
     {{1, 1, 0, 0}, {37, 20, 0, 0}, {1000, 32, 1, 0}, {3000, 128, 0, 0}, {65, 1024, 1, 0}}},
    {"rmsnorm in place", run_rmsnorm_in_place, 0, 0, {{100, 33, 0, 0}, {1000, 128, 0, 0}}},
    {"add rmsnorm", run_add_rmsnorm, 0, 0, {{3, 7, 0, 0}, {300, 128, 0, 0}, {33, 1024, 0, 0}}},
    {"rope", run_rope, 0, 0, {{3, 1, 2, 0}, {200, 4, 32, 0}, {150, 3, 128, 1}}},
    {"attention",
     run_attention,
     3e-6,
     1.6e-2,
     {{200, 4, 2, 32}, {300, 2, 1, 128}, {175, 6, 2, 16}, {160, 1, 1, 20}}},
    {"swiglu", run_swiglu, 0, 0, {{1, 0, 0, 0}, {1000, 0, 0, 0}, {50001, 0, 0, 0}}},
    {"denormals", run_denormals, 0, 0, {{1000, 0, 0, 0}}},
    {"add", run_add, 0, 0, {{1, 0, 0, 0}, {1000, 0, 0, 0}, {50001, 0, 0, 0}}},
    {"head",
     run_head,
     3e-5, /* the reference's own: 40000 small terms added one by one to a large one */
     1e-2,
     {{5, 8, 11, 1}, {300, 64, 500, 2}, {130, 128, 272, 0}, HEAD_OF_TWO_CHUNKS}},
    {"sums and casts", run_sums, 0, 0, {{1, 0, 0, 0}, {255, 0, 0, 0}, {256, 0, 0, 0}, {50001, 0, 0, 0}}},
    {"tree", run_tree, 0, 0, {{5, 5, 1, 1}, {300, 300, 6, 0x3f}, {5000, 5003, 7, 0x5a}, {100, 101, 64, -1}}},
};

static void run_free(struct run *r)
{
    for (int i = 0; i < r->outputs; i++)
        free(r->output[i].data);
    r->outputs = 0;
}

static struct run run_one(const struct row_case *c, const struct shape *s, const struct kernels *k,
                          int threads, enum dtype dtype)
{
    struct queue q = {.threads = threads};
    struct run r = {.k = k, .q = &q, .dtype = dtype, .random = 42};
    c->run(&r, s);
    while (kept_count > 0)
        free(kept[--kept_count]);
    return r;
}

static double output_get(const struct run *r, int o, int64_t i)
{
    if (r->output[o].dtype == DTYPE_F64)
        return ((const double *)r->output[o].data)[i];
    return (double)rig_get(r->output[o].data, i, r->output[o].dtype);
}

static void compare(const struct row_case *c, const struct shape *s, struct run *got, struct run *want,
                    double tolerance, const char *what)
{
    assert_int_equal(got->outputs, want->outputs);
    for (int o = 0; o < want->outputs; o++) {
        double largest = 0;
        for (int64_t i = 0; i < want->output[o].n; i++)
            largest = fmax(largest, fabs(output_get(want, o, i)));
        for (int64_t i = 0; i < want->output[o].n; i++) {
            double g = output_get(got, o, i), w = output_get(want, o, i);
            if (!(fabs(g - w) <= tolerance * largest))
                fail_msg("%s %s (%ld %ld %ld %ld) %s: output %d [%ld]: got %.9g, want %.9g, largest %.9g",
                         c->name, dtype_name(got->dtype), (long)s->a, (long)s->b, (long)s->c, (long)s->d,
                         what, o, (long)i, g, w, largest);
        }
    }
    run_free(got);
}

static void for_all(void (*check)(const struct row_case *c, const struct shape *s, enum dtype dtype))
{
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (int s = 0; s < 8 && cases[c].shapes[s].a > 0; s++) {
            check(&cases[c], &cases[c].shapes[s], DTYPE_F32);
            check(&cases[c], &cases[c].shapes[s], DTYPE_BF16);
        }
}

static struct device device;

static void check_fast(const struct row_case *c, const struct shape *s, enum dtype dtype)
{
    struct run want = run_one(c, s, &kernels_reference, 1, dtype);
    struct run got = run_one(c, s, device.kernels, 2, dtype);
    compare(c, s, &got, &want, dtype == DTYPE_F32 ? c->fp32 : c->bf16, "device against reference");
    run_free(&want);
}

static void check_levels(const struct row_case *c, const struct shape *s, enum dtype dtype)
{
    struct run want = run_one(c, s, &kernels_reference, 1, dtype);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        struct run got = run_one(c, s, &kernels_v3, 1, dtype);
        compare(c, s, &got, &want, 0, "AVX2 against baseline");
    }
    if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
        struct run got = run_one(c, s, &kernels_v4, 1, dtype);
        compare(c, s, &got, &want, 0, "AVX-512 against baseline");
    }
    run_free(&want);
}

static void check_threads(const struct row_case *c, const struct shape *s, enum dtype dtype)
{
    const struct kernels *tables[] = {&kernels_reference, device.kernels};
    for (int t = 0; t < 2; t++) {
        struct run want = run_one(c, s, tables[t], 1, dtype);
        for (int threads = 2; threads <= (CHECK_SLOW ? 2 : 3); threads++) {
            struct run got = run_one(c, s, tables[t], threads, dtype);
            compare(c, s, &got, &want, 0, "threads against one thread");
        }
        run_free(&want);
    }
}

static void test_fast(void **state)
{
    (void)state;
    for_all(check_fast);
}

static void test_levels(void **state)
{
    (void)state;
    for_all(check_levels);
}

static void test_threads(void **state)
{
    (void)state;
    for_all(check_threads);
}

static int setup(void **state)
{
    (void)state;
    char why[256] = "";
    int result = device_open(&device, "cpu", 3, why, sizeof why);
    if (result == 0)
        printf("%s; %s\n", device.description, device.products);
    return result;
}

static int teardown(void **state)
{
    (void)state;
    device_close(&device);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fast),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
