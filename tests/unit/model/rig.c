#include "rig.h"

#include "check.h"

#include <stdlib.h>

uint64_t test_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

double test_normal(uint64_t *state)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (double)(test_random(state) >> 11) * 0x1p-53;
    return sum;
}

static size_t unit_bytes(const struct test_host *host, int32_t unit)
{
    return (size_t)host->table->units[unit].elements * dtype_bytes(host->compute);
}

static size_t gradient_bytes(const struct test_host *host, int32_t leaf)
{
    int32_t unit = leaf == host->table->unit_count ? 0 : leaf;
    return (size_t)host->table->units[unit].elements * sizeof(float);
}

static void *gather(void *context, int32_t unit)
{
    struct test_host *host = context;
    host->gathers++;
    INVARIANT(!host->gathered[unit] && ++host->held <= 2);
    if (host->kind)
        return host->gathered[unit] = host->master[unit];
    size_t bytes = unit_bytes(host, unit), shift = (size_t)(host->gathers % 3) * 64;
    char *memory = device_allocate(host->device, bytes + 128);
    INVARIANT(memory != NULL);
    device_copy(host->device, memory + shift, host->master[unit], bytes);
    return host->gathered[unit] = memory + shift;
}

static void release(void *context, int32_t unit)
{
    struct test_host *host = context;
    INVARIANT(host->gathered[unit] && host->held-- > 0);
    if (!host->kind) {
        /* the allocation starts on a page, the shift is under one */
        char *memory = (char *)((uintptr_t)host->gathered[unit] & ~(uintptr_t)4095);
        device_release(host->device, memory, unit_bytes(host, unit) + 128);
    }
    host->gathered[unit] = NULL;
}

static float *gradient(void *context, int32_t unit, int32_t slot)
{
    struct test_host *host = context;
    int32_t leaf = slot == 0 ? unit : host->table->unit_count;
    INVARIANT(slot == 0 || unit == 0);
    INVARIANT(!host->begun[leaf]);
    host->begun[leaf] = true;
    return host->gradient[leaf];
}

static void reduce(void *context, int32_t unit, int32_t slot)
{
    struct test_host *host = context;
    int32_t leaf = slot == 0 ? unit : host->table->unit_count;
    INVARIANT(host->begun[leaf] && !host->reduced[leaf]);
    host->reduced[leaf] = true;
}

static void fill_nan(struct test_host *host, float *to, size_t bytes)
{
    char *nan = malloc(bytes);
    memset(nan, 0xff, bytes);
    device_copy_in(host->device, to, nan, bytes);
    free(nan);
}

void test_host_forget(struct test_host *host)
{
    memset(host->begun, 0, sizeof host->begun);
    memset(host->reduced, 0, sizeof host->reduced);
    for (int32_t leaf = 0; leaf <= host->table->unit_count; leaf++)
        if (!host->kind)
            fill_nan(host, host->gradient[leaf], gradient_bytes(host, leaf));
}

static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void test_host_init(struct test_host *host, struct device *device, const struct param_table *table,
                    enum dtype compute, float *const *weights)
{
    *host = (struct test_host){.device = device, .table = table, .compute = compute};
    INVARIANT(table->unit_count <= HOST_UNITS);
    for (int32_t u = 0; u < table->unit_count; u++) {
        char *whole = calloc(1, unit_bytes(host, u));
        for (int32_t i = table->units[u].first; i < table->units[u].first + table->units[u].count; i++) {
            const struct param *param = &table->params[i];
            char *to = whole + (size_t)param->unit_offset * dtype_bytes(compute);
            if (compute == DTYPE_F32)
                memcpy(to, weights[i], (size_t)param->elements * sizeof(float));
            for (int64_t e = 0; compute == DTYPE_BF16 && e < param->elements; e++)
                ((uint16_t *)(void *)to)[e] = to_bf16(weights[i][e]);
        }
        host->master[u] = device_allocate(device, unit_bytes(host, u));
        device_copy_in(device, host->master[u], whole, unit_bytes(host, u));
        free(whole);
    }
    for (int32_t leaf = 0; leaf <= table->unit_count; leaf++)
        host->gradient[leaf] = device_allocate(device, gradient_bytes(host, leaf));
    test_host_forget(host);
}

