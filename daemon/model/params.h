/* The parameter table: one row a tensor of the checkpoint, in the hub's order of the forward pass, and
 * everything iterates it: allocation, initialization, load, save, sharding, gradient reduction, decay, audit,
 * export.
 *
 * Tensors are grouped in units (what is gathered together): unit 0 the embedding, 1 … layers the blocks,
 * layers + 1 the final norm with the head. A unit's flat buffer holds its tensors one after another, each
 * starting at a multiple of 256 elements. A tied head has no row: it reads the embedding's, and its gradient
 * is reduced apart (see shard/).
 *
 * Under tensor parallelism (Shoeybi et al. 2019) a rank's table holds its pieces. A tensor is cut where a
 * letter of its shape is: Q and K by heads, F, and V, along rows or columns alike; C and D are never cut.
 * Everything that is not cut, the norms, is held by all t ranks, and a KV head by t / Hk of them where t
 * exceeds Hk: their gradients are partial sums, added over those ranks, and count once in the norm. Offsets
 * are the same on all ranks of the group: behind a shorter piece the gap is wider. */
#pragma once

#include "bounds.h"
#include "err.h"
#include "model_config.h"

#include <stdint.h>

struct param {
    char name[LIMIT_NAME_BYTES]; /* "model.layers.0.self_attn.q_proj.weight" */
    int64_t rows, columns;       /* [out][in]; a vector has columns = 0 and rows elements */
    int64_t elements;
    int64_t whole_rows, whole_columns; /* of the hub's tensor: the same, unless this is a piece */
    int64_t first_row, first_column;   /* where the piece lies in it */
    int32_t holders,
        holder; /* how many ranks of the tensor group hold this same piece, and which this one is */
    int32_t unit;
    int64_t unit_offset; /* elements from the unit's start, a multiple of 256 */
    int64_t index0;      /* global element index of the hub's tensor's first element (design section 4) */
    bool decay;          /* two dimensions or more: weight decay applies (`decay: matrices`) */
    bool norm;           /* initialized to 1; else normal(0, initializer_range) */
};

static inline int64_t param_whole_elements(const struct param *param)
{
    return param->whole_rows * (param->whole_columns ? param->whole_columns : 1);
}

struct param_unit {
    int32_t first, count; /* its rows of params[] */
    int64_t elements;     /* with the padding between tensors, a multiple of 256 */
};

struct param_table {
    int32_t count, unit_count;
    struct param *params;
    struct param_unit *units;
    int64_t elements;       /* here, of all tensors, without padding */
    int64_t whole_elements; /* of the whole model: the published parameter count */
};

/* This rank in its tensor group. */
struct tensor_place {
    int32_t ranks, rank;
};

/* The global element index of a piece's element e is index0 + first + e / run * stride + e % run. */
struct param_map {
    int64_t first, run, stride;
};
struct param_map param_map(const struct param *param);

bool param_table_init(struct param_table *table, const struct model_config *config, struct err *err) MUST_USE;
/* Whether t ranks can share the model: ERR_INVALID where they would cut a head, leave one without a part, or
 * not divide the rows of a micro-batch. */
bool param_table_check_cut(const struct model_config *config, int32_t ranks, struct err *err) MUST_USE;
/* One rank's pieces, where that says yes. */
bool param_table_init_piece(struct param_table *table, const struct model_config *config,
                            struct tensor_place place, struct err *err) MUST_USE;
void param_table_done(struct param_table *table);                            /* zeroed: fine */
int32_t param_table_find(const struct param_table *table, const char *name); /* -1: none */
