#include "move.h"

#include "inject.h"

#include <stdlib.h>
#include <string.h>

#define MOVE_MESSAGE_BYTES ((int64_t)4 << 20) /* the longest; one out and one in is all that a move takes */

/* ---- who holds what ---- */

static int64_t count_pieces(const struct optimizer *o)
{
    int64_t count = 0;
    for (int32_t u = 0; u < o->unit_count; u++)
        for (int32_t s = 0; s < o->units[u].segment_count; s++)
            count += o->units[u].segments[s].elements > 0;
    return count;
}

static void list_pieces(const struct optimizer *o, struct piece *pieces)
{
    int64_t count = 0;
    for (int32_t u = 0; u < o->unit_count; u++)
        for (int32_t s = 0; s < o->units[u].segment_count; s++) {
            const struct optimizer_segment *segment = &o->units[u].segments[s];
            if (segment->elements == 0)
                continue;
            pieces[count] = (struct piece){.map = optimizer_segment_map(segment, 0),
                                           .elements = segment->elements,
                                           .tensor = segment->tensor,
                                           .unit = u,
                                           .segment = s,
                                           .copy = segment->copy};
            INVARIANT(count == 0 || pieces[count - 1].tensor <= pieces[count].tensor);
            count++;
        }
}

/* Every rank's, on every rank. */
static void gather_pieces(struct pieces *pieces, struct comm *world, const struct optimizer *o)
{
    size_t ranks = (size_t)world->ranks;
    int64_t mine = count_pieces(o), *counts = malloc(ranks * sizeof *counts);
    size_t most = (size_t)comm_max_int(world, mine);
    struct piece *own = calloc(most + 1, sizeof *own), *all = malloc((ranks * most + 1) * sizeof *all);
    INVARIANT(counts && own && all);
    list_pieces(o, own);
    comm_all_gather_host(world, counts, &mine, sizeof mine);
    comm_all_gather_host(world, all, own, most * sizeof *own);
    pieces->ranks = world->ranks;
    pieces->first = calloc(ranks + 1, sizeof *pieces->first);
    pieces->all = all;
    INVARIANT(pieces->first != NULL);
    for (size_t r = 0; r < ranks; r++) {
        memmove(all + pieces->first[r], all + r * most, (size_t)counts[r] * sizeof *all);
        pieces->first[r + 1] = pieces->first[r] + counts[r];
    }
    free(counts);
    free(own);
}

/* What comes here is every element of every piece, once. */
static bool check_whole(const struct move *move, int32_t rank, struct err *err)
{
    struct flow_array one[FLOW_ARRAYS] = {{.bytes = 1, .group = 1}};
    int64_t come = 0, wanted = 0;
    for (int32_t r = 0; r < move->before.ranks; r++) {
        struct flow flow;
        flow_init(&flow, &move->before, r, &move->after, rank, one);
        come += flow_bytes(&flow);
    }
    for (int64_t i = move->after.first[rank]; i < move->after.first[rank + 1]; i++)
        wanted += move->after.all[i].elements;
    if (come == wanted)
        return true;
    err_set(err, ERR_UNSUPPORTED, "the two layouts do not hold the same elements");
    return err_why(err, "of %lld elements that rank %d would hold, %lld come from somewhere",
                   (long long)wanted, rank, (long long)come);
}

bool move_reserve(struct move *move, struct comm *world, const struct optimizer *from,
                  const struct optimizer *to, struct err *err)
{
    *move = (struct move){0};
    INVARIANT(policy_equal(&from->policy, &to->policy) && from->tensor_count == to->tensor_count);
    gather_pieces(&move->before, world, from);
    gather_pieces(&move->after, world, to);
    flow_arrays(&from->policy, move->arrays);
    int64_t most = 0;
    for (int32_t r = 0; r < world->ranks; r++) {
        struct flow flow;
        flow_init(&flow, &move->before, world->rank, &move->after, r, move->arrays);
        int64_t bytes = r == world->rank ? 0 : flow_bytes(&flow);
        move->bytes += bytes;
        most = bytes > most ? bytes : most;
    }
    most = comm_max_int(world, most);
    move->message_bytes = most < MOVE_MESSAGE_BYTES ? most : MOVE_MESSAGE_BYTES;
    move->device = to->device;
    if (most > 0) {
        move->out = device_allocate(to->device, (size_t)move->message_bytes);
        move->in = device_allocate(to->device, (size_t)move->message_bytes);
    }
    if (most > 0 && (!move->out || !move->in))
        return err_set(err, ERR_MEMORY, "no memory for two messages of %lld bytes",
                       (long long)move->message_bytes);
    return check_whole(move, world->rank, err);
}

