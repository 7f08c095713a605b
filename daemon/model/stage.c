#include "stage.h"

#include "err.h"

/* How many blocks a stage holds. */
static int64_t blocks_of(int64_t layers, int32_t ranks, int32_t rank)
{
    int64_t turn = rank == ranks - 1 ? ranks - 1
                   : rank == 0       ? ranks - 2
                                     : rank - 1; /* who is next to get one more */
    return layers / ranks + (turn < layers % ranks);
}

struct stage stage_of(int64_t layers, int32_t ranks, int32_t rank)
{
    INVARIANT(ranks >= 1 && rank >= 0 && rank < ranks && ranks <= layers);
    struct stage stage = {.ranks = ranks, .rank = rank, .layers = layers};
    for (int32_t r = 0; r < rank; r++)
        stage.first += blocks_of(layers, ranks, r);
    stage.past = stage.first + blocks_of(layers, ranks, rank);
    return stage;
}

bool stage_holds(const struct stage *stage, int32_t unit, bool tied)
{
    if (unit == 0)
        return stage->rank == 0 || (tied && stage_is_last(stage));
    if (unit == stage->layers + 1)
        return stage_is_last(stage);
    return unit - 1 >= stage->first && unit - 1 < stage->past;
}

bool stage_counts(const struct stage *stage, int32_t unit, bool tied)
{
    return stage_holds(stage, unit, tied) && (unit > 0 || stage->rank == 0);
}
