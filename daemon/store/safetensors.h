/* safetensors files (the hub's format): 8 bytes of header length, a JSON header, then the tensors' bytes.
 *
 * Reading: the file is mapped, the header is checked whole before anything is looked up (lengths, counts,
 * dtypes, shape products, ranges that overlap, leave holes or pass the end, names twice). Every error is
 * ERR_CORRUPT, ERR_INVALID, ERR_UNSUPPORTED or ERR_IO; nothing in a file can crash the reader. Writing:
 * names, dtypes and shapes first, then bytes by ranges of a tensor, in any order, from anywhere: no tensor
 * need ever be whole in memory. The caller chooses a name aside and renames (file.h).
 * Not for two threads at once, except safetensors_read, safetensors_find and safetensors_writer_put. */
#pragma once

#include "bounds.h"
#include "dtype.h"
#include "err.h"
#include "file.h"

#include <stdint.h>

#define SAFETENSORS_TENSORS_MAX (1 << 18) /* in one file */
#define SAFETENSORS_SHARDS_MAX  4096      /* files of one hub folder */

struct json_t; /* jansson's */

struct safetensor {
    char name[LIMIT_NAME_BYTES];
    enum dtype dtype;
    int dims; /* 0: a scalar */
    int64_t shape[LIMIT_DIMS];
    int64_t elements;
    uint64_t start, bytes; /* in the file, from its first byte; filled in by the reader and by writer_open */
};

struct safetensors {
    struct file_map map;
    int fd; /* for safetensors_read; the map serves small and hot things */
    int64_t count;
    struct safetensor *tensors; /* sorted by name */
    struct json_t *metadata;    /* "__metadata__": strings by name, or NULL */
};

bool safetensors_open(struct safetensors *file, const char *path, struct err *err) MUST_USE;
void safetensors_close(struct safetensors *file); /* zeroed: fine */

const struct safetensor *safetensors_find(const struct safetensors *file, const char *name); /* or NULL */
const char *safetensors_metadata(const struct safetensors *file, const char *key);           /* or NULL */
const unsigned char *safetensors_data(const struct safetensors *file,
                                      const struct safetensor *t); /* any alignment */

/* Bytes first … first+count-1 of the tensor, by pread: a failing disk is an error here, not a signal. */
bool safetensors_read(const struct safetensors *file, const struct safetensor *t, uint64_t first, void *bytes,
                      size_t count, struct err *err) MUST_USE;

/* A hub-shaped folder: model.safetensors, or model.safetensors.index.json and its shards (all opened and
 * checked: every tensor the index names is in the shard it says, no name is in two shards). */
struct safetensors_set {
    int64_t files;
    struct safetensors *file;
    int64_t count;
    struct safetensors_place {
        const struct safetensor *tensor;
        const struct safetensors *file;
    } * places; /* sorted by name */
};

bool safetensors_set_open(struct safetensors_set *set, const char *folder, struct err *err) MUST_USE;
void safetensors_set_close(struct safetensors_set *set); /* zeroed: fine */
const struct safetensors_place *safetensors_set_find(const struct safetensors_set *set,
                                                     const char *name); /* or NULL */

struct safetensors_note { /* one entry of "__metadata__" */
    const char *key, *value;
};

struct safetensors_writer {
    int fd;
    char path[LIMIT_PATH_BYTES];
    int64_t count;
    const struct safetensor *tensors; /* the caller's, which outlive the writer */
    uint64_t data_bytes;              /* of all tensors */
    _Atomic uint64_t written;         /* of them, so far */
    bool open;
};

/* Creates path (or empties it), takes its whole size on the disk (a full disk is refused here) and writes the
 * header. Of tensors[], name, dtype, dims and shape are read; elements, start and bytes are filled in. The
 * data begin at a multiple of 64, each tensor at a multiple of its element size if wide ones come first.
 * Tensors lie in the order given. Then every byte of every tensor is put exactly once, in any order. */
bool safetensors_writer_open(struct safetensors_writer *writer, const char *path, struct safetensor *tensors,
                             int64_t count, const struct safetensors_note *notes, size_t note_count,
                             struct err *err) MUST_USE;
bool safetensors_writer_put(struct safetensors_writer *writer, int64_t tensor, uint64_t first,
                            const void *bytes, size_t count, struct err *err) MUST_USE;
bool safetensors_writer_finish(struct safetensors_writer *writer,
                               struct err *err) MUST_USE; /* syncs and closes */
void safetensors_writer_abandon(
    struct safetensors_writer *writer); /* removes the file; finished or zeroed: nothing */
