/* The optimizer's arithmetic, written once for gcc and nvcc: how every format is read and written, AdamW for
 * one element, and the precision measures. Reference: the project's contract, section 1.
 *
 * The arithmetic is torch's fused CPU AdamW in fp32: fmaf where it is written, no contraction elsewhere (both
 * compilers are told so), denormals kept. Where the contract leaves a corner open:
 *  - a NaN result is stored as FLOAT_NAN_BITS, since which payload survives an operation differs between
 * processors;
 *  - kahan and split8 keep no remainder of a w that is not finite, so an infinity reads as one;
 *  - q8's code 0 reads 0 whatever the scale; a code that would be no number is 0 (m) or 1 (v).
 *
 * Elements are walked in groups of Q8_GROUP, counted from the start of the range (which starts a group): a
 * thread's loop on the CPU, a warp on a GPU. `random16` is the element's half-word of the part's stream, see
 * philox.h. */
#pragma once

#include "bf16.h"
#include "index_map.h"
#include "philox.h"
#include "state.h"

#include <math.h>
#include <stdbool.h>

/* ---- weights ---- */

/* Half a step of bf16 at w: 2^(exponent(w) - 8), the exponent of zeros and subnormals being -126. */
KERNEL_FN float split8_half_step(uint16_t w)
{
    uint32_t exponent = ((uint32_t)w >> 7) & 0xFFu;
    if (exponent == 0)
        exponent = 1;
    return float_from_bits(exponent > 8 ? (exponent - 8) << 23
                                        : 1u << (exponent + 14)); /* below 2^-126: subnormal */
}

KERNEL_FN float weight_read(enum weight_format format, const void *w, const void *extra, int64_t i)
{
    if (format == WEIGHT_FP32)
        return ((const float *)w)[i];
    uint16_t high = ((const uint16_t *)w)[i];
    if (format == WEIGHT_KAHAN)
        return bf16_to_float(high) + bf16_to_float(((const uint16_t *)extra)[i]);
    if (format == WEIGHT_SPLIT) {
        uint32_t low = ((const uint16_t *)extra)[i];
        return float_from_bits((((uint32_t)high - (low >> 15)) << 16) | low); /* undo the rounding up of w */
    }
    if (format == WEIGHT_SPLIT8)
        return bf16_to_float(high) + (float)((const int8_t *)extra)[i] / 127.0f * split8_half_step(high);
    return bf16_to_float(high);
}

KERNEL_FN int8_t split8_code(float value, uint16_t w)
{
    float scaled = 127.0f * (value - bf16_to_float(w)) / split8_half_step(w);
    if (!(scaled == scaled))
        return 0;
    scaled = scaled > 127.0f ? 127.0f : scaled < -127.0f ? -127.0f : scaled;
    return (int8_t)rintf(scaled);
}

KERNEL_FN void weight_write(enum weight_format format, void *w, void *extra, int64_t i, float value,
                            uint32_t random16)
{
    if (format == WEIGHT_FP32) {
        ((float *)w)[i] = value;
    } else if (format == WEIGHT_BF16S) {
        ((uint16_t *)w)[i] = bf16_stochastic(value, random16);
    } else if (format == WEIGHT_SPLIT) {
        uint32_t bits = float_bits(float_canonical(value));
        ((uint16_t *)w)[i] = (uint16_t)((bits + 0x8000u) >> 16); /* nearest, ties away from zero */
        ((uint16_t *)extra)[i] = (uint16_t)bits;
    } else {
        uint16_t high = bf16_from_float(value);
        ((uint16_t *)w)[i] = high;
        float rest = value - bf16_to_float(high);
        if (format == WEIGHT_KAHAN)
            ((uint16_t *)extra)[i] = (high & 0x7F80u) == 0x7F80u ? 0 : bf16_from_float(rest);
        if (format == WEIGHT_SPLIT8)
            ((int8_t *)extra)[i] = (high & 0x7F80u) == 0x7F80u ? 0 : split8_code(value, high);
    }
}

/* What the model computes with in bf16: fp32 rounded to nearest even, otherwise the stored w itself. */
KERNEL_FN uint16_t weight_bf16_copy(enum weight_format format, const void *w, int64_t i)
{
    return format == WEIGHT_FP32 ? bf16_from_float(((const float *)w)[i]) : ((const uint16_t *)w)[i];
}

/* The same into the state's copy, where it has one; value: element i's, as read. */
KERNEL_FN void weight_write_copy(const struct state_view *state, int64_t i, float value)
{
    if (!state->copy)
        return;
    if (state->copy_dtype == DTYPE_F32)
        ((float *)state->copy)[i] = value;
    else
        ((uint16_t *)state->copy)[i] = weight_bf16_copy(state->w_format, state->w, i);
}

/* ---- moments ---- */

/* m: the code of z = 2x/(1+|x|) is 127 z, so x = z/(2-z) = code/(254-|code|). */
KERNEL_FN float q8_m_read(int8_t code, uint16_t scale)
{
    float c = (float)code;
    return code == 0 ? 0.0f : c / (254.0f - fabsf(c)) * bf16_to_float(scale);
}

