/* The update with AVX-512: the arithmetic of common/update.h on 16 elements at a time, bit for bit
 * (tests/unit/optimizer/ test_update.c). Blocks, lanes and the order of the measures' sums are the plain
 * loop's; elements behind the last whole group of 32 take the plain loop's own functions.
 *
 * Each combination of formats that has a preset gets its own loop, in which the formats are constants; any
 * other takes one loop that asks for them group by group. Values are canonical before they are stored (no NaN
 * but FLOAT_NAN_BITS), so rounding needs no case for NaN. */
#include "queue.h"
#include "tables.h"
#include "update.h"

#include <immintrin.h>

#define LEAF static inline __attribute__((always_inline))

enum {
    CHUNK = 128, /* elements whose random bits are made at once */
    PREFETCH_AHEAD = 512
};

/* Random half-words of a chunk for one stream each; only those that the formats need are filled. */
struct randoms {
    _Alignas(64) uint16_t part[STATE_PART_COUNT][CHUNK];
};

struct formats {
    enum weight_format w;
    enum moment_format m, v;
    enum dtype gradient;
};

/* The scalars, each in all lanes. */
struct vector_scalars {
    __m512 gradient_factor, one_minus_beta1, minus_beta1, beta2, one_minus_beta2, decay_factor, step_size,
        sqrt_bc2, eps;
    bool from_m; /* 1-beta1 < 0.5 */
};

/* The bench compiles this file once more without the precision measures, to say what they cost. */
#ifndef UPDATE_MEASURED
#define UPDATE_MEASURED 1
#endif

/* Partial sums of the measures: lanes 0-7 and 8-15. */
struct vector_measures {
    __m512d stored_exact[2], exact_exact[2];
    int64_t changing, lost, v_changing, v_stalled;
};

/* ---- Philox: eight blocks, one to a 64-bit lane, of which the low half counts ---- */

LEAF void philox_eight(uint16_t *to, uint64_t seed, uint64_t block0, uint64_t total_step, uint32_t stream)
{
    /* Lanes 0 2 4 6 hold blocks 0-3, lanes 1 3 5 7 blocks 4-7: the final interleaving then stores them in
     * order. */
    __m512i counter =
        _mm512_add_epi64(_mm512_set1_epi64((int64_t)block0), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
    __m512i c0 = counter, c1 = _mm512_srli_epi64(counter, 32);
    __m512i c2 = _mm512_set1_epi64((int64_t)total_step), c3 = _mm512_set1_epi64((int64_t)stream);
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        __m512i p0 = _mm512_mul_epu32(c0, _mm512_set1_epi64(PHILOX_MULTIPLIER_0));
        __m512i p1 = _mm512_mul_epu32(c2, _mm512_set1_epi64(PHILOX_MULTIPLIER_1));
        c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1, _mm512_set1_epi64((int64_t)key0), 0x96);
        c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3, _mm512_set1_epi64((int64_t)key1), 0x96);
        c1 = p1;
        c3 = p0;
        key0 += PHILOX_WEYL_0;
        key1 += PHILOX_WEYL_1;
    }
    __m512i low01 = _mm512_mask_blend_epi32(0xAAAA, c0, _mm512_slli_epi64(c1, 32));
    __m512i low23 = _mm512_mask_blend_epi32(0xAAAA, c2, _mm512_slli_epi64(c3, 32));
    _mm512_store_si512(to, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(to + 32, _mm512_unpackhi_epi64(low01, low23));
}

LEAF void philox_chunk(uint16_t *to, const struct update_scalars *s, uint64_t index, uint32_t stream)
{
    philox_eight(to, s->seed, index >> 3, s->total_step, stream);
    philox_eight(to + CHUNK / 2, s->seed, (index >> 3) + 8, s->total_step, stream);
}

