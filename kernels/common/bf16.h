/* bf16 is the upper half of an fp32. Conversion by integer arithmetic: nearest even, denormals kept, a NaN
 * stays a NaN. (The processor's own convert, VCVTNEPS2BF16, flushes denormals; stored values must not depend
 * on who stored them.) Branch-free, so that compilers vectorize it; compiled by nvcc too. */
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define KERNEL_FN static inline __host__ __device__
#else
#define KERNEL_FN static inline __attribute__((always_inline))
#endif

KERNEL_FN uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

KERNEL_FN float float_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

KERNEL_FN float bf16_to_float(uint16_t x)
{
    return float_from_bits((uint32_t)x << 16);
}

KERNEL_FN uint16_t bf16_from_float(float x)
{
    uint32_t bits = float_bits(x);
    uint32_t nearest =
        (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16; /* up on more than half, or half and odd */
    uint32_t quiet = (bits >> 16) | 0x40u;            /* rounding could carry a NaN into infinity */
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : nearest);
}

/* The one NaN that optimizer state holds: which payload survives an operation differs between processors. */
#define FLOAT_NAN_BITS 0x7FC00000u

KERNEL_FN int float_bits_nan(uint32_t bits)
{
    return (bits & 0x7FFFFFFFu) > 0x7F800000u;
}

KERNEL_FN float float_canonical(float x)
{
    return float_bits_nan(float_bits(x)) ? float_from_bits(FLOAT_NAN_BITS) : x;
}

/* Stochastically: 16 random bits are added below the kept ones and the sum is truncated, so that the
 * magnitude goes up with probability (dropped bits) / 65536 exactly. Infinities and NaNs pass. */
KERNEL_FN uint16_t bf16_stochastic(float x, uint32_t random16)
{
    uint32_t bits = float_bits(x);
    uint32_t special = (bits >> 16) | (float_bits_nan(bits) ? 0x40u : 0u);
    return (uint16_t)((bits & 0x7F800000u) == 0x7F800000u ? special : (bits + random16) >> 16);
}

/* The smallest bf16 that is not below x >= 0 (sign clear). Infinity and NaN stay what they are. */
KERNEL_FN uint16_t bf16_up(float x)
{
    uint32_t bits = float_bits(x);
    return (uint16_t)(float_bits_nan(bits) ? (bits >> 16) | 0x40u : (bits + 0xFFFFu) >> 16);
}
