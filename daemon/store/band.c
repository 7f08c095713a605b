/* Arithmetic of bands: nothing here reads or writes files. */
#include "band.h"

#include <string.h>

bool band_fits(const struct band_range *range, int64_t length)
{
    const struct band *b = &range->band;
    bool whole = b->first == 0 && b->run == 0 && b->stride == 0;
    bool cut = b->run > 0 && b->run < b->stride && b->stride <= length && length % b->stride == 0 &&
               b->first >= 0 && b->first <= b->stride - b->run;
    if (!whole && !cut)
        return false;
    int64_t elements = band_elements(b, length);
    return range->count > 0 && range->count <= elements && range->start >= 0 &&
           range->start <= elements - range->count;
}

int64_t band_before(const struct band *band, int64_t place)
{
    if (band->run == 0)
        return place;
    if (place <= band->first)
        return 0;
    int64_t rows = (place - band->first) / band->stride, rest = (place - band->first) % band->stride;
    return rows * band->run + (rest < band->run ? rest : band->run);
}

struct band_range band_clip(const struct band_range *range, const struct band_range *other)
{
    INVARIANT(range->count > 0 && other->count > 0);
    int64_t lowest = band_at(&other->band, other->start);
    int64_t past = band_at(&other->band, other->start + other->count - 1) + 1;
    int64_t from = band_before(&range->band, lowest), to = band_before(&range->band, past);
    if (from < range->start)
        from = range->start;
    if (to > range->start + range->count)
        to = range->start + range->count;
    return (struct band_range){range->band, from, to > from ? to - from : 0};
}

void band_copy(char *to, const struct band_range *to_range, const char *from,
               const struct band_range *from_range, size_t width)
{
    const struct band *target = &to_range->band, *source = &from_range->band;
    int64_t end = from_range->start + from_range->count, past = to_range->start + to_range->count, n;
    for (int64_t e = from_range->start; e < end; e += n) {
        n = band_together(source, e, end - e);
        int64_t place = band_at(source, e); /* places place … place+n-1 lie side by side in `from` */
        int64_t t = band_before(target, place), stop = band_before(target, place + n), together;
        if (t < to_range->start)
            t = to_range->start;
        if (stop > past)
            stop = past;
        for (; t < stop; t += together) {
            together = band_together(target, t, stop - t);
            int64_t at = e - from_range->start + band_at(target, t) - place;
            memcpy(to + (size_t)(t - to_range->start) * width, from + (size_t)at * width,
                   (size_t)together * width);
        }
    }
}

struct band_range band_of_segment(const struct optimizer_segment *segment, int64_t index0)
{
    int64_t place = segment->index - index0;
    if (segment->run == segment->stride)
        return (struct band_range){.start = place, .count = segment->elements};
    struct band band = {(place - segment->column) % segment->stride, segment->run, segment->stride};
    return (struct band_range){band, place / segment->stride * segment->run + segment->column,
                               segment->elements};
}
