#include "stage.h"

#include "err.h"

/* Blocks of the last stage: the most with which the slowest stage is as quick as it can be. Work is counted
 * in weights of products a token meets, in hidden-size rows. */
static int64_t last_blocks(const struct model_config *config, int32_t ranks)
{
    int64_t head = config->vocabulary, best = 1, least = INT64_MAX;
    int64_t block = 2 * (config->q_heads + config->kv_heads) * config->head_dim + 3 * config->ffn;
    for (int64_t last = 1; last <= config->layers - (ranks - 1); last++) {
        int64_t others = (config->layers - last + ranks - 2) / (ranks - 1) * block;
        int64_t slowest = last * block + head > others ? last * block + head : others;
        if (slowest <= least) {
            least = slowest;
            best = last;
        }
    }
    return best;
}

static int64_t blocks_of(const struct model_config *config, int32_t ranks, int32_t rank)
{
    int64_t others = ranks - 1;
    if (others == 0)
        return config->layers;
    INVARIANT(others > 0);
    int64_t last = last_blocks(config, ranks), rest = config->layers - last;
    if (rank == others)
        return last;
    int64_t turn = rank == 0 ? others - 1 : rank - 1; /* who is next to get one more */
    return rest / others + (turn < rest % others);
}

struct stage stage_of(const struct model_config *config, int32_t ranks, int32_t rank)
{
    INVARIANT(ranks >= 1 && rank >= 0 && rank < ranks && ranks <= config->layers);
    struct stage stage = {.ranks = ranks, .rank = rank, .layers = config->layers};
    for (int32_t r = 0; r < rank; r++)
        stage.first += blocks_of(config, ranks, r);
    stage.past = stage.first + blocks_of(config, ranks, rank);
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
