/* Names and legality of commands, from the tables in command.h. Both threads and the tests use this; it knows
 * no MPI. */
#include "command.h"

#include <stdio.h>
#include <string.h>

static const char *const state_names[] = {
#define X(state, name) name,
    STATES(X)
#undef X
};

static const struct {
    const char *name;
    unsigned states;
    enum command_when when;
} commands[] = {
#define X(command, name, states, when) {name, states, when},
    COMMANDS(X)
#undef X
};

const char *engine_state_name(enum engine_state state)
{
    return (unsigned)state < STATE_COUNT ? state_names[state] : "unknown";
}

const char *command_name(enum command_kind kind)
{
    return (unsigned)kind < COMMAND_COUNT ? commands[kind].name : "unknown";
}

enum command_when command_when(enum command_kind kind)
{
    return (unsigned)kind < COMMAND_COUNT ? commands[kind].when : STEP_ENDED;
}

/* "idle, paused or empty" */
static void list_states(unsigned states, char *text, size_t text_bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (int s = 0; s < STATE_COUNT; s++) {
        if (!(states & IN(s)))
            continue;
        unsigned later = states >> (s + 1);
        const char *comma = used == 0 ? "" : later ? ", " : " or ";
        int wrote = snprintf(text + used, text_bytes - used, "%s%s", comma, state_names[s]);
        if (wrote < 0 || (size_t)wrote >= text_bytes - used)
            return;
        used += (size_t)wrote;
    }
}

static const char *what_helps(enum engine_state state)
{
    switch (state) {
    case STATE_EMPTY:
        return "give it a model first: trainctl init CONFIG, or trainctl load DIR";
    case STATE_RUNNING:
        return "trainctl wait waits for the run's end; trainctl pause holds it, trainctl stop ends it";
    case STATE_PAUSED:
        return "trainctl resume goes on with the run; trainctl stop ends it";
    case STATE_BUSY:
        return "trainctl wait waits until it is done";
    case STATE_IDLE:
    case STATE_FAILED:
        return "trainctl train starts a run";
    case STATE_STOPPING:
        return "the daemon is ending; start it again";
    case STATE_COUNT:
        break;
    }
    return "";
}

bool command_legal(enum command_kind kind, enum engine_state state, struct err *err)
{
    if ((unsigned)kind >= COMMAND_COUNT || (unsigned)state >= STATE_COUNT)
        return err_set(err, ERR_INVALID, "command %d in state %d is none", (int)kind, (int)state);
    if (commands[kind].states & IN(state))
        return true;
    char legal[128];
    list_states(commands[kind].states, legal, sizeof legal);
    err_set(err, ERR_STATE, "%s is not possible while the daemon is %s", commands[kind].name,
            state_names[state]);
    err_why(err, "it is possible while it is %s", legal);
    return err_hint(err, "%s", what_helps(state));
}
