/* The two rates that a step is held against: the large product, and the copy. Both as good as this machine
 * gives them: the best of several, after one that is not counted. */
#include "doctor.h"

#include "clock.h"
#include "device.h"
#include "kernels.h"

#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { SIDE = 4096, REPEATS = 8 };
#define SECONDS_EACH 4.0
#define COPY_BYTES   ((size_t)128 << 20)

/* Both operands and the result are SIDE x SIDE in bf16; b is stored as a weight is, [n][k]. */
static double time_product(struct device *device, void *out, const void *a, const void *b, void *scratch)
{
    double best = 1e30, begin = clock_s();
    for (int i = 0; i <= REPEATS && clock_s() - begin < SECONDS_EACH; i++) {
        double start = clock_s();
        device->kernels->matmul(device->queue, out, a, b, SIDE, SIDE, SIDE, DTYPE_BF16, DTYPE_BF16,
                                MATMUL_B_TRANSPOSED, scratch);
        device->backend->synchronize(device->queue);
        double seconds = clock_s() - start;
        if (i > 0 && seconds < best)
            best = seconds;
    }
    return best < 1e30 ? best : clock_s() - begin;
}

/* Values between -1 and 1, of every sign and some exponents: a product of zeros may be quicker than a real
 * one. */
static void fill(struct device *device, void *to, uint16_t *host, uint32_t seed)
{
    for (size_t i = 0; i < (size_t)SIDE * SIDE; i++) {
        seed = seed * 1664525u + 1013904223u;
        host[i] = (uint16_t)(0x3d00 + (seed >> 24) + (seed >> 8 & 0x8000));
    }
    device_copy_in(device, to, host, (size_t)SIDE * SIDE * sizeof *host);
}

static bool measure_product(struct doctor_rates *rates, struct device *device, struct err *err)
{
    size_t bytes = (size_t)SIDE * SIDE * sizeof(uint16_t);
    size_t scratch_bytes =
        device->kernels->matmul_scratch(SIDE, SIDE, SIDE, DTYPE_BF16, DTYPE_BF16, MATMUL_B_TRANSPOSED);
    uint16_t *host = malloc(bytes);
    void *a = device_allocate(device, bytes), *b = device_allocate(device, bytes);
    void *out = device_allocate(device, bytes);
    void *scratch = scratch_bytes ? device_allocate(device, scratch_bytes) : NULL;
    bool there = host && a && b && out && (scratch || scratch_bytes == 0);
    if (there) {
        fill(device, a, host, 1);
        fill(device, b, host, 2);
        rates->product_flops = 2.0 * SIDE * SIDE * SIDE / time_product(device, out, a, b, scratch);
    } else {
        err_set(err, ERR_MEMORY, "no memory to measure a product of %d x %d", SIDE, SIDE);
    }
    free(host);
    device_release(device, a, bytes);
    device_release(device, b, bytes);
    device_release(device, out, bytes);
    device_release(device, scratch, scratch_bytes);
    return there;
}

/* Stores that go past the caches; bytes is a multiple of 64 and both pointers are aligned. */
static void stream_copy(char *to, const char *from, size_t bytes)
{
#ifdef __SSE2__
    for (size_t i = 0; i < bytes; i += 64)
        for (size_t j = 0; j < 64; j += 16)
            _mm_stream_si128((__m128i *)(void *)(to + i + j),
                             _mm_load_si128((const __m128i *)(const void *)(from + i + j)));
    _mm_sfence();
#else
    memcpy(to, from, bytes);
#endif
}

static bool measure_copy(struct doctor_rates *rates, int threads, struct err *err)
{
    char *from = aligned_alloc(4096, COPY_BYTES), *to = aligned_alloc(4096, COPY_BYTES);
    double best = 1e30;
    if (!from || !to) {
        free(from);
        free(to);
        return err_set(err, ERR_MEMORY, "no memory to measure a copy of %zu bytes", COPY_BYTES);
    }
    for (int i = 0; i <= 2 * REPEATS; i++) {
        double start = clock_s();
#pragma omp parallel num_threads(threads)
        {
            size_t each = COPY_BYTES / (size_t)omp_get_num_threads() & ~(size_t)4095;
            size_t first = each * (size_t)omp_get_thread_num();
            if (i == 0) /* touched by who will copy it */
                memset(from + first, 1, each), memset(to + first, 2, each);
            else
                stream_copy(to + first, from + first, each);
        }
        double seconds = clock_s() - start;
        if (i > 1 && seconds < best)
            best = seconds;
    }
    rates->copy_bytes_per_second = 2.0 * (double)COPY_BYTES / best;
    free(from);
    free(to);
    return true;
}

bool doctor_measure(struct doctor_rates *rates, struct err *err)
{
    struct device device;
    char why[256];
    if (device_open(&device, "cpu", 0, why, sizeof why) != 0)
        return err_set(err, ERR_UNSUPPORTED, "the CPU cannot be used: %s", why);
    struct doctor_rates found = {.threads = device.threads};
    snprintf(found.device, sizeof found.device, "%s; %s", device.description, device.products);
    bool done = measure_product(&found, &device, err) && measure_copy(&found, device.threads, err);
    device_close(&device);
    if (done)
        *rates = found;
    return done;
}
