/* The shard's state on a device: see optimizer.h. Memory is taken by optimizer_init and by a conversion's
 * reserve, never in between. Kernels see one segment at a time, as a view into the unit's arrays; segments
 * start at multiples of STATE_ALIGNMENT, so groups of 32 and random-number blocks of 8 are never cut. */
#include "optimizer.h"

#include "arrays.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- plans ---- */

static void plan_check(const struct optimizer_plan *plan)
{
    for (int32_t u = 0; u < plan->unit_count; u++) {
        const struct optimizer_unit_plan *unit = &plan->units[u];
        INVARIANT(unit->elements >= 0 && unit->elements % STATE_ALIGNMENT == 0);
        int64_t end = 0;
        for (int32_t s = 0; s < unit->segment_count; s++) {
            const struct optimizer_segment *segment = &unit->segments[s];
            INVARIANT(segment->offset >= end && segment->offset % STATE_ALIGNMENT == 0);
            INVARIANT(segment->elements >= 0);
            if (segment->run == 0)
                INVARIANT(segment->index % STATE_ALIGNMENT == 0);
            else
                INVARIANT(segment->column >= 0 && segment->column < segment->run &&
                          segment->run <= segment->stride);
            INVARIANT(segment->tensor >= 0 && segment->tensor < plan->tensor_count);
            end = segment->offset + segment->elements;
        }
        INVARIANT(end <= unit->elements);
    }
}

int64_t optimizer_plan_bytes(const struct optimizer_plan *plan, const struct policy *policy)
{
    int64_t bytes = 0;
    for (int32_t u = 0; u < plan->unit_count; u++)
        for (int part = 0; part < STATE_PART_COUNT; part++)
            for (int extra = 0; extra < 2; extra++)
                bytes += array_bytes(array_dtype(policy, (enum state_part)part, extra), (enum state_part)part,
                                     extra, plan->units[u].elements);
    return bytes;
}

/* ---- init and done ---- */

static bool unit_init(struct optimizer *o, struct optimizer_unit *unit,
                      const struct optimizer_unit_plan *plan, void *lent, struct err *err)
{
    unit->lent = lent;
    unit->elements = plan->elements;
    unit->segments = calloc((size_t)plan->segment_count + 1, sizeof *unit->segments);
    if (!unit->segments)
        return err_set(err, ERR_MEMORY, "no memory for the list of %d segments", plan->segment_count);
    if (plan->segment_count > 0)
        memcpy(unit->segments, plan->segments, (size_t)plan->segment_count * sizeof *unit->segments);
    unit->segment_count = plan->segment_count;
    for (int part = 0; part < STATE_PART_COUNT; part++)
        if (!arrays_allocate(o->device, &o->policy, (enum state_part)part, unit->elements, lent,
                             unit->arrays[part]))
            return err_set(err, ERR_MEMORY, "the optimizer state does not fit");
    return true;
}

static bool scratch_init(struct optimizer *o, struct err *err)
{
    size_t largest = 0;
    for (int32_t u = 0; u < o->unit_count; u++)
        for (int32_t s = 0; s < o->units[u].segment_count; s++) {
            size_t bytes = o->device->kernels->update_scratch(o->units[u].segments[s].elements);
            largest = bytes > largest ? bytes : largest;
            o->segment_total++;
        }
    size_t measures_bytes = (size_t)o->segment_total * sizeof *o->measures;
    o->host_measures = calloc((size_t)o->segment_total + 1, sizeof *o->host_measures);
    o->scratch_bytes = largest;
    if (largest > 0)
        o->scratch = device_allocate(o->device, largest);
    if (measures_bytes > 0)
        o->measures = device_allocate(o->device, measures_bytes);
    if (!o->host_measures || (largest > 0 && !o->scratch) || (measures_bytes > 0 && !o->measures))
        return err_set(err, ERR_MEMORY, "the optimizer's scratch does not fit");
    return true;
}

bool optimizer_init(struct optimizer *optimizer, struct device *device, const struct policy *policy,
                    const struct optimizer_plan *plan, uint64_t seed, struct err *err)
{
    plan_check(plan);
    for (int32_t u = 0; u < plan->unit_count; u++)
        for (int32_t s = 0; s < plan->units[u].segment_count; s++)
            if (!arrays_groups_are_whole(policy, &plan->units[u].segments[s], err))
                return false;
    struct optimizer o = {.device = device,
                          .policy = *policy,
                          .seed = seed,
                          .unit_count = plan->unit_count,
                          .tensor_count = plan->tensor_count};
    o.units = calloc((size_t)plan->unit_count + 1, sizeof *o.units);
    bool ok = o.units || err_set(err, ERR_MEMORY, "no memory for the list of %d units", plan->unit_count);
    for (int32_t u = 0; ok && u < plan->unit_count; u++)
        ok = unit_init(&o, &o.units[u], &plan->units[u],
                       arrays_lent(policy, plan->copies, u, plan->units[u].elements), err);
    ok = ok && scratch_init(&o, err);
    if (!ok) {
        err_why(err, "%s takes %" PRId64 " bytes on this rank", policy->name,
                optimizer_plan_bytes(plan, policy));
        err_hint(err, "a policy of fewer bytes a parameter, or more ranks, makes it smaller");
        optimizer_done(&o);
        return false;
    }
    *optimizer = o;
    return true;
}

