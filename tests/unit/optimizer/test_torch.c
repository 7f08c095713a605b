/* Against torch's fused CPU AdamW (tests/golden/adamw, made by its make.py), and against PyTorch's own C++
 * test values where the shared test data are at hand ($TRAINERD_TEST_DATA). */
#include "device_main.h"
#include "state_arrays.h"

#include "err.h"

#include <jansson.h>
#include <stdio.h>

/* ---- the fixture ---- */

enum { N = 16 };

struct golden {
    int32_t steps;
    double eps, decay;
    float start[N];
    struct golden_step {
        double lr, beta1, beta2;
        float gradient[N], w[N], m[N], v[N];
    } * step;
};

static void must_read(void *to, size_t bytes, FILE *file)
{
    assert_int_equal(fread(to, 1, bytes, file), bytes);
}

static struct golden golden_read(void)
{
    FILE *file = fopen(GOLDEN_ADAMW, "rb");
    if (!file)
        fail_msg("%s is missing", GOLDEN_ADAMW);
    struct golden g;
    char magic[8];
    int32_t n;
    must_read(magic, sizeof magic, file);
    assert_memory_equal(magic, "ADAMW1\0\0", 8);
    must_read(&n, sizeof n, file);
    assert_int_equal(n, N);
    must_read(&g.steps, sizeof g.steps, file);
    must_read(&g.eps, sizeof g.eps, file);
    must_read(&g.decay, sizeof g.decay, file);
    must_read(g.start, sizeof g.start, file);
    assert_int_equal(g.steps, 1000);
    g.step = calloc((size_t)g.steps, sizeof *g.step);
    for (int32_t i = 0; i < g.steps; i++) {
        struct golden_step *s = &g.step[i];
        must_read(&s->lr, sizeof s->lr, file);
        must_read(&s->beta1, sizeof s->beta1, file);
        must_read(&s->beta2, sizeof s->beta2, file);
        must_read(s->gradient, 4 * sizeof s->gradient, file);
    }
    fclose(file);
    return g;
}

static void state_set(struct state_arrays *s, const float *w, const float *m, const float *v)
{
    static const float zeros[N];
    memcpy(s->memory[0], w, sizeof zeros);
    memcpy(s->memory[2], m ? m : zeros, sizeof zeros);
    memcpy(s->memory[4], v ? v : zeros, sizeof zeros);
}

static void step(struct state_arrays *s, const struct golden *g, int32_t i)
{
    const struct golden_step *at = &g->step[i];
    struct optimizer_settings settings = {
        .beta1 = at->beta1, .beta2 = at->beta2, .eps = g->eps, .weight_decay = g->decay};
    struct update_scalars scalars = optimizer_scalars(&settings, at->lr, 1.0, i + 1, i + 1, 0, true);
    struct update_measures measures, scratch[1];
    device.kernels->update(device.queue, &measures, &s->view, at->gradient, DTYPE_F32, N,
                           &(struct index_map){0}, &scalars, scratch);
}

/* The distance to the next fp32 away from zero. */
static double ulp(double x)
{
    float a = (float)fabs(x);
    return (double)nextafterf(a, INFINITY) - (double)a;
}

static void check_within(double got, double want, double allowed, const char *what, int32_t step_number,
                         int element)
{
    if (!(fabs(got - want) <= allowed))
        fail_msg("step %d, element %d: %s is %.9g, torch's %.9g, allowed apart %.3g", step_number + 1,
                 element, what, got, want, allowed);
}

