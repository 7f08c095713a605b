/* Every op's forward against a naive one in double, written here from the formulas, and every op's backward
 * against central finite differences of that forward: in fp32 to 1e-5 of the tensor's largest value. In bf16,
 * on inputs that bf16 holds, against the fp32 result: 2^-8 of the element for what is rounded once, 2^-6 of
 * the largest where products of rounded values are summed. For the reference's table and the device's. */
#include "check.h"
#include "device_main.h"
#include "head.h"
#include "rig.h"

#include <stdio.h>

enum { INPUTS = 3, SAMPLES = 150 };

/* out = f(inputs); the loss is <out, dout>. */
struct problem {
    const char *name;
    void (*forward)(const struct problem *p, double *const in[INPUTS], double *out);
    void (*run)(const struct problem *p, struct queue *q, const struct kernels *k, enum dtype dtype,
                void *const in[INPUTS], const void *dout, void *out, void *din[INPUTS]);
    int64_t in_count[INPUTS], out_count;
    bool wide[INPUTS]; /* this gradient is fp32 in bf16 compute too */
    bool wide_out;
    double bf16_of_largest; /* beyond one rounding */
    int64_t size[4];        /* the problem's own */
};

static const int32_t starts[] = {0, 1, 6, 17}; /* of T = 20 rows; three are padding */
/* Segments of the same rows: the second and third share keys; nobody sees keys 0, 1, 6, 7 and from 20 on. */
static const struct attention_keys segment_keys[] = {{2, 4}, {8, 12}, {8, 11}};
enum { KEY_ROWS = 23 };
static const int32_t labels[] = {3, -100, 0, 28, -1, 3, 7, 7, 12, -100};
static const int32_t tokens[] = {4, 0, 4, 2, 4, 6, 1};
static const int32_t positions[] = {0, 1, 2, 0, 1, 9};

enum { ROPE_POSITIONS = 10 };

static float rope_angle(int64_t position, int64_t i)
{
    return (float)position * (0.7f - 0.1f * (float)i);
}

/* linear: out[T][n] = x[T][k] w[n][k]^T; sizes T, n, k */
static void linear_forward(const struct problem *p, double *const in[INPUTS], double *out)
{
    int64_t T = p->size[0], n = p->size[1], k = p->size[2];
    for (int64_t t = 0; t < T; t++)
        for (int64_t j = 0; j < n; j++) {
            out[t * n + j] = 0;
            for (int64_t i = 0; i < k; i++)
                out[t * n + j] += in[0][t * k + i] * in[1][j * k + i];
        }
}

static void linear_run(const struct problem *p, struct queue *q, const struct kernels *k, enum dtype dtype,
                       void *const in[INPUTS], const void *dout, void *out, void *din[INPUTS])
{
    int64_t T = p->size[0], N = p->size[1], K = p->size[2];
    void *scratch = rig_array((int64_t)(k->matmul_scratch(T, N, K, dtype, dtype, MATMUL_B_TRANSPOSED) +
                                        k->matmul_scratch(T, K, N, dtype, dtype, 0) +
                                        k->matmul_scratch(N, K, T, dtype, DTYPE_F32, MATMUL_A_TRANSPOSED)));
    k->matmul(q, out, in[0], in[1], T, N, K, dtype, dtype, MATMUL_B_TRANSPOSED, scratch);
    k->matmul(q, din[0], dout, in[1], T, K, N, dtype, dtype, 0, scratch);
    k->matmul(q, din[1], dout, in[0], N, K, T, dtype, DTYPE_F32, MATMUL_A_TRANSPOSED, scratch);
    free(scratch);
}

/* embedding: sizes T, rows of the vocabulary, hidden, the first row */
static void embed_forward(const struct problem *p, double *const in[INPUTS], double *out)
{
    for (int64_t t = 0; t < p->size[0]; t++)
        for (int64_t i = 0; i < p->size[2]; i++) {
            int64_t row = tokens[t] - p->size[3];
            out[t * p->size[2] + i] = row >= 0 && row < p->size[1] ? in[0][row * p->size[2] + i] : 0;
        }
}

