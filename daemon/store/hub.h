/* Models as they are on the hub: a folder with config.json and safetensors, one file or an index and its
 * shards, in bf16, fp16 or fp32.
 *
 * In: strict. Every row of the parameter table is there exactly once with its shape; a name that the
 * architecture does not have is refused, except old checkpoints' rotary buffers (rotary_emb.inv_freq:
 * computed here) and, in a tied model, a second lm_head.weight, which must equal the embedding. Values arrive
 * in fp32, exactly as stored.
 *
 *     all: open | all: check_tied, read own ranges without a sink (phase 1) | all: read them again (phase 2)
 * | close
 *
 * Out: a folder DIR/ in the same shape, written as DIR.trainerd-partial, synced and renamed, so that it is
 * whole or absent. Tensors lie in the table's order (the hub's), in files of up to 4 GiB; every rank writes
 * its own ranges.
 *
 *     rank 0: export_begin | all: export_join, export_put …, export_finish | rank 0: export_commit
 *                                                                            after any failure, rank 0:
 * export_abort
 *
 * No function here talks to other ranks: the engine agrees between the phases. Owner: the engine's thread. */
#pragma once

#include "band.h"
#include "dtype.h"
#include "err.h"
#include "manifest.h"
#include "params.h"
#include "safetensors.h"

#include <stdbool.h>
#include <stdint.h>

#define HUB_PIECE_ELEMENTS (1 << 20)   /* converted at a time; a multiple of STATE_ALIGNMENT */
#define HUB_SHARD_BYTES    (4ll << 30) /* of one file of an export; a larger tensor has a file of its own */

struct hub {
    char folder[LIMIT_PATH_BYTES];
    struct model_config config;
    struct param_table table;
    struct safetensors_set files;
    const struct safetensors_place **rows;     /* [table.count] */
    const struct safetensors_place *tied_head; /* the duplicate of a tied model, or NULL */
    char *raw;                                 /* [HUB_PIECE_ELEMENTS] as the file has them */
    float *values;                             /* [HUB_PIECE_ELEMENTS] */
};

/* Elements start … start+count-1 of the range's band, count <= HUB_PIECE_ELEMENTS; values is host memory,
 * valid during the call. */
typedef void (*hub_sink)(void *context, int32_t tensor, int64_t start, const float *values, int64_t count);

/* Config, names, shapes and dtypes: no weights are read. path: a folder, or its config.json. Errors name
 * folder and tensor. */
bool hub_open(struct hub *hub, const char *path, struct err *err) MUST_USE;
void hub_close(struct hub *hub); /* zeroed: fine */

/* A tied model's second head, by the index-th of `count` shares: ERR_INVALID when it is not the embedding's.
 */
bool hub_check_tied(struct hub *hub, int64_t index, int64_t count, struct err *err) MUST_USE;

/* Reads a range of a row of the table by pieces that start at range->start + a multiple of
 * HUB_PIECE_ELEMENTS. Of a band of columns the file is read in spans, and what lies between is left out. sink
 * NULL: only reads it through. */
bool hub_read(struct hub *hub, int32_t tensor, const struct band_range *range, hub_sink sink, void *context,
              struct err *err) MUST_USE;

/* ---- export ---- */

struct hub_export_file {
    char name[LIMIT_NAME_BYTES];
    int fd;
};

struct hub_export_place {
    int32_t file;
    int64_t offset; /* of the tensor's first byte in its file */
};

struct hub_export {
    char partial[MANIFEST_PATH_BYTES];
    const struct param_table *table; /* the caller's */
    enum dtype dtype;
    int32_t file_count;
    struct hub_export_file *files;
    struct hub_export_place *places; /* [table->count] */
    char *buffer;                    /* one converted piece */
};

struct hub_export_options {
    enum dtype dtype;    /* DTYPE_BF16 or DTYPE_F32 */
    const char *source;  /* the folder the model came from, for tokenizer and generation files; NULL: none */
    int64_t shard_bytes; /* 0: HUB_SHARD_BYTES */
};

/* The table of an export may be of the rank's pieces: only names and whole shapes are read.
 *
 * Rank 0: the partial folder with config.json, the files carried over from `source`, the index, and every
 * safetensors file with its header and its whole size taken on the disk. A folder that exists and is not
 * empty is refused. */
bool hub_export_begin(const char *folder, const struct model_config *config, const struct param_table *table,
                      const struct hub_export_options *options, struct err *err) MUST_USE;

/* Each rank, rank 0 too: opens what begin made. */
bool hub_export_join(struct hub_export *export, const char *folder, const struct param_table *table,
                     const struct hub_export_options *options, struct err *err) MUST_USE;

/* A range of a tensor from host memory in fp32 or bf16. To bf16, fp32 is rounded to nearest even and bf16
 * kept as it is; to fp32 both are exact. A band of columns is written row by row. */
bool hub_export_put(struct hub_export *export, int32_t tensor, const struct band_range *range,
                    enum dtype dtype, const void *values, struct err *err) MUST_USE;

/* Each rank, when its ranges are written: syncs. A failure condemns the export: abort. */
bool hub_export_finish(struct hub_export *export, struct err *err) MUST_USE;
void hub_export_done(struct hub_export *export); /* finished or not; zeroed: fine */

bool hub_export_commit(const char *folder, int64_t *bytes,
                       struct err *err) MUST_USE; /* rank 0; bytes may be NULL */
void hub_export_abort(const char *folder);        /* rank 0 */
