/* From one policy to another, between two steps. A part whose two formats store values alike (bf16 and bf16s)
 * keeps its arrays; every other part is read to fp32 and written in the new format, chunk by chunk, and what
 * reading gives afterwards is compared with what it gave before.
 *
 * w may lie in memory that the model's copies lend (struct optimizer_plan), so it may have to go elsewhere
 * without changing its format; and where both formats are lent the same memory each chunk is read before it
 * is written. */
#include "optimizer.h"

#include "arrays.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 16 }; /* elements converted at a time: a multiple of STATE_ALIGNMENT */

static const char *const part_names[STATE_PART_COUNT] = {"weight", "m", "v"};

/* Same arrays, same reading: the formats differ at most in how they round. */
static bool part_changes(const struct policy *from, const struct policy *to, enum state_part part)
{
    if (part == STATE_W) {
        bool plain = from->weight == WEIGHT_BF16 || from->weight == WEIGHT_BF16S;
        bool to_plain = to->weight == WEIGHT_BF16 || to->weight == WEIGHT_BF16S;
        return from->weight != to->weight && !(plain && to_plain);
    }
    enum moment_format a = part == STATE_M ? from->m : from->v, b = part == STATE_M ? to->m : to->v;
    bool plain = a == MOMENT_BF16 || a == MOMENT_BF16S, to_plain = b == MOMENT_BF16 || b == MOMENT_BF16S;
    return a != b && !(plain && to_plain);
}

static int64_t part_bytes(const struct optimizer *optimizer, const struct policy *policy,
                          enum state_part part, bool extra)
{
    int64_t bytes = 0;
    for (int32_t u = 0; u < optimizer->unit_count; u++)
        bytes += array_bytes(array_dtype(policy, part, extra), part, extra, optimizer->units[u].elements);
    return bytes;
}

int64_t optimizer_convert_bytes(const struct optimizer *optimizer, const struct policy *policy, bool lends)
{
    int64_t bytes = 0;
    bool any = false, lent = false;
    for (int part = 0; part < STATE_PART_COUNT; part++) {
        if (!part_changes(&optimizer->policy, policy, (enum state_part)part))
            continue;
        any = true;
        for (int extra = 0; extra < 2; extra++)
            if (part != STATE_W || extra || !lends)
                bytes += part_bytes(optimizer, policy, (enum state_part)part, extra);
    }
    for (int32_t u = 0; u < optimizer->unit_count; u++)
        lent = lent || optimizer->units[u].lent;
    if (lent && !lends && !part_changes(&optimizer->policy, policy, STATE_W))
        bytes += part_bytes(optimizer, policy, STATE_W, false);
    return any ? bytes + 2 * CHUNK * (int64_t)sizeof(float) : bytes;
}

/* Where each unit's w will lie. */
static void find_lent(const struct optimizer *optimizer, struct optimizer_conversion *c,
                      const struct optimizer_copies *copies)
{
    for (int32_t u = 0; u < optimizer->unit_count; u++) {
        c->lent[u] = arrays_lent(&c->policy, copies, u, optimizer->units[u].elements);
        c->moves = c->moves || c->lent[u] != optimizer->units[u].lent;
    }
    c->moves = c->moves && !c->changes[STATE_W];
}

static bool reserve_arrays(struct optimizer *optimizer, struct optimizer_conversion *c,
                           const struct optimizer_copies *copies)
{
    bool any = false;
    for (int part = 0; part < STATE_PART_COUNT; part++) {
        c->changes[part] = part_changes(&optimizer->policy, &c->policy, (enum state_part)part);
        any = any || c->changes[part];
    }
    find_lent(optimizer, c, copies);
    for (int32_t u = 0; u < optimizer->unit_count; u++) {
        int64_t elements = optimizer->units[u].elements;
        for (int part = 0; part < STATE_PART_COUNT; part++)
            if (c->changes[part] && !arrays_allocate(optimizer->device, &c->policy, (enum state_part)part,
                                                     elements, c->lent[u], c->arrays[u][part]))
                return false;
        if (c->moves && !arrays_allocate_one(optimizer->device, &c->policy, STATE_W, false, elements,
                                             c->lent[u], c->arrays[u][STATE_W]))
            return false;
    }
    if (!any)
        return true;
    c->before = device_allocate(optimizer->device, CHUNK * sizeof(float));
    c->after = device_allocate(optimizer->device, CHUNK * sizeof(float));
    c->host_before = malloc(CHUNK * sizeof(float));
    c->host_after = malloc(CHUNK * sizeof(float));
    return c->before && c->after && c->host_before && c->host_after;
}