static void embed_run(const struct problem *p, struct queue *q, const struct kernels *k, enum dtype dtype,
                      void *const in[INPUTS], const void *dout, void *out, void *din[INPUTS])
{
    k->embed_forward(q, out, in[0], tokens, p->size[0], p->size[3], p->size[1], p->size[2], dtype);
    k->embed_backward(q, din[0], dout, tokens, p->size[0], p->size[3], p->size[1], p->size[2], dtype);
}

/* RMSNorm: sizes rows, n */
static void norm_forward(const struct problem *p, double *const in[INPUTS], double *out)
{
    int64_t n = p->size[1];
    for (int64_t r = 0; r < p->size[0]; r++) {
        double squares = 0;
        for (int64_t i = 0; i < n; i++)
            squares += in[0][r * n + i] * in[0][r * n + i];
        for (int64_t i = 0; i < n; i++)
            out[r * n + i] = in[0][r * n + i] / sqrt(squares / (double)n + 0.01) * in[1][i];
    }
}

static void norm_run(const struct problem *p, struct queue *q, const struct kernels *k, enum dtype dtype,
                     void *const in[INPUTS], const void *dout, void *out, void *din[INPUTS])
{
    int64_t rows = p->size[0], n = p->size[1];
    float *rstd = rig_array(rows * 4);
    void *scratch = rig_array((int64_t)k->rmsnorm_backward_scratch(rows, n));
    k->rmsnorm_forward(q, out, rstd, in[0], in[1], rows, n, 0.01f, dtype);
    k->rmsnorm_backward(q, din[0], din[1], dout, in[0], in[1], rstd, rows, n, false, dtype, scratch);
    free(rstd);
    free(scratch);
}

/* The residual stream's step, a + b then RMSNorm; its backward as the model plays it: the gradient that comes
 * along the stream (here none) plus the norm's, the same for a and b. */
static void add_norm_forward(const struct problem *p, double *const in[INPUTS], double *out)
{
    double *sum = rig_array(p->in_count[0] * 8), *sums[INPUTS] = {sum, in[2]};
    for (int64_t i = 0; i < p->in_count[0]; i++)
        sum[i] = in[0][i] + in[1][i];
    norm_forward(p, sums, out);
    free(sum);
}

static void add_norm_run(const struct problem *p, struct queue *q, const struct kernels *k, enum dtype dtype,
                         void *const in[INPUTS], const void *dout, void *out, void *din[INPUTS])
{
    int64_t rows = p->size[0], n = p->size[1], bytes = rows * n * (int64_t)dtype_bytes(dtype);
    float *rstd = rig_array(rows * 4);
    void *sum = rig_array(bytes), *scratch = rig_array((int64_t)k->rmsnorm_backward_scratch(rows, n));
    k->add_rmsnorm_forward(q, sum, out, rstd, in[0], in[1], in[2], rows, n, 0.01f, dtype);
    memset(din[0], 0, (size_t)bytes);
    k->rmsnorm_backward(q, din[0], din[2], dout, sum, in[2], rstd, rows, n, true, dtype, scratch);
    memcpy(din[1], din[0], (size_t)bytes);
    free(rstd);
    free(sum);
    free(scratch);
}

/* RoPE: sizes T, heads, head_dim */
static void rope_forward(const struct problem *p, double *const in[INPUTS], double *out)
{
    int64_t D = p->size[2];
    for (int64_t row = 0; row < p->size[0] * p->size[1]; row++)
        for (int64_t i = 0; i < D / 2; i++) {
            double angle = (double)rope_angle(positions[row / p->size[1]], i);
            double x1 = in[0][row * D + i], x2 = in[0][row * D + i + D / 2];
            out[row * D + i] = x1 * cos(angle) - x2 * sin(angle);
            out[row * D + i + D / 2] = x2 * cos(angle) + x1 * sin(angle);
        }
}

