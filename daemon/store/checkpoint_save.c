/* Writing a checkpoint: a shard file per rank, then the manifest that makes it one. */
#include "checkpoint.h"
#include "checkpoint_index.h"

#include "file.h"
#include "log.h"
#include "safetensors.h"
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

bool checkpoint_save_begin(const char *folder, const char *name, bool replace, struct err *err)
{
    char final[MANIFEST_PATH_BYTES], partial[MANIFEST_PATH_BYTES];
    if (!checkpoint_name_check(name, err) || !checkpoint_path(final, folder, name, "", NULL, err) ||
        !checkpoint_path(partial, folder, name, CHECKPOINT_PARTIAL, NULL, err) ||
        !file_make_folder(folder, 0700, err))
        return false;
    if (!replace && access(final, F_OK) == 0) {
        err_set(err, ERR_STATE, "there is already a checkpoint \"%s\" in %s", name, folder);
        return err_hint(err, "choose another name, or delete it first: `trainctl checkpoint delete %s`",
                        name);
    }
    return file_remove_tree(partial, err) && file_make_folder(partial, 0700, err);
}

void checkpoint_save_abort(const char *folder, const char *name)
{
    struct err err = ERR_INIT;
    char partial[MANIFEST_PATH_BYTES];
    if (checkpoint_name_check(name, &err) &&
        checkpoint_path(partial, folder, name, CHECKPOINT_PARTIAL, NULL, &err) &&
        !file_remove_tree(partial, &err))
        log_err("store", &err);
}

/* ---- one rank's file ---- */

struct shard {
    char name[LIMIT_NAME_BYTES], path[MANIFEST_PATH_BYTES];
    struct safetensors_writer writer;
    const struct checkpoint_slice **slices; /* sorted: wide elements first, so that all are aligned */
    struct safetensor *tensors;             /* one a slice */
    int64_t count;
    XXH3_state_t *hash;
    char *buffer;
};

static void shard_done(struct shard *shard)
{
    safetensors_writer_abandon(&shard->writer); /* finished: nothing */
    free(shard->slices);
    free(shard->tensors);
    free(shard->buffer);
    XXH3_freeState(shard->hash);
}

/* Sorting pointers needs the element size beside them. */
struct keyed {
    size_t width;
    const struct checkpoint_slice *slice;
};

static int by_width(const void *a, const void *b)
{
    const struct keyed *x = a, *y = b;
    if (x->width != y->width)
        return x->width > y->width ? -1 : 1;
    if (x->slice->tensor != y->slice->tensor)
        return x->slice->tensor < y->slice->tensor ? -1 : 1;
    if (x->slice->part != y->slice->part)
        return x->slice->part < y->slice->part ? -1 : 1;
    return x->slice->range.start < y->slice->range.start ? -1 : x->slice->range.start > y->slice->range.start;
}

static bool shard_sort(struct shard *shard, const struct param_table *table,
                       const struct checkpoint_formats *formats, const struct checkpoint_slice *slices,
                       struct err *err)
{
    struct keyed *keyed = calloc((size_t)shard->count, sizeof *keyed);
    if (!keyed)
        return err_set(err, ERR_MEMORY, "no memory to sort %" PRId64 " slices", shard->count);
    for (int64_t i = 0; i < shard->count; i++) {
        const struct checkpoint_slice *s = &slices[i];
        enum dtype dtype = DTYPE_COUNT;
        int64_t length = 0;
        INVARIANT(s->tensor >= 0 && s->tensor < table->count && s->part >= 0 && s->part < CHECKPOINT_PARTS);
        bool has = checkpoint_part_shape(formats, s->part, param_whole_elements(&table->params[s->tensor]),
                                         &dtype, &length);
        INVARIANT(has && band_fits(&s->range, length));
        keyed[i] = (struct keyed){dtype_bytes(dtype), s};
    }
    qsort(keyed, (size_t)shard->count, sizeof *keyed, by_width);
    for (int64_t i = 0; i < shard->count; i++)
        shard->slices[i] = keyed[i].slice;
    free(keyed);
    return true;
}

/* "model.norm.weight:v.scale:0": tensor, part, first element. "….down_proj.weight:m[:,48:96]:0": the first of
 * these columns. */