void optimizer_done(struct optimizer *optimizer)
{
    for (int32_t u = 0; optimizer->units && u < optimizer->unit_count; u++) {
        struct optimizer_unit *unit = &optimizer->units[u];
        for (int part = 0; part < STATE_PART_COUNT; part++)
            arrays_release(optimizer->device, &optimizer->policy, (enum state_part)part, unit->elements,
                           unit->lent, unit->arrays[part]);
        free(unit->segments);
    }
    free(optimizer->units);
    free(optimizer->host_measures);
    if (optimizer->device) {
        device_release(optimizer->device, optimizer->scratch, optimizer->scratch_bytes);
        device_release(optimizer->device, optimizer->measures,
                       (size_t)optimizer->segment_total * sizeof *optimizer->measures);
    }
    *optimizer = (struct optimizer){0};
}

/* ---- the update ---- */

struct update_scalars optimizer_scalars(const struct optimizer_settings *settings, double lr,
                                        double gradient_factor, int64_t t, int64_t total_step, uint64_t seed,
                                        bool decays)
{
    double beta1 = settings->beta1, beta2 = settings->beta2;
    double bc1 = 1.0 - pow(beta1, (double)t), bc2 = 1.0 - pow(beta2, (double)t);
    return (struct update_scalars){.gradient_factor = (float)gradient_factor,
                                   .one_minus_beta1 = (float)(1.0 - beta1),
                                   .beta1 = (float)beta1,
                                   .beta2 = (float)beta2,
                                   .one_minus_beta2 = (float)(1.0 - beta2),
                                   .decay_factor = decays ? (float)(1.0 - lr * settings->weight_decay) : 1.0f,
                                   .step_size = (float)(lr / bc1),
                                   .sqrt_bc2 = (float)sqrt(bc2),
                                   .eps = (float)settings->eps,
                                   .seed = seed,
                                   .total_step = (uint64_t)total_step};
}

void optimizer_update(struct optimizer *optimizer, const struct optimizer_settings *settings, double lr,
                      double gradient_factor, const void *const *gradients,
                      const struct optimizer_copies *copies, struct update_measures *by_tensor)
{
    struct device *device = optimizer->device;
    optimizer->t++;
    optimizer->total_steps++;
    struct update_scalars scalars[2];
    for (int decays = 0; decays < 2; decays++)
        scalars[decays] = optimizer_scalars(settings, lr, gradient_factor, optimizer->t,
                                            optimizer->total_steps, optimizer->seed, decays);
    size_t gradient_bytes = dtype_bytes(optimizer->policy.accumulate);
    int32_t row = 0;
    for (int32_t u = 0; u < optimizer->unit_count; u++)
        for (int32_t s = 0; s < optimizer->units[u].segment_count; s++, row++) {
            const struct optimizer_segment *segment = &optimizer->units[u].segments[s];
            if (segment->elements == 0)
                continue;
            struct state_view view =
                arrays_view(&optimizer->policy, optimizer->units[u].arrays, segment->offset);
            bool copied = copies && copies->units[u] && copies->units[u] != optimizer->units[u].lent;
            if (copied) { /* else w is the copy, or there is none */
                view.copy = (char *)copies->units[u] + (size_t)segment->offset * dtype_bytes(copies->dtype);
                view.copy_dtype = copies->dtype;
            }
            const char *gradient = (const char *)gradients[u] + (size_t)segment->offset * gradient_bytes;
            struct index_map map = optimizer_segment_map(segment, 0);
            device->kernels->update(device->queue, &optimizer->measures[row], &view, gradient,
                                    optimizer->policy.accumulate, segment->elements, &map,
                                    &scalars[segment->decays || settings->decay_all], optimizer->scratch);
        }
    device_copy_out(device, optimizer->host_measures, optimizer->measures,
                    (size_t)optimizer->segment_total * sizeof *optimizer->measures);
    memset(by_tensor, 0, (size_t)optimizer->tensor_count * sizeof *by_tensor);
    row = 0;
    for (int32_t u = 0; u < optimizer->unit_count; u++)
        for (int32_t s = 0; s < optimizer->units[u].segment_count; s++, row++)
            if (optimizer->units[u].segments[s].elements > 0 && !optimizer->units[u].segments[s].copy)
                measures_merge(&by_tensor[optimizer->units[u].segments[s].tensor],
                               &optimizer->host_measures[row]);
}

