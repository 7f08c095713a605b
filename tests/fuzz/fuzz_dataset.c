/* A dataset: manifest.json and data.safetensors, checksums and all. What is accepted keeps its bounds. */
#include "dataset.h"
#include "fuzz.h"

#include <stdlib.h>

static void read_rows(const struct dataset *d)
{
    int64_t tokens = 0;
    for (int64_t row = 0; row < dataset_rows(d); row++) {
        int64_t length = dataset_row_length(d, row), first = dataset_row_first_trained(d, row);
        CHECK(length >= 1 && length <= DATASET_ROW_TOKENS_MAX);
        CHECK(first >= -1 && first < length);
        int32_t *token = malloc((size_t)length * sizeof *token);
        uint8_t *trained = malloc((size_t)length);
        dataset_row_read(d, row, length, token, trained);
        for (int64_t t = 0; t < length; t++)
            CHECK(token[t] >= 0 && token[t] < d->vocabulary && trained[t] <= 1);
        CHECK(dataset_row_labels(d, row, length) < length);
        tokens += length;
        free(token);
        free(trained);
    }
    CHECK(tokens == d->statistics.tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"manifest.json", "data.safetensors"};
    struct fuzz_part parts[2];
    struct dataset dataset;
    struct err err = ERR_INIT;
    fuzz_split(parts, 2, data, size);
    fuzz_write_parts(names, parts, 2);
    if (!fuzz_told(dataset_open(&dataset, fuzz_folder(), &err), &err))
        return 0;
    read_rows(&dataset);
    dataset_close(&dataset);
    return 0;
}
