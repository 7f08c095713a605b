/* The pieces that fast attention is built of: packed operands, register tiles, exp2. Included by the two
 * files that compile it, after they set ATTENTION_BF16:
 *
 * - 1: words are pairs of bf16, products are vdpbf16ps (AVX-512 BF16), which takes denormal inputs as zero
 * - 0: words are fp32, products are FMA (AVX-512 F); bf16 tensors are widened while packing
 *
 * A product is c[m][n] += sum over k of a[m][k] b[k][n] with n in the 16 lanes of a register. Its operands
 * are made of 32-bit words that hold WORD neighbours along k, so both kinds of product are one loop:
 * broadcast a word of a, load 16 words of b. Three packings make such operands from rows x[r][e] of a tensor,
 * zeros outside:
 *
 * - rows, [r][e/WORD]: an a whose sum runs over e, k-step 1
 * - transposed, [e/WORD][r]: a b whose sum runs over e
 * - pairs, [r/WORD][e]: a b whose sum runs over r
 *
 * Everything is in groups of 16 rows or lanes; the causal triangle is cut at this grain. */
#pragma once

#include "dtype.h"

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

enum {
    WORD = ATTENTION_BF16 ? 2 : 1, /* elements in a word */
    GROUP = 16,
};

static const float LOG2_E = 1.44269504F;
static const float LN_2 = 0.693147181F;
static const float MASKED = -1e30F; /* a score that exp2 makes zero, whatever the scale */

/* Rows of one head: element e of row r is at `at + (r - begin) * stride_bytes`, e < n, begin <= r < count;
 * what lies outside reads zero. begin < GROUP puts rows into the groups that their places in a sequence ask
 * for. */
struct rows {
    const char *at;
    int64_t stride_bytes, begin, count, n;
    enum dtype dtype;
};

INLINE int64_t round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

INLINE int64_t at_most(int64_t n, int64_t limit)
{
    return n < limit ? n : limit;
}

INLINE int64_t at_least(int64_t n, int64_t limit)
{
    return n > limit ? n : limit;
}

/* Lanes of a vector of `lanes` that starts at element e of n. */
INLINE uint32_t lanes_mask(int64_t n, int64_t e, int64_t lanes)
{
    int64_t left = at_least(at_most(n - e, lanes), 0);
    return left == 32 ? 0xFFFFFFFFU : (1U << left) - 1U;
}

INLINE __m512i widen_pattern(__m256i bf16)
{
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16);
}

/* 16 elements as fp32, from element e of the row at `at`. */
INLINE __m512 load_values(const char *at, int64_t e, __mmask16 mask, enum dtype dtype)
{
    if (dtype == DTYPE_F32)
        return _mm512_maskz_loadu_ps(mask, (const float *)at + e);
    return _mm512_castsi512_ps(widen_pattern(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)at + e)));
}

/* 16 words; the mask says which elements there are. */
INLINE __m512i load_words(const char *at, int64_t word, uint32_t mask, enum dtype dtype)
{
#if ATTENTION_BF16
    (void)dtype;
    return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)at + 2 * word);
#else
    return _mm512_castps_si512(load_values(at, word, (__mmask16)mask, dtype));
#endif
}

INLINE uint32_t words_mask(const struct rows *from, int64_t word)
{
    return lanes_mask(from->n, word * WORD, GROUP * WORD);
}

INLINE const char *row_at(const struct rows *from, int64_t row)
{
    return from->at + (row - from->begin) * from->stride_bytes;
}

/* Asks for rows first … first+n-1 ahead: they lie far apart, where the processor does not look itself. */
INLINE void prefetch_rows(const struct rows *rows, int64_t first, int64_t n, const bool to_write)
{
    int64_t end = at_most(first + n, rows->count), bytes = rows->n * (int64_t)dtype_bytes(rows->dtype);
    for (int64_t r = at_least(first, rows->begin); r < end; r++)
        for (int64_t line = 0; line < bytes; line += 64) {
            if (to_write) /* clang wants the constant spelled out */
                __builtin_prefetch(row_at(rows, r) + line, 1, 2);
            else
                __builtin_prefetch(row_at(rows, r) + line, 0, 2);
        }
}

/* 16 bf16 as bf16.h rounds them; the processor's own conversion, which makes denormals zero, is for operands
 * only. */
INLINE __m256i round_bf16(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i nearest = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(nearest, nan, quiet), 16));
}

/* One row of n elements, fp32 times factor, rounded once to dtype. */
INLINE void store_row(char *to, const float *from, float factor, int64_t n, enum dtype dtype)
{
    __m512 f = _mm512_set1_ps(factor);
    for (int64_t e = 0; e < n; e += 16) {
        __mmask16 mask = (__mmask16)lanes_mask(n, e, 16);
        __m512 x = _mm512_mul_ps(f, _mm512_loadu_ps(from + e));
        if (dtype == DTYPE_F32)
            _mm512_mask_storeu_ps((float *)to + e, mask, x);
        else if (e + 16 <= n)
            _mm256_storeu_si256((__m256i *)((uint16_t *)to + e), round_bf16(x));
        else
            _mm256_mask_storeu_epi16((uint16_t *)to + e, mask, round_bf16(x));
    }
}