/* 1000 single steps, each from torch's own state. */
static void test_single_steps(void **state)
{
    (void)state;
    struct golden g = golden_read();
    struct state_arrays s;
    state_arrays_init(&s, WEIGHT_FP32, MOMENT_FP32, MOMENT_FP32, N);
    int equal_w = 0, equal_m = 0, equal_v = 0;
    for (int32_t i = 0; i < g.steps; i++) {
        const struct golden_step *before = i > 0 ? &g.step[i - 1] : NULL, *after = &g.step[i];
        const float *w_before = before ? before->w : g.start;
        state_set(&s, w_before, before ? before->m : NULL, before ? before->v : NULL);
        step(&s, &g, i);
        for (int e = 0; e < N; e++) {
            double w = (double)((float *)s.memory[0])[e], m = (double)((float *)s.memory[2])[e];
            double v = (double)((float *)s.memory[4])[e];
            double change = (double)after->w[e] - (double)w_before[e];
            check_within(m, (double)after->m[e], ulp((double)after->m[e]), "m", i, e);
            check_within(v, (double)after->v[e], ulp((double)after->v[e]), "v", i, e);
            check_within(w, (double)after->w[e], ulp(fmax(fabs((double)after->w[e]), fabs(change))), "W", i,
                         e);
            equal_w += w == (double)after->w[e];
            equal_m += m == (double)after->m[e];
            equal_v += v == (double)after->v[e];
        }
    }
    print_message("equal bits of %d: W %d, m %d, v %d\n", g.steps * N, equal_w, equal_m, equal_v);
    state_arrays_done(&s);
    free(g.step);
}

/* 1000 steps on our own. */
static void test_free_run(void **state)
{
    (void)state;
    struct golden g = golden_read();
    struct state_arrays s;
    state_arrays_init(&s, WEIGHT_FP32, MOMENT_FP32, MOMENT_FP32, N);
    state_set(&s, g.start, NULL, NULL);
    for (int32_t i = 0; i < g.steps; i++) {
        step(&s, &g, i);
        double largest = 0;
        for (int e = 0; e < N; e++)
            largest = fmax(largest, fabs((double)g.step[i].w[e]));
        for (int e = 0; e < N; e++)
            check_within((double)((float *)s.memory[0])[e], (double)g.step[i].w[e], 1e-6 * largest, "W", i,
                         e);
    }
    state_arrays_done(&s);
    free(g.step);
}

/* ---- PyTorch's C++ test: Linear(2,3), sigmoid, Linear(3,1), sigmoid, loss = the sum of three outputs ----
 */

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* p: weight 0 [3][2], bias 0 [3], weight 1 [1][3], bias 1 [1]. Adds nothing: gradient is written. */
static void tiny_backward(double gradient[13], const double p[13], const double x[3][2])
{
    memset(gradient, 0, 13 * sizeof *gradient);
    for (int row = 0; row < 3; row++) {
        double hidden[3], out = p[12];
        for (int h = 0; h < 3; h++) {
            hidden[h] = sigmoid(p[2 * h] * x[row][0] + p[2 * h + 1] * x[row][1] + p[6 + h]);
            out += p[9 + h] * hidden[h];
        }
        out = sigmoid(out);
        double d = out * (1 - out);
        gradient[12] += d;
        for (int h = 0; h < 3; h++) {
            double dh = d * p[9 + h] * hidden[h] * (1 - hidden[h]);
            gradient[9 + h] += d * hidden[h];
            gradient[6 + h] += dh;
            gradient[2 * h] += dh * x[row][0];
            gradient[2 * h + 1] += dh * x[row][1];
        }
    }
}

static void read_numbers(double *to, const json_t *array, size_t count)
{
    assert_int_equal(json_array_size(array), count);
    for (size_t i = 0; i < count; i++)
        to[i] = json_number_value(json_array_get(array, i));
}

static void read_parameters(double to[13], const json_t *named)
{
    static const struct {
        const char *name;
        size_t at, count;
    } parts[] = {{"0.weight", 0, 6}, {"0.bias", 6, 3}, {"2.weight", 9, 3}, {"2.bias", 12, 1}};
    for (size_t i = 0; i < 4; i++) {
        const json_t *array = json_object_get(named, parts[i].name);
        if (!array)
            fail_msg("no %s in a checkpoint", parts[i].name);
        read_numbers(to + parts[i].at, array, parts[i].count);
    }
}