LEAF void randoms_fill(struct randoms *r, const struct formats f, const struct update_scalars *s,
                       uint64_t index)
{
    if (f.w == WEIGHT_BF16S)
        philox_chunk(r->part[STATE_W], s, index, PHILOX_STREAM_W);
    if (f.m == MOMENT_BF16S)
        philox_chunk(r->part[STATE_M], s, index, PHILOX_STREAM_M);
    if (f.v == MOMENT_BF16S || f.v == MOMENT_Q8)
        philox_chunk(r->part[STATE_V], s, index, PHILOX_STREAM_V);
}

/* ---- 16 elements in and out ---- */

LEAF __m512i load_u16(const void *from, int64_t i)
{
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)((const uint16_t *)from + i)));
}

LEAF void store_u16(void *to, int64_t i, __m512i x)
{
    _mm256_storeu_si256((void *)((uint16_t *)to + i), _mm512_cvtepi32_epi16(x));
}

LEAF __m512i load_i8(const void *from, int64_t i)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)((const uint8_t *)from + i)));
}

LEAF __m512i load_u8(const void *from, int64_t i)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)((const uint8_t *)from + i)));
}

LEAF void store_8(void *to, int64_t i, __m512i x)
{
    _mm_storeu_si128((void *)((uint8_t *)to + i), _mm512_cvtepi32_epi8(x));
}

LEAF __m512 widen(__m512i bf16)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(bf16, 16));
}

LEAF __m512i nearest(__m512 x) /* bf16 in 32-bit lanes */
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
}

LEAF __m512i stochastic(__m512 x, __m512i random16)
{
    __m512i bits = _mm512_castps_si512(x), infinity = _mm512_set1_epi32(0x7F800000);
    __mmask16 finite = _mm512_cmpneq_epi32_mask(_mm512_and_si512(bits, infinity), infinity);
    return _mm512_srli_epi32(_mm512_mask_add_epi32(bits, finite, bits, random16), 16);
}

LEAF __mmask16 finite_bf16(__m512i w)
{
    __m512i infinity = _mm512_set1_epi32(0x7F80);
    return _mm512_cmpneq_epi32_mask(_mm512_and_si512(w, infinity), infinity);
}

LEAF __m512 canonical(__m512 x)
{
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_ps(x, nan, _mm512_castsi512_ps(_mm512_set1_epi32((int)FLOAT_NAN_BITS)));
}

LEAF __m512 magnitude(__m512 x)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
}

/* ---- weights ---- */

/* max(exponent field, 1) of a bf16 in 32-bit lanes. */
LEAF __m512i split8_exponent(__m512i w)
{
    return _mm512_max_epi32(_mm512_and_si512(_mm512_srli_epi32(w, 7), _mm512_set1_epi32(0xFF)),
                            _mm512_set1_epi32(1));
}

LEAF __m512 split8_value(__m512i w, __m512i code)
{
    /* Of w's power of two, 2^-8: exact, subnormal results included. A w that is not finite absorbs what is
     * added. */
    __m512i power = _mm512_slli_epi32(_mm512_min_epi32(split8_exponent(w), _mm512_set1_epi32(0xFE)), 23);
    __m512 half_step = _mm512_mul_ps(_mm512_castsi512_ps(power), _mm512_set1_ps(0x1p-8f));
    __m512 share = _mm512_div_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(127.0f));
    return _mm512_add_ps(widen(w), _mm512_mul_ps(share, half_step));
}

LEAF __m512 read_weight(const enum weight_format format, const void *w, const void *extra, int64_t i)
{
    if (format == WEIGHT_FP32)
        return _mm512_loadu_ps((const float *)w + i);
    __m512i high = load_u16(w, i);
    if (format == WEIGHT_KAHAN)
        return _mm512_add_ps(widen(high), widen(load_u16(extra, i)));
    if (format == WEIGHT_SPLIT) {
        __m512i low = load_u16(extra, i);
        high = _mm512_sub_epi32(high, _mm512_srli_epi32(low, 15));
        return _mm512_castsi512_ps(_mm512_or_si512(_mm512_slli_epi32(high, 16), low));
    }
    if (format == WEIGHT_SPLIT8)
        return split8_value(high, load_i8(extra, i));
    return widen(high);
}