/* to[n][width]: rows first … first+n-1, none before begin. width is a multiple of 16 that holds a row's
 * words. */
static void pack_rows(uint32_t *to, int64_t width, const struct rows *from, int64_t first, int64_t n)
{
    int64_t filled = at_least(at_most(from->count - first, n), 0);
    for (int64_t w = 0; w < width; w += 16) {
        uint32_t mask = words_mask(from, w);
        for (int64_t r = 0; r < filled; r++)
            _mm512_storeu_si512(to + r * width + w,
                                load_words(row_at(from, first + r), w, mask, from->dtype));
        for (int64_t r = filled; r < n; r++)
            _mm512_storeu_si512(to + r * width + w, _mm512_setzero_si512());
    }
}

/* 16 words, each of two rows' elements; either may lie outside. */
INLINE __m512i load_pair(const struct rows *from, int64_t row, int64_t e, __mmask16 mask)
{
    __mmask16 first = row >= from->begin ? mask : 0;
    __m512i word = _mm512_castps_si512(load_values(row_at(from, row), e, first, from->dtype));
    if (WORD == 1)
        return word;
    __mmask16 second = row + 1 >= from->begin && row + 1 < from->count ? mask : 0;
    __m512 upper = load_values(row_at(from, row + 1), e, second, from->dtype);
    return _mm512_or_si512(_mm512_srli_epi32(word, 16), _mm512_castps_si512(upper));
}

/* to[n/WORD][lanes]: word r holds rows first+WORD*r …; lanes is a multiple of 16 that holds a row's elements.
 */
static void pack_pairs(uint32_t *to, int64_t lanes, const struct rows *from, int64_t first, int64_t n)
{
    int64_t filled = at_least(at_most(from->count - first, n), 0);
    for (int64_t e = 0; e < lanes; e += 16) {
        __mmask16 mask = (__mmask16)lanes_mask(from->n, e, 16);
        for (int64_t r = 0; r < filled; r += WORD)
            _mm512_storeu_si512(to + r / WORD * lanes + e, load_pair(from, first + r, e, mask));
        for (int64_t r = round_up(filled, WORD); r < n; r += WORD)
            _mm512_storeu_si512(to + r / WORD * lanes + e, _mm512_setzero_si512());
    }
}

/* x[r] lane c becomes x[c] lane r. */
INLINE void transpose16(__m512i *x)
{
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 8; i++)
    {
        a[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4)
    { /* b[i + j]: in its quarter L, column 4L + j of rows i … i+3 */
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    UNROLL for (int j = 0; j < 4; j++)
    { /* gather the quarters of four row groups */
        __m512i even0 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88),
                odd0 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        __m512i even1 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        __m512i odd1 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        x[j] = _mm512_shuffle_i32x4(even0, even1, 0x88);
        x[4 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
        x[8 + j] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
        x[12 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
    }
}

/* to[depth][width]: row w, lane r is word w of row first + r, r < n; n is a multiple of 16 and at most width.
 */
static void pack_transposed(uint32_t *to, int64_t width, const struct rows *from, int64_t first, int64_t n,
                            int64_t depth)
{
    for (int64_t r = 0; r < n; r += 16)
        for (int64_t w = 0; w < depth; w += 16) {
            uint32_t mask = words_mask(from, w);
            __m512i x[16];
            UNROLL for (int i = 0; i < 16; i++)
            {
                int64_t row = first + r + i;
                uint32_t there = row >= from->begin && row < from->count ? mask : 0;
                x[i] = load_words(row_at(from, row), w, there, from->dtype);
            }
            transpose16(x);
            int64_t left = at_most(depth - w, 16);
            for (int64_t i = 0; i < left; i++)
                _mm512_storeu_si512(to + (w + i) * width + r, x[i]);
        }
}

INLINE __m512 dot(__m512 sum, __m512i a, __m512i b)
{
#if ATTENTION_BF16
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
#endif
}

/* The register tile: acc[r * vectors + v] += sum over k < depth of a[r][k] b[k][16v …]. Steps are in words.
 */
INLINE void product(__m512 *acc, const int rows, const int vectors, const uint32_t *a, int64_t a_row,
                    int64_t a_step, const uint32_t *b, int64_t b_step, int64_t depth)
{
    for (int64_t k = 0; k < depth; k++) {
        __m512i lanes[4];
        UNROLL for (int v = 0; v < vectors; v++) lanes[v] = _mm512_loadu_si512(b + k * b_step + 16 * v);
        UNROLL for (int r = 0; r < rows; r++)
        {
            __m512i one = _mm512_set1_epi32((int)a[r * a_row + k * a_step]);
            UNROLL for (int v = 0; v < vectors; v++) acc[r * vectors + v] =
                dot(acc[r * vectors + v], one, lanes[v]);
        }
    }
}

/* Tiles by their width in vectors: X(vectors, rows). 16 to 24 sums in flight hide the latency of a product.
 */
#define TILES(X) X(1, 16) X(2, 8) X(3, 8) X(4, 4)
enum { TILE_VECTORS = 4, TILE_SUMS = 24 };

/* c[16 * groups][16 * vectors] (row stride c_row) = start + a b, where start is c, c * factor[row], or 0 if
 * fresh. Row group g sums over the words span[g].lo … span[g].hi - 1 only. */
struct span {
    int64_t lo, hi;
};

struct sum {
    float *c;
    const uint32_t *a, *b;
    int64_t c_row, a_row, a_step, b_step, groups, vectors;
    const float *factor;
    const struct span *spans;
    bool fresh;
};

INLINE void sum_tile(const struct sum *s, int64_t row, int64_t v0, struct span span, const int rows,
                     const int vectors)
{
    __m512 acc[TILE_SUMS];
    float *c = s->c + row * s->c_row + 16 * v0;
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < vectors; v++) acc[r * vectors + v] =
            s->fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(c + r * s->c_row + 16 * v);
    }
    if (s->factor)
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++) acc[r * vectors + v] =
            _mm512_mul_ps(acc[r * vectors + v], _mm512_set1_ps(s->factor[row + r]));
    product(acc, rows, vectors, s->a + row * s->a_row + span.lo * s->a_step, s->a_row, s->a_step,
            s->b + span.lo * s->b_step + 16 * v0, s->b_step, span.hi - span.lo);
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++)
        _mm512_storeu_ps(c + r * s->c_row + 16 * v, acc[r * vectors + v]);
}

