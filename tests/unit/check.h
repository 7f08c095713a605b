/* What cmocka lacks: errors that print themselves, and floats compared with a relative tolerance that name
 * the index. It includes cmocka.h and what that wants before it. */
#pragma once

#include "err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

/* 1 in builds with a sanitizer, which run some ten times slower: the few largest shapes give way to smaller
 * ones. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CHECK_SLOW 1
#else
#define CHECK_SLOW 0
#endif

/* A call with an err that must succeed, or fail with this code. */
#define check_ok(call, error)                                                                                \
    do {                                                                                                     \
        if (!(call)) {                                                                                       \
            char check_text[4 * ERR_TEXT_BYTES];                                                             \
            fail_msg("%s: %s", #call, err_line(error, check_text, sizeof check_text));                       \
        }                                                                                                    \
    } while (0)

#define check_refused(call, error, wanted)                                                                   \
    do {                                                                                                     \
        if (call)                                                                                            \
            fail_msg("%s succeeded, wanted %s", #call, err_code_name(wanted));                               \
        if ((error)->code != (wanted)) {                                                                     \
            char check_text[4 * ERR_TEXT_BYTES];                                                             \
            fail_msg("%s: wanted %s, got %s: %s", #call, err_code_name(wanted),                              \
                     err_code_name((error)->code), err_line(error, check_text, sizeof check_text));          \
        }                                                                                                    \
    } while (0)

/* |got - want| <= relative * max(|want|) + absolute, element by element; NaN never passes. */
#define check_close_f32(got, want, count, relative, absolute)                                                \
    check_close_f32_at(got, want, (size_t)(count), relative, absolute, #got, __FILE__, __LINE__)

static inline void check_close_f32_at(const float *got, const float *want, size_t count, double relative,
                                      double absolute, const char *name, const char *file, int line)
{
    double largest = 0;
    for (size_t i = 0; i < count; i++)
        largest = fmax(largest, fabs((double)want[i]));
    for (size_t i = 0; i < count; i++) {
        double apart = fabs((double)got[i] - (double)want[i]);
        if (apart <= relative * largest + absolute)
            continue;
        print_error("%s[%zu]: got %.9g, want %.9g, apart %.3g, largest %.9g\n", name, i, (double)got[i],
                    (double)want[i], apart, largest);
        _fail(file, line);
    }
}

#define check_close(got, want, relative, absolute)                                                           \
    do {                                                                                                     \
        double check_got = (double)(got), check_want = (double)(want);                                       \
        if (!(fabs(check_got - check_want) <= (relative)*fabs(check_want) + (absolute)))                     \
            fail_msg("%s: got %.17g, want %.17g", #got, check_got, check_want);                              \
    } while (0)
