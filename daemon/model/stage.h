/* Pipeline stages: a rank of a pipeline of p holds a range of blocks that follow each other; the first stage
 * also the embedding's unit, the last the head's and, where it is tied, the embedding once more. Everything
 * that asks what is held where asks here. */
#pragma once

#include "model_config.h"

#include <stdbool.h>
#include <stdint.h>

struct stage {
    int32_t ranks, rank; /* of the pipeline group */
    int64_t layers;      /* of the whole model */
    int64_t first, past; /* blocks held: layers first … past - 1, at least one */
};

/* The slowest stage sets the pace, and the head is work like a block's (of Qwen3-0.6B, like ten): the last
 * stage has as many blocks as leave the slowest stage with the least work. What the others cannot share
 * evenly is more for the stages between the ends, then for the first. ranks <= layers. A function of the
 * model, the same on every rank. */
struct stage stage_of(const struct model_config *config, int32_t ranks, int32_t rank);

static inline bool stage_is_last(const struct stage *stage)
{
    return stage->rank == stage->ranks - 1;
}

bool stage_holds(const struct stage *stage, int32_t unit, bool tied);
/* Of units that are held: the last stage's copy of a tied embedding is its first holder's once more, in the
 * norm, in measures and in checkpoints. */
bool stage_counts(const struct stage *stage, int32_t unit, bool tied);
