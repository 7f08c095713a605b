/* A model's stored state from the shards of one layout to those of another, in memory: every array as it is
 * stored, bit for bit, in messages of bounded size. Two phases, as everything: what can fail is in
 * move_reserve. */
#pragma once

#include "comm.h"
#include "flow.h"

struct move {
    struct pieces before, after;
    struct flow_array arrays[FLOW_ARRAYS];
    int64_t bytes;         /* that leave this rank */
    int64_t message_bytes; /* the longest, the same on all ranks */
    struct device *device;
    char *out, *in; /* messages */
};

/* Collective over world, all ranks: tells all ranks what each holds in `from` and in `to`, which have the
 * same policy and the same table of tensors, and takes the buffers. Every rank's own outcome: agree on it. */
bool move_reserve(struct move *move, struct comm *world, const struct optimizer *from,
                  const struct optimizer *to, struct err *err) MUST_USE;
void move_done(struct move *move); /* takes zeroed and half-made ones */

/* Fills every array of `to`, which is as optimizer_init made it, and its counters. */
void move_make(struct move *move, struct comm *world, const struct optimizer *from, struct optimizer *to);