void test_host_done(struct test_host *host)
{
    for (int32_t u = 0; u < host->table->unit_count; u++)
        device_release(host->device, host->master[u], unit_bytes(host, u));
    for (int32_t leaf = 0; leaf <= host->table->unit_count; leaf++)
        device_release(host->device, host->gradient[leaf], gradient_bytes(host, leaf));
}

struct tape_host test_host_tape(struct test_host *host)
{
    return (struct tape_host){.context = host,
                              .unit_gather = gather,
                              .unit_release = release,
                              .unit_gradient = gradient,
                              .unit_reduce = reduce}; /* one rank: nobody to gather from */
}

void test_host_gradient(const struct test_host *host, int32_t param, float *values)
{
    const struct param *p = &host->table->params[param];
    size_t bytes = (size_t)p->elements * sizeof(float);
    INVARIANT(host->reduced[p->unit] && host->held == 0);
    device_copy_out(host->device, values, host->gradient[p->unit] + p->unit_offset, bytes);
    if (p->unit != 0 || !host->reduced[host->table->unit_count])
        return;
    float *other = malloc(bytes);
    device_copy_out(host->device, other, host->gradient[host->table->unit_count] + p->unit_offset, bytes);
    for (int64_t i = 0; i < p->elements; i++)
        values[i] += other[i];
    free(other);
}

static int32_t *on_device(struct device *device, const int32_t *values, int64_t count)
{
    int32_t *memory = device_allocate(device, (size_t)count * sizeof *values);
    INVARIANT(memory != NULL);
    device_copy_in(device, memory, values, (size_t)count * sizeof *values);
    return memory;
}

static int64_t labelled(const struct test_batch *batch, int64_t tokens)
{
    int64_t count = 0;
    for (int64_t t = 0; t < tokens; t++)
        count += batch->labels[t] >= 0;
    return count;
}

void test_batch_init(struct test_batch *made, struct device *device, const int64_t *lengths,
                     int64_t sequences, int64_t tokens, int64_t vocabulary, uint64_t seed)
{
    int64_t used = 0, longest = 0;
    for (int64_t s = 0; s < sequences; s++) {
        used += lengths[s];
        longest = lengths[s] > longest ? lengths[s] : longest;
    }
    int64_t T = ((used > tokens ? used : tokens) + 63) / 64 * 64;
    *made = (struct test_batch){.device = device};
    made->token_ids = calloc((size_t)T, sizeof(int32_t));
    made->labels = malloc((size_t)T * sizeof(int32_t));
    made->positions = calloc((size_t)T, sizeof(int32_t));
    made->starts = calloc((size_t)sequences + 1, sizeof(int32_t));
    memset(made->labels, 0xff, (size_t)T * sizeof(int32_t));
    int64_t at = 0;
    for (int64_t s = 0; s < sequences; s++) {
        for (int64_t i = 0; i < lengths[s]; i++, at++) {
            made->token_ids[at] = (int32_t)(test_random(&seed) % (uint64_t)vocabulary);
            made->positions[at] = (int32_t)i;
            if (test_random(&seed) % 5 > 0)
                made->labels[at] = (int32_t)(test_random(&seed) % (uint64_t)vocabulary);
        }
        made->starts[s + 1] = (int32_t)at;
    }
    made->batch = (struct batch){
        .tokens = T,
        .sequences = sequences,
        .longest = longest,
        .used_tokens = used,
        .labelled = labelled(made, T),
        .token_ids = on_device(device, made->token_ids, T),
        .labels = on_device(device, made->labels, T),
        .positions = on_device(device, made->positions, T),
        .starts = on_device(device, made->starts, sequences + 1),
        .keys = T,
    };
}

void test_batch_done(struct test_batch *made)
{
    size_t bytes = (size_t)made->batch.tokens * sizeof(int32_t);
    device_release(made->device, (void *)(uintptr_t)made->batch.token_ids, bytes);
    device_release(made->device, (void *)(uintptr_t)made->batch.labels, bytes);
    device_release(made->device, (void *)(uintptr_t)made->batch.positions, bytes);
    device_release(made->device, (void *)(uintptr_t)made->batch.starts,
                   (size_t)(made->batch.sequences + 1) * sizeof(int32_t));
    free(made->token_ids);
    free(made->labels);
    free(made->positions);
    free(made->starts);
}

