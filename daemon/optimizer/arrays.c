/* Arrays of one part of a unit: allocate, release, view. */
#include "arrays.h"

void *arrays_lent(const struct policy *policy, const struct optimizer_copies *copies, int32_t unit,
                  int64_t elements)
{
    if (!copies || elements == 0 || !policy_stores_copy(policy))
        return NULL;
    INVARIANT(copies->dtype == policy->compute);
    return copies->units[unit];
}

bool arrays_allocate_one(struct device *device, const struct policy *policy, enum state_part part, bool extra,
                         int64_t elements, void *lent, void *arrays[2])
{
    int64_t bytes = array_bytes(array_dtype(policy, part, extra), part, extra, elements);
    bool lends = part == STATE_W && !extra && lent;
    arrays[extra] = lends ? lent : bytes > 0 ? device_allocate(device, (size_t)bytes) : NULL;
    return arrays[extra] || bytes == 0;
}

bool arrays_allocate(struct device *device, const struct policy *policy, enum state_part part,
                     int64_t elements, void *lent, void *arrays[2])
{
    arrays[1] = NULL;
    if (arrays_allocate_one(device, policy, part, false, elements, lent, arrays) &&
        arrays_allocate_one(device, policy, part, true, elements, lent, arrays))
        return true;
    arrays_release(device, policy, part, elements, lent, arrays);
    return false;
}

void arrays_release(struct device *device, const struct policy *policy, enum state_part part,
                    int64_t elements, void *lent, void *arrays[2])
{
    for (int extra = 0; extra < 2; extra++) {
        bool lends = part == STATE_W && !extra && lent;
        if (arrays[extra] && !lends)
            device_release(device, arrays[extra],
                           (size_t)array_bytes(array_dtype(policy, part, extra), part, extra, elements));
        arrays[extra] = NULL;
    }
}

void arrays_zero(struct device *device, const struct policy *policy, enum state_part part, int64_t elements,
                 void *arrays[2])
{
    for (int extra = 0; extra < 2; extra++)
        if (arrays[extra])
            device_zero(device, arrays[extra],
                        (size_t)array_bytes(array_dtype(policy, part, extra), part, extra, elements));
}

struct state_view arrays_view(const struct policy *policy, void *arrays[STATE_PART_COUNT][2], int64_t offset)
{
    void *at[STATE_PART_COUNT][2];
    for (int part = 0; part < STATE_PART_COUNT; part++)
        for (int extra = 0; extra < 2; extra++) {
            char *memory = arrays[part][extra];
            enum dtype dtype = array_dtype(policy, (enum state_part)part, extra);
            at[part][extra] =
                memory ? memory + array_bytes(dtype, (enum state_part)part, extra, offset) : NULL;
        }
    return (struct state_view){.w_format = policy->weight,
                               .m_format = policy->m,
                               .v_format = policy->v,
                               .w = at[STATE_W][0],
                               .w_extra = at[STATE_W][1],
                               .m = at[STATE_M][0],
                               .m_extra = at[STATE_M][1],
                               .v = at[STATE_V][0],
                               .v_extra = at[STATE_V][1]};
}

bool arrays_groups_are_whole(const struct policy *policy, const struct optimizer_segment *segment,
                             struct err *err)
{
    int64_t cut =
        (segment->index - segment->column) % Q8_GROUP + segment->run % Q8_GROUP + segment->stride % Q8_GROUP;
    if (segment->run == 0 || cut == 0 || (policy->m != MOMENT_Q8 && policy->v != MOMENT_Q8))
        return true;
    err_set(err, ERR_UNSUPPORTED, "%s keeps moments in groups of %d columns, and this layout would cut them",
            policy->name, Q8_GROUP);
    err_why(err, "a rank would hold %lld of a tensor's %lld columns", (long long)segment->run,
            (long long)segment->stride);
    return err_hint(err, "choose a policy without q8, or fewer tensor-parallel ranks; a checkpoint is loaded "
                         "under fewer, with --policy, and saved again");
}
