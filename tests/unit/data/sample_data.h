/* Small datasets for tests, made with the real writer. */
#pragma once

#include "dataset_writer.h"
#include "tokenizer_bytes.h"

#include "temp_folder.h"

#include <string.h>

/* Row r has lengths[r] tokens, token t being (r + t) % 250; trained from index first[r] on (first NULL: all).
 */
static inline bool sample_data_make(const char *folder, const int32_t *lengths, const int32_t *first,
                                    int64_t rows, int64_t cutoff, struct err *err)
{
    char hash[17];
    struct dataset_writer writer = {0};
    struct dataset_writer_options options = {.tokenizer = TOKENIZER_BYTES_NAME,
                                             .vocabulary = BYTES_VOCABULARY,
                                             .tokenizer_hash = tokenizer_bytes_hash(hash),
                                             .cutoff = cutoff,
                                             .overwrite = true};
    bool good = dataset_writer_open(&writer, folder, &options, err);
    for (int64_t r = 0; good && r < rows; r++) {
        uint32_t tokens[512];
        uint8_t trained[512];
        for (int32_t t = 0; t < lengths[r]; t++) {
            tokens[t] = (uint32_t)((r + t) % 250);
            trained[t] = !first || t >= first[r];
        }
        good = dataset_writer_add(&writer, tokens, trained, lengths[r], NULL, err);
    }
    good = good && dataset_writer_finish(&writer, err);
    dataset_writer_abandon(&writer);
    return good;
}
