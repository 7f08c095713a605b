/* The model against transformers' Qwen3 (fixtures and their script: tests/golden/model). Started with that
 * folder. */
#include "check.h"
#include "file.h"
#include "rig.h"
#include "rope.h"

#include <jansson.h>
#include <stdlib.h>

static const char *folder;
static const char *const models[] = {"untied", "tied"};

/* What batch.json and truth.f32 hold. */
struct truth {
    int64_t lengths[8]; /* ends with 0 */
    double bf16_logprob_error;
    json_t *bf16_gradient_errors;
    json_t *root;
    float *values; /* log-probabilities, gradients */
    size_t bytes;
};

static uint32_t noise(uint64_t seed, uint64_t i)
{
    uint64_t z = (i + (seed << 32)) * 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (uint32_t)(z >> 32);
}

static float **formula_weights(const struct param_table *table)
{
    float **weights = calloc((size_t)table->count, sizeof *weights);
    for (int32_t p = 0; p < table->count; p++) {
        const struct param *param = &table->params[p];
        weights[p] = malloc((size_t)param->elements * sizeof(float));
        for (int64_t e = 0; e < param->elements; e++) {
            uint32_t bits = noise((uint64_t)p, (uint64_t)e);
            weights[p][e] =
                param->columns ? ((float)(bits % 256) - 128) / 512 : 1 + ((float)(bits % 64) - 32) / 128;
        }
    }
    return weights;
}

static void *slurp(const char *name, const char *file, size_t *bytes)
{
    char path[LIMIT_PATH_BYTES], *text;
    struct err err = ERR_INIT;
    snprintf(path, sizeof path, "%s/%s/%s", folder, name, file);
    check_ok(file_slurp(path, 1 << 20, &text, bytes, &err), &err);
    return text;
}

static struct truth truth_read(const char *name)
{
    struct truth truth = {0};
    size_t bytes;
    char *text = slurp(name, "batch.json", &bytes);
    truth.root = json_loadb(text, bytes, 0, NULL);
    free(text);
    assert_non_null(truth.root);
    json_t *lengths = json_object_get(truth.root, "lengths");
    assert_true(json_array_size(lengths) < 8);
    for (size_t i = 0; i < json_array_size(lengths); i++)
        truth.lengths[i] = json_integer_value(json_array_get(lengths, i));
    truth.bf16_logprob_error = json_real_value(json_object_get(truth.root, "bf16_logprob_error"));
    truth.bf16_gradient_errors = json_object_get(truth.root, "bf16_gradient_errors");
    truth.values = slurp(name, "truth.f32", &truth.bytes);
    return truth;
}

static void truth_free(struct truth *truth)
{
    json_decref(truth->root);
    free(truth->values);
}

static void open_model(struct rig *rig, const char *name, const struct truth *truth, enum dtype compute)
{
    char path[LIMIT_PATH_BYTES];
    struct err err = ERR_INIT;
    struct model_config config;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    check_ok(model_config_load(&config, path, &err), &err);
    rig_open(rig, &config, &(struct rig_want){compute, true, 2, truth->lengths, 0, formula_weights});
    struct test_batch *batch = &rig->batch;
    for (int64_t t = 0; t < batch->batch.used_tokens; t++) {
        uint32_t V = (uint32_t)config.vocabulary;
        batch->token_ids[t] = (int32_t)(noise(1001, (uint64_t)t) % V);
        batch->labels[t] = noise(1003, (uint64_t)t) % 5 == 0 ? -1 : (int32_t)(noise(1002, (uint64_t)t) % V);
    }
    test_batch_upload(batch);
    assert_int_equal(truth->bytes,
                     (size_t)(batch->batch.used_tokens + rig->model.params.elements) * sizeof(float));
}

/* In fp32 compute every log-probability and every gradient to 1e-5. */
static void test_fp32(void **state)
{
    (void)state;
    for (size_t m = 0; m < 2; m++) {
        struct truth truth = truth_read(models[m]);
        struct rig rig;
        float *logprob;
        open_model(&rig, models[m], &truth, DTYPE_F32);
        rig_run(&rig, true, &logprob);
        const float *want = truth.values;
        check_close_f32(logprob, want, rig.batch.batch.used_tokens, 1e-5, 0);
        want += rig.batch.batch.used_tokens;
        for (int32_t p = 0; p < rig.model.params.count; p++) {
            const struct param *param = &rig.model.params.params[p];
            float *got = malloc((size_t)param->elements * sizeof(float));
            test_host_gradient(&rig.host, p, got);
            check_close_f32_at(got, want, (size_t)param->elements, 1e-5, 0, param->name, __FILE__, __LINE__);
            want += param->elements;
            free(got);
        }
        free(logprob);
        rig_close(&rig);
        truth_free(&truth);
    }
}

