/* What the fuzz targets share. Each target is one file with LLVMFuzzerTestOneInput: libFuzzer calls it with
 * inputs of its own making (tests/fuzz/run), replay.c with those of corpus/TARGET (an ordinary test of every
 * build).
 *
 * A target fails by crashing, by a finding of a sanitizer, or by a CHECK: what a reader accepted must hold
 * what its header promises. */
#pragma once

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FUZZ_FILES_MAX 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A promise of the reader under test. */
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            fuzz_broken(#condition, __FILE__, __LINE__);                                                     \
    } while (0)
_Noreturn void fuzz_broken(const char *promise, const char *file, int line);

/* A refusal has a code and a sentence. Returns accepted. */
bool fuzz_told(bool accepted, const struct err *err);
extern bool fuzz_verbose; /* print refusals */
extern int fuzz_accepted; /* how often fuzz_told was given true */

/* A folder of this process in memory, made at the first call and removed at its end. */
const char *fuzz_folder(void);
/* FOLDER/NAME, in one of eight buffers. */
const char *fuzz_path(const char *name);
void fuzz_write(const char *path, const void *bytes, size_t count);

/* One input as several files: parts between lines "====" go to names[0], names[1], … of the folder; a file
 * whose part is empty or missing is not there. */
struct fuzz_part {
    const uint8_t *bytes;
    size_t count;
};
void fuzz_split(struct fuzz_part *parts, int count, const uint8_t *data, size_t size);
void fuzz_write_parts(const char *const *names, const struct fuzz_part *parts, int count);
