/* Summing gradients onto their owners: the exchange, the tree over ranks, the accumulation over
 * micro-batches. */
#include "shard.h"

#include "inject.h"

#include <math.h>
#include <string.h>

void shard_gradients_begin(struct shard *shard)
{
    shard->ever_present = 0;
    for (int32_t u = 0; u < shard->unit_count; u++) {
        shard->units[u].sums[0].filled = shard->units[u].sums[1].filled = 0;
        shard->units[u].gradient = NULL;
    }
}

void shard_leaves_begin(struct shard *shard, int64_t group, uint64_t present)
{
    shard->group = group;
    shard->present = present;
    shard->ever_present |= present;
}

/* Sums hold all ranks' parts until the step ends: stage 1. */
static bool sums_whole(const struct shard *shard)
{
    return shard_sum_parts(&shard->options, shard->comm->ranks) > 1;
}

/* Where the next sum of a unit's use comes to lie: where it will stay, if that place is free, or else
 * `spare`, from which it is added. So the first micro-batch costs no copy. Under lanes the place is free for
 * every even group, whose sum carries nothing. */
static float *landing(struct shard *shard, int32_t unit, int32_t slot, void *spare)
{
    struct shard_sum *total = &shard->units[unit].sums[slot];
    bool free_place = shard->options.accumulate == DTYPE_F32 && !(total->filled & 1);
    return free_place ? total->levels[0] : spare;
}

float *shard_leaf(struct shard *shard, int32_t unit, int32_t slot)
{
    void *whole = shard->leaves[shard->units[unit].leaf].memory;
    return shard->parts_bytes == 0 || sums_whole(shard) ? landing(shard, unit, slot, whole) : whole;
}

/* sum[shard_elements] = this rank's part of the sum over the present ranks of `whole`, in the tree's order.
 */
static void sum_over_ranks(struct shard *shard, int32_t unit, float *sum, float *whole, uint64_t present)
{
    const struct kernels *k = shard->device->kernels;
    struct queue *q = shard->device->queue;
    int64_t n = shard->units[unit].shard_elements;
    int32_t ranks = shard->comm->ranks;
    if (inject("rank-left-out") && ranks > 1)
        present &= ~(1ull << (ranks - 1));
    if (shard->options.reduce == DTYPE_F32 && !inject("wire-bf16")) {
        comm_exchange(shard->comm, shard->received, whole, (size_t)n * 4);
        k->tree_sum(q, sum, shard->received, n, n, ranks, present, DTYPE_F32);
    } else { /* rounded once, as it goes on the wire: the parts' halves of the buffer hold what is sent and
                received */
        char *sent = shard->received, *got = shard->received + shard->parts_bytes / 2;
        k->cast(q, sent, whole, n * ranks, DTYPE_BF16, DTYPE_F32);
        comm_exchange(shard->comm, got, sent, (size_t)n * 2);
        k->tree_sum(q, sum, got, n, n, ranks, present, DTYPE_BF16);
    }
}

/* Plain: one total, in the order of the micro-batches. */
static void add_in_order(struct shard *shard, struct shard_sum *total, const float *sum, int64_t n)
{
    const struct kernels *k = shard->device->kernels;
    if (total->filled)
        k->accumulate(shard->device->queue, total->levels[0], sum, n, shard->options.accumulate);
    else if (sum != total->levels[0])
        k->cast(shard->device->queue, total->levels[0], sum, n, shard->options.accumulate, DTYPE_F32);
    total->filled = 1;
}

/* Lanes: a binary counter. Level i holds the sum of a subtree of 2^i groups; adding group g carries through
 * the levels where g has ones, exactly the merges that the fixed tree makes. An absent node leaves its
 * sibling as it is. */
static void add_in_tree(struct shard *shard, struct shard_sum *counter, float *sum, bool present, int64_t n)
{
    const struct kernels *k = shard->device->kernels;
    struct queue *q = shard->device->queue;
    int level = 0;
    for (int64_t g = shard->group; g & 1; g >>= 1, level++) {
        if (!(counter->filled >> level & 1))
            continue;
        if (present)
            k->accumulate(q, sum, counter->levels[level], n, DTYPE_F32);
        else
            k->cast(q, sum, counter->levels[level], n, DTYPE_F32, DTYPE_F32);
        counter->filled &= ~(1ull << level);
        present = true;
    }
    INVARIANT(level < shard->options.levels);
    if (!present)
        return;
    if (sum != counter->levels[level])
        k->cast(q, counter->levels[level], sum, n, DTYPE_F32, DTYPE_F32);
    counter->filled |= 1ull << level;
}