/* Stores and returns the value read afterwards. */
LEAF __m512 write_weight(const enum weight_format format, void *w, void *extra, int64_t i, __m512 value,
                         const uint16_t *random16)
{
    if (format == WEIGHT_FP32) {
        _mm512_storeu_ps((float *)w + i, value);
        return value;
    }
    if (format == WEIGHT_SPLIT) {
        __m512i bits = _mm512_castps_si512(value);
        store_u16(w, i, _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), 16));
        store_u16(extra, i, bits);
        return value;
    }
    __m512i high = format == WEIGHT_BF16S ? stochastic(value, load_u16(random16, 0)) : nearest(value);
    store_u16(w, i, high);
    if (format != WEIGHT_KAHAN && format != WEIGHT_SPLIT8)
        return widen(high);
    __m512 rest = _mm512_sub_ps(value, widen(high));
    if (format == WEIGHT_KAHAN) {
        __m512i low = _mm512_maskz_mov_epi32(finite_bf16(high), nearest(rest));
        store_u16(extra, i, low);
        return _mm512_add_ps(widen(high), widen(low));
    }
    __m512 scale = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_set1_epi32(127 + 8), split8_exponent(high)));
    __m512 scaled = _mm512_scalef_ps(_mm512_mul_ps(_mm512_set1_ps(127.0f), rest), scale);
    scaled = _mm512_max_ps(_mm512_min_ps(scaled, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f));
    __m512i code = _mm512_maskz_cvtps_epi32(finite_bf16(high), scaled);
    store_8(extra, i, code);
    return split8_value(high, code);
}

/* ---- moments ---- */

LEAF __m512 read_moment(const enum moment_format format, const bool is_v, const void *main, const void *extra,
                        int64_t i)
{
    if (format == MOMENT_FP32)
        return _mm512_loadu_ps((const float *)main + i);
    if (format != MOMENT_Q8)
        return widen(load_u16(main, i));
    __m512 scale = _mm512_set1_ps(bf16_to_float(((const uint16_t *)extra)[i / Q8_GROUP]));
    __m512i code = is_v ? load_u8(main, i) : load_i8(main, i);
    __mmask16 nonzero = _mm512_test_epi32_mask(code, code);
    __m512 c = _mm512_cvtepi32_ps(code);
    if (is_v) {
        __m512 root = _mm512_div_ps(_mm512_mul_ps(c, scale), _mm512_set1_ps(255.0f));
        return _mm512_maskz_mul_ps(nonzero, root, root);
    }
    __m512 x = _mm512_div_ps(c, _mm512_sub_ps(_mm512_set1_ps(254.0f), magnitude(c)));
    return _mm512_maskz_mul_ps(nonzero, x, scale);
}

/* Formats without groups. Returns the stored bits. */
LEAF __m512i write_moment(const enum moment_format format, void *main, int64_t i, __m512 value,
                          const uint16_t *random16)
{
    if (format == MOMENT_FP32) {
        _mm512_storeu_ps((float *)main + i, value);
        return _mm512_castps_si512(value);
    }
    __m512i bits = format == MOMENT_BF16S ? stochastic(value, load_u16(random16, 0)) : nearest(value);
    store_u16(main, i, bits);
    return bits;
}

/* The scale of a group whose values are x[0] and x[1]; stored, and returned in all lanes. */
LEAF __m512 write_scale(void *extra, int64_t i, const __m512 x[2])
{
    __m512i largest =
        _mm512_max_epu32(_mm512_castps_si512(magnitude(x[0])), _mm512_castps_si512(magnitude(x[1])));
    uint16_t scale = (uint16_t)((_mm512_reduce_max_epu32(largest) + 0xFFFFu) >> 16);
    ((uint16_t *)extra)[i / Q8_GROUP] = scale;
    return _mm512_set1_ps(bf16_to_float(scale));
}

