/* Segments: which rows are queries, and which keys they see (kernels.h, struct attention_shape). Shared by
 * the plain and the fast attention.
 *
 * Neighbours with the same first key are a family: what they add to the gradients of their keys is summed by
 * one owner, in their order. Families have no key in common. */
#pragma once

#include "kernels.h"

struct segments {
    const int32_t *starts;             /* [segments + 1] */
    const struct attention_keys *keys; /* [segments], or NULL: its own rows */
    int64_t count;
};

static inline int64_t segment_queries(const struct segments *s, int64_t i)
{
    return s->starts[i + 1] - s->starts[i];
}

static inline int64_t segment_first_key(const struct segments *s, int64_t i)
{
    return s->keys ? s->keys[i].first : s->starts[i];
}

static inline int64_t segment_keys(const struct segments *s, int64_t i)
{
    return s->keys ? s->keys[i].count : segment_queries(s, i);
}

/* How many keys the segment's first query sees before the one at its own place. */
static inline int64_t segment_before(const struct segments *s, int64_t i)
{
    return segment_keys(s, i) - segment_queries(s, i);
}

static inline bool segment_begins_family(const struct segments *s, int64_t i)
{
    return i == 0 || !s->keys || s->keys[i].first != s->keys[i - 1].first;
}

/* The segment after the family that segment i begins. */
static inline int64_t segment_family_end(const struct segments *s, int64_t i)
{
    for (i++; i < s->count && !segment_begins_family(s, i); i++)
        continue;
    return i;
}
