/* State arrays for tests, on the heap: any mix of formats, guarded by canaries behind every array. */
#pragma once

#include "check.h"

#include "device.h"
#include "kernels.h"
#include "optimizer.h"

#include <stdlib.h>

enum { STATE_ARRAYS_GUARD = 64, STATE_ARRAYS = 7, STATE_ARRAY_COPY = 6 };

struct state_arrays {
    struct state_view view;
    int64_t n;
    size_t bytes[STATE_ARRAYS];
    void *memory[STATE_ARRAYS];
};

static inline size_t state_array_bytes(int array, enum weight_format w, enum moment_format moment, int64_t n)
{
    static const enum dtype weights[][2] = {
#define X(format, name, main, extra) {main, extra},
        WEIGHT_FORMATS(X)
#undef X
    };
    static const enum dtype moments[][2] = {
#define X(format, name, main, extra) {main, extra},
        MOMENT_FORMATS(X)
#undef X
    };
    if (array == STATE_ARRAY_COPY) /* of odd lengths in bf16, of even ones in fp32 */
        return (size_t)n * (n % 2 ? 2 : 4);
    bool extra = array % 2 == 1;
    enum dtype dtype = array < 2 ? weights[w][extra] : moments[moment][extra];
    if (dtype == DTYPE_COUNT)
        return 0;
    return (size_t)(array >= 2 && extra ? (n + Q8_GROUP - 1) / Q8_GROUP : n) * dtype_bytes(dtype);
}

static inline void state_arrays_init(struct state_arrays *s, enum weight_format w, enum moment_format m,
                                     enum moment_format v, int64_t n)
{
    s->n = n;
    for (int a = 0; a < STATE_ARRAYS; a++) {
        s->bytes[a] = state_array_bytes(a, w, a < 4 ? m : v, n);
        s->memory[a] =
            s->bytes[a] ? aligned_alloc(64, (s->bytes[a] + STATE_ARRAYS_GUARD + 63) / 64 * 64) : NULL;
        if (s->memory[a]) {
            memset(s->memory[a], 0, s->bytes[a]);
            memset((char *)s->memory[a] + s->bytes[a], 0xA5, STATE_ARRAYS_GUARD);
        }
    }
    s->view = (struct state_view){.w_format = w,
                                  .m_format = m,
                                  .v_format = v,
                                  .w = s->memory[0],
                                  .w_extra = s->memory[1],
                                  .m = s->memory[2],
                                  .m_extra = s->memory[3],
                                  .v = s->memory[4],
                                  .v_extra = s->memory[5],
                                  .copy = s->memory[STATE_ARRAY_COPY],
                                  .copy_dtype = n % 2 ? DTYPE_BF16 : DTYPE_F32};
}

static inline void state_arrays_copy(struct state_arrays *to, const struct state_arrays *from)
{
    for (int a = 0; a < STATE_ARRAYS; a++)
        if (from->bytes[a])
            memcpy(to->memory[a], from->memory[a], from->bytes[a]);
}

static inline void state_arrays_check_guards(const struct state_arrays *s)
{
    for (int a = 0; a < STATE_ARRAYS; a++)
        for (int i = 0; s->memory[a] && i < STATE_ARRAYS_GUARD; i++)
            if (((const unsigned char *)s->memory[a])[s->bytes[a] + (size_t)i] != 0xA5)
                fail_msg("array %d is written %d bytes behind its end", a, i);
}

static inline void state_arrays_check_equal(const struct state_arrays *got, const struct state_arrays *want,
                                            const char *what)
{
    for (int a = 0; a < STATE_ARRAYS; a++)
        for (size_t i = 0; i < want->bytes[a]; i++)
            if (((const unsigned char *)got->memory[a])[i] != ((const unsigned char *)want->memory[a])[i])
                fail_msg("%s: array %d differs at byte %zu: got %02x, want %02x", what, a, i,
                         ((const unsigned char *)got->memory[a])[i],
                         ((const unsigned char *)want->memory[a])[i]);
}

static inline void state_arrays_done(struct state_arrays *s)
{
    state_arrays_check_guards(s);
    for (int a = 0; a < STATE_ARRAYS; a++)
        free(s->memory[a]);
}

/* xorshift64 (13, 7, 17): the toy experiments' generator, and cheap bits for everything else. */
struct test_random {
    uint64_t state;
};

static inline uint64_t test_random_bits(struct test_random *r)
{
    r->state ^= r->state << 13;
    r->state ^= r->state >> 7;
    r->state ^= r->state << 17;
    return r->state;
}

static inline double test_random_uniform(struct test_random *r)
{
    return (double)(test_random_bits(r) >> 11) * 0x1p-53;
}

static inline double test_random_gauss(struct test_random *r)
{
    double u1 = test_random_uniform(r), u2 = test_random_uniform(r);
    return sqrt(-2 * log(u1)) * cos(2 * 3.14159265358979323846 * u2);
}

static inline uint32_t test_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float test_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
