/* Files as they arrive when something went wrong on the way: a bit turned, cut short, one byte too long. */
#pragma once

#include "check.h"
#include "file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

enum damage { DAMAGE_FLIP, DAMAGE_CUT, DAMAGE_LONGER };
static const char *const damage_names[] = {"with a bit turned at byte", "cut to", "with one byte more than"};

/* The file at path is damaged so, at byte `at`. */
typedef void damage_check(void *context, enum damage how, size_t at);

struct damage_plan {
    size_t flip_end; /* bytes from here on keep their bits */
    bool every_bit;  /* of every byte; else, and under a sanitizer, one bit, another one in each byte; of each
                        fifth byte where it is both */
    size_t cut_step; /* cut at each of the first and last 64 lengths, and in steps of this in between */
};

static inline void damage_put(int fd, const void *bytes, size_t count, size_t at)
{
    assert_int_equal(pwrite(fd, bytes, count, (off_t)at), count);
}

/* Calls check for each form of damage. The file is whole again at the end. */
static inline void damage_file(const char *path, const struct damage_plan *plan, damage_check *check,
                               void *context)
{
    struct err err = ERR_INIT;
    char *bytes;
    size_t count;
    check_ok(file_slurp(path, 1 << 24, &bytes, &count, &err), &err);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    size_t flip_step = CHECK_SLOW && !plan->every_bit ? 5 : 1;
    for (size_t at = 0; at < count && at < plan->flip_end; at += flip_step) {
        for (size_t bit = 0; bit < 8; bit++) {
            char flipped = (char)(bytes[at] ^ 1 << bit);
            if (bit != at % 8 && (CHECK_SLOW || !plan->every_bit))
                continue;
            damage_put(fd, &flipped, 1, at);
            check(context, DAMAGE_FLIP, at);
        }
        damage_put(fd, &bytes[at], 1, at);
    }
    damage_put(fd, "x", 1, count);
    check(context, DAMAGE_LONGER, count);
    for (size_t at = count; at-- > 0;) {
        assert_int_equal(ftruncate(fd, (off_t)at), 0);
        if (at < 64 || count - at < 64 || at % plan->cut_step == 0)
            check(context, DAMAGE_CUT, at);
    }
    damage_put(fd, bytes, count, 0);
    close(fd);
    free(bytes);
}
