/* set-layout against save, restart and load: a run, or a model whose run is over, moves to another layout in
 * memory, and a second daemon loads its checkpoint under that layout. Every stored byte of every rank must be
 * the same, at once and after more steps, and a refused or dry move must change none.
 *
 *     ranks_relayout OUT CONFIG RECIPE DEVICE LANES FROM ZERO TO ZERO POLICY…
 *
 * FROM and TO are layouts of as many ranks as there are. */
#include "comm.h"
#include "engine.h"
#include "file.h"
#include "handlers.h"
#include "watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOVES_AT 2
#define ENDS_AT  4

struct setting {
    const char *out, *config, *recipe;
    struct comm *comm;
    struct device *device;
    struct engine_options options[2]; /* from, to */
    char layouts[2][LIMIT_NAME_BYTES];
};

static _Noreturn void fail(const struct err *err)
{
    char line[3 * ERR_TEXT_BYTES + 8];
    fprintf(stderr, "ranks_relayout: %s\n", err_line(err, line, sizeof line));
    exit(1);
}

/* All that decides the next step, of this rank. */
struct state {
    uint64_t bytes[STATE_PART_COUNT * 2]; /* FNV-1a over every array as it is stored */
    int64_t elements, t, total_steps, k, samples, allocated;
    double loss, norm;
};

static struct state read_state(const struct engine *engine)
{
    struct state s = {.t = engine->body.optimizer.t, .total_steps = engine->body.optimizer.total_steps};
    const struct optimizer *o = &engine->body.optimizer;
    for (int a = 0; a < STATE_PART_COUNT * 2; a++)
        s.bytes[a] = 14695981039346656037ull;
    for (int32_t u = 0; u < o->unit_count; u++)
        for (int32_t i = 0; i < o->units[u].segment_count; i++)
            for (int a = 0; a < STATE_PART_COUNT * 2; a++) {
                struct optimizer_slice slice;
                if (!optimizer_slice(o, u, i, (enum state_part)(a / 2), a % 2, 0, -1, &slice))
                    continue;
                unsigned char *host = malloc((size_t)slice.bytes + 1);
                device_copy_out(engine->device, host, slice.memory, (size_t)slice.bytes);
                for (int64_t b = 0; b < slice.bytes; b++)
                    s.bytes[a] = (s.bytes[a] ^ host[b]) * 1099511628211ull;
                s.elements += slice.elements;
                free(host);
            }
    s.k = engine->run.k;
    s.samples = engine->run.cursor.samples;
    s.allocated = engine->device->allocated_bytes;
    s.loss = engine->last.loss;
    s.norm = engine->last.grad_norm;
    return s;
}

static void demand(const struct setting *s, bool met, const char *policy, const char *what)
{
    struct err err = ERR_INIT;
    if (!met)
        err_set(&err, ERR_CORRUPT, "%s to %s under %s: %s", s->layouts[0], s->layouts[1], policy, what);
    if (!comm_agree(s->comm, &err))
        fail(&err);
}

static void same(const struct setting *s, const struct state *a, const struct state *b, const char *policy,
                 const char *what)
{
    bool looked = a->norm > 0 && b->norm > 0; /* at a step: one that was only loaded has none to show */
    bool equal = a->elements == b->elements && a->t == b->t && a->total_steps == b->total_steps &&
                 a->k == b->k && a->samples == b->samples && a->allocated == b->allocated &&
                 (!looked || (a->loss == b->loss && a->norm == b->norm)) &&
                 memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
    if (!equal)
        fprintf(stderr,
                "rank %d: elements %lld %lld, t %lld %lld, k %lld %lld, samples %lld %lld, allocated %lld "
                "%lld, loss "
                "%a %a, norm %a %a\n",
                s->comm->rank, (long long)a->elements, (long long)b->elements, (long long)a->t,
                (long long)b->t, (long long)a->k, (long long)b->k, (long long)a->samples,
                (long long)b->samples, (long long)a->allocated, (long long)b->allocated, a->loss, b->loss,
                a->norm, b->norm);
    demand(s, equal, policy, what);
}

static struct command_result execute(struct engine *engine, struct command *command)
{
    struct err err = ERR_INIT;
    struct command_result result = {0};
    if (!engine_execute(engine, command, &result, &err))
        fail(&err);
    return result;
}

static void execute_on(struct engine *engine, enum command_kind kind, const char *path)
{
    struct command command = {.kind = kind, .yes = true};
    snprintf(command.u.model.path, sizeof command.u.model.path, "%s", path);
    (void)execute(engine, &command);
}

static void begin(const struct setting *s, struct engine *engine, int side)
{
    struct err err = ERR_INIT;
    if (!engine_init(engine, &s->options[side], s->comm, s->device, NULL, &err))
        fail(&err);
}

static void start_run(const struct setting *s, struct engine *engine, const char *policy)
{
    struct err err = ERR_INIT;
    char *text;
    size_t bytes;
    struct command train = {.kind = COMMAND_TRAIN, .yes = true};
    if (!policy_parse(&engine->options.policy, policy, NULL, &err))
        fail(&err);
    execute_on(engine, COMMAND_INIT, s->config);
    if (!file_slurp(s->recipe, RECIPE_TEXT_BYTES, &text, &bytes, &err) ||
        !recipe_parse(&train.u.train.recipe, s->recipe, text, bytes, NULL, 0, &err))
        fail(&err);
    free(text);
    (void)execute(engine, &train);
}