void test_batch_upload(struct test_batch *made)
{
    size_t bytes = (size_t)made->batch.tokens * sizeof(int32_t);
    device_copy_in(made->device, (void *)(uintptr_t)made->batch.token_ids, made->token_ids, bytes);
    device_copy_in(made->device, (void *)(uintptr_t)made->batch.labels, made->labels, bytes);
    made->batch.labelled = labelled(made, made->batch.tokens);
}

float **test_weights(const struct param_table *table)
{
    uint64_t seed = 7;
    float **weights = calloc((size_t)table->count, sizeof *weights);
    for (int32_t i = 0; i < table->count; i++) {
        const struct param *param = &table->params[i];
        double deviation = param->norm ? 0.2 : i == 0 ? 0.5 : 1 / sqrt((double)param->columns);
        weights[i] = malloc((size_t)param->elements * sizeof(float));
        for (int64_t e = 0; e < param->elements; e++)
            weights[i][e] = (float)((param->norm ? 1 : 0) + deviation * test_normal(&seed));
    }
    return weights;
}

void rig_open(struct rig *rig, const struct model_config *config, const struct rig_want *want)
{
    char why[256];
    struct err err = ERR_INIT;
    int64_t sequences = 0;
    while (want->lengths[sequences] > 0)
        sequences++;
    *rig = (struct rig){.config = *config};
    const char *device =
        getenv("TEST_DEVICE"); /* guarded: the whole suite on memory that host code cannot read */
    if (device_open(&rig->device, device ? device : "cpu", want->threads, why, sizeof why) != 0)
        fail_msg("%s", why);
    check_ok(model_init(&rig->model, config, want->compute, want->recompute, &rig->device, &err), &err);
    rig->weights = want->weights(&rig->model.params);
    test_host_init(&rig->host, &rig->device, &rig->model.params, want->compute, rig->weights);
    test_batch_init(&rig->batch, &rig->device, want->lengths, sequences, want->tokens, config->vocabulary, 3);
    check_ok(model_reserve_positions(&rig->model, rig->batch.batch.longest, &err), &err);
    rig->sum = device_allocate(&rig->device, sizeof *rig->sum);
}

void rig_arenas(struct rig *rig, struct tape_plan plan)
{
    struct err err = ERR_INIT;
    arena_done(&rig->activations);
    arena_done(&rig->blocks);
    arena_done(&rig->gradients);
    check_ok(arena_init(&rig->blocks, "a block", &rig->device, plan.block_bytes, &err), &err);
    check_ok(arena_init(&rig->activations, "activations", &rig->device, plan.activation_bytes, &err), &err);
    check_ok(arena_init(&rig->gradients, "gradients", &rig->device, plan.gradient_bytes, &err), &err);
}

struct tape_arenas rig_memory(struct rig *rig)
{
    return (struct tape_arenas){&rig->activations, &rig->blocks, &rig->gradients};
}

double rig_run(struct rig *rig, bool training, float **logprob)
{
    const struct batch *batch = &rig->batch.batch;
    struct model_pass pass;
    struct tape_host tape = test_host_tape(&rig->host);
    double sum;
    rig_arenas(rig, model_plan(&rig->model, batch->tokens, batch->sequences, batch->longest, training));
    test_host_forget(&rig->host);
    model_run(&rig->model, batch, &tape, rig_memory(rig), rig->sum, training, &pass);
    *logprob = malloc((size_t)batch->tokens * sizeof(float));
    device_copy_out(&rig->device, *logprob, pass.logprob, (size_t)batch->tokens * sizeof(float));
    device_copy_out(&rig->device, &sum, rig->sum, sizeof sum);
    assert_int_equal(rig->activations.peak, rig->activations.capacity);
    assert_int_equal(rig->blocks.peak, rig->blocks.capacity);
    assert_int_equal(rig->gradients.peak, rig->gradients.capacity);
    assert_int_equal(rig->host.held, 0);
    return sum;
}

void rig_close(struct rig *rig)
{
    for (int32_t i = 0; i < rig->model.params.count; i++)
        free(rig->weights[i]);
    free(rig->weights);
    arena_done(&rig->activations);
    arena_done(&rig->blocks);
    arena_done(&rig->gradients);
    device_release(&rig->device, rig->sum, sizeof *rig->sum);
    test_batch_done(&rig->batch);
    test_host_done(&rig->host);
    model_done(&rig->model);
    assert_int_equal(rig->device.allocated_bytes, 0);
    device_close(&rig->device);
}