void move_done(struct move *move)
{
    pieces_done(&move->before);
    pieces_done(&move->after);
    if (!move->device)
        return;
    device_release(move->device, move->out, (size_t)move->message_bytes);
    device_release(move->device, move->in, (size_t)move->message_bytes);
    *move = (struct move){0};
}

/* ---- moving ---- */

/* Where a place of a piece's array lies in device memory. */
static char *memory_of(const struct optimizer *o, const struct piece *piece, const struct span *span,
                       int64_t at)
{
    struct optimizer_slice slice;
    bool there = optimizer_slice(o, piece->unit, piece->segment, (enum state_part)(span->array / 2),
                                 span->array % 2, 0, -1, &slice);
    INVARIANT(there && at + span->values <= slice.elements);
    return (char *)slice.memory + at * (int64_t)dtype_bytes(slice.dtype);
}

static void keep(struct move *move, int32_t rank, const struct optimizer *from, struct optimizer *to)
{
    struct flow flow;
    struct span span;
    flow_init(&flow, &move->before, rank, &move->after, rank, move->arrays);
    while (flow_next(&flow, INT64_MAX, &span))
        device_copy(from->device, memory_of(to, span.to, &span, span.to_at),
                    memory_of(from, span.from, &span, span.from_at), (size_t)span.bytes);
}

/* The next message of a flow; returns its length, 0 at the end. */
static int64_t pack(struct move *move, struct flow *flow, const struct optimizer *from)
{
    struct span span;
    int64_t used = 0, before = 0;
    while (flow_next(flow, move->message_bytes - used, &span)) {
        char *at = move->out + used;
        if (inject("runs-swapped") && span.bytes == before) {
            device_copy(from->device, at, at - before, (size_t)before);
            at -= before;
        }
        device_copy(from->device, at, memory_of(from, span.from, &span, span.from_at), (size_t)span.bytes);
        used += span.bytes;
        before = span.bytes;
    }
    return used;
}

static void unpack(struct move *move, struct flow *flow, struct optimizer *to)
{
    struct span span;
    int64_t used = 0;
    while (flow_next(flow, move->message_bytes - used, &span)) {
        device_copy(to->device, memory_of(to, span.to, &span, span.to_at), move->in + used,
                    (size_t)span.bytes);
        used += span.bytes;
    }
}

/* How long the next message of a flow is: the receiver knows it as well as the sender. */
static int64_t next_message(const struct move *move, const struct flow *flow)
{
    struct flow ahead = *flow;
    struct span span;
    int64_t used = 0;
    while (flow_next(&ahead, move->message_bytes - used, &span))
        used += span.bytes;
    return used;
}

/* Round k: rank r sends to r + k and hears from r - k, message by message until both have ended. */
static void pass_round(struct move *move, struct comm *world, int32_t k, const struct optimizer *from,
                       struct optimizer *to)
{
    int32_t there = (world->rank + k) % world->ranks,
            whence = (world->rank - k + world->ranks) % world->ranks;
    struct flow out, in;
    flow_init(&out, &move->before, world->rank, &move->after, there, move->arrays);
    flow_init(&in, &move->before, whence, &move->after, world->rank, move->arrays);
    while (!out.ended || !in.ended) {
        struct comm_message goes = {there, move->out, (size_t)pack(move, &out, from)};
        struct comm_message comes = {whence, move->in, (size_t)next_message(move, &in)};
        comm_transfer(world, &goes, &comes);
        unpack(move, &in, to);
    }
}

void move_make(struct move *move, struct comm *world, const struct optimizer *from, struct optimizer *to)
{
    keep(move, world->rank, from, to);
    for (int32_t k = 1; k < world->ranks; k++)
        pass_round(move, world, k, from, to);
    to->t = from->t;
    to->total_steps = from->total_steps;
}