KERNEL_FN int8_t q8_m_code(float m, uint16_t scale)
{
    float x = m / bf16_to_float(scale);
    float code = 127.0f * ((2.0f * x) / (1.0f + fabsf(x)));
    return code == code ? (int8_t)rintf(code) : 0; /* 0/0 of a group of zeros, or an infinite scale */
}

KERNEL_FN float q8_v_read(uint8_t code, uint16_t scale)
{
    float root = (float)code * bf16_to_float(scale) / 255.0f;
    return code == 0 ? 0.0f : root * root;
}

/* root = sqrt(v') <= scale. Rounded up where the fraction's first 16 bits exceed the random ones. */
KERNEL_FN uint8_t q8_v_code(float root, uint16_t scale, uint32_t random16)
{
    if (root == 0.0f)
        return 0;
    float y = 255.0f * root / bf16_to_float(scale);
    if (!(y >= 0.0f))
        return 1;
    uint32_t whole = (uint32_t)y;
    uint32_t fraction = (uint32_t)((y - (float)whole) * 65536.0f);
    whole += fraction > random16;
    return (uint8_t)(whole == 0 ? 1 : whole);
}

/* is_v: the second moment, which differs under q8 only. */
KERNEL_FN float moment_read(enum moment_format format, bool is_v, const void *main, const void *extra,
                            int64_t i)
{
    if (format == MOMENT_FP32)
        return ((const float *)main)[i];
    if (format != MOMENT_Q8)
        return bf16_to_float(((const uint16_t *)main)[i]);
    uint16_t scale = ((const uint16_t *)extra)[i / Q8_GROUP];
    return is_v ? q8_v_read(((const uint8_t *)main)[i], scale) : q8_m_read(((const int8_t *)main)[i], scale);
}

/* Formats without groups. */
KERNEL_FN void moment_write(enum moment_format format, void *main, int64_t i, float value, uint32_t random16)
{
    if (format == MOMENT_FP32)
        ((float *)main)[i] = value;
    else if (format == MOMENT_BF16S)
        ((uint16_t *)main)[i] = bf16_stochastic(value, random16);
    else
        ((uint16_t *)main)[i] = bf16_from_float(value);
}

/* q8's group: values (m' or v') of elements i … i+count-1. */
KERNEL_FN void moment_write_q8(bool is_v, void *main, void *extra, int64_t i, int count, const float *values,
                               const uint32_t *random16)
{
    uint32_t largest = 0; /* magnitudes compare as their bits do, NaN above all */
    for (int j = 0; j < count; j++) {
        uint32_t bits = float_bits(is_v ? sqrtf(values[j]) : values[j]) & 0x7FFFFFFFu;
        largest = bits > largest ? bits : largest;
    }
    uint16_t scale = bf16_up(float_from_bits(largest));
    ((uint16_t *)extra)[i / Q8_GROUP] = scale;
    for (int j = 0; j < count; j++) {
        if (is_v)
            ((uint8_t *)main)[i + j] = q8_v_code(sqrtf(values[j]), scale, random16[j]);
        else
            ((int8_t *)main)[i + j] = q8_m_code(values[j], scale);
    }
}

/* Any format: elements i … i+count-1 of the range (count <= Q8_GROUP, i a multiple of it). */
KERNEL_FN void moment_write_group(enum moment_format format, bool is_v, void *main, void *extra, int64_t i,
                                  int count, const float *values, const struct index_map *map, uint64_t seed,
                                  uint64_t total_step)
{
    uint32_t random16[Q8_GROUP] = {0};
    if (format == MOMENT_BF16S || (format == MOMENT_Q8 && is_v))
        for (int j = 0; j < count; j++)
            random16[j] = philox_halfword(seed, index_map_at(map, i + j), total_step,
                                          is_v ? PHILOX_STREAM_V : PHILOX_STREAM_M);
    if (format == MOMENT_Q8)
        moment_write_q8(is_v, main, extra, i, count, values, random16);
    else
        for (int j = 0; j < count; j++)
            moment_write(format, main, i + j, values[j], random16[j]);
}

/* ---- AdamW ---- */

struct update_element {
    float w, m, v;
};

KERNEL_FN struct update_element update_adamw(struct update_element old, float g,
                                             const struct update_scalars *s)
{
    float difference = g - old.m;
    float m = s->one_minus_beta1 < 0.5f ? fmaf(s->one_minus_beta1, difference, old.m)
                                        : fmaf(-s->beta1, difference, g);
    float v = s->beta2 * old.v + (s->one_minus_beta2 * g) * g;
    float denominator = sqrtf(v) / s->sqrt_bc2 + s->eps;
    float w = old.w * s->decay_factor - (s->step_size * m) / denominator;
    struct update_element next = {float_canonical(w), float_canonical(m), float_canonical(v)};
    return next;
}

KERNEL_FN float gradient_read(const void *gradient, enum dtype dtype, int64_t i)
{
    return dtype == DTYPE_F32 ? ((const float *)gradient)[i] : bf16_to_float(((const uint16_t *)gradient)[i]);
}

