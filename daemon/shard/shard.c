/* Cutting units into shards, gathering weights. Gradients are in shard_gradient.c. */
#include "shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER_EMBEDDING, BUFFER_BLOCK, BUFFER_HEAD, BUFFER_KINDS };

/* A unit is one of three kinds, which differ in size and are in use at the same time. */
static int32_t unit_kind(const struct param_table *params, int32_t unit)
{
    return unit == 0 ? BUFFER_EMBEDDING : unit == params->unit_count - 1 ? BUFFER_HEAD : BUFFER_BLOCK;
}

static int64_t shard_elements_of(int64_t elements, int32_t ranks)
{
    int64_t blocks = (elements + STATE_ALIGNMENT - 1) / STATE_ALIGNMENT;
    return (blocks + ranks - 1) / ranks * STATE_ALIGNMENT;
}

/* Units stay gathered. With nobody to share with, releasing one would only mean converting it again. */
bool shard_keeps_gathered(const struct shard_options *options, int32_t ranks)
{
    return ranks == 1 || options->zero < 3;
}

static int64_t elements_here(const struct param_table *params, const struct stage *stage, int32_t unit,
                             bool tied, int32_t ranks)
{
    return stage_holds(stage, unit, tied) ? shard_elements_of(params->units[unit].elements, ranks) : 0;
}

/* The uses of a unit whose gradients are summed here: slot first up to past. */
struct uses {
    int first, past;
};
static struct uses uses_here(const struct stage *stage, int32_t unit, bool tied)
{
    bool both = unit == 0 && tied;
    return (struct uses){both && stage->rank > 0 ? 1 : 0, both && stage_is_last(stage) ? 2 : 1};
}

/* The sizes of everything, in one place for shard_bytes and shard_init. */
struct sizes {
    int64_t widest[BUFFER_KINDS]; /* elements of the largest padded unit of each kind */
    int64_t widest_shard;
    int64_t gathered; /* elements of all gathered buffers */
    int64_t sums;     /* elements of all gradient sums */
    int64_t shared;   /* the most elements of a unit's shard that several ranks of a tensor group hold */
    int64_t parts_bytes, received_bytes;
};

/* Of pieces that several ranks hold; with their padding, so that it bounds what any rank's shard has. */
static int64_t shared_elements(const struct param_table *params, int32_t unit)
{
    int64_t elements = 0;
    for (int32_t i = params->units[unit].first; i < params->units[unit].first + params->units[unit].count;
         i++)
        if (params->params[i].holders > 1)
            elements += shard_elements_of(params->params[i].elements, 1);
    return elements;
}

static struct sizes sizes_of(const struct param_table *params, bool tied, const struct shard_options *options,
                             int32_t ranks)
{
    struct sizes s = {0};
    for (int32_t u = 0; u < params->unit_count; u++) {
        int64_t shard = elements_here(params, &options->stage, u, tied, ranks);
        struct uses uses = uses_here(&options->stage, u, tied);
        int32_t kind = unit_kind(params, u);
        if (shard * ranks > s.widest[kind])
            s.widest[kind] = shard * ranks;
        if (shard > s.widest_shard)
            s.widest_shard = shard;
        int64_t shared = shared_elements(params, u);
        shared = shared < shard ? shared : shard;
        s.shared = shared > s.shared ? shared : s.shared;
        s.gathered += shard_keeps_gathered(options, ranks) ? shard * ranks : 0;
        s.sums += shard * shard_sum_parts(options, ranks) * options->levels * (uses.past - uses.first);
    }
    int64_t widest = 0;
    for (int kind = 0; kind < BUFFER_KINDS; kind++) {
        s.gathered += shard_keeps_gathered(options, ranks) ? 0 : s.widest[kind];
        widest = s.widest[kind] > widest ? s.widest[kind] : widest;
    }
    /* One rank adds its leaf as it is, unless the wire's rounding is asked for. */
    s.parts_bytes = ranks == 1 && options->reduce == DTYPE_F32 ? 0 : widest * 4;
    s.received_bytes = s.parts_bytes + s.widest_shard * 4;
    return s;
}

int64_t shard_bytes(const struct param_table *params, bool tied, const struct shard_options *options,
                    int32_t ranks)
{
    struct sizes s = sizes_of(params, tied, options, ranks);
    int64_t bytes = s.gathered * (int64_t)dtype_bytes(options->compute) + s.received_bytes;
    bytes += s.sums * (int64_t)dtype_bytes(options->accumulate) + s.widest_shard / STATE_ALIGNMENT * 8;
    bytes += s.shared * options->tensor->ranks * 4;
    for (int kind = 0; kind < BUFFER_KINDS; kind++)
        bytes += s.widest[kind] * 4;
    return bytes;
}