/* Root mean square of the error over that of what is wanted. */
static double error_of(const float *got, const float *want, int64_t count)
{
    double error = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        error += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        size += (double)want[i] * (double)want[i];
    }
    return sqrt(error / size);
}

/* In bf16 compute no further from the fp32 truth than transformers loaded in bf16, but for a tenth: over all
 * tensors in the geometric mean, and no single one (some have a dozen elements) by half. */
static void test_bf16(void **state)
{
    (void)state;
    for (size_t m = 0; m < 2; m++) {
        struct truth truth = truth_read(models[m]);
        struct rig rig;
        float *logprob;
        open_model(&rig, models[m], &truth, DTYPE_BF16);
        rig_run(&rig, true, &logprob);
        const float *want = truth.values;
        double rough = error_of(logprob, want, rig.batch.batch.used_tokens) / truth.bf16_logprob_error,
               mean = 0, most = 0;
        want += rig.batch.batch.used_tokens;
        for (int32_t p = 0; p < rig.model.params.count; p++) {
            const struct param *param = &rig.model.params.params[p];
            double theirs = json_real_value(json_object_get(truth.bf16_gradient_errors, param->name));
            float *got = malloc((size_t)param->elements * sizeof(float));
            test_host_gradient(&rig.host, p, got);
            double ratio = error_of(got, want, param->elements) / theirs;
            mean += log(ratio) / rig.model.params.count;
            most = fmax(most, ratio);
            want += param->elements;
            free(got);
        }
        print_message("%s: bf16 error over transformers': log-probabilities %.3f, gradients %.3f in the "
                      "mean, %.3f at most\n",
                      models[m], rough, exp(mean), most);
        assert_true(rough <= 1.1);
        assert_true(exp(mean) <= 1.1);
        assert_true(most <= 1.5);
        free(logprob);
        rig_close(&rig);
        truth_free(&truth);
    }
}

static void check_ulps(const char *what, float got, float want)
{
    if (fabsf(got - want) > nextafterf(fabsf(want), INFINITY) - fabsf(want))
        fail_msg("%s: got %.9g, want %.9g", what, (double)got, (double)want);
}

/* The tables: frequencies to the bit or one unit in the last place, and given the same angle, cosine and sine
 * too. */
static void test_rope(void **state)
{
    (void)state;
    static const struct {
        double theta;
        int64_t head_dim, positions[8]; /* ends with -1 */
    } cases[] = {{1e6, 128, {0, 1, 2, 777, 4095, 40959, -1}},
                 {1e4, 32, {0, 1, 5, 511, -1}},
                 {5e6, 12, {0, 3, 100, -1}}};
    size_t bytes;
    float *values = slurp(".", "rope.f32", &bytes), *at = values, cosines[64], sines[64];
    int other_bits = 0, frequencies = 0;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int64_t half = cases[c].head_dim / 2, count = 0;
        while (cases[c].positions[count] >= 0)
            count++;
        const float *inverse = at, *cosine = at + half, *sine = cosine + count * half;
        for (int64_t i = 0; i < half; i++, frequencies++) {
            float got = rope_inverse_frequency(cases[c].theta, i, cases[c].head_dim);
            check_ulps("inverse frequency", got, inverse[i]);
            other_bits += got != inverse[i];
        }
        for (int64_t row = 0; row < count; row++) {
            rope_row(cosines, sines, cases[c].theta, cases[c].head_dim, cases[c].positions[row]);
            for (int64_t i = 0; i < half; i++) {
                if (rope_inverse_frequency(cases[c].theta, i, cases[c].head_dim) != inverse[i])
                    continue;
                check_ulps("cosine", cosines[i], cosine[row * half + i]);
                check_ulps("sine", sines[i], sine[row * half + i]);
            }
        }
        at += half + 2 * count * half;
    }
    assert_int_equal((size_t)(at - values) * sizeof(float), bytes);
    print_message("%d of %d inverse frequencies differ in their last bit\n", other_bits, frequencies);
    free(values);
}

int main(int count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_fp32),
        cmocka_unit_test(test_bf16),
    };
    if (count != 2)
        return 2;
    folder = arguments[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
