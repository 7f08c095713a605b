/* The whole model against the naive double-precision one, and against itself: recomputed, on other threads,
 * evaluated, in smaller batches than planned. */
#include "check.h"
#include "naive.h"
#include "rig.h"

#include <stdlib.h>

#define SEQUENCES 6

struct shape {
    const char *name;
    int64_t hidden, layers, q_heads, kv_heads, head_dim, ffn, vocabulary;
    bool tied;
    int64_t lengths[SEQUENCES]; /* 0 ends */
    int64_t tokens;             /* at least so many rows */
};

static const struct shape shapes[] = {
    {"one head, one layer", 8, 1, 1, 1, 8, 16, 17, false, {9}, 0},
    {"grouped, tied", 16, 2, 4, 2, 8, 24, 31, true, {33, 7}, 0},
    {"head_dim over hidden / heads", 24, 3, 3, 1, 16, 40, 64, false, {64, 1, 2, 45}, 0},
    {"head_dim under hidden / heads, five layers", 64, 5, 4, 4, 6, 96, 50, true, {20, 21, 22}, 0},
    {"mostly padding", 16, 2, 2, 1, 8, 24, 31, false, {3, 2}, 192},
    {"long", 32, 1, 2, 1, 16, 32, 300, true, {200, 100}, 0},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

static struct model_config config_of(const struct shape *shape)
{
    return (struct model_config){
        .architecture = "Qwen3ForCausalLM",
        .hidden = shape->hidden,
        .layers = shape->layers,
        .q_heads = shape->q_heads,
        .kv_heads = shape->kv_heads,
        .head_dim = shape->head_dim,
        .ffn = shape->ffn,
        .vocabulary = shape->vocabulary,
        .positions = 512,
        .rms_eps = 1e-6,
        .rope_theta = 10000,
        .initializer_range = 0.02,
        .tied = shape->tied,
        .eos_token = -1,
    };
}

static void open_shape(struct rig *rig, const struct shape *shape, enum dtype compute, bool recompute,
                       int threads)
{
    const struct model_config config = config_of(shape);
    rig_open(rig, &config,
             &(struct rig_want){compute, recompute, threads, shape->lengths, shape->tokens, test_weights});
}

/* The oracle's answer for the same weights and batch. */
struct answer {
    double sum, *logprob, **weights, **gradients;
    int32_t count;
};

static double naive_batch(const struct rig *b, double **weights, double **gradients, double *logprob)
{
    const struct test_batch *batch = &b->batch;
    double sum = 0;
    for (int64_t s = 0; s < batch->batch.sequences; s++) {
        int64_t first = batch->starts[s], length = batch->starts[s + 1] - first;
        sum += naive_sequence(&b->config, &b->model.params, weights, gradients, batch->token_ids + first,
                              batch->labels + first, length, logprob + first);
    }
    return sum;
}

static struct answer answer_make(const struct rig *b)
{
    const struct param_table *table = &b->model.params;
    size_t count = (size_t)table->count;
    struct answer a = {.count = table->count};
    a.logprob = calloc((size_t)b->batch.batch.tokens, sizeof(double));
    a.weights = calloc(count, sizeof *a.weights);
    a.gradients = calloc(count, sizeof *a.gradients);
    for (size_t i = 0; i < count; i++) {
        int64_t elements = table->params[i].elements;
        a.weights[i] = calloc((size_t)elements, sizeof(double));
        a.gradients[i] = calloc((size_t)elements, sizeof(double));
        for (int64_t e = 0; e < elements; e++)
            a.weights[i][e] = (double)b->weights[i][e];
    }
    a.sum = naive_batch(b, a.weights, a.gradients, a.logprob);
    return a;
}

static void answer_free(struct answer *a)
{
    for (int32_t i = 0; i < a->count; i++) {
        free(a->weights[i]);
        free(a->gradients[i]);
    }
    free(a->weights);
    free(a->gradients);
    free(a->logprob);
}

static void check_doubles(const char *shape, const char *name, const float *got, const double *want,
                          int64_t count)
{
    double largest = 0;
    for (int64_t i = 0; i < count; i++)
        largest = fmax(largest, fabs(want[i]));
    for (int64_t i = 0; i < count; i++)
        if (!(fabs((double)got[i] - want[i]) <= 1e-5 * largest))
            fail_msg("%s: %s[%lld]: got %.9g, want %.9g, largest %.9g", shape, name, (long long)i,
                     (double)got[i], want[i], largest);
}

static void test_against_naive(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHAPES; i++) {
        struct rig b;
        float *logprob;
        open_shape(&b, &shapes[i], DTYPE_F32, i % 2 == 1, 1);
        struct answer want = answer_make(&b);
        double sum = rig_run(&b, true, &logprob);
        check_close(sum, want.sum, 1e-6, 0);
        check_doubles(shapes[i].name, "logprob", logprob, want.logprob, b.batch.batch.tokens);
        for (int32_t p = 0; p < want.count; p++) {
            const struct param *param = &b.model.params.params[p];
            float *got = malloc((size_t)param->elements * sizeof(float));
            test_host_gradient(&b.host, p, got);
            check_doubles(shapes[i].name, param->name, got, want.gradients[p], param->elements);
            free(got);
        }
        free(logprob);
        answer_free(&want);
        rig_close(&b);
    }
}