static bool shard_describe(struct shard *shard, const struct param_table *table,
                           const struct checkpoint_formats *formats, struct err *err)
{
    for (int64_t i = 0; i < shard->count; i++) {
        const struct checkpoint_slice *s = shard->slices[i];
        const struct param *param = &table->params[s->tensor];
        struct safetensor *t = &shard->tensors[i];
        const struct band *band = &s->range.band;
        char columns[64] = "";
        int64_t length;
        (void)checkpoint_part_shape(formats, s->part, param_whole_elements(param), &t->dtype, &length);
        t->dims = 1;
        t->shape[0] = s->range.count;
        if (band->run)
            snprintf(columns, sizeof columns, "[:,%" PRId64 ":%" PRId64 "]", band->first,
                     band->first + band->run);
        int bytes = snprintf(t->name, sizeof t->name, "%s:%s%s:%" PRId64, param->name,
                             checkpoint_part_name(s->part), columns, s->range.start);
        if (bytes >= (int)sizeof t->name)
            return err_set(err, ERR_UNSUPPORTED, "the tensor name %.60s… is too long for a checkpoint",
                           param->name);
    }
    return true;
}

static bool shard_open(struct shard *shard, const struct param_table *table,
                       const struct checkpoint_formats *formats, const struct checkpoint_slice *slices,
                       struct err *err)
{
    size_t count = (size_t)shard->count;
    shard->slices = calloc(count, sizeof *shard->slices);
    shard->tensors = calloc(count, sizeof *shard->tensors);
    shard->buffer = malloc(CHECKPOINT_BUFFER_BYTES);
    shard->hash = XXH3_createState();
    if (!shard->slices || !shard->tensors || !shard->buffer || !shard->hash)
        return err_set(err, ERR_MEMORY, "no memory to write a shard of %zu slices", count);
    XXH3_128bits_reset(shard->hash);
    return shard_sort(shard, table, formats, slices, err) && shard_describe(shard, table, formats, err) &&
           safetensors_writer_open(&shard->writer, shard->path, shard->tensors, shard->count, NULL, 0, err);
}

/* The header was made by the writer: its bytes are hashed as they lie in the file. */
static bool shard_hash_header(struct shard *shard, struct err *err)
{
    int fd = open(shard->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, "cannot open %s", shard->path);
    uint64_t end = shard->tensors[0].start;
    bool read = true;
    for (uint64_t at = 0; read && at < end; at += CHECKPOINT_BUFFER_BYTES) {
        size_t piece = end - at < CHECKPOINT_BUFFER_BYTES ? (size_t)(end - at) : CHECKPOINT_BUFFER_BYTES;
        read = file_read_all(fd, shard->buffer, piece, (int64_t)at, err);
        if (read)
            XXH3_128bits_update(shard->hash, shard->buffer, piece);
    }
    close(fd);
    return read;
}

/* Tensors lie in the file in their order, without holes, so hashing them in that order hashes the file. Each
 * piece goes through the buffer: the hash then covers the very bytes that were written. */
static bool shard_write_slice(struct shard *shard, int64_t i, struct device *device, struct err *err)
{
    const char *memory = shard->slices[i]->memory;
    uint64_t bytes = shard->tensors[i].bytes;
    INVARIANT(i == 0 || shard->tensors[i].start == shard->tensors[i - 1].start + shard->tensors[i - 1].bytes);
    for (uint64_t at = 0; at < bytes; at += CHECKPOINT_BUFFER_BYTES) {
        size_t piece = bytes - at < CHECKPOINT_BUFFER_BYTES ? (size_t)(bytes - at) : CHECKPOINT_BUFFER_BYTES;
        device_copy_out(device, shard->buffer, memory + at, piece);
        XXH3_128bits_update(shard->hash, shard->buffer, piece);
        if (!safetensors_writer_put(&shard->writer, i, at, shard->buffer, piece, err))
            return false;
        watch_tick();
    }
    return true;
}

static bool shard_write(struct shard *shard, struct device *device, struct err *err)
{
    if (!shard_hash_header(shard, err))
        return false;
    for (int64_t i = 0; i < shard->count; i++)
        if (!shard_write_slice(shard, i, device, err))
            return false;
    return safetensors_writer_finish(&shard->writer, err);
}

/* Columns, where the slice is of some only. */
static bool band_describe(json_t *slice, const struct band *band)
{
    return band->run == 0 || (json_object_set_new(slice, "first", json_integer(band->first)) == 0 &&
                              json_object_set_new(slice, "run", json_integer(band->run)) == 0 &&
                              json_object_set_new(slice, "stride", json_integer(band->stride)) == 0);
}

