/* A few steps of the real engine without its socket, for the comparison of layouts: every rank calls the same
 * commands, then the whole gradient of the first step and the whole weights after the last go to files that
 * the driver (layouts.py) compares tensor by tensor.
 *
 * - ranks_train data DIR [other]: makes the dataset (rows of many lengths), or one unlike it
 * - ranks_train train OUT DEVICE LAYOUT ZERO LANES RECOMPUTE THREADS POLICY CONFIG RECIPE [STOP_AT]
 * - ranks_train resume OUT DEVICE LAYOUT ZERO LANES RECOMPUTE THREADS CHECKPOINT
 * - ranks_train copy OUT DEVICE LAYOUT ZERO LANES RECOMPUTE THREADS CHECKPOINT NAME [POLICY]: loads one and
 * saves it again as NAME, exports OUT/hub in fp32, loads that and saves it as NAME-hub
 *
 * LAYOUT "" is d = all ranks. STOP_AT k leaves a checkpoint after k steps and ends. OUT/steps has loss and
 * norm in hexadecimal floating point. */
#include "comm.h"
#include "dataset_writer.h"
#include "engine.h"
#include "file.h"
#include "handlers.h"
#include "plan.h"
#include "watch.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fail(const struct err *err)
{
    char line[3 * ERR_TEXT_BYTES + 8];
    fprintf(stderr, "ranks_train: %s\n", err_line(err, line, sizeof line));
    exit(1);
}

/* 37 rows, 5 to 60 tokens of a vocabulary of 96, about half of them trained; from a linear congruence. */
static void make_data(const char *folder, uint32_t state)
{
    struct err err = ERR_INIT;
    struct dataset_writer writer = {0};
    struct dataset_writer_options options = {
        .tokenizer = "test", .tokenizer_hash = "0", .vocabulary = 96, .cutoff = 64, .overwrite = true};
    if (!dataset_writer_open(&writer, folder, &options, &err))
        fail(&err);
    uint32_t tokens[64];
    uint8_t trained[64];
    for (int row = 0; row < 37; row++) {
        int length = 5 + row * 17 % 56;
        for (int i = 0; i < length; i++) {
            state = state * 1664525u + 1013904223u;
            tokens[i] = (tokens[i ? i - 1 : 0] % 96 * 5 + (state >> 28) + (uint32_t)row) % 96;
            trained[i] = i > 1 && (i == length - 1 || (state >> 20 & 1));
        }
        if (!dataset_writer_add(&writer, tokens, trained, length, NULL, &err))
            fail(&err);
    }
    if (!dataset_writer_finish(&writer, &err))
        fail(&err);
}

/* Values of a segment to their places in the hub's tensors, which lie one after another in the file. */
static void write_segment(int fd, const struct param_table *table, const struct optimizer_segment *s,
                          const float *values, struct err *err)
{
    int64_t base = -table->params[s->tensor].index0, run;
    for (int32_t t = 0; t < s->tensor; t++)
        base += param_whole_elements(&table->params[t]);
    for (int64_t e = 0; e < s->elements; e += run) {
        struct index_map map = optimizer_segment_map(s, e);
        run = map.run == map.stride ? s->elements - e : map.run - map.column;
        run = run < s->elements - e ? run : s->elements - e;
        if (!file_write_all(fd, values + e, (size_t)run * sizeof *values,
                            (base + map.index) * (int64_t)sizeof *values, err))
            fail(err);
    }
}

/* Each rank writes what it holds: tensor after tensor in table order, fp32. What it holds a copy of goes to a
 * file beside, at the same place. */
