#include "loader.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t divide_up(int64_t a, int64_t b)
{
    return a / b + (a % b != 0);
}

static int64_t pad_rows(int64_t tokens)
{
    return divide_up(tokens, BATCH_ROW_MULTIPLE) * BATCH_ROW_MULTIPLE;
}

static int64_t sample_length(const struct loader *loader, int64_t row)
{
    return least(dataset_row_length(loader->dataset, row), loader->order->cutoff);
}

static int longest_first(const void *left, const void *right)
{
    const int32_t *a = left, *b = right;
    return (*a < *b) - (*a > *b);
}

/* Tokens of the count longest kept samples together: what a micro-batch of count sequences can have at most,
 * in any order. -1: no memory. */
static int64_t longest_together(const struct loader *loader, int64_t count)
{
    const struct order *order = loader->order;
    int64_t sum = 0;
    int32_t *lengths = malloc((size_t)order->rows * sizeof *lengths);
    if (!lengths)
        return -1;
    for (int64_t i = 0; i < order->rows; i++)
        lengths[i] = (int32_t)sample_length(loader, order->kept[i]);
    qsort(lengths, (size_t)order->rows, sizeof *lengths, longest_first);
    for (int64_t i = 0; i < least(count, order->rows); i++)
        sum += lengths[i];
    free(lengths);
    return sum;
}

static bool find_bounds(struct loader *loader, struct err *err)
{
    const struct order *order = loader->order;
    struct batch_bounds *bounds = &loader->bounds;
    int64_t samples = least(order->options.global_batch, order->samples_per_epoch); /* of the fullest batch */
    int64_t lane_samples = divide_up(samples, loader->options.lanes);
    int64_t packs = loader->options.max_tokens;
    bounds->longest = order->longest;
    if (packs > 0 && order->longest > packs) {
        err_set(err, ERR_INVALID,
                "a row of the data has %" PRId64 " tokens, more than max_tokens, which is %" PRId64,
                order->longest, packs);
        return err_hint(err, "raise max_tokens, or lower cutoff");
    }
    bounds->sequences = packs > 0 ? lane_samples : least(loader->options.micro_batch, lane_samples);
    int64_t tokens = longest_together(loader, bounds->sequences);
    if (tokens < 0)
        return err_set(err, ERR_MEMORY, "no memory to plan for %" PRId64 " rows", order->rows);
    bounds->rounds = packs > 0 ? lane_samples : divide_up(lane_samples, loader->options.micro_batch);
    bounds->rows = pad_rows(packs > 0 ? least(tokens, packs) : tokens);
    if (bounds->rows > INT32_MAX / 2) {
        err_set(err, ERR_INVALID, "a micro-batch would have %" PRId64 " tokens", bounds->rows);
        return err_hint(err, "lower micro_batch or cutoff");
    }
    return true;
}

bool loader_init(struct loader *loader, const struct dataset *dataset, struct order *order,
                 const struct loader_options *options, struct err *err)
{
    struct loader made = {.dataset = dataset, .order = order, .options = *options};
    INVARIANT(options->lanes > 0 && options->lanes <= LIMIT_LANES);
    INVARIANT((options->micro_batch > 0) != (options->max_tokens > 0));
    if (!find_bounds(&made, err))
        return false;
    made.rows = malloc((size_t)order->options.global_batch * sizeof *made.rows);
    made.micro = calloc((size_t)(made.bounds.rounds * options->lanes), sizeof *made.micro);
    made.trained = malloc((size_t)made.bounds.longest);
    if (!made.rows || !made.micro || !made.trained) {
        loader_done(&made);
        return err_set(err, ERR_MEMORY, "no memory to plan batches of %" PRId64 " samples",
                       order->options.global_batch);
    }
    *loader = made;
    return true;
}

void loader_done(struct loader *loader)
{
    free(loader->rows);
    free(loader->micro);
    free(loader->trained);
    *loader = (struct loader){0};
}

