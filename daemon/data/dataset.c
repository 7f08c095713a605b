#include "dataset.h"

#include "dataset_manifest.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const int dataset_percentiles[DATASET_PERCENTILES] = {5, 25, 50, 75, 95};

static int64_t row_start(const struct dataset *dataset, int64_t row)
{
    int64_t start;
    memcpy(&start, dataset->row_start + row * (int64_t)sizeof start, sizeof start);
    return start;
}

static uint32_t token_at(const struct dataset *dataset, int64_t index)
{
    uint32_t wide;
    uint16_t narrow;
    if (dataset->wide) {
        memcpy(&wide, dataset->token_bytes + index * (int64_t)sizeof wide, sizeof wide);
        return wide;
    }
    memcpy(&narrow, dataset->token_bytes + index * (int64_t)sizeof narrow, sizeof narrow);
    return narrow;
}

int64_t dataset_row_length(const struct dataset *dataset, int64_t row)
{
    return row_start(dataset, row + 1) - row_start(dataset, row);
}

int64_t dataset_row_labels(const struct dataset *dataset, int64_t row, int64_t cutoff)
{
    const uint8_t *trained = dataset->trained + row_start(dataset, row);
    int64_t length = dataset_row_length(dataset, row), labels = 0;
    for (int64_t t = 1; t < (length < cutoff ? length : cutoff); t++)
        labels += trained[t];
    return labels;
}

int64_t dataset_row_first_trained(const struct dataset *dataset, int64_t row)
{
    const uint8_t *trained = dataset->trained + row_start(dataset, row);
    int64_t length = dataset_row_length(dataset, row);
    const uint8_t *first = memchr(trained, 1, (size_t)length);
    return first ? first - trained : -1;
}

void dataset_row_read(const struct dataset *dataset, int64_t row, int64_t count, int32_t *tokens,
                      uint8_t *trained)
{
    int64_t start = row_start(dataset, row);
    INVARIANT(count <= dataset_row_length(dataset, row));
    for (int64_t t = 0; tokens && t < count; t++)
        tokens[t] = (int32_t)token_at(dataset, start + t);
    if (trained)
        memcpy(trained, dataset->trained + start, (size_t)count);
}

