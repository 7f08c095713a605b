#include "feed.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(BATCH_ROW_MULTIPLE % TAPE_ROWS_MULTIPLE == 0, "a tensor group shares the rows");

/* Where each array lies; c = 1 needs no map of keys. */
static void lay(struct feed *feed)
{
    const struct zigzag_bounds *b = &feed->bounds;
    const int64_t lengths[FEED_ARRAYS] = {
        [FEED_TOKENS] = b->rows,
        [FEED_LABELS] = b->rows,
        [FEED_POSITIONS] = b->rows,
        [FEED_STARTS] = b->segments + 1,
        [FEED_SEEN] = feed->c > 1 ? 2 * b->segments : 0,
        [FEED_KEY_FROM] = feed->c > 1 ? b->keys : 0,
        [FEED_KEY_TO] = feed->c > 1 ? feed->c * b->rows : 0,
    };
    feed->offset[0] = 0;
    for (int i = 0; i < FEED_ARRAYS; i++)
        feed->offset[i + 1] = feed->offset[i] + lengths[i];
}

int64_t feed_bytes(const struct feed *feed)
{
    return feed->offset[FEED_ARRAYS] * (int64_t)sizeof(int32_t);
}

bool feed_init(struct feed *feed, struct device *device, const struct batch_bounds *bounds,
               const struct groups *groups, struct err *err)
{
    struct batch_bounds most = *bounds;
    most.rows = most.rows < BATCH_ROW_MULTIPLE ? BATCH_ROW_MULTIPLE : most.rows;
    most.sequences = most.sequences < 1 ? 1 : most.sequences;
    *feed = (struct feed){
        .device = device, .c = groups->layout.c, .place = groups->place.c, .longest = most.longest};
    if (feed->c > 1) /* as zigzag_cut pads it */
        feed->longest += 2 * feed->c - 1;
    feed->bounds = feed->c > 1 ? zigzag_bounds(&most, feed->c)
                               : (struct zigzag_bounds){most.rows, most.rows, most.sequences};
    lay(feed);
    feed->host = malloc((size_t)feed_bytes(feed));
    feed->on_device = device_allocate(device, (size_t)feed_bytes(feed));
    feed->whole_ints = malloc((size_t)(3 * most.rows + most.sequences + 1) * sizeof(int32_t));
    if (!feed->host || !feed->on_device || !feed->whole_ints) {
        err_set(err, ERR_MEMORY, "no memory for the %lld integers of a micro-batch",
                (long long)feed->offset[FEED_ARRAYS]);
        feed_done(feed);
        return false;
    }
    int32_t *ints = feed->whole_ints, *host = feed->host;
    feed->whole = (struct micro_batch){.tokens = ints,
                                       .labels = ints + most.rows,
                                       .positions = ints + 2 * most.rows,
                                       .starts = ints + 3 * most.rows};
    feed->part = (struct micro_batch){.tokens = host + feed->offset[FEED_TOKENS],
                                      .labels = host + feed->offset[FEED_LABELS],
                                      .positions = host + feed->offset[FEED_POSITIONS],
                                      .starts = host + feed->offset[FEED_STARTS]};
    feed->zigzag = (struct zigzag){.seen = (int32_t(*)[2])(void *)(host + feed->offset[FEED_SEEN]),
                                   .from = host + feed->offset[FEED_KEY_FROM],
                                   .to = host + feed->offset[FEED_KEY_TO]};
    return true;
}

void feed_done(struct feed *feed)
{
    if (feed->device)
        device_release(feed->device, feed->on_device, (size_t)feed_bytes(feed));
    free(feed->host);
    free(feed->whole_ints);
    *feed = (struct feed){0};
}

/* One rank alone has the micro-batch as it is. */
static void take_whole(struct feed *feed)
{
    struct micro_batch *part = &feed->part, at = *part;
    const struct micro_batch *whole = &feed->whole;
    size_t bytes = (size_t)whole->rows * sizeof(int32_t);
    *part = *whole;
    part->tokens = memcpy(at.tokens, whole->tokens, bytes);
    part->labels = memcpy(at.labels, whole->labels, bytes);
    part->positions = memcpy(at.positions, whole->positions, bytes);
    part->starts = memcpy(at.starts, whole->starts, (size_t)(whole->sequences + 1) * sizeof(int32_t));
}

static void pad_absent(struct feed *feed)
{
    struct micro_batch *part = &feed->part;
    part->rows = BATCH_ROW_MULTIPLE;
    for (int i = 0; i < BATCH_ROW_MULTIPLE; i++) {
        part->tokens[i] = part->positions[i] = 0;
        part->labels[i] = -1;
    }
    for (int i = 0; feed->c > 1 && i < feed->c * BATCH_ROW_MULTIPLE; i++)
        feed->zigzag.to[i] = -1;
}

static const int32_t *send(struct feed *feed, enum feed_array array, int64_t count)
{
    int32_t *to = feed->on_device + feed->offset[array];
    INVARIANT(feed->offset[array] + count <= feed->offset[array + 1]);
    device_copy_in(feed->device, to, feed->host + feed->offset[array], (size_t)count * sizeof(int32_t));
    return to;
}

struct batch feed_send(struct feed *feed, struct loader *loader, const struct batch_plan *plan, int64_t round,
                       int64_t lane)
{
    batch_fill(loader, plan, round, lane, &feed->whole);
    if (feed->c > 1)
        zigzag_cut(&feed->part, &feed->zigzag, &feed->whole, feed->c, feed->place);
    else
        take_whole(feed);
    if (feed->part.rows == 0)
        pad_absent(feed);
    const struct micro_batch *part = &feed->part;
    int64_t rows = part->rows, keys = feed->c > 1 ? feed->zigzag.keys : rows;
    struct batch batch = {.tokens = rows,
                          .sequences = part->sequences,
                          .longest = part->longest,
                          .used_tokens = part->tokens_used,
                          .labelled = part->labelled,
                          .token_ids = send(feed, FEED_TOKENS, rows),
                          .labels = send(feed, FEED_LABELS, rows),
                          .positions = send(feed, FEED_POSITIONS, rows),
                          .starts = send(feed, FEED_STARTS, part->sequences + 1),
                          .keys = keys};
    if (feed->c > 1) {
        batch.seen = (const void *)send(feed, FEED_SEEN, 2 * part->sequences);
        batch.key_from = send(feed, FEED_KEY_FROM, keys);
        batch.key_to = send(feed, FEED_KEY_TO, feed->c * rows);
    }
    return batch;
}