LEAF void write_group_m(void *main, void *extra, int64_t i, const __m512 m[2])
{
    __m512 scale = write_scale(extra, i, m);
    for (int h = 0; h < 2; h++) {
        __m512 x = _mm512_div_ps(m[h], scale);
        __m512 z = _mm512_div_ps(_mm512_add_ps(x, x), _mm512_add_ps(_mm512_set1_ps(1.0f), magnitude(x)));
        __mmask16 number = _mm512_cmp_ps_mask(z, z, _CMP_ORD_Q);
        store_8(main, i + 16 * h, _mm512_maskz_cvtps_epi32(number, _mm512_mul_ps(_mm512_set1_ps(127.0f), z)));
    }
}

/* stored: the codes. */
LEAF void write_group_v(__m512i stored[2], void *main, void *extra, int64_t i, const __m512 root[2],
                        const uint16_t *random16)
{
    __m512 scale = write_scale(extra, i, root);
    for (int h = 0; h < 2; h++) {
        __m512 y = _mm512_div_ps(_mm512_mul_ps(_mm512_set1_ps(255.0f), root[h]), scale);
        __mmask16 number = _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GE_OQ);
        __m512i whole = _mm512_maskz_cvttps_epi32(number, y);
        __m512 fraction =
            _mm512_mul_ps(_mm512_sub_ps(y, _mm512_cvtepi32_ps(whole)), _mm512_set1_ps(65536.0f));
        __mmask16 up =
            _mm512_mask_cmpgt_epi32_mask(number, _mm512_cvttps_epi32(fraction), load_u16(random16, 16 * h));
        __m512i code = _mm512_mask_add_epi32(whole, up, whole, _mm512_set1_epi32(1));
        code = _mm512_max_epi32(code, _mm512_set1_epi32(1));
        __mmask16 positive = _mm512_cmp_ps_mask(root[h], _mm512_setzero_ps(), _CMP_NEQ_UQ);
        stored[h] = _mm512_maskz_mov_epi32(positive, code);
        store_8(main, i + 16 * h, stored[h]);
    }
}

/* 16 stored values of v as bits, or codes. */
LEAF __m512i stored_bits(const enum moment_format format, const void *main, int64_t i)
{
    return format == MOMENT_FP32 ? _mm512_loadu_si512((const float *)main + i)
           : format == MOMENT_Q8 ? load_u8(main, i)
                                 : load_u16(main, i);
}

/* ---- one group of 32 ---- */

/* What is read afterwards is W' itself, whatever it is. */
LEAF bool stores_all(const enum weight_format format)
{
    return format == WEIGHT_FP32 || format == WEIGHT_SPLIT;
}

LEAF void count_weight(struct vector_measures *sums, const enum weight_format format, __m512 w, __m512 w_new,
                       __m512 w_read)
{
    if (!UPDATE_MEASURED)
        return;
    __m512 exact = _mm512_sub_ps(w_new, w);
    __mmask16 changing = _mm512_cmp_ps_mask(exact, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(exact));
    __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(exact, 1));
    sums->changing += __builtin_popcount(changing);
    sums->exact_exact[0] = _mm512_fmadd_pd(low, low, sums->exact_exact[0]); /* products are exact in double */
    sums->exact_exact[1] = _mm512_fmadd_pd(high, high, sums->exact_exact[1]);
    if (stores_all(format))
        return; /* stored is exact: nothing is lost, and the two sums are one */
    __m512 stored = _mm512_sub_ps(w_read, w);
    sums->lost +=
        __builtin_popcount(_mm512_mask_cmp_ps_mask(changing, stored, _mm512_setzero_ps(), _CMP_EQ_OQ));
    sums->stored_exact[0] =
        _mm512_fmadd_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(stored)), low, sums->stored_exact[0]);
    sums->stored_exact[1] =
        _mm512_fmadd_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(stored, 1)), high, sums->stored_exact[1]);
}

/* See weight_write_copy; bf16 formats just stored what is copied. */
LEAF void copy_weight(const enum weight_format format, const struct state_view *s, int64_t i, __m512 w_read)
{
    if (!s->copy)
        return;
    if (s->copy_dtype == DTYPE_F32)
        _mm512_storeu_ps((float *)s->copy + i, w_read);
    else
        store_u16(s->copy, i, format == WEIGHT_FP32 ? nearest(w_read) : load_u16(s->w, i));
}