static void rope_run(const struct problem *p, struct queue *q, const struct kernels *k, enum dtype dtype,
                     void *const in[INPUTS], const void *dout, void *out, void *din[INPUTS])
{
    int64_t half = p->size[2] / 2;
    float *cosines = rig_array(ROPE_POSITIONS * half * 4), *sines = rig_array(ROPE_POSITIONS * half * 4);
    for (int64_t i = 0; i < ROPE_POSITIONS * half; i++) {
        cosines[i] = cosf(rope_angle(i / half, i % half));
        sines[i] = sinf(rope_angle(i / half, i % half));
    }
    size_t bytes = (size_t)p->out_count * dtype_bytes(dtype);
    memcpy(out, in[0], bytes);
    memcpy(din[0], dout, bytes);
    k->rope(q, out, cosines, sines, positions, p->size[0], p->size[1], p->size[2], false, dtype);
    k->rope(q, din[0], cosines, sines, positions, p->size[0], p->size[1], p->size[2], true, dtype);
    free(cosines);
    free(sines);
}

/* Attention: sizes T, query heads, key/value heads, head_dim; its keys have rows of their own, in segments,
 * or the queries' */
static bool segmented(const struct problem *p)
{
    return p->in_count[1] == KEY_ROWS * p->size[2] * p->size[3];
}

static void attend(const struct problem *p, double *const in[INPUTS], double *out, int64_t first,
                   int64_t count, int64_t t, int64_t h)
{
    int64_t heads = p->size[1], kvs = p->size[2], D = p->size[3], kv = h / (heads / kvs);
    double weight[64], total = 0;
    for (int64_t j = 0; j < count; j++) {
        double score = 0;
        for (int64_t i = 0; i < D; i++)
            score += in[0][(t * heads + h) * D + i] * in[1][((first + j) * kvs + kv) * D + i];
        weight[j] = exp(score / sqrt((double)D));
        total += weight[j];
    }
    for (int64_t j = 0; j < count; j++)
        for (int64_t i = 0; i < D; i++)
            out[(t * heads + h) * D + i] += weight[j] / total * in[2][((first + j) * kvs + kv) * D + i];
}

static void attention_forward(const struct problem *p, double *const in[INPUTS], double *out)
{
    memset(out, 0, (size_t)p->out_count * sizeof(double));
    for (int s = 0; s < 3; s++)
        for (int64_t t = starts[s]; t < starts[s + 1]; t++)
            for (int64_t h = 0; h < p->size[1]; h++)
                if (segmented(p))
                    attend(p, in, out, segment_keys[s].first, segment_keys[s].count - (starts[s + 1] - 1 - t),
                           t, h);
                else
                    attend(p, in, out, starts[s], t - starts[s] + 1, t, h);
}

static void attention_run(const struct problem *p, struct queue *q, const struct kernels *k, enum dtype dtype,
                          void *const in[INPUTS], const void *dout, void *out, void *din[INPUTS])
{
    const struct attention_keys *keys = segmented(p) ? segment_keys : NULL;
    struct attention_shape shape = {.tokens = p->size[0],
                                    .key_rows = keys ? KEY_ROWS : p->size[0],
                                    .sequences = 3,
                                    .longest = 12,
                                    .q_heads = (int32_t)p->size[1],
                                    .kv_heads = (int32_t)p->size[2],
                                    .head_dim = (int32_t)p->size[3],
                                    .scale = 1.0f / sqrtf((float)p->size[3])};
    float *lse = rig_array(p->size[0] * p->size[1] * 4);
    void *scratch = rig_array((int64_t)(k->attention_forward_scratch(&shape, dtype) +
                                        k->attention_backward_scratch(&shape, dtype)));
    k->attention_forward(q, out, lse, in[0], in[1], in[2], starts, keys, &shape, dtype, scratch);
    k->attention_backward(q, din[0], din[1], din[2], dout, out, lse, in[0], in[1], in[2], starts, keys,
                          &shape, dtype, scratch);
    free(lse);
    free(scratch);
}

