/* A checkpoint: everything that decides the next step, as a folder that any layout can load.
 *
 * - NAME/shard-00000.safetensors …: one a writing rank: its slices, bit for bit as they are stored
 * - NAME/manifest.json: sealed (manifest.h): which slice of which tensor lies where, the files' checksums,
 * the model's config, the training state as the engine gave it
 *
 * Every tensor of the parameter table has up to six parts, by the formats of weight, m and v: the main
 * arrays, and the second ones (weight.extra: compensation, low half or code; m.scale, v.scale: q8's scales,
 * one a group of 32). A part is one array of `length` elements in the hub's row-major order; a slice is a
 * range of it, counted in its own elements. A checkpoint is whole when its slices cover every part of every
 * tensor exactly once; nothing else is ever opened.
 *
 * No function here talks to other ranks: each does its rank's part, and the engine agrees between the phases.
 *
 * - save: rank 0 begins, all write_shard, rank 0 commits; after any failure, rank 0 aborts
 * - load: all open, all verify (each its share of the files), all read …, all close
 *
 * Written in NAME.partial, synced, renamed: a save cut off anywhere leaves the checkpoints that were there
 * before. A failed sync condemns the save: its files are removed, nothing is tried again. Owner: the engine's
 * thread. */
#pragma once

#include "band.h"
#include "checkpoint_list.h"
#include "device.h"
#include "err.h"
#include "params.h"
#include "state.h"

#include <stdbool.h>
#include <stdint.h>

#define CHECKPOINT_BUFFER_BYTES (4 << 20) /* host memory that a save or a check takes, a load twice */
#define CHECKPOINT_FILES_MAX    LIMIT_RANKS

struct json_t; /* jansson's */

/* 2 * enum state_part + (1 for the second array); the names are audit's kinds. */
#define CHECKPOINT_PARTS 6
const char *checkpoint_part_name(int part);

struct checkpoint_formats {
    enum weight_format weight;
    enum moment_format m, v;
};
/* The element type and length of a part of a tensor with so many elements; false where the formats have no
 * such part. */
bool checkpoint_part_shape(const struct checkpoint_formats *formats, int part, int64_t elements,
                           enum dtype *dtype, int64_t *length);

struct checkpoint_slice {
    int32_t tensor; /* row of the parameter table */
    int32_t part;
    struct band_range range; /* in elements of the part's array; count > 0 */
    void *memory;            /* device; range.count elements of the part's dtype */
};

/* ---- save ---- */

/* Rank 0. Makes the folder if need be, removes what an earlier attempt of this name left, makes NAME.partial.
 * A whole checkpoint of this name is refused (ERR_STATE) unless `replace`; it then stands until the commit.
 */
bool checkpoint_save_begin(const char *folder, const char *name, bool replace, struct err *err) MUST_USE;

/* Each rank, once begin is agreed on. Takes the file's whole size on the disk first, so a full disk is found
 * before anything is copied. The table may be of the rank's pieces: only names and whole shapes are read.
 * *fragment (malloc'ed text) is for rank 0's commit. On failure the file is gone. */
bool checkpoint_save_shard(const char *folder, const char *name, int rank, const struct param_table *table,
                           const struct checkpoint_formats *formats, const struct checkpoint_slice *slices,
                           int64_t count, struct device *device, char **fragment, struct err *err) MUST_USE;

/* What a commit writes down. `about`: name, run, policy, automatic, step, total_steps. */
struct checkpoint_record {
    const struct checkpoint_about *about;
    const struct param_table *table;
    const struct checkpoint_formats *formats;
    const char *config;         /* the text of config.json (model_config_print) */
    const struct json_t *state; /* an object, kept as it is */
};

/* Rank 0, once every rank's shard is agreed on: checks that the fragments cover everything once, writes the
 * manifest, renames. After success the checkpoint is on the disk; *committed (may be NULL) says what was
 * written. */
bool checkpoint_save_commit(const char *folder, const struct checkpoint_record *record,
                            const char *const *fragments, int fragment_count, bool replace,
                            struct checkpoint_about *committed, struct err *err) MUST_USE;

/* Rank 0, after a failure anywhere: removes NAME.partial. What cannot be removed is logged; no list shows it.
 */
void checkpoint_save_abort(const char *folder, const char *name);

/* ---- load ---- */

struct checkpoint_file {
    char name[LIMIT_NAME_BYTES];
    int64_t bytes;
    char hash[MANIFEST_HASH_BYTES];
    int fd; /* -1 until it is read from */
};

struct checkpoint_place { /* one slice, as the manifest has it */
    int32_t tensor, part, file;
    struct band_range range;
    int64_t offset; /* bytes from the file's start */
};

struct checkpoint {
    char folder[MANIFEST_PATH_BYTES]; /* FOLDER/NAME */
    struct checkpoint_about about;
    struct checkpoint_formats formats;
    struct model_config config;
    struct param_table table;
    int64_t file_count, place_count;
    struct checkpoint_file *files;
    struct checkpoint_place *places; /* sorted by tensor, part, band, start */
    struct json_t *state;            /* what the engine gave */
};

/* Reads and checks the manifest: config, files present with their sizes, every slice inside its file and none
 * overlapping, every part of every tensor covered exactly once. ERR_NOT_FOUND, ERR_CORRUPT naming the file,
 * ERR_UNSUPPORTED for a newer version or a model that is not built. */
bool checkpoint_open(struct checkpoint *checkpoint, const char *folder, const char *name,
                     struct err *err) MUST_USE;
void checkpoint_close(struct checkpoint *checkpoint); /* zeroed: fine */

/* Reads files index, index + count, … through, from the disk rather than the page cache where the system lets
 * us, and compares checksums: with index = rank and count = ranks, all ranks together verify everything.
 * ERR_CORRUPT names the file. Ticks the watchdog. */
bool checkpoint_verify(const struct checkpoint *checkpoint, int64_t index, int64_t count,
                       struct err *err) MUST_USE;

/* A slice into its device memory, as it was stored, whatever slices it was saved in. The tensor is a row of
 * the checkpoint's own table, equal to the model's row of the same name. The range must lie inside the part.
 * Files are read in spans of up to CHECKPOINT_BUFFER_BYTES; where columns were cut otherwise when it was
 * saved, these spans hold elements of other ranks too. */
bool checkpoint_read(struct checkpoint *checkpoint, struct device *device,
                     const struct checkpoint_slice *slice, struct err *err) MUST_USE;
