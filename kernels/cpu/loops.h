/* What the plain loops share: elements of either type read and written as fp32, sums of a written order,
 * ranges.
 *
 * A leaf is an always-inlined loop with `const bool bf16` last; a row calls it through FOR_DTYPE, which gives
 * the compiler two loops with the type known. Loops whose output may be an input say `omp simd`: each element
 * depends on its own index only, which the compiler cannot know. */
#pragma once

#include "bf16.h"
#include "rows.h"

#define LEAF static inline __attribute__((always_inline))

LEAF float get(const void *from, int64_t i, const bool bf16)
{
    return bf16 ? bf16_to_float(((const uint16_t *)from)[i]) : ((const float *)from)[i];
}

LEAF void put(void *to, int64_t i, float x, const bool bf16)
{
    if (bf16)
        ((uint16_t *)to)[i] = bf16_from_float(x);
    else
        ((float *)to)[i] = x;
}

LEAF const void *from_row(const void *rows, int64_t row, int64_t n, const bool bf16)
{
    return (const char *)rows + row * n * (bf16 ? 2 : 4);
}

LEAF void *to_row(void *rows, int64_t row, int64_t n, const bool bf16)
{
    return (char *)rows + row * n * (bf16 ? 2 : 4);
}

#define FOR_DTYPE(dtype, leaf, ...)                                                                          \
    do {                                                                                                     \
        if ((dtype) == DTYPE_BF16)                                                                           \
            leaf(__VA_ARGS__, true);                                                                         \
        else                                                                                                 \
            leaf(__VA_ARGS__, false);                                                                        \
    } while (0)

/* Sums of products run in 16 lanes, element i in lane i mod 16, folded in halves: one order at any vector
 * width. */
enum { LANES = 16 };

LEAF float lanes_fold(float lane[LANES])
{
    float a[8], b[4]; /* written out: compilers keep it in registers */
    for (int j = 0; j < 8; j++)
        a[j] = lane[j] + lane[j + 8];
    for (int j = 0; j < 4; j++)
        b[j] = a[j] + a[j + 4];
    return (b[0] + b[2]) + (b[1] + b[3]);
}

/* Threads take whole ranges of elements, so that bits do not depend on their number. */
enum { RANGE = 8192 };

LEAF int64_t ranges(int64_t n)
{
    return (n + RANGE - 1) / RANGE;
}

LEAF int64_t range_length(int64_t range, int64_t n)
{
    int64_t rest = n - range * RANGE;
    return rest < RANGE ? rest : RANGE;
}

/* The same over rows of n elements each: how many rows make about one range. */
LEAF int64_t range_rows(int64_t n)
{
    return n >= RANGE ? 1 : RANGE / n;
}