static void run_case(const json_t *one, const double start[13], const double x[3][2])
{
    struct state_arrays s;
    state_arrays_init(&s, WEIGHT_FP32, MOMENT_FP32, MOMENT_FP32, 13);
    for (int i = 0; i < 13; i++)
        ((float *)s.memory[0])[i] = (float)start[i];
    struct optimizer_settings settings = {
        .beta1 = json_number_value(json_array_get(json_object_get(one, "betas"), 0)),
        .beta2 = json_number_value(json_array_get(json_object_get(one, "betas"), 1)),
        .eps = json_number_value(json_object_get(one, "eps")),
        .weight_decay = json_number_value(json_object_get(one, "weight_decay"))};
    double lr = json_number_value(json_object_get(one, "lr"));
    const json_t *checkpoints = json_object_get(one, "checkpoints");
    size_t next = 0;
    for (int t = 1; next < json_array_size(checkpoints); t++) {
        double p[13], gradient[13];
        float g[13];
        for (int i = 0; i < 13; i++)
            p[i] = (double)((float *)s.memory[0])[i];
        tiny_backward(gradient, p, x);
        for (int i = 0; i < 13; i++)
            g[i] = (float)gradient[i];
        struct update_scalars scalars = optimizer_scalars(&settings, lr, 1.0, t, t, 0, true);
        struct update_measures measures, scratch[1];
        device.kernels->update(device.queue, &measures, &s.view, g, DTYPE_F32, 13, &(struct index_map){0},
                               &scalars, scratch);
        const json_t *checkpoint = json_array_get(checkpoints, next);
        if (json_integer_value(json_object_get(checkpoint, "after_step")) != t)
            continue;
        double want[13];
        read_parameters(want, json_object_get(checkpoint, "params"));
        for (int i = 0; i < 13; i++) /* theirs is fp64 and lr 1: what fp32 drifts in 1001 steps */
            check_close((double)((float *)s.memory[0])[i], want[i], 1e-5, 1e-5);
        next++;
    }
    state_arrays_done(&s);
}

static void test_pytorch_cpp_values(void **state)
{
    (void)state;
    const char *folder = getenv("TRAINERD_TEST_DATA");
    char path[4096];
    snprintf(path, sizeof path, "%s/golden/pytorch_adamw.json", folder ? folder : ".");
    json_error_t why;
    json_t *root = folder ? json_load_file(path, 0, &why) : NULL;
    if (!root) {
        print_message("skipped: golden/pytorch_adamw.json is not in $TRAINERD_TEST_DATA\n");
        skip();
    }
    double start[13], input[6];
    const json_t *parameters = json_object_get(root, "parameters");
    size_t at = 0;
    for (size_t i = 0; i < json_array_size(parameters); i++) {
        const json_t *values = json_object_get(json_array_get(parameters, i), "init_full_precision");
        assert_true(at + json_array_size(values) <= 13);
        read_numbers(start + at, values, json_array_size(values));
        at += json_array_size(values);
    }
    assert_int_equal(at, 13);
    const json_t *rows = json_object_get(root, "input");
    for (size_t i = 0; i < 3; i++)
        read_numbers(input + 2 * i, json_array_get(rows, i), 2);
    const double x[3][2] = {{input[0], input[1]}, {input[2], input[3]}, {input[4], input[5]}};
    const json_t *cases = json_object_get(root, "cases");
    assert_true(json_array_size(cases) >= 2);
    for (size_t i = 0; i < json_array_size(cases); i++)
        run_case(json_array_get(cases, i), start, x);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single_steps),
        cmocka_unit_test(test_free_run),
        cmocka_unit_test(test_pytorch_cpp_values),
    };
    return test_device_run(tests, "cpu", 1);
}
