/* e^x in fp32 for hot loops: no call, no table, no branch, so that compilers vectorize it; the same bits at
 * every instruction set, since contraction is off. Within 1.1 ulp (tests/unit/kernels/test_exp.c goes over
 * all of fp32's range), denormal results included; overflow gives infinity, a NaN stays a NaN.
 *
 * Cody & Waite 1980: x = k ln2 + r, |r| <= ln2/2; e^r by a polynomial; the power of two in two factors, so
 * that neither leaves the range of normal numbers. */
#pragma once

#include "bf16.h"

#include <math.h>

KERNEL_FN float exp_float(float x)
{
    x = x > 90.0f ? 90.0f : x; /* in this form a NaN passes */
    x = x < -110.0f ? -110.0f : x;
    const float magic =
        12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold */
    float shifted = fmaf(x, 1.44269504088896341f, magic);
    float k = shifted - magic;
    float r = fmaf(k, -0.693147182464599609375f, x);
    r = fmaf(k, 1.904654323148236017e-9f, r); /* the rest of ln2 */
    /* e^r - 1 - r = r^2 (1/2 + r/6 + …), coefficients fitted on |r| <= ln2/2 */
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    uint32_t power = float_bits(shifted) - float_bits(magic); /* k, as two's complement */
    uint32_t half = (uint32_t)((int32_t)power >> 1);
    return p * float_from_bits((half + 127u) << 23) * float_from_bits((power - half + 127u) << 23);
}
