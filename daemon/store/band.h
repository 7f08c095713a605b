/* Which elements of a tensor's array a range holds, in the hub's row-major order.
 *
 * A band is what tensor parallelism cuts along columns: of every `stride` elements (a row), the `run` from
 * `first` on. Its elements are numbered row upon row: element e is the array's first + e / run * stride + e %
 * run. With run 0 the band is the whole array and e is e; so is what is cut along rows, which is a range of
 * it. */
#pragma once

#include "optimizer.h"

#include <stddef.h>
#include <stdint.h>

struct band {
    int64_t first, run, stride; /* 0 < run < stride and first + run <= stride; or all 0 */
};

struct band_range {
    struct band band;
    int64_t start, count; /* elements of the band */
};

static inline bool band_equal(const struct band *a, const struct band *b)
{
    return a->first == b->first && a->run == b->run && a->stride == b->stride;
}

/* How many elements the band of an array of `length` has. */
static inline int64_t band_elements(const struct band *band, int64_t length)
{
    return band->run ? length / band->stride * band->run : length;
}

/* Whether there is such a range in an array of `length` elements; for numbers from anywhere. */
bool band_fits(const struct band_range *range, int64_t length);

/* Where element e of a band lies in the array. */
static inline int64_t band_at(const struct band *band, int64_t e)
{
    return band->run ? band->first + e / band->run * band->stride + e % band->run : e;
}

/* How many elements from e on, `most` of them at the most, lie side by side. */
static inline int64_t band_together(const struct band *band, int64_t e, int64_t most)
{
    int64_t rest = band->run ? band->run - e % band->run : most;
    return rest < most ? rest : most;
}

/* How many elements of the band lie before a place of the array. */
int64_t band_before(const struct band *band, int64_t place);

/* The part of `range` outside which nothing of `other` lies; count 0: they have nothing in common. */
struct band_range band_clip(const struct band_range *range, const struct band_range *other);

/* Copies what two ranges of one array have in common: `from` holds the elements of from_range, `to` gets
 * those of to_range, each `width` bytes. The rest of `to` is left as it is. */
void band_copy(char *to, const struct band_range *to_range, const char *from,
               const struct band_range *from_range, size_t width);

/* What a segment of an optimizer's shard holds of its tensor, whose first element has the global index
 * `index0`. */
struct band_range band_of_segment(const struct optimizer_segment *segment, int64_t index0);