static void dump(struct engine *engine, const char *folder, const char *name, bool gradient)
{
    char path[LIMIT_PATH_BYTES], beside[LIMIT_PATH_BYTES + 16];
    struct err err = ERR_INIT;
    if (!file_join(path, sizeof path, folder, name, &err))
        fail(&err);
    snprintf(beside, sizeof beside, "%s.copies", path);
    int fds[2] = {open(path, O_WRONLY | O_CREAT, 0600), open(beside, O_WRONLY | O_CREAT, 0600)};
    const struct optimizer *o = &engine->body.optimizer;
    const struct param_table *table = &engine->body.model.params;
    enum dtype accumulate = engine->body.shard.options.accumulate;
    for (int32_t u = 0; u < o->unit_count; u++)
        for (int32_t i = 0; i < o->units[u].segment_count; i++) {
            const struct optimizer_segment *s = &o->units[u].segments[i];
            size_t bytes = (size_t)s->elements * sizeof(float);
            float *host = malloc(bytes), *values = device_allocate(engine->device, bytes);
            if (gradient)
                engine->device->kernels->cast(engine->device->queue, values,
                                              (const char *)engine->body.shard.gradients[u] +
                                                  (size_t)s->offset * dtype_bytes(accumulate),
                                              s->elements, DTYPE_F32, accumulate);
            else
                optimizer_get(o, u, i, STATE_W, 0, s->elements, values);
            device_copy_out(engine->device, host, values, bytes);
            write_segment(fds[s->copy], table, s, host, &err);
            device_release(engine->device, values, bytes);
            free(host);
        }
    close(fds[0]);
    close(fds[1]);
}

static void describe(const struct engine *engine, FILE *file)
{
    const struct param_table *table = &engine->body.model.params;
    for (int32_t t = 0; t < table->count; t++)
        fprintf(file, "tensor %s %lld\n", table->params[t].name,
                (long long)param_whole_elements(&table->params[t]));
}

static void execute(struct engine *engine, struct command *command)
{
    struct err err = ERR_INIT;
    struct command_result result = {0};
    if (!engine_execute(engine, command, &result, &err))
        fail(&err);
}

static void train(struct engine *engine, const char *policy, const char *config, const char *recipe)
{
    struct err err = ERR_INIT;
    struct command command = {.kind = COMMAND_INIT, .yes = true};
    if (!policy_parse(&engine->options.policy, policy, NULL, &err))
        fail(&err);
    snprintf(command.u.model.path, sizeof command.u.model.path, "%s", config);
    execute(engine, &command);
    char *text;
    size_t bytes;
    command = (struct command){.kind = COMMAND_TRAIN, .yes = true};
    if (!file_slurp(recipe, RECIPE_TEXT_BYTES, &text, &bytes, &err) ||
        !recipe_parse(&command.u.train.recipe, recipe, text, bytes, NULL, 0, &err))
        fail(&err);
    free(text);
    execute(engine, &command);
}

static void resume(struct engine *engine, const char *checkpoint)
{
    struct command command = {.kind = COMMAND_CHECKPOINT_LOAD, .yes = true};
    snprintf(command.u.model.path, sizeof command.u.model.path, "%s", checkpoint);
    execute(engine, &command);
    command = (struct command){.kind = COMMAND_RESUME};
    execute(engine, &command);
}

static void execute_on(struct engine *engine, enum command_kind kind, const char *path, const char *more)
{
    struct command command = {.kind = kind, .yes = true};
    snprintf(command.u.model.path, sizeof command.u.model.path, "%s%s", path, more);
    command.u.model.dtype = DTYPE_F32;
    execute(engine, &command);
}

static void copy(struct engine *engine, const char *out, const char *checkpoint, const char *name,
                 const char *policy)
{
    struct command load = {.kind = COMMAND_CHECKPOINT_LOAD, .yes = true};
    snprintf(load.u.model.path, sizeof load.u.model.path, "%s", checkpoint);
    snprintf(load.u.model.policy, sizeof load.u.model.policy, "%s", policy);
    execute(engine, &load);
    execute_on(engine, COMMAND_CHECKPOINT_SAVE, name, "");
    execute_on(engine, COMMAND_EXPORT, out, "/hub");
    execute_on(engine, COMMAND_STOP, "", "");
    execute_on(engine, COMMAND_LOAD, out, "/hub");
    execute_on(engine, COMMAND_CHECKPOINT_SAVE, name, "-hub");
}

