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