/* The oracle's own backward against central differences along a random direction in each tensor. */
static void test_naive_against_differences(void **state)
{
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct rig b;
        open_shape(&b, &shapes[i], DTYPE_F32, false, 1);
        struct answer a = answer_make(&b);
        uint64_t seed = 11;
        for (int32_t p = 0; p < a.count; p++) {
            int64_t count = b.model.params.params[p].elements;
            double *direction = malloc((size_t)count * sizeof(double)), slope = 0, sums[2];
            for (int64_t e = 0; e < count; e++) {
                direction[e] = test_normal(&seed) / sqrt((double)count);
                slope -= direction[e] * a.gradients[p][e]; /* the gradient is of minus the sum */
            }
            const double step = 1e-4;
            for (int side = 0; side < 2; side++) {
                for (int64_t e = 0; e < count; e++)
                    a.weights[p][e] += (side ? -2 : 1) * step * direction[e];
                sums[side] = naive_batch(&b, a.weights, NULL, a.logprob);
            }
            for (int64_t e = 0; e < count; e++)
                a.weights[p][e] += step * direction[e];
            double measured = (sums[0] - sums[1]) / (2 * step);
            if (fabs(measured - slope) > 1e-6 * fabs(slope) + 1e-6)
                fail_msg("%s: %s: slope %.12g, measured %.12g", shapes[i].name, b.model.params.params[p].name,
                         slope, measured);
            free(direction);
        }
        answer_free(&a);
        rig_close(&b);
    }
}

/* All gradients and log-probabilities of one run, as bytes one after another. */
static unsigned char *run_bits(const struct shape *shape, enum dtype compute, bool recompute, int threads,
                               size_t *bytes)
{
    struct rig b;
    float *logprob;
    open_shape(&b, shape, compute, recompute, threads);
    double sum = rig_run(&b, true, &logprob);
    size_t tokens = (size_t)b.batch.batch.tokens;
    *bytes = sizeof sum + tokens * sizeof(float) + (size_t)b.model.params.elements * sizeof(float);
    unsigned char *bits = malloc(*bytes);
    memcpy(bits, &sum, sizeof sum);
    memcpy(bits + sizeof sum, logprob, tokens * sizeof(float));
    float *at = malloc((size_t)b.model.params.elements * sizeof(float)), *from = at;
    for (int32_t p = 0; p < b.model.params.count; p++) {
        test_host_gradient(&b.host, p, at);
        at += b.model.params.params[p].elements;
    }
    memcpy(bits + sizeof sum + tokens * sizeof(float), from, (size_t)b.model.params.elements * sizeof(float));
    for (size_t i = 0; i < (size_t)b.model.params.elements; i++)
        assert_true(isfinite(from[i]));
    free(from);
    free(logprob);
    rig_close(&b);
    return bits;
}