bool optimizer_convert_reserve(struct optimizer *optimizer, const struct policy *policy,
                               const struct optimizer_copies *copies, struct optimizer_conversion *conversion,
                               struct err *err)
{
    for (int32_t u = 0; u < optimizer->unit_count; u++)
        for (int32_t s = 0; s < optimizer->units[u].segment_count; s++)
            if (!arrays_groups_are_whole(policy, &optimizer->units[u].segments[s], err))
                return false;
    struct optimizer_conversion c = {.policy = *policy};
    c.arrays = calloc((size_t)optimizer->unit_count + 1, sizeof *c.arrays);
    c.lent = calloc((size_t)optimizer->unit_count + 1, sizeof *c.lent);
    if (!c.arrays || !c.lent || !reserve_arrays(optimizer, &c, copies)) {
        bool lends = false;
        for (int32_t u = 0; c.lent && u < optimizer->unit_count; u++)
            lends = lends || c.lent[u];
        optimizer_convert_cancel(optimizer, &c);
        err_set(err, ERR_MEMORY, "the state under %s does not fit beside the one under %s", policy->name,
                optimizer->policy.name);
        err_why(err, "the conversion takes %" PRId64 " bytes more on this rank while it runs",
                optimizer_convert_bytes(optimizer, policy, lends));
        return err_hint(err, "save a checkpoint, then start again under --policy %s", policy->name);
    }
    *conversion = c;
    return true;
}

void optimizer_convert_cancel(struct optimizer *optimizer, struct optimizer_conversion *c)
{
    for (int32_t u = 0; c->arrays && c->lent && u < optimizer->unit_count; u++)
        for (int part = 0; part < STATE_PART_COUNT; part++)
            arrays_release(optimizer->device, &c->policy, (enum state_part)part, optimizer->units[u].elements,
                           c->lent[u], c->arrays[u][part]);
    free(c->arrays);
    free(c->lent);
    device_release(optimizer->device, c->before, CHUNK * sizeof(float));
    device_release(optimizer->device, c->after, CHUNK * sizeof(float));
    free(c->host_before);
    free(c->host_after);
    *c = (struct optimizer_conversion){0};
}

/* ---- what was lost ---- */

/* How many of the 24 bits of before's significand, from the lowest, the change reaches into. */
static int bits_reached(double before, double change)
{
    if (before == 0 || !isfinite(change))
        return FLT_MANT_DIG;
    int value_exponent, change_exponent;
    frexp(before, &value_exponent);
    frexp(change, &change_exponent);
    int bits = change_exponent - (value_exponent - FLT_MANT_DIG);
    return bits < 1 ? 1 : bits > FLT_MANT_DIG ? FLT_MANT_DIG : bits;
}

static void compare(struct optimizer_loss *loss, const float *before, const float *after, int64_t n)
{
    loss->elements += n;
    for (int64_t i = 0; i < n; i++) {
        if (before[i] == after[i] || (isnan(before[i]) && isnan(after[i])))
            continue;
        loss->changed++;
        double change = (double)after[i] - (double)before[i], relative = fabs(change / (double)before[i]);
        if (!(relative <= loss->largest_relative))
            loss->largest_relative = relative;
        int dropped = bits_reached((double)before[i], change);
        if (dropped > loss->bits_dropped)
            loss->bits_dropped = dropped;
    }
}

/* ---- commit ---- */

static void convert_range(struct optimizer *optimizer, struct optimizer_conversion *c, int32_t unit,
                          const struct optimizer_segment *segment, enum state_part part,
                          struct optimizer_loss *loss)
{
    struct device *device = optimizer->device;
    const struct kernels *kernels = device->kernels;
    for (int64_t start = 0; start < segment->elements; start += CHUNK) {
        int64_t rest = segment->elements - start, n = rest < CHUNK ? rest : CHUNK;
        struct state_view from =
            arrays_view(&optimizer->policy, optimizer->units[unit].arrays, segment->offset + start);
        struct state_view to = arrays_view(&c->policy, c->arrays[unit], segment->offset + start);
        kernels->state_read(device->queue, c->before, &from, part, n);
        struct index_map map = optimizer_segment_map(segment, start);
        kernels->state_write(device->queue, &to, part, c->before, n, &map, optimizer->seed,
                             (uint64_t)optimizer->total_steps);
        kernels->state_read(device->queue, c->after, &to, part, n);
        device_copy_out(device, c->host_before, c->before, (size_t)n * sizeof(float));
        device_copy_out(device, c->host_after, c->after, (size_t)n * sizeof(float));
        compare(loss, c->host_before, c->host_after, n);
    }
}

