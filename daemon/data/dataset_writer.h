/* Writes a dataset, streaming: rows are spooled to files aside as they come, only an index of them is in
 * memory; finish orders them, writes data.safetensors and the manifest, syncs, and renames the whole folder
 * into place. */
#pragma once

#include "dataset.h"

#include <stdio.h>

struct dataset_row_entry;

enum dataset_sort_type { DATASET_SORT_NONE, DATASET_SORT_NUMBER, DATASET_SORT_TEXT };

/* What a row is sorted by: all rows of a dataset by the same type, none without one. Numbers by value, texts
 * by bytes, equal ones in the order they came. */
struct dataset_sort_value {
    enum dataset_sort_type type;
    double number;
    const char *text;
};

struct dataset_writer {
    char folder[LIMIT_PATH_BYTES], aside[LIMIT_PATH_BYTES];
    char tokenizer[LIMIT_NAME_BYTES], tokenizer_hash[DATASET_HASH_BYTES], sort_key[LIMIT_NAME_BYTES];
    int64_t vocabulary, cutoff;
    FILE *tokens_spool, *trained_spool;
    struct dataset_row_entry *rows;
    int64_t row_count, row_capacity, tokens;
    int64_t cut, dropped;
    enum dataset_sort_type sort_type; /* of the first row */
    bool overwrite;
    bool open;
};

struct dataset_writer_options {
    const char *tokenizer, *tokenizer_hash;
    int64_t vocabulary;
    int64_t cutoff;       /* longer rows are cut, and counted */
    const char *sort_key; /* NULL: the order they come in */
    bool overwrite;       /* else an existing folder is refused; only a dataset is ever replaced */
};

bool dataset_writer_open(struct dataset_writer *writer, const char *folder,
                         const struct dataset_writer_options *options, struct err *err) MUST_USE;
/* A row without a label within the cutoff is left out and counted. tokens[count] < vocabulary, trained[count]
 * 0 or 1. */
bool dataset_writer_add(struct dataset_writer *writer, const uint32_t *tokens, const uint8_t *trained,
                        int64_t count, const struct dataset_sort_value *sort_value, struct err *err) MUST_USE;
bool dataset_writer_finish(struct dataset_writer *writer,
                           struct err *err) MUST_USE; /* no row at all: refused */
void dataset_writer_abandon(
    struct dataset_writer *writer); /* removes what lies aside; finished or zeroed: nothing */