static int by_length(const void *left, const void *right)
{
    const int32_t *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

void dataset_count_percentiles(struct dataset_statistics *statistics, int32_t *lengths, int64_t rows)
{
    qsort(lengths, (size_t)rows, sizeof *lengths, by_length);
    for (int i = 0; i < DATASET_PERCENTILES; i++) {
        int64_t rank =
            (dataset_percentiles[i] * rows + 99) / 100; /* nearest rank: the ceil(p n)-th, from 1 */
        statistics->percentile[i] = rows > 0 ? lengths[rank > 0 ? rank - 1 : 0] : 0;
    }
    statistics->longest = rows > 0 ? lengths[rows - 1] : 0;
}

#define refuse(path, err, ...)                                                                               \
    err_unsound(err, path, "dataset", "make it again with `trainctl data prepare`", __VA_ARGS__)

/* The tensor as a list of one of two dtypes, or NULL. */
static const struct safetensor *find_list(const struct dataset *dataset, const char *name, enum dtype dtype,
                                          enum dtype other, const char *folder, struct err *err)
{
    const struct safetensor *t = safetensors_find(&dataset->file, name);
    if (t && t->dims == 1 && (t->dtype == dtype || t->dtype == other))
        return t;
    refuse(folder, err, "its tensor %s is missing or not a list of %s", name, dtype_name(dtype));
    return NULL;
}

static bool find_tensors(struct dataset *dataset, const struct dataset_manifest *manifest, const char *folder,
                         struct err *err)
{
    const struct safetensor *tokens = find_list(dataset, "tokens", DTYPE_U16, DTYPE_U32, folder, err);
    const struct safetensor *trained = find_list(dataset, "trained", DTYPE_U8, DTYPE_U8, folder, err);
    const struct safetensor *starts = find_list(dataset, "row_start", DTYPE_I64, DTYPE_I64, folder, err);
    if (!tokens || !trained || !starts)
        return false;
    if (tokens->elements != manifest->statistics.tokens || trained->elements != tokens->elements ||
        starts->elements != manifest->statistics.rows + 1)
        return refuse(folder, err, "its tensors have not the lengths that its manifest says");
    dataset->token_bytes = safetensors_data(&dataset->file, tokens);
    dataset->trained = safetensors_data(&dataset->file, trained);
    dataset->row_start = safetensors_data(&dataset->file, starts);
    dataset->wide = tokens->dtype == DTYPE_U32;
    return true;
}

/* row_start is checked before anything is read through it. */
static bool check_starts(const struct dataset *dataset, const struct dataset_manifest *manifest,
                         const char *folder, struct err *err)
{
    int64_t rows = manifest->statistics.rows;
    if (row_start(dataset, 0) != 0 || row_start(dataset, rows) != manifest->statistics.tokens)
        return refuse(folder, err, "its rows do not cover its tokens");
    for (int64_t row = 0; row < rows; row++) {
        int64_t start = row_start(dataset, row), end = row_start(dataset, row + 1);
        if (start < 0 || end <= start || end - start != manifest->lengths[row])
            return refuse(folder, err, "row %" PRId64 " has not the length that the manifest says", row);
    }
    return true;
}

static bool check_contents(const struct dataset *dataset, const struct dataset_manifest *manifest,
                           const char *folder, struct err *err)
{
    int64_t labelled = 0, tokens = manifest->statistics.tokens;
    for (int64_t t = 0; t < tokens; t++) {
        if (token_at(dataset, t) >= (uint64_t)manifest->vocabulary)
            return refuse(folder, err, "token %" PRId64 " is %" PRIu32 ", outside the vocabulary of %" PRId64,
                          t, token_at(dataset, t), manifest->vocabulary);
        if (dataset->trained[t] > 1)
            return refuse(folder, err, "the flag of token %" PRId64 " is neither 0 nor 1", t);
    }
    for (int64_t row = 0; row < manifest->statistics.rows; row++) {
        labelled += dataset_row_labels(dataset, row, DATASET_ROW_TOKENS_MAX);
        if (dataset_row_first_trained(dataset, row) != manifest->first_trained[row])
            return refuse(folder, err, "row %" PRId64 " is first trained elsewhere than the manifest says",
                          row);
    }
    if (labelled != manifest->statistics.labelled)
        return refuse(folder, err, "it has %" PRId64 " labels, but its manifest says %" PRId64, labelled,
                      manifest->statistics.labelled);
    return true;
}

static bool check(struct dataset *dataset, struct dataset_manifest *manifest, const char *folder,
                  struct err *err)
{
    dataset_manifest_hash_data(dataset->hash, dataset->file.map.bytes, dataset->file.map.count);
    if (*manifest->data_xxh3 && strcmp(manifest->data_xxh3, dataset->hash) != 0)
        return refuse(folder, err, DATASET_DATA_NAME " is not the file that the manifest was made for");
    if (!find_tensors(dataset, manifest, folder, err) || !check_starts(dataset, manifest, folder, err) ||
        !check_contents(dataset, manifest, folder, err))
        return false;
    dataset->statistics = manifest->statistics;
    dataset_count_percentiles(&dataset->statistics, manifest->lengths, manifest->statistics.rows);
    dataset->vocabulary = manifest->vocabulary;
    dataset->cutoff = manifest->cutoff;
    memcpy(dataset->tokenizer, manifest->tokenizer, sizeof dataset->tokenizer);
    memcpy(dataset->tokenizer_hash, manifest->tokenizer_hash, sizeof dataset->tokenizer_hash);
    memcpy(dataset->sort_key, manifest->sort_key, sizeof dataset->sort_key);
    return true;
}

bool dataset_open(struct dataset *dataset, const char *folder, struct err *err)
{
    struct dataset made = {0};
    struct dataset_manifest manifest = {0};
    char path[LIMIT_PATH_BYTES];
    bool good = dataset_manifest_read(&manifest, folder, err) &&
                file_join(path, sizeof path, folder, DATASET_DATA_NAME, err) &&
                safetensors_open(&made.file, path, err) && check(&made, &manifest, folder, err);
    dataset_manifest_done(&manifest);
    if (!good) {
        dataset_close(&made);
        return false;
    }
    *dataset = made;
    return true;
}

void dataset_close(struct dataset *dataset)
{
    safetensors_close(&dataset->file);
    *dataset = (struct dataset){0};
}
