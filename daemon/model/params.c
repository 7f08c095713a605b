/* Lays the rows of qwen3.h out: units, offsets, global element indices. */
#include "params.h"

#include "qwen3.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARAM_ALIGNMENT                                                                                      \
    256 /* no q8 group, norm block or random-number group is ever cut (design section 4) */

struct row {
    const char *name;
    int64_t rows, columns;
    bool norm;
};

static int64_t align_up(int64_t elements)
{
    return (elements + PARAM_ALIGNMENT - 1) / PARAM_ALIGNMENT * PARAM_ALIGNMENT;
}

/* Appends one unit; layer < 0: the rows' names are whole. */
static void add_unit(struct param_table *table, const struct row *rows, int32_t count, int64_t layer)
{
    struct param_unit *unit = &table->units[table->unit_count];
    *unit = (struct param_unit){.first = table->count, .count = count};
    for (int32_t i = 0; i < count; i++) {
        const struct param *last = table->count > 0 ? &table->params[table->count - 1] : NULL;
        struct param *param = &table->params[table->count++];
        *param = (struct param){
            .rows = rows[i].rows,
            .columns = rows[i].columns,
            .elements = rows[i].rows * (rows[i].columns ? rows[i].columns : 1),
            .unit = table->unit_count,
            .unit_offset = unit->elements,
            .index0 = last ? last->index0 + align_up(last->elements) : 0,
            .decay = rows[i].columns > 0,
            .norm = rows[i].norm,
        };
        if (layer < 0)
            snprintf(param->name, sizeof param->name, "%s", rows[i].name);
        else
            snprintf(param->name, sizeof param->name, "model.layers.%" PRId64 ".%s", layer, rows[i].name);
        unit->elements += align_up(param->elements);
        table->elements += param->elements;
    }
    table->unit_count++;
}

bool param_table_init(struct param_table *table, const struct model_config *config, struct err *err)
{
    int64_t C = config->hidden, D = config->head_dim, F = config->ffn, V = config->vocabulary;
    int64_t Q = config->q_heads * D, K = config->kv_heads * D;
#define X(row, name, rows, columns, norm) {name, rows, columns, norm},
    const struct row embedding[] = {QWEN3_EMBEDDING_ROWS(X)};
    const struct row block[] = {QWEN3_BLOCK_ROWS(X)};
    const struct row head[] = {QWEN3_HEAD_ROWS(X)};
#undef X
    int32_t head_rows = config->tied ? HEAD_ROWS - 1 : HEAD_ROWS;
    size_t count = EMBEDDING_ROWS + (size_t)config->layers * BLOCK_ROWS + (size_t)head_rows;
    struct param_table made = {
        .params = calloc(count, sizeof *made.params),
        .units = calloc((size_t)config->layers + 2, sizeof *made.units),
    };
    if (!made.params || !made.units) {
        param_table_done(&made);
        return err_set(err, ERR_MEMORY, "no memory for the table of %zu tensors", count);
    }
    add_unit(&made, embedding, EMBEDDING_ROWS, -1);
    for (int64_t layer = 0; layer < config->layers; layer++)
        add_unit(&made, block, BLOCK_ROWS, layer);
    add_unit(&made, head, head_rows, -1);
    INVARIANT((size_t)made.count == count);
    *table = made;
    return true;
}

void param_table_done(struct param_table *table)
{
    free(table->params);
    free(table->units);
    *table = (struct param_table){0};
}

int32_t param_table_find(const struct param_table *table, const char *name)
{
    for (int32_t i = 0; i < table->count; i++)
        if (strcmp(table->params[i].name, name) == 0)
            return i;
    return -1;
}
