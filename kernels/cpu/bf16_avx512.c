/* Norms, RoPE and SwiGLU in bf16 with AVX-512 BF16, bit for bit the plain loops
 * (tests/unit/kernels/test_rows.c compares them exactly). At hidden 128 these rows, not the products, would
 * otherwise be a third of a forward pass: the plain loops spend most of their steps on rounding and on the
 * power of two in e^x, which are one instruction each here.
 *
 * VCVTNEPS2BF16 rounds to nearest even and keeps NaNs, as bf16_from_float does, but flushes denormals: where
 * one is about to be stored, which is rare, the integer way takes over. Each step is written as in
 * reference_*.c; read those. */
#include "bf16_rows.h"
#include "queue.h"
#include "tables.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define LEAF static inline __attribute__((always_inline))

enum { WIDTH = 16, RANGE = 8192, DENORMAL = 0x20 /* a class of VFPCLASSPS */ };

LEAF __mmask16 first_lanes(int64_t n) /* all of them from 16 on */
{
    return (__mmask16)(n >= WIDTH ? 0xffffu : (1u << n) - 1u);
}

LEAF __m512 widen(__m256i x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

LEAF __m512 load(const uint16_t *from, __mmask16 mask)
{
    return widen(_mm256_maskz_loadu_epi16(mask, from));
}

/* bf16_from_float, in integers */
static __attribute__((noinline)) __m256i narrow_denormal(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i nearest = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    nearest = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(nearest, 16));
}

LEAF void store(uint16_t *to, __mmask16 mask, __m512 x)
{
    __m256i narrow = (__m256i)_mm512_cvtneps_pbh(x);
    if (__builtin_expect(_mm512_mask_fpclass_ps_mask(mask, x, DENORMAL) != 0, 0))
        narrow = narrow_denormal(x);
    _mm256_mask_storeu_epi16(to, mask, narrow);
}

/* lanes_fold of loops.h */
LEAF float fold(__m512 lane)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(lane), _mm512_extractf32x8_ps(lane, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* Rows in ranges of about 8192 elements, as in reference_norm.c. */
LEAF int64_t range_rows(int64_t n)
{
    return n >= RANGE ? 1 : RANGE / n;
}

LEAF float norm_row(uint16_t *out, const uint16_t *x, const uint16_t *w, int64_t n, float eps)
{
    __m512 lane = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += WIDTH) {
        __m512 v = load(x + i, first_lanes(n - i));
        lane = _mm512_add_ps(lane, _mm512_mul_ps(v, v));
    }
    float rstd = 1.0f / sqrtf(fold(lane) / (float)n + eps);
    __m512 scale = _mm512_set1_ps(rstd);
    for (int64_t i = 0; i < n; i += WIDTH) {
        __mmask16 mask = first_lanes(n - i);
        store(out + i, mask, _mm512_mul_ps(_mm512_mul_ps(load(x + i, mask), scale), load(w + i, mask)));
    }
    return rstd;
}

void bf16_avx512_rmsnorm_forward(struct queue *q, void *out, float *rstd, const void *x, const void *w,
                                 int64_t rows, int64_t n, float eps, enum dtype dtype)
{
    if (dtype != DTYPE_BF16) {
        kernels_v4.rmsnorm_forward(q, out, rstd, x, w, rows, n, eps, dtype);
        return;
    }
    int64_t step = range_rows(n);
#pragma omp parallel for num_threads(q->threads) if (rows > step)
    for (int64_t first = 0; first < rows; first += step)
        for (int64_t r = first; r < first + step && r < rows; r++)
            rstd[r] = norm_row((uint16_t *)out + r * n, (const uint16_t *)x + r * n, w, n, eps);
}

LEAF void add_row(uint16_t *sum, const uint16_t *a, const uint16_t *b, int64_t n)
{
    for (int64_t i = 0; i < n; i += WIDTH) {
        __mmask16 mask = first_lanes(n - i);
        store(sum + i, mask, _mm512_add_ps(load(a + i, mask), load(b + i, mask)));
    }
}

void bf16_avx512_add_rmsnorm_forward(struct queue *q, void *sum, void *out, float *rstd, const void *a,
                                     const void *b, const void *w, int64_t rows, int64_t n, float eps,
                                     enum dtype dtype)
{
    if (dtype != DTYPE_BF16) {
        kernels_v4.add_rmsnorm_forward(q, sum, out, rstd, a, b, w, rows, n, eps, dtype);
        return;
    }
    int64_t step = range_rows(n);
#pragma omp parallel for num_threads(q->threads) if (rows > step)
    for (int64_t first = 0; first < rows; first += step)
        for (int64_t r = first; r < first + step && r < rows; r++) {
            uint16_t *s = (uint16_t *)sum + r * n;
            add_row(s, (const uint16_t *)a + r * n, (const uint16_t *)b + r * n, n);
            rstd[r] = norm_row((uint16_t *)out + r * n, s, w, n, eps);
        }
}

