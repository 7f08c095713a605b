/* One micro-batch on its way from the loader to the device: filled on the host, cut for this rank of the
 * context group, copied. Its memory is taken once, for the largest. Owner: the engine's thread. */
#pragma once

#include "device.h"
#include "groups.h"
#include "tape.h"
#include "zigzag.h"

/* The integers of a batch, one array after another in one block. */
enum feed_array {
    FEED_TOKENS,
    FEED_LABELS,
    FEED_POSITIONS,
    FEED_STARTS,
    FEED_SEEN,
    FEED_KEY_FROM,
    FEED_KEY_TO,
    FEED_ARRAYS
};

struct feed {
    struct device *device;
    int32_t c, place;                /* of the context group: how many ranks, and which this is */
    int64_t longest;                 /* keys of a segment */
    struct zigzag_bounds bounds;     /* of this rank's part */
    int64_t offset[FEED_ARRAYS + 1]; /* of each array in both blocks */
    int32_t *host, *on_device;
    int32_t *whole_ints;
    struct micro_batch whole, part; /* as the lane has it, and this rank's part of it, in host */
    struct zigzag zigzag;           /* in host */
};

bool feed_init(struct feed *feed, struct device *device, const struct batch_bounds *bounds,
               const struct groups *groups, struct err *err) MUST_USE;
void feed_done(struct feed *feed); /* takes zeroed and half-made ones */
int64_t feed_bytes(const struct feed *feed);

/* The lane's micro-batch of the round, valid until the next. An absent one is a block of padding, so that
 * every rank makes the same collectives. */
struct batch feed_send(struct feed *feed, struct loader *loader, const struct batch_plan *plan, int64_t round,
                       int64_t lane);