/* What is wanted 2 KB from now: the hardware's own prefetching leaves 3 to 5 % of the memory's rate with so
 * many streams (measured). Past the end it asks for nothing that is there, which is allowed. */
LEAF void prefetch_thirty_two(const struct formats f, const struct state_view *s, const void *gradient,
                              int64_t i)
{
    for (int64_t j = i + PREFETCH_AHEAD; j < i + PREFETCH_AHEAD + Q8_GROUP; j += 16) {
        if (f.gradient == DTYPE_F32)
            _mm_prefetch((const float *)gradient + j, _MM_HINT_T0);
        if (f.w == WEIGHT_FP32)
            _mm_prefetch((const float *)s->w + j, _MM_HINT_T0);
        if (f.m == MOMENT_FP32)
            _mm_prefetch((const float *)s->m + j, _MM_HINT_T0);
        if (f.v == MOMENT_FP32)
            _mm_prefetch((const float *)s->v + j, _MM_HINT_T0);
    }
}

LEAF void update_thirty_two(struct vector_measures *sums, const struct formats f, const struct state_view *s,
                            const void *gradient, int64_t i, const struct vector_scalars *k,
                            const struct randoms *r, int at)
{
    __m512 m[2], root[2], v_new[2];
    __m512i v_before[2], v_after[2] = {0};
    __mmask16 v_changing[2];
    for (int h = 0; h < 2; h++) {
        int64_t j = i + 16 * h;
        __m512 w_old = read_weight(f.w, s->w, s->w_extra, j);
        __m512 m_old = read_moment(f.m, false, s->m, s->m_extra, j);
        __m512 v_old = read_moment(f.v, true, s->v, s->v_extra, j);
        __m512 g = f.gradient == DTYPE_F32 ? _mm512_loadu_ps((const float *)gradient + j)
                                           : widen(load_u16(gradient, j));
        g = _mm512_mul_ps(g, k->gradient_factor);
        __m512 difference = _mm512_sub_ps(g, m_old);
        __m512 m_new = k->from_m ? _mm512_fmadd_ps(k->one_minus_beta1, difference, m_old)
                                 : _mm512_fmadd_ps(k->minus_beta1, difference, g);
        __m512 v = _mm512_add_ps(_mm512_mul_ps(k->beta2, v_old),
                                 _mm512_mul_ps(_mm512_mul_ps(k->one_minus_beta2, g), g));
        root[h] = _mm512_sqrt_ps(v);
        __m512 denominator = _mm512_add_ps(_mm512_div_ps(root[h], k->sqrt_bc2), k->eps);
        __m512 change = _mm512_div_ps(_mm512_mul_ps(k->step_size, m_new), denominator);
        __m512 w_new = canonical(_mm512_sub_ps(_mm512_mul_ps(w_old, k->decay_factor), change));
        m[h] = canonical(m_new);
        v_new[h] = canonical(v);
        v_changing[h] = _mm512_cmp_ps_mask(v_new[h], v_old, _CMP_NEQ_UQ);
        v_before[h] = stored_bits(f.v, s->v, j);
        __m512 w_read = write_weight(f.w, s->w, s->w_extra, j, w_new, &r->part[STATE_W][at + 16 * h]);
        copy_weight(f.w, s, j, w_read);
        count_weight(sums, f.w, w_old, w_new, w_read);
    }
    if (f.m == MOMENT_Q8)
        write_group_m(s->m, s->m_extra, i, m);
    if (f.v == MOMENT_Q8)
        write_group_v(v_after, s->v, s->v_extra, i, (const __m512[2]){canonical(root[0]), canonical(root[1])},
                      &r->part[STATE_V][at]);
    for (int h = 0; h < 2; h++) {
        int64_t j = i + 16 * h;
        if (f.m != MOMENT_Q8)
            write_moment(f.m, s->m, j, m[h], &r->part[STATE_M][at + 16 * h]);
        if (f.v != MOMENT_Q8)
            v_after[h] = write_moment(f.v, s->v, j, v_new[h], &r->part[STATE_V][at + 16 * h]);
        if (!UPDATE_MEASURED)
            continue;
        __mmask16 stalled = _mm512_mask_cmpeq_epi32_mask(v_changing[h], v_after[h], v_before[h]);
        sums->v_changing += __builtin_popcount(v_changing[h]);
        sums->v_stalled += __builtin_popcount(stalled);
    }
}