void shard_reduce(struct shard *shard, int32_t unit, int32_t slot)
{
    struct shard_unit *u = &shard->units[unit];
    int64_t n = u->shard_elements;
    if (n == 0)
        return;
    float *sum = shard_leaf(shard, unit, slot);
    if (sums_whole(shard)) {
        n *= shard->comm->ranks;
    } else if (shard->parts_bytes > 0) {
        float *whole = sum;
        sum = landing(shard, unit, slot, shard->received + shard->parts_bytes);
        sum_over_ranks(shard, unit, sum, whole, shard->present);
        for (int64_t i = 0; inject("averaged-over-c") && i < n; i++)
            sum[i] /= (float)shard->comm->ranks;
    }
    if (shard->options.lanes)
        add_in_tree(shard, &u->sums[slot], sum, true, n);
    else
        add_in_order(shard, &u->sums[slot], sum, n);
}

void shard_leaves_absent(struct shard *shard)
{
    for (int32_t unit = 0; unit < shard->unit_count && shard->options.lanes; unit++)
        for (int slot = 0; slot < 2; slot++) {
            struct shard_unit *u = &shard->units[unit];
            float *spare = shard->parts_bytes ? (float *)(shard->received + shard->parts_bytes)
                                              : shard->leaves[u->leaf].memory;
            add_in_tree(shard, &u->sums[slot], spare, false, u->shard_elements);
        }
}

/* Stage 1: the step's one exchange of a unit. This rank's part of the sum over ranks takes the place of its
 * own part of `whole`, which is in `accumulate`. */
static void *finish_whole(struct shard *shard, int32_t unit, void *whole)
{
    const struct kernels *k = shard->device->kernels;
    struct queue *q = shard->device->queue;
    enum dtype accumulate = shard->options.accumulate;
    int64_t n = shard->units[unit].shard_elements;
    float *wide = whole;
    if (accumulate != DTYPE_F32) {
        wide = shard->leaves[shard->units[unit].leaf].memory;
        k->cast(q, wide, whole, n * shard->comm->ranks, DTYPE_F32, accumulate);
    }
    char *mine = (char *)whole + (size_t)n * (size_t)shard->comm->rank * dtype_bytes(accumulate);
    float *sum = (float *)(shard->received + shard->parts_bytes);
    sum_over_ranks(shard, unit, sum, wide, shard->ever_present);
    k->cast(q, mine, sum, n, accumulate, DTYPE_F32);
    return mine;
}

/* What is left in the counter, from the last leaves to the first; NULL when nothing was ever added. */
static void *finish_sum(struct shard *shard, int32_t unit, int32_t slot)
{
    struct shard_sum *counter = &shard->units[unit].sums[slot];
    int64_t n = shard->units[unit].shard_elements;
    void *total = NULL;
    for (int level = 0; level < shard->options.levels; level++) {
        if (!(counter->filled >> level & 1))
            continue;
        if (total)
            shard->device->kernels->accumulate(shard->device->queue, counter->levels[level], total, n,
                                               DTYPE_F32);
        total = counter->levels[level];
    }
    return total && sums_whole(shard) ? finish_whole(shard, unit, total) : total;
}

/* A tied embedding's other use, summed on the other end of the pipeline, comes here as ours goes there. */
static void *exchange_ends(struct shard *shard, void *mine)
{
    struct comm *pipeline = shard->options.pipeline;
    size_t bytes = (size_t)shard->units[0].shard_elements * dtype_bytes(shard->options.accumulate);
    int32_t other = pipeline->rank == 0 ? pipeline->ranks - 1 : 0;
    void *theirs = shard->leaves[shard->units[0].leaf].memory; /* no leaf is being made */
    comm_transfer(pipeline, &(struct comm_message){other, mine, bytes},
                  &(struct comm_message){other, theirs, bytes});
    return theirs;
}

/* Elements of a unit's shard whose gradients are parts of a sum over the tensor group. */
static int64_t shared_here(const struct shard *shard, int32_t unit)
{
    const struct shard_unit *u = &shard->units[unit];
    int64_t n = 0;
    for (int32_t i = u->segment_first; i < u->segment_first + u->segment_count; i++)
        n += shard->params->params[shard->segments[i].tensor].holders > 1 ? shard->segments[i].elements : 0;
    return n;
}

int64_t shard_shared_sent(const struct shard *shard)
{
    int64_t bytes = 0;
    for (int32_t unit = 0; unit < shard->unit_count; unit++)
        bytes += shared_here(shard, unit) * (int64_t)sizeof(float);
    return bytes * (shard->options.tensor->ranks - 1);
}

static bool is_left_out(const struct param *param)
{
    return (inject("q-norm-not-summed-over-t") && strstr(param->name, "q_norm")) ||
           (inject("block-norm-not-summed-over-t") && strstr(param->name, "input_layernorm")) ||
           (inject("k-proj-not-summed-over-t") && strstr(param->name, "k_proj"));
}

/* The gradients of pieces that several ranks of the tensor group hold, norms above all: packed, gathered over
 * the group, and each summed over its holders in rank order, on all of them alike. */