/* ---- measures ---- */

/* The order of the measures' sums, the same everywhere: blocks of UPDATE_BLOCK elements from the start of the
 * range, each on UPDATE_LANES partial sums (element i goes to lane i mod UPDATE_LANES, ascending), the lanes
 * added by halving, the blocks added in order. Products of two fp32 are exact in double. */
enum { UPDATE_BLOCK = 4096, UPDATE_LANES = 16 };

struct update_lanes {
    double stored_exact[UPDATE_LANES];
    double exact_exact[UPDATE_LANES];
    int64_t changing, lost, v_changing, v_stalled;
};

/* w: as read before; w_new: unrounded; w_read: as read after. The differences are fp32: zero only when equal.
 */
KERNEL_FN void update_count_weight(struct update_lanes *lanes, int lane, float w, float w_new, float w_read)
{
    float exact = w_new - w, stored = w_read - w;
    lanes->changing += exact != 0.0f;
    lanes->lost += exact != 0.0f && stored == 0.0f;
    lanes->stored_exact[lane] += (double)stored * (double)exact;
    lanes->exact_exact[lane] += (double)exact * (double)exact;
}

KERNEL_FN double update_canonical_sum(double sum)
{
    return sum == sum ? sum : (double)float_from_bits(FLOAT_NAN_BITS);
}

KERNEL_FN struct update_measures update_block_measures(struct update_lanes *lanes)
{
    for (int half = UPDATE_LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++) {
            lanes->stored_exact[j] += lanes->stored_exact[j + half];
            lanes->exact_exact[j] += lanes->exact_exact[j + half];
        }
    struct update_measures measures = {lanes->changing,
                                       lanes->lost,
                                       lanes->v_changing,
                                       lanes->v_stalled,
                                       update_canonical_sum(lanes->stored_exact[0]),
                                       update_canonical_sum(lanes->exact_exact[0])};
    return measures;
}

KERNEL_FN void update_add_measures(struct update_measures *total, const struct update_measures *block)
{
    total->changing += block->changing;
    total->lost += block->lost;
    total->v_changing += block->v_changing;
    total->v_stalled += block->v_stalled;
    total->stored_exact = update_canonical_sum(total->stored_exact + block->stored_exact);
    total->exact_exact = update_canonical_sum(total->exact_exact + block->exact_exact);
}

/* The stored bits of element i of a moment's main array: q8 compares codes. */
KERNEL_FN uint32_t moment_stored_bits(enum moment_format format, const void *main, int64_t i)
{
    return format == MOMENT_FP32 ? ((const uint32_t *)main)[i]
           : format == MOMENT_Q8 ? ((const uint8_t *)main)[i]
                                 : ((const uint16_t *)main)[i];
}

/* ---- one group: the scalar whole ---- */

/* Elements i … i+count-1 of the range (i a multiple of Q8_GROUP, count <= Q8_GROUP). */
KERNEL_FN void update_group(struct update_lanes *lanes, const struct state_view *state, const void *gradient,
                            enum dtype gradient_dtype, int64_t i, int count, const struct index_map *map,
                            const struct update_scalars *s)
{
    float m[Q8_GROUP], v[Q8_GROUP];
    uint32_t v_before[Q8_GROUP], v_changes = 0;
    for (int j = 0; j < count; j++) {
        struct update_element old = {weight_read(state->w_format, state->w, state->w_extra, i + j),
                                     moment_read(state->m_format, false, state->m, state->m_extra, i + j),
                                     moment_read(state->v_format, true, state->v, state->v_extra, i + j)};
        float g = gradient_read(gradient, gradient_dtype, i + j) * s->gradient_factor;
        struct update_element next = update_adamw(old, g, s);
        m[j] = next.m;
        v[j] = next.v;
        v_changes |= (uint32_t)(next.v != old.v) << j;
        v_before[j] = moment_stored_bits(state->v_format, state->v, i + j);
        uint32_t random16 = 0;
        if (state->w_format == WEIGHT_BF16S)
            random16 = philox_halfword(s->seed, index_map_at(map, i + j), s->total_step, PHILOX_STREAM_W);
        weight_write(state->w_format, state->w, state->w_extra, i + j, next.w, random16);
        float w_read = weight_read(state->w_format, state->w, state->w_extra, i + j);
        weight_write_copy(state, i + j, w_read);
        update_count_weight(lanes, (int)((i + j) % UPDATE_LANES), old.w, next.w, w_read);
    }
    moment_write_group(state->m_format, false, state->m, state->m_extra, i, count, m, map, s->seed,
                       s->total_step);
    moment_write_group(state->v_format, true, state->v, state->v_extra, i, count, v, map, s->seed,
                       s->total_step);
    for (int j = 0; j < count; j++) {
        bool changes = v_changes >> j & 1u;
        lanes->v_changing += changes;
        lanes->v_stalled += changes && moment_stored_bits(state->v_format, state->v, i + j) == v_before[j];
    }
}
