/* A line put together without the C library's formatting, so that a signal handler may: it takes no lock,
 * allocates nothing, and what does not fit is left out. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct words {
    char text[2048];
    size_t used;
};

static inline void words_text(struct words *w, const char *text)
{
    while (*text && w->used < sizeof w->text)
        w->text[w->used++] = *text++;
}

static inline void words_digits(struct words *w, uint64_t value, unsigned base, int at_least)
{
    char digits[24];
    int count = 0;
    for (; (value || count < at_least) && count < 24; value /= base)
        digits[count++] = "0123456789abcdef"[value % base];
    while (count > 0 && w->used < sizeof w->text)
        w->text[w->used++] = digits[--count];
}

static inline void words_int(struct words *w, int64_t value)
{
    if (value < 0)
        words_text(w, "-");
    words_digits(w, value < 0 ? 0 - (uint64_t)value : (uint64_t)value, 10, 1);
}

static inline void words_address(struct words *w, uintptr_t address)
{
    words_text(w, "0x");
    words_digits(w, address, 16, 1);
}