LEAF void norm_backward_row(uint16_t *dx, float *dw, const uint16_t *dout, const uint16_t *x,
                            const uint16_t *w, float rstd, int64_t n, const bool add)
{
    __m512 lane = _mm512_setzero_ps(), scale = _mm512_set1_ps(rstd);
    for (int64_t i = 0; i < n; i += WIDTH) {
        __mmask16 mask = first_lanes(n - i);
        __m512 dx_i = _mm512_mul_ps(load(dout + i, mask), load(x + i, mask));
        lane = _mm512_add_ps(lane, _mm512_mul_ps(dx_i, load(w + i, mask)));
        __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, dw + i), _mm512_mul_ps(dx_i, scale));
        _mm512_mask_storeu_ps(dw + i, mask, sum);
    }
    __m512 pull = _mm512_set1_ps(fold(lane) / (float)n * rstd * rstd);
    for (int64_t i = 0; i < n; i += WIDTH) {
        __mmask16 mask = first_lanes(n - i);
        __m512 h = _mm512_mul_ps(load(dout + i, mask), load(w + i, mask));
        __m512 d = _mm512_mul_ps(scale, _mm512_sub_ps(h, _mm512_mul_ps(load(x + i, mask), pull)));
        store(dx + i, mask, add ? _mm512_add_ps(load(dx + i, mask), d) : d);
    }
}

/* Blocks of rows as in reference_norm.c: their sums in scratch, [blocks][n], then added in order. */
static int64_t block_rows(int64_t rows)
{
    int64_t block = (rows + 63) / 64;
    return block < 32 ? 32 : block;
}

void bf16_avx512_rmsnorm_backward(struct queue *q, void *dx, float *dw, const void *dout, const void *x,
                                  const void *w, const float *rstd, int64_t rows, int64_t n, bool add,
                                  enum dtype dtype, void *scratch)
{
    if (dtype != DTYPE_BF16) {
        kernels_v4.rmsnorm_backward(q, dx, dw, dout, x, w, rstd, rows, n, add, dtype, scratch);
        return;
    }
    int64_t block = block_rows(rows), blocks = (rows + block - 1) / block;
    float *parts = scratch;
#pragma omp parallel for num_threads(q->threads) if (rows * n > RANGE)
    for (int64_t b = 0; b < blocks; b++) {
        memset(parts + b * n, 0, (size_t)n * sizeof(float));
        for (int64_t r = b * block; r < (b + 1) * block && r < rows; r++) {
            uint16_t *to = (uint16_t *)dx + r * n;
            const uint16_t *d = (const uint16_t *)dout + r * n, *from = (const uint16_t *)x + r * n;
            if (add)
                norm_backward_row(to, parts + b * n, d, from, w, rstd[r], n, true);
            else
                norm_backward_row(to, parts + b * n, d, from, w, rstd[r], n, false);
        }
    }
    memset(dw, 0, (size_t)n * sizeof(float));
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t i = 0; i < n; i++)
            dw[i] += parts[b * n + i];
}

LEAF void rope_head(uint16_t *x, const float *cosines, const float *sines, int64_t half, __m512 sign)
{
    for (int64_t i = 0; i < half; i += WIDTH) {
        __mmask16 mask = first_lanes(half - i);
        __m512 x1 = load(x + i, mask), x2 = load(x + half + i, mask);
        __m512 c = _mm512_maskz_loadu_ps(mask, cosines + i);
        __m512 s = _mm512_mul_ps(sign, _mm512_maskz_loadu_ps(mask, sines + i));
        store(x + i, mask, _mm512_sub_ps(_mm512_mul_ps(x1, c), _mm512_mul_ps(x2, s)));
        store(x + half + i, mask, _mm512_add_ps(_mm512_mul_ps(x2, c), _mm512_mul_ps(x1, s)));
    }
}

