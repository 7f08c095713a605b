/* Inside this folder: the arrays that a policy gives one part of a unit (main and extra), and views into
 * them. */
#pragma once

#include "device.h"
#include "measures.h"
#include "optimizer.h"
#include "policy.h"

static inline enum dtype array_dtype(const struct policy *policy, enum state_part part, bool extra)
{
    return part == STATE_W   ? weight_storage[policy->weight][extra]
           : part == STATE_M ? moment_storage[policy->m][extra]
                             : moment_storage[policy->v][extra];
}

/* A moment's extra array has one element a group: q8's scales. */
static inline int64_t array_elements(enum state_part part, bool extra, int64_t elements)
{
    return part != STATE_W && extra ? (elements + Q8_GROUP - 1) / Q8_GROUP : elements;
}

static inline int64_t array_bytes(enum dtype dtype, enum state_part part, bool extra, int64_t elements)
{
    return dtype == DTYPE_COUNT ? 0 : array_elements(part, extra, elements) * (int64_t)dtype_bytes(dtype);
}

/* Where the model's copy lends a unit's w its memory, or NULL: see struct optimizer_plan. */
void *arrays_lent(const struct policy *policy, const struct optimizer_copies *copies, int32_t unit,
                  int64_t elements);

/* One array of one part, zeroed; NULL where the format has none or elements is 0. lent: what arrays_lent says
 * of the unit, which w's main array then is. False where memory is short. */
bool arrays_allocate_one(struct device *device, const struct policy *policy, enum state_part part, bool extra,
                         int64_t elements, void *lent, void *arrays[2]) MUST_USE;
/* Both. On failure neither stays. */
bool arrays_allocate(struct device *device, const struct policy *policy, enum state_part part,
                     int64_t elements, void *lent, void *arrays[2]) MUST_USE;
/* Those that are there; forgets what is lent. */
void arrays_release(struct device *device, const struct policy *policy, enum state_part part,
                    int64_t elements, void *lent, void *arrays[2]);
void arrays_zero(struct device *device, const struct policy *policy, enum state_part part, int64_t elements,
                 void *arrays[2]);

/* The view whose element 0 is element `offset` of the unit's flat range; offset is a multiple of
 * STATE_ALIGNMENT. */
struct state_view arrays_view(const struct policy *policy, void *arrays[STATE_PART_COUNT][2], int64_t offset);

/* Refuses q8 moments where a piece of columns would cut their groups of 32: see struct index_map. */
bool arrays_groups_are_whole(const struct policy *policy, const struct optimizer_segment *segment,
                             struct err *err) MUST_USE;