/* Recompute off and on, one thread and two: the same bits. */
static void test_equal_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHAPES; i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            enum dtype compute = bf16 ? DTYPE_BF16 : DTYPE_F32;
            size_t bytes, again_bytes;
            unsigned char *bits = run_bits(&shapes[i], compute, false, 1, &bytes);
            for (int variant = 1; variant < 4; variant++) {
                unsigned char *again =
                    run_bits(&shapes[i], compute, variant & 1, 1 + (variant >> 1), &again_bytes);
                assert_int_equal(bytes, again_bytes);
                if (memcmp(bits, again, bytes) != 0)
                    fail_msg("%s: %s, recompute %d, threads %d: other bits", shapes[i].name,
                             dtype_name(compute), variant & 1, 1 + (variant >> 1));
                free(again);
            }
            free(bits);
        }
}

/* Without training: the same log-probabilities, less memory, no gradients asked for. */
static void test_evaluation(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct rig b;
        float *trained, *evaluated;
        open_shape(&b, &shapes[3], bf16 ? DTYPE_BF16 : DTYPE_F32, false, 2);
        double sum = rig_run(&b, true, &trained);
        size_t training_bytes = b.activations.capacity;
        assert_true(rig_run(&b, false, &evaluated) == sum);
        assert_memory_equal(trained, evaluated, (size_t)b.batch.batch.tokens * sizeof(float));
        assert_true(b.activations.capacity < training_bytes);
        for (int32_t u = 0; u <= b.model.params.unit_count; u++)
            assert_false(b.host.begun[u]);
        free(trained);
        free(evaluated);
        rig_close(&b);
    }
}

/* Recompute keeps one block's activations and every block's input. */
static void test_recompute_saves_memory(void **state)
{
    (void)state;
    struct rig b;
    open_shape(&b, &shapes[3], DTYPE_BF16, false, 1);
    struct tape_plan kept = model_plan(&b.model, 4096, 4, 512, true);
    b.model.recompute = true;
    struct tape_plan recomputed = model_plan(&b.model, 4096, 4, 512, true);
    struct tape_plan twice = model_plan(&b.model, 8192, 4, 512, true);
    /* beside the blocks: every block's input, the last output, the final norm, rstd and log-probability */
    size_t inputs = 4096 * ((size_t)(b.config.hidden * (b.config.layers + 2)) * 2 + 2 * sizeof(float));
    assert_int_equal(recomputed.block_bytes, (kept.activation_bytes - inputs) / 5);
    assert_int_equal(recomputed.activation_bytes, inputs);
    assert_int_equal(kept.block_bytes, 0);
    assert_int_equal(recomputed.gradient_bytes, kept.gradient_bytes);
    assert_true(twice.activation_bytes <= 2 * recomputed.activation_bytes); /* linear in tokens */
    rig_close(&b);
}

/* Arenas planned for the largest batch hold every smaller one: running out is a broken invariant. */
static void test_smaller_batches_fit(void **state)
{
    (void)state;
    uint64_t seed = 5;
    for (int variant = 0; variant < 8; variant++) {
        bool recompute = variant & 1, training = variant & 2;
        struct rig b;
        struct err err = ERR_INIT;
        open_shape(&b, &shapes[2], variant & 4 ? DTYPE_BF16 : DTYPE_F32, recompute, 2);
        check_ok(model_reserve_positions(&b.model, 300, &err), &err);
        rig_arenas(&b, model_plan(&b.model, 640, SEQUENCES, 300, training));
        for (int trial = 0; trial < 12; trial++) {
            int64_t lengths[SEQUENCES], left = 640, sequences = 0;
            int64_t wanted = 1 + (int64_t)(test_random(&seed) % SEQUENCES);
            for (; sequences < wanted && left > 0; sequences++) {
                int64_t most = left < 300 ? left : 300;
                lengths[sequences] = trial == 0 ? most : 1 + (int64_t)(test_random(&seed) % (uint64_t)most);
                left -= lengths[sequences];
            }
            struct test_batch batch;
            struct model_pass pass;
            struct tape_host tape = test_host_tape(&b.host);
            test_batch_init(&batch, &b.device, lengths, sequences, 0, b.config.vocabulary, seed);
            test_host_forget(&b.host);
            model_run(&b.model, &batch.batch, &tape, rig_memory(&b), b.sum, training, &pass);
            test_batch_done(&batch);
        }
        rig_close(&b);
    }
}