/* What rank 0 needs to know, as JSON; NULL when there is no memory. shard without slices: no file. */
static char *shard_fragment(const struct shard *shard, const struct param_table *table)
{
    json_t *files = json_array(), *slices = json_array();
    if (shard->count > 0) {
        char hash[MANIFEST_HASH_BYTES];
        const struct safetensor *last = &shard->tensors[shard->count - 1];
        manifest_hash_print(shard->hash, hash);
        json_array_append_new(files, json_pack("{s:s, s:I, s:s}", "name", shard->name, "bytes",
                                               (json_int_t)(last->start + last->bytes), "xxh3", hash));
    }
    for (int64_t i = 0; i < shard->count; i++) {
        const struct checkpoint_slice *s = shard->slices[i];
        const struct safetensor *t = &shard->tensors[i];
        json_t *slice =
            json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "tensor", table->params[s->tensor].name, "part",
                      checkpoint_part_name(s->part), "dtype", dtype_hub_name(t->dtype), "start",
                      (json_int_t)s->range.start, "count", (json_int_t)s->range.count, "file", (json_int_t)0,
                      "offset", (json_int_t)t->start);
        if (band_describe(slice, &s->range.band))
            json_array_append(slices, slice);
        json_decref(slice);
    }
    bool whole =
        json_array_size(files) == (shard->count > 0) && json_array_size(slices) == (size_t)shard->count;
    json_t *root = json_pack("{s:o, s:o}", "files", files, "slices", slices);
    char *text = whole && root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

bool checkpoint_save_shard(const char *folder, const char *name, int rank, const struct param_table *table,
                           const struct checkpoint_formats *formats, const struct checkpoint_slice *slices,
                           int64_t count, struct device *device, char **fragment, struct err *err)
{
    struct shard shard = {.count = count};
    snprintf(shard.name, sizeof shard.name, "shard-%05d.safetensors", rank);
    if (!checkpoint_path(shard.path, folder, name, CHECKPOINT_PARTIAL, shard.name, err))
        return false;
    bool written =
        count == 0 || (shard_open(&shard, table, formats, slices, err) && shard_write(&shard, device, err));
    char *text = NULL;
    if (written && !(text = shard_fragment(&shard, table)))
        written = err_set(err, ERR_MEMORY, "no memory to describe a shard");
    shard_done(&shard);
    if (!written)
        return false; /* a file that was finished goes with the folder: rank 0 aborts */
    *fragment = text;
    return true;
}

/* ---- the manifest ---- */

/* Appends one rank's files and slices; its slices say file 0, which is the next of all files. */
static bool fragment_append(json_t *files, json_t *slices, const char *text, int rank, struct err *err)
{
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    json_t *own_files = json_object_get(root, "files"), *own_slices = json_object_get(root, "slices");
    json_int_t base = (json_int_t)json_array_size(files);
    bool merged = json_is_array(own_files) && json_is_array(own_slices) && json_array_size(own_files) <= 1;
    size_t i;
    json_t *slice;
    json_array_foreach(own_slices, i, slice) merged =
        merged && json_object_set_new(slice, "file", json_integer(base)) == 0;
    merged = merged && json_array_extend(files, own_files) == 0 && json_array_extend(slices, own_slices) == 0;
    json_decref(root);
    return merged || err_set(err, ERR_MEMORY, "what rank %d wrote could not be put into the manifest", rank);
}

static int64_t files_bytes(const json_t *files)
{
    int64_t bytes = 0;
    for (size_t i = 0; i < json_array_size(files); i++)
        bytes += json_integer_value(json_object_get(json_array_get(files, i), "bytes"));
    return bytes;
}

static int64_t serial_next(const char *folder, struct err *err)
{
    struct checkpoint_list list;
    if (!checkpoint_list_read(&list, folder, err))
        return -1;
    int64_t serial = list.count > 0 && list.items[0].serial > 0 ? list.items[0].serial + 1 : 1;
    checkpoint_list_done(&list);
    return serial;
}

static json_t *manifest_head(const struct checkpoint_record *record, int64_t serial, int64_t bytes)
{
    static const char *const weights[] = {
#define X(format, name, main, extra) [format] = name,
        WEIGHT_FORMATS(X)
#undef X
    };
    static const char *const moments[] = {
#define X(format, name, main, extra) [format] = name,
        MOMENT_FORMATS(X)
#undef X
    };
    const struct checkpoint_about *a = record->about;
    return json_pack(
        "{s:s, s:i, s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:{s:s, s:s, s:s}}", "kind", CHECKPOINT_KIND,
        "version", CHECKPOINT_VERSION, "name", a->name, "run", a->run, "policy", a->policy, "automatic",
        (int)a->automatic, "step", (json_int_t)a->step, "total_steps", (json_int_t)a->total_steps, "serial",
        (json_int_t)serial, "time_s", (json_int_t)time(NULL), "bytes", (json_int_t)bytes, "formats", "weight",
        weights[record->formats->weight], "m", moments[record->formats->m], "v", moments[record->formats->v]);
}

