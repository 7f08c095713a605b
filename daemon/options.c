#include "options.h"

#include "file.h"
#include "keys.h"
#include "log.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OPTIONS_FILE_BYTES (1 << 20)
#define VARIABLE_BYTES     64

#define TEXT(name, field, help)                                                                              \
    {                                                                                                        \
        name, KEY_STRING, offsetof(struct options, field), sizeof(((struct options *)0)->field), 0, 0, NULL, \
            help                                                                                             \
    }
#define INT(name, field, min, max, help)                                                                     \
    {                                                                                                        \
        name, KEY_INT, offsetof(struct options, field), 0, min, max, NULL, help                              \
    }
#define CHOICE(name, field, choices, help)                                                                   \
    {                                                                                                        \
        name, KEY_CHOICE, offsetof(struct options, field), 0, 0, 0, choices, help                            \
    }
#define FLAG(name, field, help)                                                                              \
    {                                                                                                        \
        name, KEY_BOOL, offsetof(struct options, field), 0, 0, 0, NULL, help                                 \
    }

static const struct key keys[] = {
    TEXT("model", model, "DIR: a hub-shaped folder (config.json, safetensors) to load"),
    TEXT("init", init, "DIR: a config alone (a folder or its config.json); random weights from --seed"),
    INT("seed", seed, 0, 9e15, "of initial weights and stochastic rounding (0)"),
    TEXT("layout", layout, "d8t1p1c1: how ranks share the work; missing letters are 1 (d = all ranks)"),
    INT("zero", zero, 1, 3,
        "ZeRO stage: 3 shards parameters, gradients and state; 2 keeps parameters, 1 gradients too (3; 1 "
        "with p)"),
    INT("lanes", lanes, 0, LIMIT_LANES,
        "L: the reproducible reduction, a power of two that d divides (0: off)"),
    TEXT("policy", policy,
         "where every stored value's precision is stated (fp32-master); see trainctl set-optimizer --help"),
    FLAG("yes", yes, "take a policy that asks for confirmation"),
    CHOICE("compute", compute, "policy|bf16|fp32", "type of activations and products (the policy's: bf16)"),
    CHOICE("recompute", recompute, "none|block",
           "gradient checkpointing: replay each block in the backward (none)"),
    TEXT("run", run, "RECIPE.yaml: train, save, exit 0 or 5; the socket serves meanwhile"),
    TEXT("device", device, "auto|cpu|cuda (auto)"),
    INT("threads", threads, 0, 4096, "of each rank (0: this host's cores over its ranks)"),
    CHOICE("bind", bind, "share|keep",
           "share: widen this rank's affinity to its share of the cores; keep: as the launcher set it"),
    TEXT("state-dir", state_dir, "DIR: socket, journal, runs ($XDG_STATE_HOME/trainerd)"),
    TEXT("checkpoint-dir", checkpoint_dir, "DIR (checkpoints/ in the state folder)"),
    TEXT("metrics", metrics, "ADDR: Prometheus over HTTP"),
    {"stuck-after", KEY_DOUBLE, offsetof(struct options, stuck_after), 0, 0.5, 86400, NULL,
     "S: end when a collective makes no progress, or a host does not answer, for so long (300)"},
    FLAG("dry-run", dry_run,
         "the plan of memory, wire and time, then exit; one process alone plans for any --layout"),
    INT("ranks", ranks, 1, LIMIT_RANKS, "dry run: N ranks, all their layouts compared"),
    TEXT("machine", machine,
         "dry run: of which machine, cpu|h100|h200|b200 (cpu, where it is about this host)"),
    INT("sequence", sequence, 1, 1 << 24, "dry run without --run: micro-batches of one sequence of N tokens"),
    INT("global-batch", global_batch, 1, 1 << 24, "dry run without --run: sequences a step (64)"),
    FLAG("json", json, "dry run: as one JSON value"),
};
enum { KEY_COUNT = sizeof keys / sizeof keys[0] };

