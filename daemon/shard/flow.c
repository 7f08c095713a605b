#include "flow.h"

#include <stdlib.h>

/* ---- pieces ---- */

static bool same_elements(const struct piece *a, const struct piece *b)
{
    return a->tensor == b->tensor && a->elements == b->elements && a->map.index == b->map.index &&
           a->map.column == b->map.column && a->map.run == b->map.run && a->map.stride == b->map.stride;
}

void pieces_done(struct pieces *pieces)
{
    free(pieces->first);
    free(pieces->all);
    *pieces = (struct pieces){0};
}

int64_t pieces_of_tensor(const struct pieces *pieces, int32_t rank, int32_t tensor,
                         const struct piece **first)
{
    int64_t low = pieces->first[rank], past = pieces->first[rank + 1], high = past;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (pieces->all[middle].tensor < tensor)
            low = middle + 1;
        else
            high = middle;
    }
    *first = &pieces->all[low];
    while (high < past && pieces->all[high].tensor == tensor)
        high++;
    return high - low;
}

/* ---- what two pieces have in common ---- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* How many elements from `at` on have consecutive global indices. */
static int64_t consecutive(const struct piece *piece, int64_t at)
{
    int64_t rest = piece->elements - at;
    if (piece->map.run == piece->map.stride)
        return rest;
    return least(rest, piece->map.run - (piece->map.column + at) % piece->map.run);
}

/* The next range of consecutive indices that is in both, from the given places on, which move to it. Returns
 * its length; 0: none. */
static int64_t next_in_common(const struct piece *a, int64_t *a_at, const struct piece *b, int64_t *b_at)
{
    while (*a_at < a->elements && *b_at < b->elements) {
        int64_t first_a = (int64_t)index_map_at(&a->map, *a_at), past_a = first_a + consecutive(a, *a_at);
        int64_t first_b = (int64_t)index_map_at(&b->map, *b_at), past_b = first_b + consecutive(b, *b_at);
        if (past_a <= first_b) {
            *a_at += past_a - first_a;
        } else if (past_b <= first_a) {
            *b_at += past_b - first_b;
        } else {
            int64_t first = first_a > first_b ? first_a : first_b;
            *a_at += first - first_a;
            *b_at += first - first_b;
            return least(past_a, past_b) - first;
        }
    }
    return 0;
}

/* ---- flows ---- */

void flow_arrays(const struct policy *policy, struct flow_array arrays[FLOW_ARRAYS])
{
    for (int i = 0; i < FLOW_ARRAYS; i++) {
        enum state_part part = (enum state_part)(i / 2);
        enum dtype dtype = part == STATE_W   ? weight_storage[policy->weight][i % 2]
                           : part == STATE_M ? moment_storage[policy->m][i % 2]
                                             : moment_storage[policy->v][i % 2];
        arrays[i].bytes = dtype == DTYPE_COUNT ? 0 : (int64_t)dtype_bytes(dtype);
        arrays[i].group = part != STATE_W && i % 2 ? Q8_GROUP : 1;
    }
}

void flow_init(struct flow *flow, const struct pieces *before, int32_t sender, const struct pieces *after,
               int32_t receiver, const struct flow_array arrays[FLOW_ARRAYS])
{
    *flow = (struct flow){.before = before,
                          .after = after,
                          .sender = sender,
                          .receiver = receiver,
                          .to = after->first[receiver] - 1,
                          .array = FLOW_ARRAYS};
    for (int i = 0; i < FLOW_ARRAYS; i++)
        flow->arrays[i] = arrays[i];
}

/* The receiver keeps what it held, and takes the rest from who speaks for it. */
static bool is_sent(const struct flow *flow, const struct piece *from)
{
    const struct piece *own;
    if (flow->sender == flow->receiver)
        return true;
    if (from->copy)
        return false;
    int64_t count = pieces_of_tensor(flow->before, flow->receiver, from->tensor, &own);
    for (int64_t i = 0; i < count; i++)
        if (same_elements(&own[i], from))
            return false;
    return true;
}

/* Two pieces of one tensor, the sender's and the receiver's. */
static bool next_pair(struct flow *flow)
{
    flow->source++;
    while (flow->source >= flow->source_count) {
        if (++flow->to >= flow->after->first[flow->receiver + 1])
            return false;
        flow->source_count =
            pieces_of_tensor(flow->before, flow->sender, flow->after->all[flow->to].tensor, &flow->sources);
        flow->source = 0;
    }
    return true;
}

static bool next_array(struct flow *flow)
{
    for (;;) {
        while (++flow->array < FLOW_ARRAYS)
            if (flow->arrays[flow->array].bytes > 0) {
                flow->from_at = flow->to_at = 0;
                return true;
            }
        do
            if (!next_pair(flow))
                return false;
        while (!is_sent(flow, &flow->sources[flow->source]));
        flow->array = -1;
    }
}

static bool find_range(struct flow *flow)
{
    while (flow->elements == 0) {
        flow->done = 0;
        if (flow->array < FLOW_ARRAYS)
            flow->elements = next_in_common(&flow->sources[flow->source], &flow->from_at,
                                            &flow->after->all[flow->to], &flow->to_at);
        if (flow->elements == 0 && !next_array(flow))
            return false;
    }
    return true;
}

bool flow_next(struct flow *flow, int64_t room, struct span *span)
{
    if (flow->ended || !find_range(flow)) {
        flow->ended = true;
        return false;
    }
    const struct piece *from = &flow->sources[flow->source], *to = &flow->after->all[flow->to];
    struct flow_array array = flow->arrays[flow->array];
    int64_t n = flow->elements, values = (n + array.group - 1) / array.group;
    bool at_the_end = flow->from_at + n == from->elements && flow->to_at + n == to->elements;
    INVARIANT(flow->from_at % array.group == 0 && flow->to_at % array.group == 0);
    INVARIANT(n % array.group == 0 || at_the_end);
    int64_t fits = least(values - flow->done, room / array.bytes);
    if (fits == 0)
        return false;
    *span = (struct span){.array = flow->array,
                          .from = from,
                          .to = to,
                          .from_at = flow->from_at / array.group + flow->done,
                          .to_at = flow->to_at / array.group + flow->done,
                          .values = fits,
                          .bytes = fits * array.bytes};
    flow->done += fits;
    if (flow->done == values) {
        flow->from_at += n;
        flow->to_at += n;
        flow->elements = 0;
    }
    return true;
}

int64_t flow_bytes(const struct flow *flow)
{
    struct flow rest = *flow;
    struct span span;
    int64_t bytes = 0;
    while (flow_next(&rest, INT64_MAX, &span))
        bytes += span.bytes;
    return bytes;
}
