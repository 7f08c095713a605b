/* Lays the rows of qwen3.h out: units, offsets, global element indices. */
#include "params.h"

#include "qwen3.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARAM_ALIGNMENT                                                                                      \
    256 /* no q8 group, norm block or random-number group is ever cut (design section 4) */

/* One letter of the shapes: how long it is, and which part of it is this rank's. */
struct letter {
    int64_t whole, first, count, most; /* most: the largest part of any rank */
    int32_t holders, holder; /* ranks with the same part; holders is 1 where every rank has its own */
    bool cut;
};

struct row {
    const char *name;
    const struct letter *rows, *columns;
    bool norm;
};

static int64_t align_up(int64_t elements)
{
    return (elements + PARAM_ALIGNMENT - 1) / PARAM_ALIGNMENT * PARAM_ALIGNMENT;
}

static struct letter uncut(int64_t whole)
{
    return (struct letter){.whole = whole, .count = whole, .most = whole};
}

/* `parts` equal parts of the letter, of which each rank takes as many; or, where ranks are more, each part is
 * held by as many neighbours. */
static struct letter cut_evenly(int64_t whole, int64_t parts, struct tensor_place place)
{
    struct letter letter = {.whole = whole, .holders = 1, .cut = true};
    if (parts >= place.ranks) {
        letter.count = whole / place.ranks;
        letter.first = letter.count * place.rank;
    } else {
        letter.holders = place.ranks / (int32_t)parts;
        letter.holder = place.rank % letter.holders;
        letter.count = whole / parts;
        letter.first = letter.count * (place.rank / letter.holders);
    }
    letter.most = letter.count;
    return letter;
}

/* Parts of equal length, the last one shorter. */
static struct letter cut_short(int64_t whole, struct tensor_place place)
{
    struct letter letter = {.whole = whole, .holders = 1, .cut = true};
    int64_t each = (whole + place.ranks - 1) / place.ranks;
    letter.first = each * place.rank;
    letter.count = whole - letter.first < each ? whole - letter.first : each;
    letter.most = each;
    return letter;
}

static void lay_param(struct param *param, const struct row *row, struct tensor_place place)
{
    const struct letter *rows = row->rows, *columns = row->columns;
    const struct letter *cut = rows->cut ? rows : columns->cut ? columns : NULL;
    param->rows = rows->count;
    param->columns = columns->count;
    param->elements = rows->count * (columns->count ? columns->count : 1);
    param->whole_rows = rows->whole;
    param->whole_columns = columns->whole;
    param->first_row = rows->first;
    param->first_column = columns->first;
    param->holders = cut ? cut->holders : place.ranks;
    param->holder = cut ? cut->holder : place.rank;
    param->decay = columns->whole > 0;
    param->norm = row->norm;
}

/* Appends one unit; layer < 0: the rows' names are whole. */
static void add_unit(struct param_table *table, const struct row *rows, int32_t count, int64_t layer,
                     struct tensor_place place)
{
    struct param_unit *unit = &table->units[table->unit_count];
    *unit = (struct param_unit){.first = table->count, .count = count};
    for (int32_t i = 0; i < count; i++) {
        const struct param *last = table->count > 0 ? &table->params[table->count - 1] : NULL;
        struct param *param = &table->params[table->count++];
        lay_param(param, &rows[i], place);
        param->unit = table->unit_count;
        param->unit_offset = unit->elements;
        param->index0 = last ? last->index0 + align_up(param_whole_elements(last)) : 0;
        if (layer < 0)
            snprintf(param->name, sizeof param->name, "%s", rows[i].name);
        else
            snprintf(param->name, sizeof param->name, "model.layers.%" PRId64 ".%s", layer, rows[i].name);
        unit->elements += align_up(rows[i].rows->most * (param->columns ? rows[i].columns->most : 1));
        table->elements += param->elements;
        table->whole_elements += param_whole_elements(param);
    }
    table->unit_count++;
}

bool param_table_check_cut(const struct model_config *config, int32_t ranks, struct err *err)
{
    int64_t t = ranks, last = (config->vocabulary + t - 1) / t * (t - 1);
    bool kv = config->kv_heads % t == 0 || t % config->kv_heads == 0;
    if (TAPE_ROWS_MULTIPLE % t != 0) {
        err_set(err, ERR_INVALID, "t = %d tensor-parallel ranks are not built", ranks);
        return err_why(err, "they share the rows of a micro-batch, which come in multiples of %d",
                       TAPE_ROWS_MULTIPLE);
    }
    if (config->q_heads % t == 0 && kv && config->ffn % t == 0 && last < config->vocabulary)
        return true;
    err_set(err, ERR_INVALID, "this model cannot be split over t = %d tensor-parallel ranks", ranks);
    return err_why(err,
                   "t must divide its %" PRId64 " query heads and its ffn of %" PRId64
                   ", and divide or be a multiple of its %" PRId64 " key-value heads",
                   config->q_heads, config->ffn, config->kv_heads);
}

bool param_table_init_piece(struct param_table *table, const struct model_config *config,
                            struct tensor_place place, struct err *err)
{
    if (!param_table_check_cut(config, place.ranks, err))
        return false;
    const struct letter C = uncut(config->hidden), D = uncut(config->head_dim), NONE = {0};
    const struct letter F = cut_evenly(config->ffn, config->ffn, place);
    const struct letter Q = cut_evenly(config->q_heads * config->head_dim, config->q_heads, place);
    const struct letter K = cut_evenly(config->kv_heads * config->head_dim, config->kv_heads, place);
    const struct letter V = cut_short(config->vocabulary, place);
#define X(row, name, rows, columns, norm) {name, &rows, &columns, norm},
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
    add_unit(&made, embedding, EMBEDDING_ROWS, -1, place);
    for (int64_t layer = 0; layer < config->layers; layer++)
        add_unit(&made, block, BLOCK_ROWS, layer, place);
    add_unit(&made, head, head_rows, -1, place);
    INVARIANT((size_t)made.count == count);
    *table = made;
    return true;
}

bool param_table_init(struct param_table *table, const struct model_config *config, struct err *err)
{
    return param_table_init_piece(table, config, (struct tensor_place){.ranks = 1}, err);
}

struct param_map param_map(const struct param *param)
{
    if (param->columns == param->whole_columns) {
        int64_t columns = param->columns ? param->columns : 1;
        return (struct param_map){param->first_row * columns, param->elements, param->elements};
    }
    return (struct param_map){param->first_row * param->whole_columns + param->first_column, param->columns,
                              param->whole_columns};
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
