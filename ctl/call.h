/* The one table of commands, and what a command line said. Help, completion, dispatch, nearest names and
 * tests are all made from the rows (commands.c); a command is a function of one `struct call`. */
#pragma once

#include "client.h"
#include "err.h"
#include "keys.h"

#include <jansson.h>
#include <stdbool.h>

/* Exit codes of the contract. */
enum {
    EXIT_DONE = 0,
    EXIT_REFUSED = 1, /* the daemon refused or failed the command, or a file could not be read or written */
    EXIT_USAGE = 2,   /* also: not built yet */
    EXIT_NO_DAEMON = 3,
    EXIT_TIMED_OUT = 4,
    EXIT_SHORT = 5,        /* the run ended short of its target */
    EXIT_INTERRUPTED = 130 /* Ctrl-C while following or waiting: what was watched goes on */
};

enum output { OUTPUT_TABLE, OUTPUT_JSON, OUTPUT_CSV };

struct option {
    const char *name;     /* "follow", or a letter: "o" */
    const char *argument; /* its name in help; NULL: none is taken */
    const char *help;
};

/* Options that are not in a command's own rows may be keys of a table: `--lr 1e-4` is "optimizer.lr=1e-4". */
enum keys_of { KEYS_NONE, KEYS_RECIPE, KEYS_OPTIMIZER, KEYS_SCHEDULE };

#define CALL_OPTIONS   12 /* of one command */
#define CALL_ARGUMENTS 4096
#define CALL_SETTINGS  64

struct call;
struct command {
    const char *name;              /* "status", "checkpoint save" */
    const char *arguments;         /* "DIR", "FILES…", "[RECIPE.yaml]" */
    int least, most;               /* how many */
    const char *help;              /* one line */
    const char *more;              /* paragraphs for --help; NULL: none */
    int (*run)(struct call *call); /* NULL: not built yet */
    enum keys_of keys;
    struct option options[CALL_OPTIONS];
};
extern const struct command commands[];
extern const int command_count;

struct call {
    const char *connect; /* NULL: the environment, then the default */
    enum output output;
    bool quiet;
    double timeout_s; /* 0: none */
    const struct command *command;
    int argument_count;
    const char *arguments[CALL_ARGUMENTS];
    const char
        *values[CALL_OPTIONS]; /* beside the command's options; "" for one without argument; NULL: not said */
    int setting_count;
    char *settings[CALL_SETTINGS]; /* "optimizer.lr=1e-4", by the table's full names; the call's */
    struct client client;
    bool connected;
    bool no_daemon; /* nobody answers there, or not any more */
};

/* Reads a command line into call. false with err.code ERR_OK: help or version was printed, leave with 0. */
bool call_parse(struct call *call, int argc, char **argv, struct err *err) MUST_USE;
void call_done(struct call *call);

const char *call_option(const struct call *call, const char *name); /* NULL: not said */
bool call_integer(const struct call *call, const char *name, int64_t least, int64_t most, int64_t *value,
                  struct err *err) MUST_USE; /* leaves *value alone when not said */

/* "name=value" beside what the command line said. */
bool call_add_setting(struct call *call, const char *name, const char *value, struct err *err) MUST_USE;

/* The key table behind `keys`, and the prefix its names have there ("schedule."). */
const struct key *call_keys(enum keys_of keys, size_t *count, const char **prefix);

/* "--lr" in a table: the full name, by last component where only one key has it. */
bool call_key_find(enum keys_of keys, const char *flag, const struct key **key, struct err *err) MUST_USE;

/* Prints the error to stderr as three sentences and gives the exit code that goes with it. */
int call_fail(const struct call *call, const struct err *err);

/* Connects unless connected. */
bool call_connect(struct call *call, struct err *err) MUST_USE;
/* Connects if need be, asks, and gives the reply (trainerd__reply__free_unpacked). */
bool call_ask(struct call *call, Trainerd__Request *request, Trainerd__Reply **reply,
              struct err *err) MUST_USE;
/* The same, giving the result as JSON: the member of the reply that is set. */
bool call_ask_json(struct call *call, Trainerd__Request *request, json_t **result, struct err *err) MUST_USE;
/* The state folder: the daemon's where one answers, else the socket's folder, else the default one. */
bool call_state_folder(struct call *call, char path[LIMIT_PATH_BYTES], struct err *err) MUST_USE;

/* path made absolute, from the present folder; it need not exist. */
bool call_absolute(char absolute[LIMIT_PATH_BYTES], const char *path, struct err *err) MUST_USE;

/* A note to people on stderr, unless -q. */
void call_note(const struct call *call, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A request with one command in it: REQUEST(request, STATUS, StatusRequest, status). Its body is
 * request_body. */
#define REQUEST(name, NAME, Type, member)                                                                    \
    Trainerd__##Type name##_body = TRAINERD__##NAME##_REQUEST__INIT;                                         \
    Trainerd__Request name = TRAINERD__REQUEST__INIT;                                                        \
    name.command_case = TRAINERD__REQUEST__COMMAND_##NAME;                                                   \
    name.member = &name##_body
