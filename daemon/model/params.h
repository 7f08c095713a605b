/* The parameter table: one row a tensor of the checkpoint, in the hub's order of the forward pass, and
 * everything iterates it: allocation, initialization, load, save, sharding, gradient reduction, decay, audit,
 * export.
 *
 * Tensors are grouped in units (what is gathered together): unit 0 the embedding, 1 … layers the blocks,
 * layers + 1 the final norm with the head. A unit's flat buffer holds its tensors one after another, each
 * starting at a multiple of 256 elements. A tied head has no row: it reads the embedding's, and its gradient
 * is reduced apart (see shard/). */
#pragma once

#include "bounds.h"
#include "err.h"
#include "model_config.h"

#include <stdint.h>

struct param {
    char name[LIMIT_NAME_BYTES]; /* "model.layers.0.self_attn.q_proj.weight" */
    int64_t rows, columns;       /* [out][in]; a vector has columns = 0 and rows elements */
    int64_t elements;
    int32_t unit;
    int64_t unit_offset; /* elements from the unit's start, a multiple of 256 */
    int64_t index0;      /* global element index of its first element (design section 4) */
    bool decay;          /* two dimensions or more: weight decay applies (`decay: matrices`) */
    bool norm;           /* initialized to 1; else normal(0, initializer_range) */
};

struct param_unit {
    int32_t first, count; /* its rows of params[] */
    int64_t elements;     /* with the padding between tensors, a multiple of 256 */
};

struct param_table {
    int32_t count, unit_count;
    struct param *params;
    struct param_unit *units;
    int64_t elements; /* of all tensors, without padding: the published parameter count */
};

bool param_table_init(struct param_table *table, const struct model_config *config, struct err *err) MUST_USE;
void param_table_done(struct param_table *table);                            /* zeroed: fine */
int32_t param_table_find(const struct param_table *table, const char *name); /* -1: none */