void optimizer_compute_copy(struct optimizer *optimizer, int32_t unit, void *to, enum dtype dtype)
{
    const struct optimizer_unit *u = &optimizer->units[unit];
    struct state_view view = arrays_view(&optimizer->policy, optimizer->units[unit].arrays, 0);
    if (u->elements > 0 && to != u->lent)
        optimizer->device->kernels->weight_compute_copy(optimizer->device->queue, to, &view, u->elements,
                                                        dtype);
}

/* ---- values ---- */

static struct state_view segment_view(const struct optimizer *optimizer, int32_t unit, int32_t segment,
                                      int64_t start, int64_t count)
{
    const struct optimizer_segment *s = &optimizer->units[unit].segments[segment];
    INVARIANT(start % STATE_ALIGNMENT == 0 && start >= 0 && count >= 0 && start + count <= s->elements);
    return arrays_view(&optimizer->policy, optimizer->units[unit].arrays, s->offset + start);
}

void optimizer_get(const struct optimizer *optimizer, int32_t unit, int32_t segment, enum state_part part,
                   int64_t start, int64_t count, float *values)
{
    struct state_view view = segment_view(optimizer, unit, segment, start, count);
    if (count > 0)
        optimizer->device->kernels->state_read(optimizer->device->queue, values, &view, part, count);
}

void optimizer_set(struct optimizer *optimizer, int32_t unit, int32_t segment, enum state_part part,
                   int64_t start, int64_t count, const float *values)
{
    struct state_view view = segment_view(optimizer, unit, segment, start, count);
    struct index_map map = optimizer_segment_map(&optimizer->units[unit].segments[segment], start);
    if (count > 0)
        optimizer->device->kernels->state_write(optimizer->device->queue, &view, part, values, count, &map,
                                                optimizer->seed, (uint64_t)optimizer->total_steps);
}

void optimizer_zero_moments(struct optimizer *optimizer)
{
    for (int32_t u = 0; u < optimizer->unit_count; u++)
        for (int part = STATE_M; part <= STATE_V; part++)
            arrays_zero(optimizer->device, &optimizer->policy, (enum state_part)part,
                        optimizer->units[u].elements, optimizer->units[u].arrays[part]);
    optimizer->t = 0;
}

/* ---- raw arrays ---- */

bool optimizer_slice(const struct optimizer *optimizer, int32_t unit, int32_t segment, enum state_part part,
                     bool extra, int64_t start, int64_t count, struct optimizer_slice *slice)
{
    static const char *const kinds[STATE_PART_COUNT][2] = {
        {"weight", "weight.extra"}, {"m", "m.scale"}, {"v", "v.scale"}};
    const struct optimizer_segment *s = &optimizer->units[unit].segments[segment];
    enum dtype dtype = array_dtype(&optimizer->policy, part, extra);
    if (dtype == DTYPE_COUNT)
        return false;
    if (count < 0)
        count = s->elements - start;
    INVARIANT(start % STATE_ALIGNMENT == 0 && start >= 0 && count >= 0 && start + count <= s->elements);
    char *memory = optimizer->units[unit].arrays[part][extra];
    *slice = (struct optimizer_slice){
        .kind = kinds[part][extra],
        .dtype = dtype,
        .memory = memory ? memory + array_bytes(dtype, part, extra, s->offset + start) : NULL,
        .elements = array_elements(part, extra, count),
        .bytes = array_bytes(dtype, part, extra, count)};
    return true;
}

int64_t optimizer_state_bytes(const struct optimizer *optimizer)
{
    int64_t bytes = 0;
    for (int32_t u = 0; u < optimizer->unit_count; u++)
        for (int part = 0; part < STATE_PART_COUNT; part++)
            for (int extra = 0; extra < 2; extra++)
                bytes += array_bytes(array_dtype(&optimizer->policy, (enum state_part)part, extra),
                                     (enum state_part)part, extra, optimizer->units[u].elements);
    return bytes;
}

int64_t optimizer_padding_bytes(const struct optimizer *optimizer)
{
    int64_t bytes = optimizer_state_bytes(optimizer);
    struct optimizer_slice slice;
    for (int32_t u = 0; u < optimizer->unit_count; u++)
        for (int32_t s = 0; s < optimizer->units[u].segment_count; s++)
            for (int part = 0; part < STATE_PART_COUNT; part++)
                for (int extra = 0; extra < 2; extra++)
                    if (optimizer_slice(optimizer, u, s, (enum state_part)part, extra, 0, -1, &slice))
                        bytes -= slice.bytes;
    return bytes;
}

int64_t optimizer_scratch_bytes(const struct optimizer *optimizer)
{
    return (int64_t)optimizer->scratch_bytes +
           optimizer->segment_total * (int64_t)sizeof *optimizer->measures;
}
