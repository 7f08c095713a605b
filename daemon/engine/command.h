/* What the engine can be told and what it says back: plain structs without pointers and with bounded strings,
 * so that rank 0 can broadcast them as bytes. Protobuf stops at control/, which turns messages into these and
 * back. */
#pragma once

#include "bounds.h"
#include "err.h"
#include "optimizer_settings.h"
#include "policy.h"
#include "recipe.h"
#include "schedule.h"

#include <stdbool.h>
#include <stdint.h>

/* X(constant, name, may change state: refused to observers) */
#define STATES(X)                                                                                            \
    X(STATE_EMPTY, "empty") /* no model */                                                                   \
    X(STATE_IDLE, "idle")   /* a model, no run under way */                                                  \
    X(STATE_RUNNING, "running")                                                                              \
    X(STATE_PAUSED, "paused")                                                                                \
    X(STATE_BUSY, "busy")     /* loading, saving, converting: `activity` says which */                       \
    X(STATE_FAILED, "failed") /* with its sentence; allows what idle allows */                               \
    X(STATE_STOPPING, "stopping")

enum engine_state {
#define X(state, name) state,
    STATES(X)
#undef X
        STATE_COUNT
};
const char *engine_state_name(enum engine_state state);

#define IN(state) (1u << (state))
#define IN_MODEL  (IN(STATE_IDLE) | IN(STATE_FAILED) | IN(STATE_PAUSED) | IN(STATE_RUNNING))
#define IN_REST   (IN(STATE_IDLE) | IN(STATE_FAILED) | IN(STATE_PAUSED))
#define IN_IDLE   (IN(STATE_IDLE) | IN(STATE_FAILED))

/* X(constant, name, states in which it is legal, when it is taken up). Commands that change nothing a step
 * depends on are taken up between two micro-batches; the others when the step has ended. */
#define COMMANDS(X)                                                                                          \
    X(COMMAND_INIT, "init", IN_IDLE | IN(STATE_EMPTY), STEP_ENDED)                                           \
    X(COMMAND_LOAD, "load", IN_IDLE | IN(STATE_EMPTY), STEP_ENDED)                                           \
    X(COMMAND_EXPORT, "export", IN_MODEL, AMID_STEP)                                                         \
    X(COMMAND_TRAIN, "train", IN_IDLE, STEP_ENDED)                                                           \
    X(COMMAND_EVALUATE, "evaluate", IN_MODEL, AMID_STEP)                                                     \
    X(COMMAND_PAUSE, "pause", IN(STATE_RUNNING), STEP_ENDED)                                                 \
    X(COMMAND_RESUME, "resume", IN(STATE_PAUSED), STEP_ENDED)                                                \
    X(COMMAND_STOP, "stop", IN(STATE_RUNNING) | IN(STATE_PAUSED), STEP_ENDED)                                \
    X(COMMAND_SET_OPTIMIZER, "set-optimizer", IN_MODEL, STEP_ENDED)                                          \
    X(COMMAND_SET_SCHEDULE, "set-schedule", IN(STATE_RUNNING) | IN(STATE_PAUSED), STEP_ENDED)                \
    X(COMMAND_SET_LAYOUT, "set-layout", IN_MODEL, STEP_ENDED)                                                \
    X(COMMAND_CHECKPOINT_SAVE, "checkpoint save", IN_MODEL, STEP_ENDED)                                      \
    X(COMMAND_CHECKPOINT_LOAD, "checkpoint load", IN_REST | IN(STATE_EMPTY), STEP_ENDED)                     \
    X(COMMAND_CHECKPOINT_VERIFY, "checkpoint verify", IN_MODEL | IN(STATE_EMPTY), AMID_STEP)                 \
    X(COMMAND_CHECKPOINT_DELETE, "checkpoint delete", IN_MODEL | IN(STATE_EMPTY), AMID_STEP)                 \
    X(COMMAND_SHUTDOWN, "shutdown", IN_MODEL | IN(STATE_EMPTY), STEP_ENDED)

enum command_kind {
#define X(command, name, states, when) command,
    COMMANDS(X)
#undef X
        COMMAND_COUNT
};
const char *command_name(enum command_kind kind);
enum command_when { STEP_ENDED, AMID_STEP };
enum command_when command_when(enum command_kind kind);
/* ERR_STATE with a sentence that names the state and the states in which the command is legal. */
bool command_legal(enum command_kind kind, enum engine_state state, struct err *err) MUST_USE;

struct command {
    enum command_kind kind;
    uint64_t ticket; /* control's: the reply carries it back */
    bool yes;        /* --yes: confirmed */
    bool dry_run;    /* set-optimizer, set-layout: say, do not do */
    bool expired; /* its deadline passed before it was taken up: it is journalled and answered, never done */
    union {
        struct {                         /* init, load, export, checkpoint load/save/verify/delete */
            char path[LIMIT_PATH_BYTES]; /* a folder, a config.json, or a checkpoint's name; "" = choose */
            uint64_t seed;
            bool has_seed;
            int32_t dtype;                 /* export: enum dtype */
            char policy[LIMIT_NAME_BYTES]; /* checkpoint load --policy; "" = the checkpoint's */
        } model;
        struct {
            struct recipe recipe;
            bool keep_moments;
        } train;
        struct {
            char data[LIMIT_PATH_BYTES];
        } evaluate;
        struct {
            char policy[LIMIT_NAME_BYTES]; /* "" = keep the policy, change settings only */
            struct optimizer_settings settings;
            unsigned settings_set; /* bit i: settings key i of optimizer_keys was given */
            int64_t at_step;       /* the run's k; -1 = now */
        } set_optimizer;
        struct {
            struct schedule schedule; /* whole: control merges the present one with what was said */
        } set_schedule;
        struct {
            char layout[LIMIT_NAME_BYTES];
            int32_t zero; /* the stage; 0: as it was asked for before, or by the layout */
        } set_layout;
    } u;
};

/* What a command did; which fields mean something depends on the command. */
struct command_result {
    char run[LIMIT_NAME_BYTES];    /* train */
    char path[LIMIT_PATH_BYTES];   /* what was written or read */
    char text[4 * ERR_TEXT_BYTES]; /* sentences for people: what a conversion keeps and loses, … */
    int64_t steps;                 /* train: N */
    int64_t bytes;                 /* export, checkpoint: bytes written or read */
    int64_t parameters;            /* init, load */
    double loss;                   /* evaluate */
    int64_t labelled_tokens;       /* evaluate */
    /* set-optimizer, and train or checkpoint load with a policy: of the fullest rank */
    double bytes_per_parameter_before, bytes_per_parameter_after;
    int64_t bytes_before, bytes_after, bytes_peak;
    bool exact; /* the conversion lost nothing */
    double largest_relative_change;
    double changed_share; /* of the stored values, those whose value changed */
    bool converts;        /* the stored state changes its format */
    int64_t bytes_more;   /* taken beside what is in use, until it is done */
    struct optimizer_settings settings_before, settings_after; /* set-optimizer; lr 0 elsewhere */
    /* set-layout, with bytes_before, bytes_after and bytes_peak of all that is allocated on the fullest rank
     */
    char layout_before[LIMIT_NAME_BYTES], layout_after[LIMIT_NAME_BYTES];
    int32_t zero_before, zero_after;
    int64_t bytes_moved; /* between ranks, all of them together */
    double seconds;      /* of the moving; 0: a dry run */
};

struct reply {
    uint64_t ticket;
    enum command_kind kind;
    struct err err; /* ERR_OK: result holds */
    struct command_result result;
};
