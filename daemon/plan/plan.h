/* `trainerd --dry-run`: what a model, a policy, a layout and a recipe would take, without taking it.
 *
 * The engine's own code makes the model, its optimizer state, the run's data and micro-batches, on a device
 * whose memory is addresses only: so the plan is what `audit` would show, row by row, and cannot drift from
 * it. One process alone may plan for any layout; it then stands for the first rank of each pipeline stage in
 * turn, than which no other of the stage is fuller but by padding. */
#pragma once

#include "engine.h"
#include "estimate.h"

enum { PLAN_KINDS = 24, PLAN_STAGES = 64 };

/* What one rank sends in a step, by what it is; all collectives of `comm` that carry device memory. */
enum plan_wire {
    WIRE_GATHER,  /* d x c: weights */
    WIRE_REDUCE,  /* d x c: gradients */
    WIRE_CONTEXT, /* c: keys and values, and their gradients */
    WIRE_TENSOR,  /* t: the stream, gathered and reduced around each half of a block; partial sums of the rest
                   */
    WIRE_PIPELINE, /* p: the stream from stage to stage, and its gradient back */
    WIRES
};
struct plan_traffic {
    int64_t bytes[WIRES];
};
extern const struct plan_wire_name {
    const char *key, *label;
} plan_wires[WIRES];

struct plan_request {
    const char *model;           /* a folder or its config.json */
    const struct recipe *recipe; /* whose data and batches make a step; or NULL: */
    int64_t sequence,
        global_batch; /* micro-batches of one sequence of so many tokens; 0: no step is planned */
    const struct machine *machine; /* NULL: no time is planned */
    int64_t there;                 /* bytes of memory for a rank; -1: unknown */
};

struct plan {
    struct layout layout;
    int32_t zero;
    char model[LIMIT_NAME_BYTES];
    int64_t parameters;
    struct {
        char kind[16]; /* as audit has it: "weight", "m", "gathered", "arena", … */
        int64_t bytes;
    } rows[PLAN_KINDS];
    int32_t count;
    int64_t bytes;                    /* the sum of the rows: of the fullest rank */
    int64_t stage_bytes[PLAN_STAGES]; /* the same of each stage's fullest rank; of the first ones */
    int64_t there;
    /* Of a run; 0 without one. */
    int64_t steps, micro_batches, micro_batch_tokens; /* micro-batches of a rank in a step; its rows of one */
    struct plan_traffic traffic;                      /* of the fullest rank */
    struct estimate time;                             /* of the slowest; step 0: not known */
};

static inline bool plan_fits(const struct plan *plan)
{
    return plan->there < 0 || plan->bytes <= plan->there;
}

/* Collective, over comm's ranks or, where there is one alone, for all ranks of options->layout. engine:
 * zeroed; it is done with when this returns. device: open; its memory is not used. ERR_INVALID: the layout
 * does not fit the model. */
bool plan_make(struct plan *plan, struct engine *engine, const struct engine_options *options,
               struct comm *comm, struct device *device, const struct plan_request *request,
               struct err *err) MUST_USE;

/* Of a step of so many micro-batches, which have so many rows in this rank's context part together, padding
 * included, and so many of them with a label. */
struct plan_traffic plan_traffic(const struct body *body, int64_t micro_batches, int64_t rows,
                                 int64_t labelled);
