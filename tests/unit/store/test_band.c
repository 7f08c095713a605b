/* Ranges of bands against counting element by element, for every pair of small ones. */
#include "band.h"
#include "check.h"

#include <string.h>

#define LENGTH 24

static bool holds(const struct band *b, int64_t place, int64_t *e)
{
    *e = place;
    if (b->run == 0)
        return true;
    *e = place / b->stride * b->run + place % b->stride - b->first;
    return place % b->stride >= b->first && place % b->stride < b->first + b->run;
}

static void copies_what_both_have(const struct band_range *to, const struct band_range *from)
{
    uint16_t source[LENGTH], got[LENGTH], want[LENGTH];
    int64_t e, t;
    memset(source, 0xff, sizeof source);
    memset(got, 0xff, sizeof got);
    memset(want, 0xff, sizeof want);
    struct band_range rest = band_clip(from, to);
    for (int64_t place = 0; place < LENGTH; place++) {
        bool in = holds(&from->band, place, &e) && e >= from->start && e < from->start + from->count;
        if (in)
            source[e - from->start] = (uint16_t)place;
        if (!in || !holds(&to->band, place, &t) || t < to->start || t >= to->start + to->count)
            continue;
        want[t - to->start] = (uint16_t)place;
        assert_true(e >= rest.start && e < rest.start + rest.count);
    }
    assert_true(rest.count == 0 ||
                (rest.start >= from->start && rest.start + rest.count <= from->start + from->count));
    band_copy((char *)got, to, (const char *)source, from, 2);
    assert_memory_equal(got, want, sizeof got);
}

/* Every range of every band of an array of LENGTH; returns how many. */
static int ranges_make(struct band_range *ranges)
{
    int n = 0;
    for (int64_t stride = 0; stride <= LENGTH; stride++)
        for (int64_t run = 0; run <= LENGTH; run++)
            for (int64_t first = 0; first <= stride; first++)
                for (int64_t start = 0; start < LENGTH; start += 1 + run / 3)
                    for (int64_t count = 1; count <= LENGTH; count += 3) {
                        struct band_range r = {{first, run, stride}, start, count};
                        if (band_fits(&r, LENGTH))
                            ranges[n++] = r;
                    }
    return n;
}

static void every_pair(void **unused)
{
    (void)unused;
    static struct band_range ranges[20000];
    int n = ranges_make(ranges);
    assert_true(n > 1000 && n < 20000);
    for (int i = 0; i < n; i++) {
        for (int64_t e = ranges[i].start; e < ranges[i].start + ranges[i].count; e++) {
            int64_t back, place = band_at(&ranges[i].band, e);
            assert_true(holds(&ranges[i].band, place, &back) && back == e);
            assert_int_equal(band_before(&ranges[i].band, place), e);
            assert_int_equal(band_before(&ranges[i].band, place + 1), e + 1);
        }
        for (int j = 0; j < n; j++)
            copies_what_both_have(&ranges[i], &ranges[j]);
    }
}

static void nonsense_does_not_fit(void **unused)
{
    (void)unused;
    const struct band_range good[] = {
        {{0}, 0, 24}, {{2, 3, 6}, 11, 1}, {{3, 3, 6}, 0, 12}, {{0, 1, 24}, 0, 1}};
    const struct band_range bad[] = {
        {{0}, 0, 25},
        {{0}, 1, 24},
        {{0}, 0, 0},
        {{0}, -1, 1},
        {{2, 3, 6}, 12, 1},
        {{2, 3, 6}, 0, 13},
        {{4, 3, 6}, 0, 1},
        {{-1, 3, 6}, 0, 1},
        {{0, 6, 6}, 0, 1},
        {{0, 3, 7}, 0, 1},
        {{0, 3, 48}, 0, 1},
        {{0, 3, 0}, 0, 1},
        {{1, 0, 0}, 0, 1},
        {{0, 0, 6}, 0, 1},
        {{0, -3, 6}, 0, 1},
        {{INT64_MAX, 3, 6}, 0, 1},
        {{0, INT64_MAX, 6}, 0, 1},
        {{0, 3, 6}, INT64_MAX, 1},
        {{0, 3, 6}, 0, INT64_MAX},
        {{0, 3, INT64_MAX}, 0, 1},
        {{0}, INT64_MAX, INT64_MAX},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(band_fits(&good[i], 24));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(band_fits(&bad[i], 24));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_pair), cmocka_unit_test(nonsense_does_not_fit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
