/* manifest.json of a dataset: what is said about data.safetensors, and checksums of both. Inside daemon/data.
 *
 * Checksums are XXH3: "data_xxh3" (128 bits) of the bytes of data.safetensors, "checksum" (64 bits) of the
 * manifest itself without it, compact and with sorted keys. Both may be absent, for datasets that other tools
 * make. */
#pragma once

#include "dataset.h"

struct json_t;

#define DATASET_DATA_NAME     "data.safetensors"
#define DATASET_MANIFEST_NAME "manifest.json"

struct dataset_manifest {
    char tokenizer[LIMIT_NAME_BYTES], tokenizer_hash[DATASET_HASH_BYTES], sort_key[LIMIT_NAME_BYTES];
    char data_xxh3[DATASET_HASH_BYTES]; /* "": not said */
    int64_t vocabulary, cutoff;
    struct dataset_statistics statistics; /* percentiles are not read: they are counted */
    int32_t *lengths, *first_trained;     /* [rows]; malloc'ed */
};

bool dataset_manifest_read(struct dataset_manifest *manifest, const char *folder, struct err *err) MUST_USE;
bool dataset_manifest_write(const struct dataset_manifest *manifest, const char *folder,
                            struct err *err) MUST_USE;         /* synced */
void dataset_manifest_done(struct dataset_manifest *manifest); /* zeroed: fine */

/* 32 hex digits over the bytes. */
void dataset_manifest_hash_data(char text[DATASET_HASH_BYTES], const void *bytes, size_t count);