static void swiglu_forward(const struct problem *p, double *const in[INPUTS], double *out)
{
    for (int64_t i = 0; i < p->out_count; i++)
        out[i] = in[0][i] / (1 + exp(-in[0][i])) * in[1][i];
}

static void swiglu_run(const struct problem *p, struct queue *q, const struct kernels *k, enum dtype dtype,
                       void *const in[INPUTS], const void *dout, void *out, void *din[INPUTS])
{
    k->swiglu_forward(q, out, in[0], in[1], p->out_count, dtype);
    k->swiglu_backward(q, din[0], din[1], dout, in[0], in[1], p->out_count, dtype);
}

/* The head: sizes T, hidden, vocabulary, ranges it is cut in; out is logprob, dout is -1 (its rows make the
 * gradient of the summed loss) */
static void head_forward(const struct problem *p, double *const in[INPUTS], double *out)
{
    int64_t H = p->size[1], V = p->size[2];
    for (int64_t t = 0; t < p->size[0]; t++) {
        double total = 0, of_label = 0;
        for (int64_t v = 0; v < V; v++) {
            double logit = 0;
            for (int64_t i = 0; i < H; i++)
                logit += in[0][t * H + i] * in[1][v * H + i];
            total += exp(logit);
            of_label = v == labels[t] ? logit : of_label;
        }
        out[t] = labels[t] < 0 ? 0 : of_label - log(total);
    }
}

static void head_run_problem(const struct problem *p, struct queue *q, const struct kernels *k,
                             enum dtype dtype, void *const in[INPUTS], const void *dout, void *out,
                             void *din[INPUTS])
{
    (void)dout;
    head_run(&(struct head){.k = k,
                            .q = q,
                            .dtype = dtype,
                            .T = p->size[0],
                            .C = p->size[1],
                            .V = p->size[2],
                            .ranges = p->size[3],
                            .chunk = 4,
                            .x = in[0],
                            .w = in[1],
                            .labels = labels},
             out, din[0], din[1]);
}

static const struct problem problems[] = {
    {.name = "linear",
     .forward = linear_forward,
     .run = linear_run,
     .size = {7, 6, 37},
     .in_count = {7 * 37, 6 * 37},
     .out_count = 7 * 6,
     .wide = {false, true}},
    {.name = "embedding",
     .forward = embed_forward,
     .run = embed_run,
     .size = {7, 9, 5},
     .in_count = {9 * 5},
     .out_count = 7 * 5,
     .wide = {true}},
    {.name = "embedding, rows 2 to 4",
     .forward = embed_forward,
     .run = embed_run,
     .size = {7, 3, 5, 2},
     .in_count = {3 * 5},
     .out_count = 7 * 5,
     .wide = {true}},
    {.name = "rmsnorm",
     .forward = norm_forward,
     .run = norm_run,
     .size = {70, 19},
     .in_count = {70 * 19, 19},
     .out_count = 70 * 19,
     .wide = {false, true}},
    {.name = "add rmsnorm",
     .forward = add_norm_forward,
     .run = add_norm_run,
     .size = {5, 40},
     .in_count = {5 * 40, 5 * 40, 40},
     .out_count = 5 * 40,
     .wide = {false, false, true},
     .bf16_of_largest = 0x1p-6},
    {.name = "rope",
     .forward = rope_forward,
     .run = rope_run,
     .size = {6, 3, 8},
     .in_count = {6 * 3 * 8},
     .out_count = 6 * 3 * 8},
    {.name = "attention",
     .forward = attention_forward,
     .run = attention_run,
     .size = {20, 6, 2, 16},
     .in_count = {20 * 6 * 16, 20 * 2 * 16, 20 * 2 * 16},
     .out_count = 20 * 6 * 16,
     .bf16_of_largest = 0x1p-6},
    {.name = "attention, one head each",
     .forward = attention_forward,
     .run = attention_run,
     .size = {20, 2, 2, 10},
     .in_count = {20 * 2 * 10, 20 * 2 * 10, 20 * 2 * 10},
     .out_count = 20 * 2 * 10,
     .bf16_of_largest = 0x1p-6},
    {.name = "attention, segments",
     .forward = attention_forward,
     .run = attention_run,
     .size = {20, 4, 2, 16},
     .in_count = {20 * 4 * 16, KEY_ROWS * 2 * 16, KEY_ROWS * 2 * 16},
     .out_count = 20 * 4 * 16,
     .bf16_of_largest = 0x1p-6},
    {.name = "swiglu",
     .forward = swiglu_forward,
     .run = swiglu_run,
     .in_count = {101, 101},
     .out_count = 101},
    {.name = "head",
     .forward = head_forward,
     .run = head_run_problem,
     .size = {10, 12, 29, 1},
     .in_count = {10 * 12, 29 * 12},
     .out_count = 10,
     .wide = {false, true},
     .wide_out = true,
     .bf16_of_largest = 0x1p-6},
    {.name = "head, vocabulary in three",
     .forward = head_forward,
     .run = head_run_problem,
     .size = {10, 12, 29, 3},
     .in_count = {10 * 12, 29 * 12},
     .out_count = 10,
     .wide = {false, true},
     .wide_out = true,
     .bf16_of_largest = 0x1p-6},
};