/* The lane's next micro-batch from its own sample `first` on; count 0 when none is left. */
static struct micro_plan pack(const struct loader *loader, int64_t samples, int64_t lane, int64_t first)
{
    struct micro_plan micro = {.first = first};
    const struct loader_options *options = &loader->options;
    for (int64_t i = lane + first * options->lanes; i < samples; i += options->lanes) {
        int64_t length = sample_length(loader, loader->rows[i]);
        bool full = options->max_tokens > 0 ? micro.tokens + length > options->max_tokens
                                            : micro.count == options->micro_batch;
        if (full)
            break;
        micro.count++;
        micro.tokens += length;
        micro.labelled += dataset_row_labels(loader->dataset, loader->rows[i], loader->order->cutoff);
    }
    micro.rows = pad_rows(micro.tokens);
    return micro;
}

bool batch_plan_make(struct loader *loader, struct data_cursor cursor, struct batch_plan *plan,
                     struct err *err)
{
    int64_t lanes = loader->options.lanes;
    struct batch_plan made = {.lanes = lanes, .dataset_rows = loader->rows, .micro = loader->micro};
    made.samples = order_batch(loader->order, cursor, loader->rows);
    for (int64_t lane = 0; lane < lanes; lane++) {
        int64_t first = 0;
        for (int64_t round = 0; round < loader->bounds.rounds; round++) {
            struct micro_plan micro = pack(loader, made.samples, lane, first);
            loader->micro[round * lanes + lane] = micro;
            first += micro.count;
            made.tokens += micro.tokens;
            made.labelled += micro.labelled;
            if (micro.count > 0 && round >= made.rounds)
                made.rounds = round + 1;
        }
        INVARIANT(lane + first * lanes >= made.samples); /* the bound on rounds holds */
    }
    if (made.labelled == 0) {
        err_set(err, ERR_INVALID, "the batch at sample %" PRId64 " has no labelled token", cursor.samples);
        return err_hint(err, "make the dataset again with `trainctl data prepare`, which drops such rows");
    }
    *plan = made;
    return true;
}

/* One sequence at row `at`: its tokens, shifted labels and positions. Returns its length. */
static int64_t fill_sequence(struct loader *loader, int64_t row, int64_t at, struct micro_batch *batch)
{
    int64_t length = sample_length(loader, row);
    dataset_row_read(loader->dataset, row, length, batch->tokens + at, loader->trained);
    for (int64_t t = 0; t < length; t++) {
        bool asked = t + 1 < length && loader->trained[t + 1];
        batch->labels[at + t] = asked ? batch->tokens[at + t + 1] : -1;
        batch->positions[at + t] = (int32_t)t;
        batch->labelled += asked;
    }
    return length;
}

void batch_fill(struct loader *loader, const struct batch_plan *plan, int64_t round, int64_t lane,
                struct micro_batch *batch)
{
    INVARIANT(round >= 0 && round < plan->rounds && lane >= 0 && lane < plan->lanes);
    const struct micro_plan *micro = batch_plan_micro(plan, round, lane);
    int64_t at = 0;
    batch->rows = micro->rows;
    batch->sequences = micro->count;
    batch->longest = batch->labelled = 0;
    batch->tokens_used = micro->tokens;
    batch->starts[0] = 0;
    for (int64_t s = 0; s < micro->count; s++) {
        int64_t length =
            fill_sequence(loader, plan->dataset_rows[lane + (micro->first + s) * plan->lanes], at, batch);
        at += length;
        batch->starts[s + 1] = (int32_t)at;
        if (length > batch->longest)
            batch->longest = length;
    }
    INVARIANT(at == micro->tokens && batch->labelled == micro->labelled &&
              batch->rows <= loader->bounds.rows);
    for (; at < batch->rows; at++) {
        batch->tokens[at] = 0;
        batch->labels[at] = -1;
        batch->positions[at] = 0;
    }
}