static void sum_over_holders(struct shard *shard, int32_t unit, char *gradient)
{
    const struct kernels *k = shard->device->kernels;
    struct queue *q = shard->device->queue;
    const struct shard_unit *u = &shard->units[unit];
    enum dtype dtype = shard->options.accumulate;
    struct comm *tensor = shard->options.tensor;
    int64_t n = shared_here(shard, unit);
    if (!gradient || n == 0)
        return;
    INVARIANT((size_t)(n * tensor->ranks) * sizeof(float) <= shard->shared_bytes);
    for (int pass = 0; pass < 2; pass++) {
        float *at = shard->shared + (pass == 0 ? n * tensor->rank : 0);
        for (int32_t i = u->segment_first; i < u->segment_first + u->segment_count; i++) {
            const struct optimizer_segment *s = &shard->segments[i];
            const struct param *p = &shard->params->params[s->tensor];
            void *mine = gradient + (size_t)s->offset * dtype_bytes(dtype);
            uint64_t holders = ~0ull >> (64 - p->holders) << (tensor->rank - p->holder);
            if (p->holders == 1)
                continue;
            if (pass == 0)
                k->cast(q, at, mine, s->elements, DTYPE_F32, dtype);
            else if (!is_left_out(p)) {
                k->tree_sum(q, at, at, s->elements, n, tensor->ranks, holders, DTYPE_F32);
                k->cast(q, mine, at, s->elements, dtype, DTYPE_F32);
            }
            at += s->elements;
        }
        if (pass == 0)
            comm_all_gather(tensor, shard->shared, (size_t)n * sizeof(float));
    }
}

void shard_gradients_finish(struct shard *shard)
{
    const struct kernels *k = shard->device->kernels;
    struct queue *q = shard->device->queue;
    for (int32_t unit = 0; unit < shard->unit_count; unit++) {
        struct shard_unit *u = &shard->units[unit];
        if (u->shard_elements == 0)
            continue;
        void *gradient = finish_sum(shard, unit, 0);
        void *second = finish_sum(shard, unit, 1);
        if (unit == 0 && shard->tied && shard->options.stage.ranks > 1) { /* one of them is NULL */
            gradient = gradient ? gradient : second;
            second = exchange_ends(shard, gradient);
        }
        if (second && !inject("tied-use-dropped") && !inject("tied-not-summed-over-p")) { /* a tied head's use
                                        of the embedding, through fp32 whatever it was accumulated in */
            float *wide = second;
            if (shard->options.accumulate != DTYPE_F32) {
                wide = (float *)(shard->received + shard->parts_bytes);
                k->cast(q, wide, second, u->shard_elements, DTYPE_F32, shard->options.accumulate);
            }
            k->accumulate(q, gradient, wide, u->shard_elements, shard->options.accumulate);
        }
        sum_over_holders(shard, unit, gradient);
        if (inject("head-not-finite") && unit == shard->unit_count - 1 && shard->comm->rank == 0)
            *(float *)gradient = NAN;
        u->gradient = gradient;
        shard->gradients[unit] = gradient;
    }
}

/* One tensor's blocks, which lie side by side whatever rank has them. */
static void add_blocks(const struct shard *shard, int32_t tensor, const double *blocks, int64_t each,
                       double *sum, struct shard_squares *squares)
{
    const struct param *p = &shard->params->params[tensor];
    int64_t past = (p->unit_offset + p->elements + STATE_ALIGNMENT - 1) / STATE_ALIGNMENT;
    if (p->holder > 0 && !inject("norm-counts-copies"))
        return;
    for (int64_t b = p->unit_offset / STATE_ALIGNMENT; b < past; b++) {
        *sum += blocks[b];
        if (squares->bad_rank < 0 && !isfinite(blocks[b])) {
            squares->bad_rank = (int32_t)(b / each);
            squares->bad_tensor = tensor;
        }
    }
}

void shard_gradient_squares(struct shard *shard, struct shard_squares *squares)
{
    double sum = squares->sum;
    for (int32_t unit = 0; unit < shard->unit_count; unit++) {
        if (!stage_counts(&shard->options.stage, unit, shard->tied) && !inject("tied-counts-twice"))
            continue;
        if (shard->units[unit].shard_elements == 0)
            continue;
        int64_t n = shard->units[unit].shard_elements, blocks = n / STATE_ALIGNMENT;
        size_t each = (size_t)blocks * sizeof(double);
        double *all = shard->squares_host, *mine = all + blocks * shard->comm->rank;
        shard->device->kernels->block_squares(shard->device->queue, shard->squares_device,
                                              shard->gradients[unit], n, shard->options.accumulate);
        device_copy_out(shard->device, mine, shard->squares_device, each);
        comm_all_gather_host(shard->comm, all, mine, each);
        const struct param_unit *u = &shard->params->units[unit];
        for (int32_t tensor = u->first; tensor < u->first + u->count; tensor++)
            add_blocks(shard, tensor, all, blocks, &sum, squares);
        if (inject("norm-counts-twice") && unit == 0)
            sum += all[0];
    }
    squares->sum = sum;
}