/* The whole manifest; NULL on failure. */
static json_t *manifest_make(const char *folder, const struct checkpoint_record *record,
                             const char *const *fragments, int fragment_count, struct err *err)
{
    json_t *files = json_array(), *slices = json_array();
    bool merged = true;
    for (int rank = 0; merged && rank < fragment_count; rank++)
        merged = fragment_append(files, slices, fragments[rank], rank, err);
    int64_t serial = merged ? serial_next(folder, err) : -1;
    json_t *root = serial > 0 ? manifest_head(record, serial, files_bytes(files)) : NULL;
    json_t *config = json_loads(record->config, JSON_REJECT_DUPLICATES, NULL);
    bool made = root && json_object_set(root, "config", config) == 0 &&
                json_object_set(root, "state", (json_t *)(uintptr_t)record->state) == 0 &&
                json_object_set(root, "files", files) == 0 && json_object_set(root, "slices", slices) == 0;
    json_decref(config);
    json_decref(files);
    json_decref(slices);
    if (made)
        return root;
    json_decref(root);
    err_set(err, ERR_MEMORY, "the checkpoint's manifest could not be made");
    return NULL;
}

/* The reader's own check, on what is about to be written. */
static bool manifest_check(json_t *root, const struct checkpoint_record *record, struct err *err)
{
    struct manifest manifest = {.root = root, .path = "the new manifest"};
    struct checkpoint_file *files;
    struct checkpoint_place *places;
    int64_t file_count, place_count;
    if (!checkpoint_index_parse(&manifest, record->table, record->formats, &files, &file_count, &places,
                                &place_count, err))
        return false;
    bool whole = checkpoint_index_check(record->table, record->formats, files, file_count, places,
                                        place_count, manifest.path, err);
    free(files);
    free(places);
    return whole;
}

/* Gives NAME.partial its name. An old checkpoint of this name changes places with it in one step, then goes.
 */
static bool take_name(const char *folder, const char *partial, const char *final, bool replace,
                      struct err *err)
{
    bool there = access(final, F_OK) == 0;
    if (there && !replace)
        return err_set(err, ERR_STATE, "%s has come into being meanwhile", final);
    unsigned how = there ? RENAME_EXCHANGE : 0;
    if (renameat2(AT_FDCWD, partial, AT_FDCWD, final, how) != 0) {
        err_errno(err, "cannot rename %s to %s", partial, final);
        return err_hint(err, there ? "delete the old one first, or choose another name"
                                   : "look at the folder's rights");
    }
    if (file_sync_folder(folder, err))
        return true;
    /* Not known to be on the disk: it must not stand as if it were. */
    (void)renameat2(AT_FDCWD, there ? partial : final, AT_FDCWD, there ? final : partial, how);
    return false;
}

bool checkpoint_save_commit(const char *folder, const struct checkpoint_record *record,
                            const char *const *fragments, int fragment_count, bool replace,
                            struct checkpoint_about *committed, struct err *err)
{
    const char *name = record->about->name;
    char final[MANIFEST_PATH_BYTES], partial[MANIFEST_PATH_BYTES], path[MANIFEST_PATH_BYTES];
    if (!checkpoint_name_check(name, err) || !checkpoint_path(final, folder, name, "", NULL, err) ||
        !checkpoint_path(partial, folder, name, CHECKPOINT_PARTIAL, NULL, err) ||
        !checkpoint_path(path, folder, name, CHECKPOINT_PARTIAL, CHECKPOINT_MANIFEST, err))
        return false;
    json_t *root = manifest_make(folder, record, fragments, fragment_count, err);
    char *text = NULL;
    size_t bytes;
    struct manifest back = {0};
    struct checkpoint_about about;
    /* file_replace syncs the folder too, and with it the names of the shards. */
    bool done = root && manifest_check(root, record, err) && manifest_text(root, &text, &bytes, err) &&
                file_replace(path, text, bytes, err) && manifest_load(&back, path, err) &&
                checkpoint_about_parse(&about, &back, err) && take_name(folder, partial, final, replace, err);
    manifest_close(&back);
    free(text);
    json_decref(root);
    if (!done)
        return false;
    struct err ignored = ERR_INIT;
    if (!file_remove_tree(partial, &ignored)) /* the replaced one, if there was one; no list shows it */
        log_err("store", &ignored);
    if (committed)
        *committed = about;
    return true;
}
