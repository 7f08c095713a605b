/* A checkpoint: its manifest without the seal (which is put on here, else nothing would pass), and two
 * shards. What is accepted can be verified and read whole. */
#include "checkpoint.h"
#include "file.h"
#include "fuzz.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

/* Host memory is this device's memory. */
static void copy(struct queue *queue, void *to, const void *from, size_t bytes)
{
    (void)queue;
    for (size_t i = 0; i < bytes; i++)
        ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
}
static const struct device_backend backend = {.name = "host", .copy_in = copy, .copy_out = copy};
static struct device device = {.name = "host", .backend = &backend};

static void write_sealed(const char *path, const struct fuzz_part *body)
{
    char *text;
    size_t bytes;
    XXH128_hash_t hash = XXH3_128bits(body->bytes, body->count);
    FILE *out = open_memstream(&text, &bytes);
    fwrite(body->bytes, 1, body->count, out);
    fprintf(out, "\"xxh3\": \"%016" PRIx64 "%016" PRIx64 "\"\n}\n", (uint64_t)hash.high64,
            (uint64_t)hash.low64);
    fclose(out);
    fuzz_write(path, text, bytes);
    free(text);
}

static void read_all(struct checkpoint *c)
{
    for (int32_t tensor = 0; tensor < c->table.count; tensor++)
        for (int part = 0; part < CHECKPOINT_PARTS; part++) {
            enum dtype dtype;
            int64_t length;
            struct err err = ERR_INIT;
            if (!checkpoint_part_shape(&c->formats, part, c->table.params[tensor].elements, &dtype, &length))
                continue;
            void *memory = malloc((size_t)length * dtype_bytes(dtype));
            CHECK(memory != NULL); /* the shards hold it all, so it is small */
            struct checkpoint_slice slice = {tensor, part, {.count = length}, memory};
            CHECK(checkpoint_read(c, &device, &slice, &err));
            int64_t columns = c->table.params[tensor].columns; /* and as a rank with half of them would */
            if (columns > 1 && length == c->table.params[tensor].elements) {
                slice.range = (struct band_range){{columns / 2, columns - columns / 2, columns}, 0, 0};
                slice.range.count = band_elements(&slice.range.band, length);
                CHECK(checkpoint_read(c, &device, &slice, &err));
            }
            free(memory);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"it/manifest.json", "it/rank-00000.bin", "it/rank-00001.bin"};
    struct fuzz_part parts[3];
    struct checkpoint checkpoint;
    struct checkpoint_list list;
    struct err err = ERR_INIT;
    CHECK(file_make_folder(fuzz_path("it"), 0700, &err));
    fuzz_split(parts, 3, data, size);
    fuzz_write_parts(names, parts, 3);
    write_sealed(fuzz_path(names[0]), &parts[0]);
    CHECK(checkpoint_list_read(&list, fuzz_folder(), &err) && list.count == 1);
    bool opened = fuzz_told(checkpoint_open(&checkpoint, fuzz_folder(), "it", &err), &err);
    CHECK(!opened || list.items[0].problem[0] == '\0');
    checkpoint_list_done(&list);
    if (!opened)
        return 0;
    (void)fuzz_told(checkpoint_verify(&checkpoint, 0, 1, &err), &err);
    read_all(&checkpoint);
    checkpoint_close(&checkpoint);
    return 0;
}
