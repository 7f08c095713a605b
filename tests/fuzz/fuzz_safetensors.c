/* One safetensors file. What is accepted can be looked up by name and read to its last byte. */
#include "fuzz.h"
#include "safetensors.h"

#include <stdlib.h>
#include <string.h>

static unsigned sum; /* so that reading is not optimized away */

static void read_all(const struct safetensors *file)
{
    uint64_t bytes = 0;
    for (int64_t i = 0; i < file->count; i++) {
        const struct safetensor *t = &file->tensors[i];
        struct err err = ERR_INIT;
        CHECK(t->bytes == (uint64_t)t->elements * dtype_bytes(t->dtype));
        CHECK(safetensors_find(file, t->name) == t);
        const unsigned char *mapped = safetensors_data(file, t);
        unsigned char *copied = malloc(t->bytes + 1);
        CHECK(safetensors_read(file, t, 0, copied, t->bytes, &err));
        CHECK(memcmp(mapped, copied, t->bytes) == 0);
        for (uint64_t at = 0; at < t->bytes; at++)
            sum += mapped[at];
        bytes += t->bytes;
        free(copied);
    }
    CHECK(bytes <= file->map.count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *path = fuzz_path("one.safetensors");
    struct safetensors file;
    struct err err = ERR_INIT;
    fuzz_write(path, data, size);
    if (!fuzz_told(safetensors_open(&file, path, &err), &err))
        return 0;
    read_all(&file);
    (void)safetensors_metadata(&file, "format");
    safetensors_close(&file);
    return 0;
}