void options_help(void)
{
    printf("usage: mpirun -n RANKS trainerd [options]\n\n"
           "A training daemon: one process a rank, driven with trainctl.\n\n"
           "  --listen ADDR       unix:PATH (trainerd.sock in the state folder); repeatable\n"
           "  --config FILE       these names in YAML; flags win over TRAINERD_… variables, which win over "
           "the file\n"
           "  --help, --version\n");
    keys_print_help(stdout, keys, KEY_COUNT, "  --");
}

static bool read_file(struct options *options, const char *path, struct err *err)
{
    char *text;
    size_t bytes;
    if (!file_slurp(path, OPTIONS_FILE_BYTES, &text, &bytes, err))
        return false;
    bool done = keys_load_yaml(keys, KEY_COUNT, options, NULL, path, text, bytes, err);
    free(text);
    return done;
}

/* TRAINERD_STATE_DIR is --state-dir. */
static void variable_name(char name[VARIABLE_BYTES], const char *key)
{
    int used = snprintf(name, VARIABLE_BYTES, "TRAINERD_%s", key);
    for (int c = 0; c < used; c++)
        name[c] = name[c] == '-' ? '_' : (char)toupper((unsigned char)name[c]);
}

/* A variable of ours that nothing reads is a slip of the pen; not an error, a later version may know it. */
void options_warn(void)
{
    static const char *const elsewhere[] = {"TRAINERD_CONNECT", "TRAINERD_INJECT", "TRAINERD_STARTED_OVER",
                                            "TRAINERD_FUZZ_ROUNDS", "TRAINERD_PEERS_PYTHON"};
    enum { ELSEWHERE = sizeof elsewhere / sizeof elsewhere[0], PREFIX = sizeof "TRAINERD_" - 1 };
    char names[KEY_COUNT][VARIABLE_BYTES], said[ERR_TEXT_BYTES];
    const char *known[KEY_COUNT + ELSEWHERE];
    for (int i = 0; i < KEY_COUNT + ELSEWHERE; i++)
        known[i] = (i < KEY_COUNT ? names[i] : elsewhere[i - KEY_COUNT]) + PREFIX;
    for (int i = 0; i < KEY_COUNT; i++)
        variable_name(names[i], keys[i].name);
    for (char **at = environ; *at; at++) {
        bool found = strncmp(*at, "TRAINERD_", PREFIX) != 0 || strncmp(*at, "TRAINERD_TEST_", 14) == 0;
        snprintf(said, sizeof said, "%.*s", (int)strcspn(*at, "="), *at);
        for (int i = 0; i < KEY_COUNT + ELSEWHERE && !found; i++)
            found = strcmp(said + PREFIX, known[i]) == 0;
        if (found)
            continue;
        const char *nearest = err_nearest(said + PREFIX, known, KEY_COUNT + ELSEWHERE);
        log_warning("options", "the environment's %.80s is not read: there is no such option; %s%s%s", said,
                    nearest ? "did you mean TRAINERD_" : "see trainerd --help", nearest ? nearest : "",
                    nearest ? "?" : "");
    }
}

static bool read_environment(struct options *options, struct err *err)
{
    for (int i = 0; i < KEY_COUNT; i++) {
        char name[VARIABLE_BYTES];
        variable_name(name, keys[i].name);
        const char *value = getenv(name);
        if (value && !keys_set(keys, KEY_COUNT, options, NULL, keys[i].name, value, 0, err))
            return err_hint(err, "it was set by the environment's %s", name);
    }
    return true;
}

static const struct key *find_key(const char *name)
{
    for (int i = 0; i < KEY_COUNT; i++)
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    return NULL;
}

