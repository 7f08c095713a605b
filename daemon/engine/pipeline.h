/* The pass of a global batch through the model: micro-batch by micro-batch, and with p > 1 from stage to
 * stage, one forward and one backward in turn (1F1B: Narayanan et al. 2019, 2021). Owner: the engine's
 * thread. */
#pragma once

#include "engine.h"

/* What a stage does in its turn i of a step. */
struct pipeline_turn {
    bool back;
    int64_t micro_batch;
};

/* A stage first makes as many forwards as there are stages after it, so that from then on it has one
 * micro-batch coming back for each that goes in; the backwards are in order, whatever p. In a step of n
 * micro-batches i goes from 0 to 2 n - 1. */
struct pipeline_turn pipeline_turn(int32_t stages, int32_t stage, int64_t micro_batches, int64_t i);
/* How many micro-batches a stage has in flight at most. */
int64_t pipeline_flights(int32_t stages, int32_t stage, int64_t micro_batches);

struct pass_seconds {
    double data, forward, backward; /* without what was communicated meanwhile: comm->wire->seconds */
};
void pass_over_batch(struct engine *engine, struct workspace *w, struct loader *loader,
                     const struct batch_plan *plan, struct pass_seconds *seconds);

/* From the last stage to all. */
void pipeline_tell(struct engine *engine, void *bytes, size_t count);
/* The whole gradient's squares, on every rank; bad_rank is of all ranks. */
struct shard_squares pipeline_squares(struct engine *engine);