/* ---- one block ---- */

LEAF void lanes_from(struct update_lanes *lanes, const struct formats f, const struct vector_measures *sums)
{
    const __m512d *stored = stores_all(f.w) ? sums->exact_exact : sums->stored_exact;
    for (int h = 0; h < 2; h++) {
        _mm512_storeu_pd(lanes->stored_exact + 8 * h, stored[h]);
        _mm512_storeu_pd(lanes->exact_exact + 8 * h, sums->exact_exact[h]);
    }
    lanes->changing = sums->changing;
    lanes->lost = sums->lost;
    lanes->v_changing = sums->v_changing;
    lanes->v_stalled = sums->v_stalled;
}

/* One block of one combination of formats. */
typedef void block_function(struct update_measures *measures, const struct formats f,
                            const struct state_view *state, const void *gradient, int64_t begin, int64_t end,
                            const struct index_map *map, const struct update_scalars *scalars);

LEAF void update_block(struct update_measures *measures, const struct formats f,
                       const struct state_view *state, const void *gradient, int64_t begin, int64_t end,
                       const struct index_map *map, const struct update_scalars *scalars)
{
    const struct vector_scalars k = {_mm512_set1_ps(scalars->gradient_factor),
                                     _mm512_set1_ps(scalars->one_minus_beta1),
                                     _mm512_set1_ps(-scalars->beta1),
                                     _mm512_set1_ps(scalars->beta2),
                                     _mm512_set1_ps(scalars->one_minus_beta2),
                                     _mm512_set1_ps(scalars->decay_factor),
                                     _mm512_set1_ps(scalars->step_size),
                                     _mm512_set1_ps(scalars->sqrt_bc2),
                                     _mm512_set1_ps(scalars->eps),
                                     scalars->one_minus_beta1 < 0.5f};
    struct vector_measures sums = {0};
    struct randoms randoms;
    int64_t whole = begin + (end - begin) / Q8_GROUP * Q8_GROUP;
    for (int64_t chunk = begin; chunk < whole; chunk += CHUNK) {
        int64_t chunk_end = chunk + CHUNK < whole ? chunk + CHUNK : whole;
        randoms_fill(&randoms, f, scalars, index_map_at(map, chunk));
        for (int64_t i = chunk; i < chunk_end; i += Q8_GROUP) {
            prefetch_thirty_two(f, state, gradient, i);
            update_thirty_two(&sums, f, state, gradient, i, &k, &randoms, (int)(i - chunk));
        }
    }
    struct update_lanes lanes;
    lanes_from(&lanes, f, &sums);
    if (whole < end)
        update_group(&lanes, state, gradient, f.gradient, whole, (int)(end - whole), map, scalars);
    *measures = update_block_measures(&lanes);
}

