/* A dataset on disk: a folder with data.safetensors (tokens u16 or u32, trained u8, row_start i64) and
 * manifest.json.
 *
 * Row r is tokens[row_start[r]] … tokens[row_start[r+1]-1]; row_start has rows+1 entries. A token with
 * trained = 1 is one that the loss asks for; the first token of a row has nothing before it and is never
 * asked for, so a row's labels are its trained tokens from index 1 on. Reading is through a mapping;
 * dataset_open reads everything once and checks it (ranges, flags, vocabulary, the manifest's numbers,
 * checksums), so that nothing later can go wrong or differ. */
#pragma once

#include "bounds.h"
#include "err.h"
#include "safetensors.h"

#include <stdint.h>

#define DATASET_ROWS_MAX       (1 << 22) /* the manifest lists every row */
#define DATASET_ROW_TOKENS_MAX (1 << 20) /* of one row */
#define DATASET_VERSION        1
#define DATASET_HASH_BYTES     40

#define DATASET_PERCENTILES 5

struct dataset_statistics {
    int64_t rows, tokens;
    int64_t labelled; /* labels at full length */
    int64_t longest;
    int64_t percentile[DATASET_PERCENTILES]; /* of the rows' lengths, nearest rank: dataset_percentiles */
    int64_t cut;                             /* rows shortened by data prepare's cutoff */
    int64_t dropped;                         /* rows left out by it: no label */
};
extern const int dataset_percentiles[DATASET_PERCENTILES]; /* 5, 25, 50, 75, 95 */

struct dataset {
    struct safetensors file;
    const unsigned char *token_bytes, *trained, *row_start; /* into the mapping; any alignment */
    bool wide;                                              /* tokens are u32, else u16 */
    int64_t vocabulary;                                     /* every token is below it */
    int64_t cutoff;                                         /* of data prepare */
    char tokenizer[LIMIT_NAME_BYTES], tokenizer_hash[DATASET_HASH_BYTES],
        sort_key[LIMIT_NAME_BYTES]; /* "": unsorted */
    char hash[DATASET_HASH_BYTES];  /* of the contents: two datasets with the same bytes have the same */
    struct dataset_statistics statistics;
};

bool dataset_open(struct dataset *dataset, const char *folder, struct err *err) MUST_USE;
void dataset_close(struct dataset *dataset); /* zeroed: fine */

static inline int64_t dataset_rows(const struct dataset *dataset)
{
    return dataset->statistics.rows;
}
int64_t dataset_row_length(const struct dataset *dataset, int64_t row);
int64_t dataset_row_labels(const struct dataset *dataset, int64_t row,
                           int64_t cutoff); /* of its first cutoff tokens */
/* tokens[count], trained[count] (either may be NULL): the row's first count tokens. */
void dataset_row_read(const struct dataset *dataset, int64_t row, int64_t count, int32_t *tokens,
                      uint8_t *trained);
int64_t dataset_row_first_trained(const struct dataset *dataset, int64_t row); /* -1: none */

/* Percentiles of lengths[rows], which gets sorted. */
void dataset_count_percentiles(struct dataset_statistics *statistics, int32_t *lengths, int64_t rows);
