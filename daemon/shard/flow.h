/* What of one rank's stored state goes to which rank when a model changes its layout in memory. Both ends
 * walk the same tables and meet the same spans in the same order, so a message carries values and nothing
 * else.
 *
 * A piece is a segment of the optimizer as every rank knows it. The pieces of a rank ascend in the table's
 * order and so in the global element index. Under one layout two ranks hold the same elements as equal
 * pieces, or none in common: the one that is no copy is sent, and who has held an element itself takes its
 * own.
 *
 * Pure: no device, no MPI. */
#pragma once

#include "index_map.h"
#include "optimizer.h"

enum { FLOW_ARRAYS = STATE_PART_COUNT * 2 }; /* main and extra array of each part: 2 * part + extra */

struct piece {
    struct index_map map; /* to global indices */
    int64_t elements;
    int32_t tensor, unit, segment;
    int32_t copy; /* optimizer_segment.copy */
};

struct pieces { /* of all ranks under one layout */
    int32_t ranks;
    int64_t *first;    /* [ranks + 1]: where rank r's begin in all */
    struct piece *all; /* all[first[ranks]] */
};

void pieces_done(struct pieces *pieces); /* zeroed: fine */
/* Those of a tensor on a rank; returns how many. */
int64_t pieces_of_tensor(const struct pieces *pieces, int32_t rank, int32_t tensor,
                         const struct piece **first);

/* How an array stores: bytes of a value, and how many elements share it (q8's scales: a group). bytes 0: the
 * policy has no such array. */
struct flow_array {
    int64_t bytes, group;
};
void flow_arrays(const struct policy *policy, struct flow_array arrays[FLOW_ARRAYS]);

/* Consecutive values of one array, on the sender and on the receiver: places count the array's values from
 * the segment's first. */
struct span {
    int32_t array;
    const struct piece *from, *to;
    int64_t from_at, to_at, values, bytes;
};

/* A walk over what goes from one rank to another; from a rank to itself: what it keeps. */
struct flow {
    const struct pieces *before, *after;
    int32_t sender, receiver;
    struct flow_array arrays[FLOW_ARRAYS];
    bool ended;
    int64_t to;                   /* the receiver's piece, in after->all */
    const struct piece *sources;  /* the sender's pieces of the same tensor, … */
    int64_t source, source_count; /* … and which of them */
    int32_t array;                /* FLOW_ARRAYS: of no pair yet, or of the next */
    int64_t from_at, to_at, elements,
        done; /* the range in common, 0: to be looked for; its values handed out */
};
void flow_init(struct flow *flow, const struct pieces *before, int32_t sender, const struct pieces *after,
               int32_t receiver, const struct flow_array arrays[FLOW_ARRAYS]);
/* The next span of at most `room` bytes; false where there is none left (ended), or no room for a value. */
bool flow_next(struct flow *flow, int64_t room, struct span *span);
int64_t flow_bytes(const struct flow *flow); /* what is left of it */