static void run_steps(struct engine *engine, const char *out, int64_t stop_at)
{
    char path[LIMIT_PATH_BYTES];
    struct err err = ERR_INIT;
    bool first = true;
    FILE *steps = NULL;
    if (engine->comm->rank == 0 &&
        (!file_join(path, sizeof path, out, "steps", &err) || !(steps = fopen(path, "we"))))
        fail(&err);
    if (steps)
        describe(engine, steps);
    dump(engine, out, "initial", false);
    while (engine->state == STATE_RUNNING) {
        bool last = engine->run.k + 1 == engine->run.steps;
        const struct workspace *w = &engine->run.workspace;
        int64_t sent = engine->comm->wire->bytes_sent, rows = w->rows_sent, batches = w->batches_sent;
        int64_t labelled = w->labelled_sent, collectives = engine->comm->wire->collectives;
        run_advance(engine);
        sent = engine->comm->wire->bytes_sent - sent;
        struct plan_traffic traffic = plan_traffic(&engine->body, w->batches_sent - batches,
                                                   w->rows_sent - rows, w->labelled_sent - labelled);
        int64_t planned = 0;
        for (int kind = 0; kind < WIRES; kind++)
            planned += traffic.bytes[kind];
        planned += comm_max_int(engine->comm, llabs(sent - planned)); /* off on any rank is off */
        if (first && !last)
            dump(engine, out, "gradient", true);
        first = false;
        if (steps)
            fprintf(steps, "step %lld %a %a %a %a %lld %lld %lld %lld\n", (long long)engine->last.step,
                    engine->last.loss, engine->last.grad_norm, engine->last.update_quality, engine->last.lr,
                    (long long)engine->last.labelled_tokens, (long long)sent, (long long)planned,
                    (long long)(engine->comm->wire->collectives - collectives));
        if (steps && engine->run.skips_in_a_row > 0)
            fprintf(steps, "skipped %d %s\n", engine->run.bad_rank,
                    engine->body.model.params.params[engine->run.bad_tensor].name);
        if (stop_at && engine->last.step == stop_at) {
            struct command_result result = {0};
            if (!engine_save(engine, "stopped", false, &result, &err))
                fail(&err);
            break;
        }
    }
    dump(engine, out, "weights", false);
    struct command evaluate = {.kind = COMMAND_EVALUATE, .yes = true};
    struct command_result evaluated = {0};
    if (!file_join(evaluate.u.evaluate.data, sizeof evaluate.u.evaluate.data, out, "../data", &err) ||
        !engine_execute(engine, &evaluate, &evaluated, &err))
        fail(&err);
    if (steps) {
        fprintf(steps, "evaluation %a %lld\n", evaluated.loss, (long long)evaluated.labelled_tokens);
        fclose(steps);
    }
}

int main(int argc, char **argv)
{
    static struct comm comm;
    static struct device device;
    static struct engine engine;
    struct engine_options options = {.policy = policy_default()};
    struct err err = ERR_INIT;
    char why[256];
    if (argc >= 3 && strcmp(argv[1], "data") == 0) {
        make_data(argv[2], argc > 3 ? 54321 : 12345);
        return 0;
    }
    if (!comm_init(&comm, &argc, &argv, &err) || argc < 10)
        fail(&err);
    bool resumes = strcmp(argv[1], "resume") == 0;
    if (!layout_parse(&options.layout, argv[4], comm.ranks, &err))
        fail(&err);
    options.zero = atoi(argv[5]);
    options.lanes = atoll(argv[6]);
    options.recompute = atoi(argv[7]) != 0;
    snprintf(options.state_dir, sizeof options.state_dir, "%s", argv[2]);
    if (!file_join(options.checkpoint_dir, sizeof options.checkpoint_dir, argv[2], "../checkpoints", &err) ||
        !watch_start(comm.rank, 120, &err))
        fail(&err);
    if (device_open(&device, argv[3], atoi(argv[8]), why, sizeof why) != 0) {
        fprintf(stderr, "ranks_train: %s\n", why);
        return 1;
    }
    comm_set_device(&comm, &device);
    if (!engine_init(&engine, &options, &comm, &device, NULL, &err))
        fail(&err);
    if (strcmp(argv[1], "copy") == 0)
        copy(&engine, argv[2], argv[9], argv[10], argc > 11 ? argv[11] : "");
    else if (resumes)
        resume(&engine, argv[9]);
    else
        train(&engine, argv[9], argv[10], argv[11]);
    if (strcmp(argv[1], "copy") != 0)
        run_steps(&engine, argv[2], argc > 12 ? atoll(argv[12]) : 0);
    engine_done(&engine);
    watch_stop();
    device_close(&device);
    comm_done(&comm);
    return 0;
}