/* Inputs of one problem as double, and as `dtype` for the kernels; values that bf16 holds. */
struct inputs {
    double *in[INPUTS];
    void *narrow[INPUTS], *dout_narrow;
    double *dout;
};

static void *convert(const double *from, int64_t n, enum dtype dtype)
{
    void *to = rig_array(n * (int64_t)dtype_bytes(dtype));
    for (int64_t i = 0; i < n; i++)
        if (dtype == DTYPE_BF16)
            ((uint16_t *)to)[i] = bf16_from_float((float)from[i]);
        else
            ((float *)to)[i] = (float)from[i];
    return to;
}

static double *draw(uint64_t *random, int64_t n)
{
    double *values = rig_array(n * 8);
    for (int64_t i = 0; i < n; i++)
        values[i] = (double)bf16_to_float(bf16_from_float(2.0f * rig_uniform(random)));
    return values;
}

static struct inputs inputs_make(const struct problem *p, enum dtype dtype)
{
    struct inputs inputs = {0};
    uint64_t random = 7;
    for (int i = 0; i < INPUTS; i++) {
        inputs.in[i] = draw(&random, p->in_count[i]);
        inputs.narrow[i] = convert(inputs.in[i], p->in_count[i], dtype);
    }
    inputs.dout = draw(&random, p->out_count);
    for (int64_t i = 0; p->run == head_run_problem && i < p->out_count; i++)
        inputs.dout[i] = -1;
    inputs.dout_narrow = convert(inputs.dout, p->out_count, dtype);
    return inputs;
}

static void inputs_free(struct inputs *inputs)
{
    for (int i = 0; i < INPUTS; i++) {
        free(inputs->in[i]);
        free(inputs->narrow[i]);
    }
    free(inputs->dout);
    free(inputs->dout_narrow);
}

/* The results of one run, as floats. */
struct results {
    float *out, *din[INPUTS];
};

static struct results run(const struct problem *p, const struct kernels *k, enum dtype dtype)
{
    struct queue q = {.threads = 2};
    struct inputs inputs = inputs_make(p, dtype);
    void *out = rig_array(p->out_count * 4), *din[INPUTS];
    for (int i = 0; i < INPUTS; i++)
        din[i] = rig_array(p->in_count[i] * 4);
    p->run(p, &q, k, dtype, inputs.narrow, inputs.dout_narrow, out, din);
    struct results results = {.out = rig_floats(out, p->out_count, p->wide_out ? DTYPE_F32 : dtype)};
    for (int i = 0; i < INPUTS; i++) {
        results.din[i] = rig_floats(din[i], p->in_count[i], p->wide[i] ? DTYPE_F32 : dtype);
        free(din[i]);
    }
    free(out);
    inputs_free(&inputs);
    return results;
}