void bf16_avx512_rope(struct queue *q, void *x, const float *cosines, const float *sines,
                      const int32_t *positions, int64_t T, int64_t heads, int64_t head_dim, bool inverse,
                      enum dtype dtype)
{
    if (dtype != DTYPE_BF16) {
        kernels_v4.rope(q, x, cosines, sines, positions, T, heads, head_dim, inverse, dtype);
        return;
    }
    int64_t half = head_dim / 2;
    __m512 sign = _mm512_set1_ps(inverse ? -1.0f : 1.0f);
#pragma omp parallel for num_threads(q->threads) if (T * heads * head_dim > RANGE)
    for (int64_t t = 0; t < T; t++) {
        int64_t angle = (int64_t)positions[t] * half;
        for (int64_t h = 0; h < heads; h++)
            rope_head((uint16_t *)x + (t * heads + h) * head_dim, cosines + angle, sines + angle, half, sign);
    }
}

/* exp_float of common/exp.h; the power of two in one step, which rounds as the two there do. */
LEAF __m512 exp_lanes(__m512 x)
{
    x = _mm512_min_ps(_mm512_set1_ps(90.0f), x); /* in this order a NaN passes */
    x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x);
    const __m512 magic = _mm512_set1_ps(12582912.0f);
    __m512 k = _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504088896341f), magic), magic);
    __m512 r = _mm512_fmadd_ps(k, _mm512_set1_ps(-0.693147182464599609375f), x);
    r = _mm512_fmadd_ps(k, _mm512_set1_ps(1.904654323148236017e-9f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, k);
}

LEAF __m512 sigmoid(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 minus = _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
    return _mm512_div_ps(one, _mm512_add_ps(one, exp_lanes(minus)));
}

enum { ALL = 0xffff };

LEAF void swiglu_step(uint16_t *out, const uint16_t *gate, const uint16_t *up, __mmask16 mask)
{
    __m512 g = load(gate, mask);
    store(out, mask, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), load(up, mask)));
}

LEAF void swiglu_range(uint16_t *out, const uint16_t *gate, const uint16_t *up, int64_t n)
{
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        swiglu_step(out + i, gate + i, up + i, ALL);
    if (i < n)
        swiglu_step(out + i, gate + i, up + i, first_lanes(n - i));
}

void bf16_avx512_swiglu_forward(struct queue *q, void *out, const void *gate, const void *up, int64_t n,
                                enum dtype dtype)
{
    if (dtype != DTYPE_BF16) {
        kernels_v4.swiglu_forward(q, out, gate, up, n, dtype);
        return;
    }
#pragma omp parallel for num_threads(q->threads) if (n > RANGE)
    for (int64_t i = 0; i < n; i += RANGE)
        swiglu_range((uint16_t *)out + i, (const uint16_t *)gate + i, (const uint16_t *)up + i,
                     n - i < RANGE ? n - i : RANGE);
}

LEAF void swiglu_backward_step(uint16_t *dgate, uint16_t *dup, const uint16_t *dout, const uint16_t *gate,
                               const uint16_t *up, __mmask16 mask)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 g = load(gate, mask), u = load(up, mask), d = load(dout, mask), s = sigmoid(g);
    __m512 slope = _mm512_mul_ps(s, _mm512_add_ps(one, _mm512_mul_ps(g, _mm512_sub_ps(one, s))));
    store(dgate, mask, _mm512_mul_ps(_mm512_mul_ps(d, u), slope));
    store(dup, mask, _mm512_mul_ps(d, _mm512_mul_ps(g, s)));
}

LEAF void swiglu_backward_range(uint16_t *dgate, uint16_t *dup, const uint16_t *dout, const uint16_t *gate,
                                const uint16_t *up, int64_t n)
{
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        swiglu_backward_step(dgate + i, dup + i, dout + i, gate + i, up + i, ALL);
    if (i < n)
        swiglu_backward_step(dgate + i, dup + i, dout + i, gate + i, up + i, first_lanes(n - i));
}

void bf16_avx512_swiglu_backward(struct queue *q, void *dgate, void *dup, const void *dout, const void *gate,
                                 const void *up, int64_t n, enum dtype dtype)
{
    if (dtype != DTYPE_BF16) {
        kernels_v4.swiglu_backward(q, dgate, dup, dout, gate, up, n, dtype);
        return;
    }
#pragma omp parallel for num_threads(q->threads) if (n > RANGE)
    for (int64_t i = 0; i < n; i += RANGE)
        swiglu_backward_range((uint16_t *)dgate + i, (uint16_t *)dup + i, (const uint16_t *)dout + i,
                              (const uint16_t *)gate + i, (const uint16_t *)up + i,
                              n - i < RANGE ? n - i : RANGE);
}