/* X(name, weight, m, v): the presets' combinations, and the two that separate the axes. */
// clang-format off
#define COMBINATIONS(X)                                                                                                \
    X(fp32_master, WEIGHT_FP32,   MOMENT_FP32,  MOMENT_FP32)                                                           \
    X(fp32_lean,   WEIGHT_FP32,   MOMENT_BF16,  MOMENT_BF16S)                                                          \
    X(fp32_bf16,   WEIGHT_FP32,   MOMENT_BF16,  MOMENT_BF16)                                                           \
    X(fp32_q8,     WEIGHT_FP32,   MOMENT_Q8,    MOMENT_Q8)                                                             \
    X(fp24_q8,     WEIGHT_SPLIT8, MOMENT_Q8,    MOMENT_Q8)                                                             \
    X(fp32_split,  WEIGHT_SPLIT,  MOMENT_FP32,  MOMENT_FP32)                                                           \
    X(bf16_kahan,  WEIGHT_KAHAN,  MOMENT_BF16,  MOMENT_BF16)                                                           \
    X(bf16_sr,     WEIGHT_BF16S,  MOMENT_BF16S, MOMENT_BF16S)                                                          \
    X(bf16,        WEIGHT_BF16,   MOMENT_BF16,  MOMENT_BF16)                                                           \
    X(bf16_fp32,   WEIGHT_BF16,   MOMENT_FP32,  MOMENT_FP32)
// clang-format on

#define BLOCK(name, weight, m, v, gradient_dtype)                                                            \
    static void block_##name(struct update_measures *measures, const struct formats f,                       \
                             const struct state_view *state, const void *gradient, int64_t begin,            \
                             int64_t end, const struct index_map *map, const struct update_scalars *scalars) \
    {                                                                                                        \
        (void)f;                                                                                             \
        update_block(measures, (struct formats){weight, m, v, gradient_dtype}, state, gradient, begin, end,  \
                     map, scalars);                                                                          \
    }
#define X(name, weight, m, v)                                                                                \
    BLOCK(name, weight, m, v, DTYPE_F32)                                                                     \
    BLOCK(name##_gradient_bf16, weight, m, v, DTYPE_BF16)
COMBINATIONS(X)
#undef X

static void block_any(struct update_measures *measures, const struct formats f,
                      const struct state_view *state, const void *gradient, int64_t begin, int64_t end,
                      const struct index_map *map, const struct update_scalars *scalars)
{
    update_block(measures, f, state, gradient, begin, end, map, scalars);
}

static block_function *block_choose(const struct formats f)
{
    static const struct {
        enum weight_format w;
        enum moment_format m, v;
        block_function *block, *block_gradient_bf16;
    } table[] = {
#define X(name, weight, m, v) {weight, m, v, block_##name, block_##name##_gradient_bf16},
        COMBINATIONS(X)
#undef X
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].w == f.w && table[i].m == f.m && table[i].v == f.v)
            return f.gradient == DTYPE_F32 ? table[i].block : table[i].block_gradient_bf16;
    return block_any;
}

/* A chunk's elements are neighbours in the tensor too, and begin a random-number block of 8: else the plain
 * loops take it element by element. */
static bool chunks_are_whole(const struct index_map *map)
{
    return map->index % 8 == 0 &&
           (map->run == map->stride ||
            (map->run % CHUNK == 0 && map->column % CHUNK == 0 && map->stride % 8 == 0));
}

static void update(struct queue *q, struct update_measures *measures, const struct state_view *state,
                   const void *gradient, enum dtype gradient_dtype, int64_t n, const struct index_map *map,
                   const struct update_scalars *scalars, void *scratch)
{
    if (!chunks_are_whole(map)) {
        kernels_v4.update(q, measures, state, gradient, gradient_dtype, n, map, scalars, scratch);
        return;
    }
    const struct formats f = {state->w_format, state->m_format, state->v_format, gradient_dtype};
    block_function *block = block_choose(f);
    int64_t blocks = (n + UPDATE_BLOCK - 1) / UPDATE_BLOCK;
    struct update_measures *parts = scratch;
#pragma omp parallel for schedule(static) num_threads(q->threads) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t begin = b * UPDATE_BLOCK, rest = n - begin;
        block(&parts[b], f, state, gradient, begin, begin + (rest < UPDATE_BLOCK ? rest : UPDATE_BLOCK), map,
              scalars);
    }
    struct update_measures total = {0};
    for (int64_t b = 0; b < blocks; b++)
        update_add_measures(&total, &parts[b]);
    *measures = total;
}

void overlay_update_avx512(struct kernels *table)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2"))
        table->update = update;
}