static void results_free(struct results *r)
{
    free(r->out);
    for (int i = 0; i < INPUTS; i++)
        free(r->din[i]);
}

static double loss(const struct problem *p, const struct inputs *inputs, double *out)
{
    double sum = 0;
    p->forward(p, inputs->in, out);
    for (int64_t i = 0; i < p->out_count; i++)
        sum += out[i] * inputs->dout[i];
    return sum;
}

static double difference(const struct problem *p, const struct inputs *inputs, int input, int64_t i,
                         double *out)
{
    const double h = 1e-4;
    double *at = &inputs->in[input][i], before = *at;
    *at = before + h;
    double up = loss(p, inputs, out);
    *at = before - h;
    double down = loss(p, inputs, out);
    *at = before;
    return (up - down) / (2 * h);
}

static void check_one(const struct problem *p, const char *what, int64_t i, double got, double want,
                      double allowed)
{
    if (!(fabs(got - want) <= allowed))
        fail_msg("%s, %s[%ld]: got %.9g, want %.9g, allowed %.3g", p->name, what, (long)i, got, want,
                 allowed);
}

static void check_gradients(const struct problem *p, const struct kernels *k)
{
    struct results got = run(p, k, DTYPE_F32);
    struct inputs inputs = inputs_make(p, DTYPE_F32);
    double *out = rig_array(p->out_count * 8), largest = 0;
    loss(p, &inputs, out);
    for (int64_t i = 0; i < p->out_count; i++)
        largest = fmax(largest, fabs(out[i]));
    for (int64_t i = 0; i < p->out_count; i++)
        check_one(p, "out", i, (double)got.out[i], out[i], 1e-6 * largest);
    for (int input = 0; input < INPUTS; input++) {
        int64_t n = p->in_count[input], step = n / SAMPLES + 1;
        largest = 0;
        for (int64_t i = 0; i < n; i++)
            largest = fmax(largest, fabs((double)got.din[input][i]));
        for (int64_t i = 0; i < n; i += step)
            check_one(p, "gradient", i, (double)got.din[input][i], difference(p, &inputs, input, i, out),
                      1e-5 * largest);
    }
    free(out);
    inputs_free(&inputs);
    results_free(&got);
}

static void check_bf16_tensor(const struct problem *p, const char *what, const float *got, const float *want,
                              int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs((double)want[i]));
    for (int64_t i = 0; i < n; i++)
        check_one(p, what, i, (double)got[i], (double)want[i],
                  0x1p-8 * fabs((double)want[i]) + (p->bf16_of_largest + 2e-6) * largest);
}

static void check_bf16(const struct problem *p, const struct kernels *k)
{
    struct results got = run(p, k, DTYPE_BF16), want = run(p, k, DTYPE_F32);
    check_bf16_tensor(p, "bf16 out", got.out, want.out, p->out_count);
    for (int input = 0; input < INPUTS; input++)
        check_bf16_tensor(p, "bf16 gradient", got.din[input], want.din[input], p->in_count[input]);
    results_free(&got);
    results_free(&want);
}

static void for_all(void (*check)(const struct problem *p, const struct kernels *k))
{
    for (size_t i = 0; i < sizeof problems / sizeof problems[0]; i++) {
        check(&problems[i], &kernels_reference);
        check(&problems[i], device.kernels);
    }
}

static void test_gradients(void **state)
{
    (void)state;
    for_all(check_gradients);
}

static void test_bf16(void **state)
{
    (void)state;
    for_all(check_bf16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_bf16),
    };
    return test_device_run(tests, "cpu", 2);
}