#define X(vectors, rows)                                                                                     \
    static void sum_group_##vectors(const struct sum *s, int64_t group, int64_t v0)                          \
    {                                                                                                        \
        for (int64_t r = 0; r < GROUP; r += rows)                                                            \
            sum_tile(s, GROUP *group + r, v0, s->spans[group], rows, vectors);                               \
    }
TILES(X)
#undef X

static void sum_run(const struct sum *s)
{
    static void (*const group_of[])(const struct sum *, int64_t, int64_t) = {NULL,
#define X(vectors, rows) sum_group_##vectors,
                                                                             TILES(X)
#undef X
    };
    for (int64_t v = 0; v < s->vectors; v += TILE_VECTORS)
        for (int64_t g = 0; g < s->groups; g++)
            if (s->spans[g].lo < s->spans[g].hi || s->fresh || s->factor)
                group_of[at_most(s->vectors - v, TILE_VECTORS)](s, g, v);
}

/* 2^x for x <= 0 (or a little more): a polynomial on the fraction, then the exponent; below 2^-149 it is 0.
 * Relative error 2.6e-6 for bf16 (whose own is 2e-3), 1e-7 for fp32. */
INLINE __m512 exp2_vector(__m512 x)
{
    __m512 f = _mm512_reduce_ps(x, 0x09); /* x - floor(x) */
#if ATTENTION_BF16
    __m512 p = _mm512_set1_ps(0.0135341679F);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0520114606F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.241442757F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693003834F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.00000259F));
#else
    __m512 p = _mm512_set1_ps(0.000217022554F);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.00124396878F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.009678841F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.055483342F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240229836F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693146984F));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0F));
#endif
    return _mm512_scalef_ps(p, x); /* p * 2^floor(x) */
}

/* log2 of x > 0: the exponent, a line on the mantissa (off by 0.05), then Newton steps on 2^y = x, each
 * squaring it. */
INLINE __m512 log2_vector(__m512 x)
{
    __m512 mantissa = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
    __m512 y = _mm512_sub_ps(mantissa, _mm512_set1_ps(0.957F));
    for (int i = 0; i < 3; i++) {
        __m512 ratio = _mm512_mul_ps(mantissa, exp2_vector(_mm512_sub_ps(_mm512_setzero_ps(), y)));
        y = _mm512_fmadd_ps(_mm512_sub_ps(ratio, _mm512_set1_ps(1)), _mm512_set1_ps(LOG2_E), y);
    }
    return _mm512_add_ps(y, _mm512_getexp_ps(x));
}

/* Scores of two keys, [p0 of 16 queries] and [p1 of 16 queries], as words of a b or a whose sum runs over
 * keys. */
INLINE __m512i interleave_pair(__m512i both)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, both);
}

/* Scratch is carved from one block, in 64-byte lines; carving from address 0 measures. */
INLINE void *carve(uintptr_t *at, int64_t bytes)
{
    void *piece = (void *)*at;
    *at += (uintptr_t)round_up(bytes, 64);
    return piece;
}
