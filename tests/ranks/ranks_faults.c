/* All ranks or none: one rank's n-th allocation, file or sync fails inside a command, for every n until the
 * command succeeds. No rank may be left waiting in a collective, all must return the same error, and a
 * command that was refused must leave weights, counters and memory of every rank as they were.
 *
 *     ranks_faults FOLDER DATA CONFIG RECIPE OTHER_DATA
 *
 * Real faults: allocations through a device table of our own, files and syncs by standing in front of the C
 * library's calls for paths in FOLDER and DATA. A rank left waiting is ended by the watchdog. */
#include "comm.h"
#include "engine.h"
#include "file.h"
#include "handlers.h"
#include "kin.h"
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STUCK_AFTER_S 20
#define FAULTS_MAX    2000 /* in one command */

enum fault { FAULT_ALLOCATE, FAULT_OPEN, FAULT_SYNC, FAULT_COUNT };
static const char *const fault_names[] = {"allocation", "file opened", "sync"};

static struct {
    bool armed, fired;
    enum fault kind;
    int64_t left; /* the fault strikes when it reaches 0 */
    char folder[LIMIT_PATH_BYTES], data[LIMIT_PATH_BYTES];
} fault;

static bool strikes(enum fault kind)
{
    if (!fault.armed || fault.kind != kind || fault.left-- != 0)
        return false;
    return fault.fired = true;
}

static bool is_ours(const char *path)
{
    return strncmp(path, fault.folder, strlen(fault.folder)) == 0 ||
           strncmp(path, fault.data, strlen(fault.data)) == 0;
}

int open64(const char *path, int flags, ...);
int open64(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    unsigned mode = va_arg(args, unsigned);
    va_end(args);
    if (fault.armed && is_ours(path) && strikes(FAULT_OPEN)) {
        errno = EACCES;
        return -1;
    }
    return openat(AT_FDCWD, path, flags, mode);
}

int fsync(int fd)
{
    if (!strikes(FAULT_SYNC))
        return fdatasync(fd);
    errno = EIO;
    return -1;
}

static const struct device_backend *real_backend;
static void *allocate(struct device *device, size_t bytes)
{
    return strikes(FAULT_ALLOCATE) ? NULL : real_backend->allocate(device, bytes);
}

static _Noreturn void fail(const struct err *err)
{
    char line[3 * ERR_TEXT_BYTES + 8];
    fprintf(stderr, "ranks_faults: %s\n", err_line(err, line, sizeof line));
    exit(1);
}

/* What a refused command must not change; compared as bytes. */
struct state {
    uint64_t weights; /* FNV-1a over every value read, this rank's shard */
    int64_t allocated, t, total_steps, k, steps, samples;
    int32_t state, has_run, has_body, opened;
    double lr;
    char policy[LIMIT_NAME_BYTES], run[LIMIT_NAME_BYTES], layout[LIMIT_NAME_BYTES];
};

