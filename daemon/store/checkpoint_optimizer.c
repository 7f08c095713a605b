#include "checkpoint_optimizer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct checkpoint_formats checkpoint_formats_of(const struct policy *policy)
{
    return (struct checkpoint_formats){policy->weight, policy->m, policy->v};
}

/* A range of elements counted in groups of them, none of which it cuts but the array's last. */
static struct band_range in_groups(struct band_range range, int64_t group)
{
    struct band *band = &range.band;
    INVARIANT(range.start % group == 0 && band->first % group == 0 && band->run % group == 0 &&
              band->stride % group == 0);
    range.count = (range.count + group - 1) / group;
    range.start /= group;
    *band = (struct band){band->first / group, band->run / group, band->stride / group};
    return range;
}

/* The range of a part of its tensor that one segment holds. A segment with q8 moments has whole groups of 32
 * (optimizer_init). False where the format has no such array, or nothing lies here. */
static bool segment_slice(const struct optimizer *optimizer, int32_t unit, int32_t segment, int part,
                          const struct param_table *table, struct checkpoint_slice *slice)
{
    const struct optimizer_segment *s = &optimizer->units[unit].segments[segment];
    struct optimizer_slice array;
    if (s->elements == 0 ||
        !optimizer_slice(optimizer, unit, segment, (enum state_part)(part / 2), part % 2 == 1, 0, -1, &array))
        return false;
    INVARIANT(s->tensor >= 0 && s->tensor < table->count);
    int64_t group = part % 2 == 1 && part / 2 != STATE_W ? Q8_GROUP : 1; /* scales: one a group */
    struct band_range range = in_groups(band_of_segment(s, table->params[s->tensor].index0), group);
    INVARIANT(array.elements == range.count);
    *slice = (struct checkpoint_slice){s->tensor, part, range, array.memory};
    return true;
}

static bool list_slices(const struct optimizer *optimizer, const struct param_table *table, bool copies,
                        struct checkpoint_slice **slices, int64_t *count, struct err *err)
{
    size_t most = (size_t)optimizer->segment_total * CHECKPOINT_PARTS;
    struct checkpoint_slice *found = calloc(most ? most : 1, sizeof *found);
    if (!found)
        return err_set(err, ERR_MEMORY, "no memory to list the slices of %" PRId32 " segments",
                       optimizer->segment_total);
    int64_t n = 0;
    for (int32_t unit = 0; unit < optimizer->unit_count; unit++)
        for (int32_t segment = 0; segment < optimizer->units[unit].segment_count; segment++)
            for (int part = 0; part < CHECKPOINT_PARTS; part++)
                if (copies || !optimizer->units[unit].segments[segment].copy)
                    n += segment_slice(optimizer, unit, segment, part, table, &found[n]);
    *slices = found;
    *count = n;
    return true;
}

bool checkpoint_optimizer_slices(const struct optimizer *optimizer, const struct param_table *table,
                                 struct checkpoint_slice **slices, int64_t *count, struct err *err)
{
    return list_slices(optimizer, table, false, slices, count, err);
}

static bool same_model(const struct checkpoint *checkpoint, const struct param_table *table, struct err *err)
{
    bool same = checkpoint->table.count == table->count;
    for (int32_t i = 0; same && i < table->count; i++) {
        const struct param *a = &checkpoint->table.params[i], *b = &table->params[i];
        same = strcmp(a->name, b->name) == 0 && a->whole_rows == b->whole_rows &&
               a->whole_columns == b->whole_columns;
    }
    if (same)
        return true;
    err_set(err, ERR_INVALID, "%s is of another model", checkpoint->folder);
    return err_hint(err, "load it into a daemon without a model, or into one of that model");
}

bool checkpoint_optimizer_read(struct checkpoint *checkpoint, struct optimizer *optimizer,
                               const struct param_table *table, struct err *err)
{
    const struct checkpoint_formats *f = &checkpoint->formats;
    INVARIANT(f->weight == optimizer->policy.weight && f->m == optimizer->policy.m &&
              f->v == optimizer->policy.v);
    if (!same_model(checkpoint, table, err))
        return false;
    struct checkpoint_slice *slices = NULL;
    int64_t count;
    if (!list_slices(optimizer, table, true, &slices, &count, err))
        return false;
    bool read = true;
    for (int64_t i = 0; read && i < count; i++)
        read = checkpoint_read(checkpoint, optimizer->device, &slices[i], err);
    free(slices);
    return read;
}
