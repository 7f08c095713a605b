/* What a finished (or skipped) step says, and the state of the daemon as the control thread shows it.
 *
 * The field table is the one place that knows a step event's names (contract section 6): the JSONL of a run,
 * protobuf, CSV and trainctl's tables are made from it. */
#pragma once

#include "command.h"

#include <stdbool.h>
#include <stdint.h>

/* X(kind, name): TEXT char[LIMIT_NAME_BYTES]; INT int64_t; REAL double, NaN is null; SECONDS are one nested
 * object. */
#define STEP_FIELDS(TEXT, INT, REAL, SECONDS)                                                                \
    TEXT(run)                                                                                                \
    INT(step)                                                                                                \
    INT(total_steps)                                                                                         \
    REAL(loss)                                                                                               \
    REAL(grad_norm)                                                                                          \
    REAL(lr)                                                                                                 \
    INT(tokens)                                                                                              \
    INT(labelled_tokens)                                                                                     \
    REAL(step_seconds)                                                                                       \
    REAL(tokens_per_second)                                                                                  \
    REAL(model_flops_utilization)                                                                            \
    SECONDS(data)                                                                                            \
    SECONDS(forward)                                                                                         \
    SECONDS(backward)                                                                                        \
    SECONDS(communicate)                                                                                     \
    SECONDS(optimize)                                                                                        \
    REAL(lost_update_share)                                                                                  \
    REAL(stalled_v_share)                                                                                    \
    REAL(update_quality)                                                                                     \
    INT(skipped)                                                                                             \
    TEXT(policy)                                                                                             \
    INT(weight_version)                                                                                      \
    INT(memory_bytes)

struct step_event {
#define TEXT(name)    char name[LIMIT_NAME_BYTES];
#define INT(name)     int64_t name;
#define REAL(name)    double name;
#define SECONDS(name) double seconds_##name;
    STEP_FIELDS(TEXT, INT, REAL, SECONDS)
#undef TEXT
#undef INT
#undef REAL
#undef SECONDS
};

enum event_kind {
    EVENT_STEP,      /* step; a skipped attempt repeats the unchanged step, with skipped one higher */
    EVENT_STATE,     /* the state changed: state, text says why */
    EVENT_WARNING,   /* text: an alarm raised or cleared, a policy's note, a skipped step named by rank and
                        tensor */
    EVENT_EVALUATION /* step.step, step.loss: the held-out loss of `evaluate:` */
};

struct event {
    enum event_kind kind;
    struct step_event step;
    enum engine_state state;
    char text[ERR_TEXT_BYTES];
};

struct audit_row {
    int32_t rank;
    char tensor[LIMIT_NAME_BYTES];
    char kind[16]; /* "weight", "weight.extra", "m", "m.scale", "v", "v.scale", "gradient", "padding",
                      "arena", … */
    char dtype[8];
    int64_t elements, bytes;
};

struct audit { /* malloc'ed as one block; all ranks' rows; belongs to whoever took it */
    int64_t count, bytes_total, bytes_allocated;
    struct audit_row rows[];
};

/* The state that read-only requests are answered from. Published by the engine, then the control thread's. */
struct snapshot {
    enum engine_state state;
    char activity[LIMIT_NAME_BYTES];
    char failure[3 * ERR_TEXT_BYTES];
    char layout[LIMIT_NAME_BYTES];
    int32_t ranks, threads, zero;
    char device[LIMIT_NAME_BYTES * 2]; /* description, products line */
    char compute[8];
    char model[LIMIT_NAME_BYTES]; /* "Qwen3 0.8M, 4 layers, hidden 128" */
    int64_t parameters;
    uint64_t seed;
    struct policy policy;
    char policy_spec[LIMIT_NAME_BYTES];
    double bytes_per_parameter;                        /* measured */
    char run[LIMIT_NAME_BYTES];                        /* "" when no run */
    int64_t run_steps;                                 /* N */
    int64_t step, update, total_steps, skipped, epoch; /* k, t */
    int64_t micro_batch, micro_batches; /* finished ones of the step under way; 0 of 0: none is */
    char waiting[LIMIT_NAME_BYTES];     /* the command that waits for its end; "": none */
    struct optimizer_settings settings;
    struct schedule schedule; /* of the run */
    struct step_event last;
    bool has_last;
    int64_t memory_bytes;
    int64_t recomputed; /* 1: --recompute block */
    char state_dir[LIMIT_PATH_BYTES], checkpoint_dir[LIMIT_PATH_BYTES];
    int32_t warning_count;
    char warnings[LIMIT_WARNINGS][ERR_TEXT_BYTES];
};