static int32_t open_files(void)
{
    int32_t count = 0;
    for (int fd = 3; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void read_state(const struct engine *engine, struct state *s)
{
    memset(s, 0, sizeof *s);
    const struct optimizer *o = &engine->body.optimizer;
    s->allocated = engine->device->allocated_bytes;
    s->state = (int32_t)engine->state;
    s->has_run = engine->has_run;
    s->has_body = engine->has_body;
    s->opened = open_files();
    snprintf(s->policy, sizeof s->policy, "%s", engine->options.policy.name);
    layout_print(&engine->options.layout, s->layout, sizeof s->layout);
    s->weights = 14695981039346656037ull;
    for (int32_t u = 0; u < o->unit_count; u++)
        for (int32_t i = 0; i < o->units[u].segment_count; i++) {
            size_t bytes = (size_t)o->units[u].segments[i].elements * sizeof(float);
            unsigned char *host = malloc(bytes);
            float *values = device_allocate(engine->device, bytes);
            optimizer_get(o, u, i, STATE_W, 0, o->units[u].segments[i].elements, values);
            device_copy_out(engine->device, host, values, bytes);
            for (size_t b = 0; b < bytes; b++)
                s->weights = (s->weights ^ host[b]) * 1099511628211ull;
            device_release(engine->device, values, bytes);
            free(host);
        }
    if (!engine->has_body)
        return;
    s->t = o->t;
    s->total_steps = o->total_steps;
    s->lr = engine->settings.lr;
    /* A longer rotary table, grown for a command that another rank refused, is of no harm. */
    s->allocated -= engine->body.model.rope_positions * engine->body.model.config.head_dim * 4;
    if (!engine->has_run)
        return;
    s->k = engine->run.k;
    s->steps = engine->run.steps;
    s->samples = engine->run.cursor.samples;
    snprintf(s->run, sizeof s->run, "%s", engine->run.id);
}

struct outcome {
    int32_t done, code, fired, same;
};

static struct command command_of(enum command_kind kind, const char *path, const char *policy)
{
    struct command command = {.kind = kind, .yes = true};
    if (kind == COMMAND_SET_OPTIMIZER) {
        snprintf(command.u.set_optimizer.policy, sizeof command.u.set_optimizer.policy, "%s", policy);
        command.u.set_optimizer.at_step = -1;
        return command;
    }
    if (kind == COMMAND_SET_LAYOUT) {
        snprintf(command.u.set_layout.layout, sizeof command.u.set_layout.layout, "%s", path);
        return command;
    }
    if (kind == COMMAND_EVALUATE) {
        snprintf(command.u.evaluate.data, sizeof command.u.evaluate.data, "%s", path);
        return command;
    }
    snprintf(command.u.model.path, sizeof command.u.model.path, "%s", path);
    snprintf(command.u.model.policy, sizeof command.u.model.policy, "%s", policy);
    command.u.model.dtype = DTYPE_F32;
    return command;
}

static void execute(struct engine *engine, enum command_kind kind, const char *path, const char *policy)
{
    struct err err = ERR_INIT;
    struct command_result result = {0};
    struct command command = command_of(kind, path, policy);
    if (!engine_execute(engine, &command, &result, &err))
        fail(&err);
}

struct faulted {
    const char *name, *base; /* base: the checkpoint to begin from */
    struct command command;
    bool numbers_path; /* each attempt writes to a folder of its own */
};

/* One attempt. Every rank returns the same: 1 the command was done and no fault struck, 0 go on, -1 wrong. */
static int attempt(struct engine *engine, const struct faulted *f, int32_t victim, enum fault kind, int64_t n)
{
    struct err err = ERR_INIT;
    struct command_result result = {0};
    struct command command = f->command;
    struct state before, after;
    struct outcome mine, all[SHARD_RANKS_MAX];
    if (f->numbers_path)
        snprintf(command.u.model.path, sizeof command.u.model.path, "%.900s/out-%d-%d-%lld", fault.folder,
                 victim, (int)kind, (long long)n);
    read_state(engine, &before);
    fault.fired = false;
    fault.kind = kind;
    fault.left = n;
    fault.armed = engine->comm->rank == victim;
    mine.done = engine_execute(engine, &command, &result, &err);
    fault.armed = false;
    read_state(engine, &after);
    mine.code = (int32_t)err.code;
    mine.fired = fault.fired;
    mine.same = memcmp(&before, &after, sizeof before) == 0;
    comm_all_gather_host(engine->comm, all, &mine, sizeof mine);
    bool fired = false, right = true;
    for (int32_t r = 0; r < engine->comm->ranks; r++) {
        fired |= all[r].fired != 0;
        right &= all[r].done == all[0].done && all[r].code == all[0].code && (all[r].done || all[r].same);
    }
    right &= mine.done || fired; /* nothing else may refuse */
    if (command.kind == COMMAND_SET_LAYOUT && mine.code == ERR_MEMORY)
        right &= strstr(err.hint, "restart with --layout") != NULL;
    char line[3 * ERR_TEXT_BYTES + 8];
    if (!right)
        fprintf(stderr, "%s: rank %d's %s %lld: rank %d done=%d same=%d (bytes %lld, files %d): %s\n",
                f->name, victim, fault_names[kind], (long long)n, engine->comm->rank, mine.done, mine.same,
                (long long)(after.allocated - before.allocated), after.opened - before.opened,
                err_line(&err, line, sizeof line));
    if (right && mine.done && engine->state == STATE_RUNNING)
        execute(engine, COMMAND_PAUSE, "", "");
    if (right && mine.done && strcmp(before.layout, after.layout) != 0)
        execute(engine, COMMAND_SET_LAYOUT, before.layout, "");
    if (right && mine.done)
        execute(engine, COMMAND_CHECKPOINT_LOAD, f->base, "");
    else if (right) /* what stood before a refused save, still stands */
        execute(engine, COMMAND_CHECKPOINT_VERIFY, f->base, "");
    return !right ? -1 : !fired;
}

static bool try_command(struct engine *engine, const struct faulted *f)
{
    int64_t struck = 0;
    for (int32_t victim = 0; victim < engine->comm->ranks; victim++)
        for (int kind = 0; kind < FAULT_COUNT; kind++) {
            int outcome = 0;
            execute(engine, COMMAND_CHECKPOINT_LOAD, f->base, "");
            for (int64_t n = 0; outcome == 0; n++, struck++)
                outcome = n == FAULTS_MAX ? -1 : attempt(engine, f, victim, (enum fault)kind, n);
            if (outcome < 0)
                return false;
        }
    if (engine->comm->rank == 0)
        fprintf(stderr, "%s: %lld faults\n", f->name, (long long)struck);
    return true;
}

static struct command train_command(const char *recipe)
{
    struct err err = ERR_INIT;
    char *text;
    size_t bytes;
    struct command command = {.kind = COMMAND_TRAIN, .yes = true};
    if (!file_slurp(recipe, RECIPE_TEXT_BYTES, &text, &bytes, &err) ||
        !recipe_parse(&command.u.train.recipe, recipe, text, bytes, NULL, 0, &err))
        fail(&err);
    free(text);
    return command;
}

/* A model with a checkpoint before a run, `idle`, and one in it, `run`; and an export to load. */
static void prepare(struct engine *engine, const char *config, const char *exported,
                    const struct command *train)
{
    struct err err = ERR_INIT;
    struct command_result result = {0};
    struct command start = *train, out = command_of(COMMAND_EXPORT, exported, "");
    execute(engine, COMMAND_INIT, config, "");
    execute(engine, COMMAND_CHECKPOINT_SAVE, "idle", "");
    if (!engine_execute(engine, &out, &result, &err) || !engine_execute(engine, &start, &result, &err))
        fail(&err);
    run_advance(engine);
    run_advance(engine);
    execute(engine, COMMAND_PAUSE, "", "");
    execute(engine, COMMAND_CHECKPOINT_SAVE, "run", "");
}

/* Hosts that do not share the folder, or hold another dataset under its name: here, ranks told other names.
 */
static bool differing_folders(struct engine *engine, const char *data, const char *other_data)
{
    struct err folder_err = ERR_INIT, data_err = ERR_INIT;
    struct command_result result = {0};
    struct engine_options options = engine->options;
    bool last = engine->comm->rank == engine->comm->ranks - 1;
    if (last)
        snprintf(engine->options.checkpoint_dir, sizeof engine->options.checkpoint_dir, "%s", fault.folder);
    bool seen = engine_check_folder(engine, &folder_err);
    engine->options = options;
    struct command evaluate = command_of(COMMAND_EVALUATE, last ? other_data : data, "");
    bool evaluated = engine_execute(engine, &evaluate, &result, &data_err);
    execute(engine, COMMAND_CHECKPOINT_VERIFY, "run", "");
    return !seen && strstr(folder_err.what, "checkpoint folder") && !evaluated &&
           strstr(data_err.what, "not the same");
}

static int run_all(struct engine *engine, char **argv)
{
    char exported[LIMIT_PATH_BYTES];
    struct err err = ERR_INIT;
    if (!file_join(exported, sizeof exported, fault.folder, "exported", &err))
        fail(&err);
    struct command train = train_command(argv[4]);
    prepare(engine, argv[3], exported, &train);
    bool refused = differing_folders(engine, argv[2], argv[5]);
    if (engine->comm->rank == 0)
        printf("[ %s ] ranks_that_see_other_folders_are_refused\n", refused ? "      OK" : "  FAILED");
    if (!refused)
        return 1;
    const struct faulted commands[] = {
        {"init", "idle", command_of(COMMAND_INIT, argv[3], ""), false},
        {"load", "idle", command_of(COMMAND_LOAD, exported, ""), false},
        {"export", "idle", command_of(COMMAND_EXPORT, "", ""), true},
        {"train", "idle", train, false},
        {"evaluate", "run", command_of(COMMAND_EVALUATE, argv[2], ""), false},
        {"set-optimizer", "run", command_of(COMMAND_SET_OPTIMIZER, "", "fp24-q8"), false},
        {"set-optimizer, other compute", "run",
         command_of(COMMAND_SET_OPTIMIZER, "", "bf16-kahan+compute=bf16"), false},
        {"set-optimizer, weights in the copy", "run", command_of(COMMAND_SET_OPTIMIZER, "", "fp32-split"),
         false},
        {"set-layout p2", "run", command_of(COMMAND_SET_LAYOUT, "p2", ""), false},
        {"set-layout t2", "run", command_of(COMMAND_SET_LAYOUT, "t2", ""), false},
        {"checkpoint save", "run", command_of(COMMAND_CHECKPOINT_SAVE, "run", ""), false},
        {"checkpoint verify", "run", command_of(COMMAND_CHECKPOINT_VERIFY, "run", ""), false},
        {"checkpoint load", "idle", command_of(COMMAND_CHECKPOINT_LOAD, "run", ""), false},
        {"checkpoint load --policy", "idle", command_of(COMMAND_CHECKPOINT_LOAD, "run", "fp32-q8"), false},
    };
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        bool good = try_command(engine, &commands[i]);
        if (engine->comm->rank == 0)
            printf("[ %s ] one_rank_fails_in: %s\n", good ? "      OK" : "  FAILED", commands[i].name);
        fflush(stdout);
        if (!good)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static struct comm comm;
    static struct device device;
    static struct device_backend backend;
    static struct engine engine;
    struct engine_options options = {.policy = policy_default(), .zero = 3};
    struct err err = ERR_INIT;
    char why[256];
    if (!comm_init(&comm, &argc, &argv, &err) || argc < 6)
        fail(&err);
    snprintf(fault.folder, sizeof fault.folder, "%s", argv[1]);
    snprintf(fault.data, sizeof fault.data, "%s", argv[2]);
    options.layout = (struct layout){comm.ranks, 1, 1, 1};
    snprintf(options.state_dir, sizeof options.state_dir, "%s", argv[1]);
    if (!file_join(options.checkpoint_dir, sizeof options.checkpoint_dir, argv[1], "checkpoints", &err) ||
        !watch_start(comm.rank, STUCK_AFTER_S, &err))
        fail(&err);
    if (device_open(&device, "cpu", 1, why, sizeof why) != 0)
        return 1;
    real_backend = device.backend;
    backend = *device.backend;
    backend.allocate = allocate;
    device.backend = &backend;
    comm_set_device(&comm, &device);
    if (!engine_init(&engine, &options, &comm, &device, NULL, &err))
        fail(&err);
    int status = run_all(&engine, argv);
    engine_done(&engine);
    watch_stop();
    device.backend = real_backend;
    device_close(&device);
    comm_done(&comm);
    return status;
}