/* A plan never shrinks as the batch grows, whatever the kernels want for scratch. */
static void test_plans_grow(void **state)
{
    (void)state;
    for (int variant = 0; variant < 8; variant++) {
        bool training = variant & 1, bf16 = variant & 2;
        struct rig b;
        struct tape_plan most = {0};
        open_shape(&b, variant & 4 ? &shapes[3] : &shapes[2], bf16 ? DTYPE_BF16 : DTYPE_F32, true, 2);
        for (int64_t T = 64; T <= 1536; T += 64) {
            struct tape_plan plan = model_plan(&b.model, T, 1 + T / 256, T < 512 ? T : 512, training);
            if (plan.activation_bytes < most.activation_bytes || plan.block_bytes < most.block_bytes ||
                plan.gradient_bytes < most.gradient_bytes)
                fail_msg("%s, variant %d: %lld tokens need %zu + %zu bytes, fewer needed %zu + %zu",
                         shapes[2].name, variant, (long long)T, plan.activation_bytes, plan.gradient_bytes,
                         most.activation_bytes, most.gradient_bytes);
            most = plan;
        }
        rig_close(&b);
    }
}

/* No label at all, as on a rank whose samples carry none: every gradient is zero, none is left unwritten. */
static void test_no_labels(void **state)
{
    (void)state;
    struct rig b;
    float *logprob;
    open_shape(&b, &shapes[1], DTYPE_BF16, true, 1);
    int64_t T = b.batch.batch.tokens;
    memset(b.batch.labels, 0xff, (size_t)T * sizeof(int32_t));
    test_batch_upload(&b.batch);
    assert_int_equal(b.batch.batch.labelled, 0);
    assert_true(rig_run(&b, true, &logprob) == 0);
    for (int32_t p = 0; p < b.model.params.count; p++) {
        int64_t count = b.model.params.params[p].elements;
        float *got = malloc((size_t)count * sizeof(float));
        test_host_gradient(&b.host, p, got);
        for (int64_t e = 0; e < count; e++)
            assert_true(got[e] == 0.0f);
        free(got);
    }
    free(logprob);
    rig_close(&b);
}

/* Units are reduced whole: zeros between the tensors, whatever lay there. */
static void test_gaps_are_zero(void **state)
{
    (void)state;
    struct rig b;
    float *logprob;
    open_shape(&b, &shapes[0], DTYPE_F32, false, 1);
    rig_run(&b, true, &logprob);
    const struct param_table *table = &b.model.params;
    for (int32_t u = 0; u < table->unit_count; u++) {
        const struct param_unit *unit = &table->units[u];
        float *whole = malloc((size_t)unit->elements * sizeof(float));
        device_copy_out(&b.device, whole, b.host.gradient[u], (size_t)unit->elements * sizeof(float));
        for (int64_t e = 0, i = 0; e < unit->elements; e++) {
            while (i < unit->count &&
                   e >= table->params[unit->first + i].unit_offset + table->params[unit->first + i].elements)
                i++;
            bool inside = i < unit->count && e >= table->params[unit->first + i].unit_offset;
            assert_true(inside ? isfinite(whole[e]) : whole[e] == 0.0f);
        }
        free(whole);
    }
    free(logprob);
    rig_close(&b);
}

static void test_positions_are_bounded(void **state)
{
    (void)state;
    struct rig b;
    struct err err = ERR_INIT;
    open_shape(&b, &shapes[0], DTYPE_F32, false, 1);
    check_refused(model_reserve_positions(&b.model, 513, &err), &err, ERR_INVALID);
    err = (struct err)ERR_INIT;
    check_ok(model_reserve_positions(&b.model, 512, &err), &err);
    check_ok(model_reserve_positions(&b.model, 2, &err), &err);
    assert_int_equal(b.model.rope_positions, 512);
    rig_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_naive_against_differences),
        cmocka_unit_test(test_against_naive),
        cmocka_unit_test(test_equal_bits),
        cmocka_unit_test(test_evaluation),
        cmocka_unit_test(test_recompute_saves_memory),
        cmocka_unit_test(test_smaller_batches_fit),
        cmocka_unit_test(test_plans_grow),
        cmocka_unit_test(test_no_labels),
        cmocka_unit_test(test_gaps_are_zero),
        cmocka_unit_test(test_positions_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