static bool refuse_unknown(const char *name, struct err *err)
{
    const char *names[KEY_COUNT + 4] = {"listen", "config", "help", "version"};
    for (int i = 0; i < KEY_COUNT; i++)
        names[4 + i] = keys[i].name;
    const char *nearest = err_nearest(name, names, KEY_COUNT + 4);
    err_set(err, ERR_INVALID, "there is no option --%s", name);
    return nearest ? err_hint(err, "did you mean --%s?", nearest)
                   : err_hint(err, "trainerd --help lists the options");
}

static bool add_listen(struct options *options, const char *address, struct err *err)
{
    if (options->listen_count == OPTIONS_LISTEN_MAX || strlen(address) >= LIMIT_PATH_BYTES)
        return err_set(err, ERR_INVALID, "--listen is given too often or its address is too long");
    snprintf(options->listen[options->listen_count++], LIMIT_PATH_BYTES, "%s", address);
    return true;
}

/* One flag, "--name value" or "--name=value"; *at moves past what it took. only_config: looks for --config
 * alone. */
static bool read_flag(struct options *options, int argc, char **argv, int *at, bool only_config,
                      struct err *err)
{
    char name[64];
    const char *flag = argv[*at], *equals = strchr(flag, '=');
    if (strncmp(flag, "--", 2) != 0) {
        err_set(err, ERR_INVALID, "'%s' is not an option", flag);
        return err_hint(err, "trainerd takes options only; see trainerd --help");
    }
    int length = equals ? (int)(equals - flag) - 2 : (int)strlen(flag) - 2;
    snprintf(name, sizeof name, "%.*s", length, flag + 2);
    ++*at;
    bool *switches[] = {&options->help, &options->version};
    for (int i = 0; i < 2; i++)
        if (strcmp(name, i ? "version" : "help") == 0)
            return *switches[i] = true;
    const struct key *key = find_key(name);
    if (!key && strcmp(name, "listen") != 0 && strcmp(name, "config") != 0)
        return refuse_unknown(name, err);
    const char *value = equals ? equals + 1 : NULL;
    if (key && key->type == KEY_BOOL && !value)
        value = "true";
    if (!value && *at < argc)
        value = argv[(*at)++];
    if (!value)
        return err_set(err, ERR_INVALID, "--%s needs a value", name);
    if (strcmp(name, "config") == 0)
        return !only_config || read_file(options, value, err);
    if (only_config)
        return true;
    return strcmp(name, "listen") == 0 ? add_listen(options, value, err)
                                       : keys_set(keys, KEY_COUNT, options, NULL, name, value, 0, err);
}

static bool read_flags(struct options *options, int argc, char **argv, bool only_config, struct err *err)
{
    for (int at = 1; at < argc;)
        if (!read_flag(options, argc, argv, &at, only_config, err))
            return false;
    return true;
}

static bool check(const struct options *options, struct err *err)
{
    if (options->model[0] && options->init[0])
        return err_set(err, ERR_INVALID, "--model and --init exclude each other");
    if (options->lanes & (options->lanes - 1))
        return err_set(err, ERR_INVALID, "--lanes %lld is not a power of two", (long long)options->lanes);
    static const char later[] = "it is left for a later version; leave the option out";
    if (options->dry_run && !options->model[0] && !options->init[0])
        return err_set(err, ERR_INVALID, "--dry-run needs --model DIR or --init DIR");
    if (!options->dry_run && (options->ranks || options->machine[0] || options->sequence || options->json)) {
        err_set(err, ERR_INVALID, "--ranks, --machine, --sequence and --json are about a --dry-run");
        return err_hint(err, "add --dry-run, or leave them out; mpirun -n says how many ranks a daemon has");
    }
    bool built = !options->metrics[0] || err_set(err, ERR_UNSUPPORTED, "--metrics is not built yet");
    return built || err_hint(err, "%s", later);
}

bool options_read(struct options *options, int argc, char **argv, struct err *err)
{
    *options = (struct options){.stuck_after = 300, .device = "auto", .global_batch = 64};
    return read_flags(options, argc, argv, true, err) && read_environment(options, err) &&
           read_flags(options, argc, argv, false, err) && check(options, err);
}