int64_t shard_lent_bytes(const struct param_table *params, bool tied, const struct shard_options *options,
                         int32_t ranks)
{
    int64_t elements = 0;
    for (int32_t u = 0; u < params->unit_count && shard_keeps_gathered(options, ranks); u++)
        elements += elements_here(params, &options->stage, u, tied, ranks);
    return elements * (int64_t)dtype_bytes(options->compute);
}

/* Elements from … to of a tensor's piece, as the optimizer numbers them. */
static struct optimizer_segment segment_of(const struct param *p, int64_t from, int64_t to)
{
    struct param_map map = param_map(p);
    struct optimizer_segment segment = {.decays = p->decay,
                                        .copy = p->holder > 0,
                                        .elements = to - from,
                                        .index = p->index0 + map.first + from / map.run * map.stride +
                                                 from % map.run};
    if (map.run < map.stride) {
        segment.run = map.run;
        segment.stride = map.stride;
        segment.column = from % map.run;
    } else if (segment.index % STATE_ALIGNMENT != 0) {
        segment.run = segment.stride = STATE_ALIGNMENT; /* whole rows that begin anywhere */
    }
    return segment;
}

/* The pieces of the unit's tensors that fall into rank's range. Returns how many; writes them if segments is
 * given. */
static int32_t cut_unit(const struct param_table *params, int32_t unit, int64_t shard_elements, int32_t rank,
                        struct optimizer_segment *segments)
{
    int32_t count = 0;
    int64_t first = shard_elements * rank, past = first + shard_elements;
    for (int32_t i = 0; i < params->units[unit].count; i++) {
        int32_t tensor = params->units[unit].first + i;
        const struct param *p = &params->params[tensor];
        int64_t from = p->unit_offset > first ? p->unit_offset : first;
        int64_t to = p->unit_offset + p->elements < past ? p->unit_offset + p->elements : past;
        if (from >= to)
            continue;
        if (segments) {
            segments[count] = segment_of(p, from - p->unit_offset, to - p->unit_offset);
            segments[count].tensor = tensor;
            segments[count].offset = from - first;
        }
        count++;
    }
    return count;
}

static bool take(struct shard *shard, void **memory, int64_t bytes, const char *what, struct err *err)
{
    *memory = bytes > 0 ? device_allocate(shard->device, (size_t)bytes) : NULL;
    return bytes == 0 || *memory ||
           err_set(err, ERR_MEMORY, "%lld bytes for %s do not fit", (long long)bytes, what);
}

/* This rank's part of the unit's gathered buffer. */
static char *own_part(const struct shard *shard, int32_t unit)
{
    size_t each = (size_t)shard->units[unit].shard_elements * dtype_bytes(shard->options.compute);
    return (char *)shard->buffers[shard->units[unit].buffer].memory + each * (size_t)shard->comm->rank;
}

static bool take_buffers(struct shard *shard, const struct sizes *s, struct err *err)
{
    bool resident = shard_keeps_gathered(&shard->options, shard->comm->ranks);
    shard->buffer_count = resident ? shard->unit_count : BUFFER_KINDS;
    shard->buffers = calloc((size_t)shard->buffer_count, sizeof *shard->buffers);
    INVARIANT(shard->buffers != NULL);
    for (int32_t u = 0; u < shard->unit_count; u++) {
        int32_t kind = unit_kind(shard->params, u);
        shard->units[u].leaf = kind;
        shard->units[u].buffer = resident ? u : kind;
        if (resident)
            shard->buffers[u].elements = shard->units[u].shard_elements * shard->comm->ranks;
    }
    bool done = true;
    for (int32_t b = 0; b < shard->buffer_count && done; b++) {
        struct shard_buffer *buffer = &shard->buffers[b];
        buffer->holds = -1;
        if (!resident)
            buffer->elements = s->widest[b];
        done = take(shard, &buffer->memory, buffer->elements * (int64_t)dtype_bytes(shard->options.compute),
                    "gathered weights", err);
    }
    for (int32_t u = 0; u < shard->unit_count && resident && done; u++)
        if (shard->units[u].shard_elements > 0)
            shard->copies.units[u] = own_part(shard, u);
    for (int kind = 0; kind < BUFFER_KINDS && done; kind++) {
        shard->leaves[kind].elements = s->widest[kind];
        done = take(shard, &shard->leaves[kind].memory, s->widest[kind] * 4, "a unit's gradient", err);
    }
    return done;
}

static int64_t level_bytes(const struct shard *shard, int32_t unit)
{
    int64_t parts = shard_sum_parts(&shard->options, shard->comm->ranks);
    return shard->units[unit].shard_elements * parts * (int64_t)dtype_bytes(shard->options.accumulate);
}