static void step_until(struct engine *engine, int64_t k)
{
    while (engine->has_run && engine->run.k < k)
        run_advance(engine);
}

static struct command move_command(const struct setting *s, const char *layout, bool dry_run)
{
    struct command command = {.kind = COMMAND_SET_LAYOUT, .dry_run = dry_run};
    snprintf(command.u.set_layout.layout, sizeof command.u.set_layout.layout, "%s", layout);
    command.u.set_layout.zero = s->options[1].zero;
    return command;
}

static void refused(const struct setting *s, struct engine *engine, const char *layout, const char *policy)
{
    struct err err = ERR_INIT;
    struct command_result result = {0};
    struct command move = move_command(s, layout, false);
    struct state before = read_state(engine);
    demand(s, !engine_execute(engine, &move, &result, &err), policy, "nonsense was not refused");
    struct state after = read_state(engine);
    same(s, &before, &after, policy, "a refused move changed something");
}

/* Refused, looked at, done; and the answers are true. */
static void move_run(const struct setting *s, struct engine *engine, const char *policy)
{
    struct command dry = move_command(s, s->layouts[1], true), move = move_command(s, s->layouts[1], false);
    struct state before = read_state(engine);
    refused(s, engine, "d1000", policy);
    refused(s, engine, "q2", policy);
    struct command_result planned = execute(engine, &dry);
    struct state after = read_state(engine);
    same(s, &before, &after, policy, "a dry run changed something");
    int64_t sent = s->comm->wire->bytes_sent;
    struct command_result done = execute(engine, &move);
    sent = comm_sum_int(s->comm, s->comm->wire->bytes_sent - sent);
    int64_t most = comm_max_int(s->comm, engine->device->allocated_bytes);
    demand(s, sent == done.bytes_moved && sent == planned.bytes_moved, policy,
           "the bytes moved are not those said");
    demand(s, most == done.bytes_after && most == planned.bytes_after, policy,
           "the bytes allocated are not those said");
    bool across =
        s->options[0].layout.t != s->options[1].layout.t || s->options[0].layout.p != s->options[1].layout.p;
    demand(s, (sent > 0) == across, policy, "d and c share alike, t and p do not");
    if (s->comm->rank == 0)
        fprintf(stderr, "%s to %s, %s: %lld bytes in %.3g s\n", done.layout_before, done.layout_after, policy,
                (long long)sent, done.seconds);
}

static void compare(const struct setting *s, const char *policy)
{
    static struct engine engine;
    begin(s, &engine, 0);
    start_run(s, &engine, policy);
    step_until(&engine, MOVES_AT);
    execute_on(&engine, COMMAND_CHECKPOINT_SAVE, "before");
    move_run(s, &engine, policy);
    struct state moved = read_state(&engine);
    execute_on(&engine, COMMAND_CHECKPOINT_SAVE, "moved");
    step_until(&engine, ENDS_AT);
    struct state moved_later = read_state(&engine);
    engine_done(&engine);

    static const char *const names[] = {"before", "moved"};
    for (int i = 0; i < 2; i++) { /* and a checkpoint saved after the move is as good */
        begin(s, &engine, 1);
        execute_on(&engine, COMMAND_CHECKPOINT_LOAD, names[i]);
        struct state loaded = read_state(&engine);
        same(s, &moved, &loaded, policy, "loaded and moved states differ");
        if (engine.has_run)
            execute_on(&engine, COMMAND_RESUME, "");
        step_until(&engine, ENDS_AT);
        struct state loaded_later = read_state(&engine);
        same(s, &moved_later, &loaded_later, policy, "loaded and moved runs differ later");
        engine_done(&engine);
    }
}

int main(int argc, char **argv)
{
    static struct comm comm;
    static struct device device;
    struct err err = ERR_INIT;
    char why[256];
    if (!comm_init(&comm, &argc, &argv, &err) || argc < 11)
        fail(&err);
    struct setting s = {
        .out = argv[1], .config = argv[2], .recipe = argv[3], .comm = &comm, .device = &device};
    for (int side = 0; side < 2; side++) {
        struct engine_options *o = &s.options[side];
        *o = (struct engine_options){
            .policy = policy_default(), .lanes = atoll(argv[5]), .zero = atoi(argv[7 + 2 * side])};
        snprintf(s.layouts[side], sizeof s.layouts[side], "%s", argv[6 + 2 * side]);
        snprintf(o->state_dir, sizeof o->state_dir, "%s", s.out);
        if (!layout_parse(&o->layout, s.layouts[side], comm.ranks, &err) ||
            !file_join(o->checkpoint_dir, sizeof o->checkpoint_dir, s.out, "checkpoints", &err))
            fail(&err);
    }
    if (!watch_start(comm.rank, 60, &err))
        fail(&err);
    if (device_open(&device, argv[4], 1, why, sizeof why) != 0)
        return 1;
    comm_set_device(&comm, &device);
    for (int i = 10; i < argc; i++)
        compare(&s, argv[i]);
    watch_stop();
    device_close(&device);
    comm_done(&comm);
    return 0;
}
