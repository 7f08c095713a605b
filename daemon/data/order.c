#include "order.h"

#include "philox.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Fills kept with the rows that have a label within the cutoff, and counts. */
static void keep_rows(struct order *order, const struct dataset *dataset)
{
    for (int64_t row = 0; row < dataset_rows(dataset); row++) {
        int64_t labels = dataset_row_labels(dataset, row, order->cutoff);
        if (labels == 0) {
            order->dropped++;
            continue;
        }
        int64_t length = least(dataset_row_length(dataset, row), order->cutoff);
        order->kept[order->rows++] = (uint32_t)row;
        order->labelled += labels;
        if (length > order->longest)
            order->longest = length;
    }
}

static bool check_steps(const struct order *order, struct err *err)
{
    if (order->rows == 0) {
        err_set(err, ERR_INVALID, "no row of the data has a label within %" PRId64 " tokens", order->cutoff);
        return err_hint(err, "raise the recipe's cutoff");
    }
    if (order->steps_per_epoch == 0) {
        err_set(err, ERR_INVALID, "an epoch has no step: %" PRId64 " rows make no whole batch of %" PRId64,
                order->rows, order->options.global_batch);
        return err_hint(err, "lower global_batch, or leave drop_last out");
    }
    return true;
}

bool order_init(struct order *order, const struct dataset *dataset, const struct order_options *options,
                struct err *err)
{
    INVARIANT(options->global_batch > 0);
    struct order made = {.options = *options, .permuted_epoch = -1};
    size_t rows = (size_t)dataset_rows(dataset);
    made.cutoff = dataset->statistics.longest;
    if (options->cutoff > 0)
        made.cutoff = least(made.cutoff, options->cutoff);
    made.kept = malloc(rows * sizeof *made.kept);
    made.permutation = options->shuffled ? malloc(rows * sizeof *made.permutation) : NULL;
    bool good = (made.kept && (made.permutation || !options->shuffled)) ||
                err_set(err, ERR_MEMORY, "no memory for the order of %zu rows", rows);
    if (good) {
        keep_rows(&made, dataset);
        int64_t batch = options->global_batch;
        made.steps_per_epoch = made.rows / batch + (made.rows % batch != 0 && !options->drop_last);
        made.samples_per_epoch = least(made.rows, made.steps_per_epoch * batch);
        good = check_steps(&made, err);
    }
    if (!good) {
        order_done(&made);
        return false;
    }
    *order = made;
    return true;
}

void order_done(struct order *order)
{
    free(order->kept);
    free(order->permutation);
    *order = (struct order){0};
}

/* Fisher and Yates' shuffle; the draw for position i is Philox's block i of this epoch (64 bits, so the
 * remainder's bias is below 2^-40). */
static void permute(struct order *order, int64_t epoch)
{
    uint32_t *p = order->permutation;
    for (int64_t i = 0; i < order->rows; i++)
        p[i] = (uint32_t)i;
    for (int64_t i = order->rows - 1; i > 0; i--) {
        struct philox_block draw =
            philox_stream_block(order->options.seed, (uint64_t)i, (uint64_t)epoch, PHILOX_STREAM_ORDER);
        uint64_t random = (uint64_t)draw.word[0] << 32 | draw.word[1];
        int64_t j = (int64_t)(random % (uint64_t)(i + 1));
        uint32_t other = p[j];
        p[j] = p[i];
        p[i] = other;
    }
    order->permuted_epoch = epoch;
}

int64_t order_row(struct order *order, int64_t epoch, int64_t position)
{
    INVARIANT(epoch >= 0 && position >= 0 && position < order->samples_per_epoch);
    if (!order->options.shuffled)
        return order->kept[position];
    if (order->permuted_epoch != epoch)
        permute(order, epoch);
    return order->kept[order->permutation[position]];
}

int64_t order_batch(struct order *order, struct data_cursor cursor, int64_t *rows)
{
    int64_t epoch = cursor.samples / order->samples_per_epoch,
            first = cursor.samples % order->samples_per_epoch;
    int64_t count = least(order->options.global_batch, order->samples_per_epoch - first);
    for (int64_t i = 0; i < count; i++)
        rows[i] = order_row(order, epoch, first + i);
    return count;
}

int64_t order_epoch(const struct order *order, struct data_cursor cursor)
{
    return cursor.samples / order->samples_per_epoch;
}

bool order_ended(const struct order *order, struct data_cursor cursor, int64_t epochs)
{
    return epochs >= 0 && order_epoch(order, cursor) >= epochs;
}