/* w as it is, to where it will lie; what its format keeps beside it stays. */
static void move_weights(struct optimizer *optimizer, struct optimizer_conversion *c, int32_t u)
{
    struct optimizer_unit *unit = &optimizer->units[u];
    void **from = unit->arrays[STATE_W], **to = c->arrays[u][STATE_W];
    if (unit->elements == 0 || from[0] == to[0])
        return;
    device_copy(optimizer->device, to[0], from[0],
                (size_t)array_bytes(array_dtype(&c->policy, STATE_W, false), STATE_W, false, unit->elements));
    to[1] = from[1];
    from[1] = NULL;
    arrays_release(optimizer->device, &optimizer->policy, STATE_W, unit->elements, unit->lent, from);
    memcpy(from, to, sizeof unit->arrays[STATE_W]);
    memset(to, 0, sizeof unit->arrays[STATE_W]);
}

void optimizer_convert_commit(struct optimizer *optimizer, struct optimizer_conversion *c,
                              struct optimizer_loss losses[STATE_PART_COUNT])
{
    struct optimizer_loss copies = {0}; /* counted where they are not copies */
    memset(losses, 0, STATE_PART_COUNT * sizeof *losses);
    for (int32_t u = 0; c->moves && u < optimizer->unit_count; u++)
        move_weights(optimizer, c, u);
    for (int part = 0; part < STATE_PART_COUNT; part++)
        for (int32_t u = 0; c->changes[part] && u < optimizer->unit_count; u++) {
            struct optimizer_unit *unit = &optimizer->units[u];
            for (int32_t s = 0; s < unit->segment_count; s++)
                convert_range(optimizer, c, u, &unit->segments[s], (enum state_part)part,
                              unit->segments[s].copy ? &copies : &losses[part]);
            arrays_release(optimizer->device, &optimizer->policy, (enum state_part)part, unit->elements,
                           unit->lent, unit->arrays[part]);
            memcpy(unit->arrays[part], c->arrays[u][part], sizeof unit->arrays[part]);
            memset(c->arrays[u][part], 0, sizeof c->arrays[u][part]);
        }
    for (int32_t u = 0; u < optimizer->unit_count; u++)
        optimizer->units[u].lent = c->lent[u];
    optimizer->policy = c->policy;
    optimizer_convert_cancel(optimizer, c);
}

void optimizer_loss_merge(struct optimizer_loss losses[STATE_PART_COUNT],
                          const struct optimizer_loss other[STATE_PART_COUNT])
{
    for (int part = 0; part < STATE_PART_COUNT; part++) {
        losses[part].elements += other[part].elements;
        losses[part].changed += other[part].changed;
        if (!(other[part].largest_relative <= losses[part].largest_relative))
            losses[part].largest_relative = other[part].largest_relative;
        if (other[part].bits_dropped > losses[part].bits_dropped)
            losses[part].bits_dropped = other[part].bits_dropped;
    }
}

const char *optimizer_loss_text(const struct optimizer_loss losses[STATE_PART_COUNT], char *text,
                                size_t text_bytes)
{
    text[0] = '\0';
    for (int part = 0; part < STATE_PART_COUNT; part++) {
        const struct optimizer_loss *loss = &losses[part];
        size_t length = strlen(text);
        if (loss->changed > 0)
            snprintf(
                text + length, text_bytes - length,
                "%s%s: %.4g %% of the values changed, by up to %.3g of themselves, up to %d bits dropped",
                length > 0 ? "; " : "", part_names[part],
                100.0 * (double)loss->changed / (double)loss->elements, loss->largest_relative,
                loss->bits_dropped);
    }
    if (text[0] == '\0')
        snprintf(text, text_bytes, "nothing was lost");
    return text;
}