static bool take_sums(struct shard *shard, bool tied, const struct sizes *s, struct err *err)
{
    for (int32_t u = 0; u < shard->unit_count; u++)
        for (struct uses at = uses_here(&shard->options.stage, u, tied); at.first < at.past; at.first++)
            for (int32_t level = 0; level < shard->options.levels; level++)
                if (!take(shard, &shard->units[u].sums[at.first].levels[level], level_bytes(shard, u),
                          "gradients", err))
                    return false;
    shard->parts_bytes = (size_t)s->parts_bytes;
    shard->received_bytes = (size_t)s->received_bytes;
    shard->squares_bytes = (size_t)(s->widest_shard / STATE_ALIGNMENT) * sizeof(double);
    shard->shared_bytes = (size_t)(s->shared * shard->options.tensor->ranks) * sizeof(float);
    shard->squares_host = malloc(shard->squares_bytes * (size_t)shard->comm->ranks);
    INVARIANT(shard->squares_host != NULL);
    return take(shard, (void **)&shard->received, s->received_bytes, "the exchange of gradients", err) &&
           take(shard, (void **)&shard->shared, (int64_t)shard->shared_bytes, "gradients of shared pieces",
                err) &&
           take(shard, (void **)&shard->squares_device, (int64_t)shard->squares_bytes, "the gradient norm",
                err);
}

bool shard_init(struct shard *shard, struct comm *comm, struct device *device,
                const struct param_table *params, bool tied, const struct shard_options *options,
                struct err *err)
{
    *shard =
        (struct shard){.comm = comm, .device = device, .params = params, .options = *options, .tied = tied};
    if (comm->ranks > SHARD_RANKS_MAX)
        return err_set(err, ERR_UNSUPPORTED, "the data axis has %d ranks, and at most %d are built",
                       comm->ranks, SHARD_RANKS_MAX);
    INVARIANT(options->levels >= 1 && options->levels <= SHARD_LEVELS_MAX);
    INVARIANT(!options->lanes || options->accumulate == DTYPE_F32);
    shard->unit_count = params->unit_count;
    shard->units = calloc((size_t)shard->unit_count, sizeof *shard->units);
    shard->gradients = calloc((size_t)shard->unit_count, sizeof *shard->gradients);
    shard->copies.units = calloc((size_t)shard->unit_count, sizeof *shard->copies.units);
    shard->copies.dtype = options->compute;
    shard->segments = calloc((size_t)params->count, sizeof *shard->segments); /* at most one piece a tensor */
    INVARIANT(shard->units && shard->gradients && shard->copies.units && shard->segments);
    int32_t segments = 0;
    for (int32_t u = 0; u < shard->unit_count; u++) {
        struct shard_unit *unit = &shard->units[u];
        unit->shard_elements = elements_here(params, &options->stage, u, tied, comm->ranks);
        unit->segment_first = segments;
        unit->segment_count =
            cut_unit(params, u, unit->shard_elements, comm->rank, shard->segments + segments);
        for (int32_t i = 0; i < unit->segment_count && !stage_counts(&options->stage, u, tied); i++)
            shard->segments[segments + i].copy = true;
        segments += unit->segment_count;
    }
    struct sizes s = sizes_of(params, tied, options, comm->ranks);
    if (take_buffers(shard, &s, err) && take_sums(shard, tied, &s, err))
        return true;
    shard_done(shard);
    return false;
}

void shard_flatten(struct shard *shard, int32_t levels)
{
    for (int32_t u = 0; shard->units && u < shard->unit_count; u++)
        for (int slot = 0; slot < 2; slot++)
            for (int32_t level = levels; level < SHARD_LEVELS_MAX; level++) {
                void **sum = &shard->units[u].sums[slot].levels[level];
                device_release(shard->device, *sum, (size_t)level_bytes(shard, u));
                *sum = NULL;
            }
    shard->options.levels = levels;
}

bool shard_deepen(struct shard *shard, int32_t levels, struct err *err)
{
    int32_t before = shard->options.levels;
    INVARIANT(levels <= SHARD_LEVELS_MAX);
    for (int32_t u = 0; u < shard->unit_count; u++)
        for (int slot = 0; slot < 2; slot++)
            for (int32_t level = before; level < levels; level++) {
                void **sums = shard->units[u].sums[slot].levels;
                if (sums[0] && !take(shard, &sums[level], level_bytes(shard, u), "gradients", err)) {
                    shard_flatten(shard, before);
                    return false;
                }
            }
    shard->options.levels = levels;
    return true;
}

void shard_done(struct shard *shard)
{
    struct device *device = shard->device;
    if (!device)
        return;
    size_t compute = dtype_bytes(shard->options.compute);
    for (int32_t b = 0; shard->buffers && b < shard->buffer_count; b++)
        device_release(device, shard->buffers[b].memory, (size_t)shard->buffers[b].elements * compute);
    for (int kind = 0; kind < BUFFER_KINDS; kind++)
        device_release(device, shard->leaves[kind].memory, (size_t)shard->leaves[kind].elements * 4);
    shard_flatten(shard, 0);
    device_release(device, shard->received, shard->received_bytes);
    device_release(device, shard->shared, shard->shared_bytes);
    device_release(device, shard->squares_device, shard->squares_bytes);
    free(shard->squares_host);
    free(shard->buffers);
    free(shard->segments);
    free(shard->gradients);
    free(shard->copies.units);
    free(shard->units);
    *shard = (struct shard){0};
}

struct optimizer_plan shard_optimizer_plan(const struct shard *shard, struct optimizer_unit_plan *units)
{
    for (int32_t u = 0; u < shard->unit_count; u++)
        units[u] = (struct optimizer_unit_plan){.elements = shard->units[u].shard_elements,
                                                .segment_count = shard->units[u].segment_count,
                                                .segments = shard->segments + shard->units[u].segment_first};
    return (struct optimizer_plan){.unit_count = shard->unit_count,
                                   .tensor_count = shard->params->count,
                                   .units = units,
                                   .copies = &shard->copies};
}

void *shard_gather(struct shard *shard, struct optimizer *optimizer, int32_t unit)
{
    struct shard_buffer *buffer = &shard->buffers[shard->units[unit].buffer];
    if (buffer->holds == unit)
        return buffer->memory;
    if (!buffer->own)
        optimizer_compute_copy(optimizer, unit, own_part(shard, unit), shard->options.compute);
    comm_all_gather(shard->comm, buffer->memory,
                    (size_t)shard->units[unit].shard_elements * dtype_bytes(shard->options.compute));
    buffer->holds = unit;
    return buffer->memory;
}

void shard_weights_updated(struct shard *shard)
{
    bool resident = shard_keeps_gathered(&shard->options, shard->comm->ranks);
    for (int32_t b = 0; b < shard->buffer_count; b++) {
        shard->buffers[b].own = resident;
        if (shard->comm->ranks > 1)
            shard->buffers[b].holds = -1;
    }
}

void shard_weights_changed(struct shard *shard)
{
    for (int32_t b = 0; b < shard->buffer_count; b++) {
        shard->buffers[b].holds = -1;
        shard->buffers[b].own = false;
    }
}

void shard_rows(const struct shard *shard, const struct optimizer *optimizer, shard_row_fn row, void *context)
{
    bool resident = shard_keeps_gathered(&shard->options, shard->comm->ranks);
    static const char *const kinds[BUFFER_KINDS] = {"embedding", "blocks", "head"};
    int64_t compute = (int64_t)dtype_bytes(shard->options.compute);
    int64_t accumulate = (int64_t)dtype_bytes(shard->options.accumulate);
    for (int32_t b = 0; b < shard->buffer_count; b++) {
        char name[64];
        if (!resident && b < BUFFER_KINDS)
            snprintf(name, sizeof name, "%s", kinds[b]);
        else
            snprintf(name, sizeof name, "unit %d", b);
        int64_t lent = resident && optimizer->units[b].lent ? optimizer->units[b].elements : 0;
        int64_t elements = shard->buffers[b].elements - lent;
        row(context, name, "gathered", shard->options.compute, elements, elements * compute);
    }
    for (int kind = 0; kind < BUFFER_KINDS; kind++)
        row(context, kinds[kind], "gradient.leaf", DTYPE_F32, shard->leaves[kind].elements,
            shard->leaves[kind].elements * 4);
    for (int32_t u = 0; u < shard->unit_count; u++) {
        char name[64];
        snprintf(name, sizeof name, "unit %d", u);
        int64_t elements = 0;
        for (int slot = 0; slot < 2; slot++)
            for (int level = 0; level < SHARD_LEVELS_MAX; level++)
                if (shard->units[u].sums[slot].levels[level])
                    elements +=
                        shard->units[u].shard_elements * shard_sum_parts(&shard->options, shard->comm->ranks);
        row(context, name, "gradient", shard->options.accumulate, elements, elements * accumulate);
    }
    row(context, "exchange", "scratch", DTYPE_U8, (int64_t)shard->received_bytes,
        (int64_t)shard->received_bytes);
    row(context, "shared pieces", "scratch", DTYPE_F32, (int64_t)shard->shared_bytes / 4,
        (int64_t)shard->shared_bytes);
    row(context, "norm", "scratch", DTYPE_F64, (int64_t)shard->squares_bytes / 8,
        (int64_t)shard->squares_bytes);
}
