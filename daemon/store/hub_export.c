/* Writing hub-shaped folders. */
#include "hub.h"

#include "bf16.h"
#include "file.h"
#include "log.h"
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PARTIAL              ".trainerd-partial" /* nobody else's: what is called so is removed without asking */
#define CARRIED_BYTES        (256 << 20)         /* of one file that is carried over */
#define CARRIED_SOURCE_BYTES (LIMIT_PATH_BYTES + LIMIT_NAME_BYTES)

static const char *const carried_files[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
};

/* ---- names ---- */

/* The folder without trailing slashes; a name of its own at the end. */
static bool final_path(char path[LIMIT_PATH_BYTES], const char *folder, struct err *err)
{
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/')
        length--;
    if (length >= LIMIT_PATH_BYTES)
        return err_set(err, ERR_INVALID, "the path is too long: %.80s…", folder);
    memcpy(path, folder, length);
    path[length] = '\0';
    const char *slash = strrchr(path, '/'), *last = slash ? slash + 1 : path;
    if (!*last || strcmp(last, ".") == 0 || strcmp(last, "..") == 0) {
        err_set(err, ERR_INVALID, "\"%s\" cannot be the name of a new folder", folder);
        return err_hint(err, "name the folder that is to be made, such as models/tuned");
    }
    return true;
}

static bool partial_path(char path[MANIFEST_PATH_BYTES], const char *folder, struct err *err)
{
    char final[LIMIT_PATH_BYTES];
    if (!final_path(final, folder, err))
        return false;
    snprintf(path, MANIFEST_PATH_BYTES, "%s" PARTIAL, final);
    return true;
}

static void parent_path(char parent[LIMIT_PATH_BYTES], const char *final)
{
    const char *slash = strrchr(final, '/');
    int length = slash ? (int)(slash == final ? 1 : slash - final) : 1;
    snprintf(parent, LIMIT_PATH_BYTES, "%.*s", length, slash ? final : ".");
}

static void file_name(char name[LIMIT_NAME_BYTES], int32_t file, int32_t file_count)
{
    if (file_count == 1)
        snprintf(name, LIMIT_NAME_BYTES, "model.safetensors");
    else
        snprintf(name, LIMIT_NAME_BYTES, "model-%05d-of-%05d.safetensors", file + 1, file_count);
}

/* ---- which tensor lies in which file: the same on every rank ---- */

static int64_t tensor_bytes(const struct param *param, enum dtype dtype)
{
    return param_whole_elements(param) * (int64_t)dtype_bytes(dtype);
}

/* Fills files by the table's order; files_of[table->count] gets each tensor's. Returns how many files. */
static int32_t assign_files(const struct param_table *table, const struct hub_export_options *options,
                            struct hub_export_place *places)
{
    int64_t limit = options->shard_bytes > 0 ? options->shard_bytes : HUB_SHARD_BYTES, filled = 0;
    int32_t file = 0;
    for (int32_t i = 0; i < table->count; i++) {
        int64_t bytes = tensor_bytes(&table->params[i], options->dtype);
        if (filled > 0 && bytes > limit - filled) {
            file++;
            filled = 0;
        }
        places[i].file = file;
        filled += bytes;
    }
    return file + 1;
}

/* ---- begin: rank 0 ---- */

/* Synced; readable by whoever may read the folder. */
static bool write_new(const char *folder, const char *name, const char *bytes, size_t count, struct err *err)
{
    char path[MANIFEST_PATH_BYTES];
    if (!file_join(path, sizeof path, folder, name, err))
        return false;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_errno(err, "cannot create %s", path);
    bool written = file_write_all(fd, bytes, count, -1, err) &&
                   (fsync(fd) == 0 || err_errno(err, "cannot sync %s", path));
    close(fd);
    return written;
}

static bool write_config(const char *partial, const struct model_config *config, enum dtype dtype,
                         struct err *err)
{
    char *text = model_config_print(config, dtype == DTYPE_BF16 ? "bfloat16" : "float32");
    bool written = (text || err_set(err, ERR_MEMORY, "no memory for config.json")) &&
                   write_new(partial, "config.json", text, strlen(text), err);
    free(text);
    return written;
}

/* Tokenizer and generation settings belong to the model, whoever trains it. */
static bool carry_over(const char *partial, const char *source, struct err *err)
{
    for (size_t i = 0; source && i < sizeof carried_files / sizeof *carried_files; i++) {
        char path[CARRIED_SOURCE_BYTES], *bytes;
        size_t count;
        if (!file_join(path, sizeof path, source, carried_files[i], err))
            return false;
        if (access(path, F_OK) != 0)
            continue;
        if (!file_slurp(path, CARRIED_BYTES, &bytes, &count, err))
            return false;
        bool written = write_new(partial, carried_files[i], bytes, count, err);
        free(bytes);
        if (!written)
            return false;
    }
    return true;
}

static bool write_index(const char *partial, const struct param_table *table, enum dtype dtype,
                        const struct hub_export_place *places, int32_t file_count, struct err *err)
{
    if (file_count == 1)
        return true;
    json_t *map = json_object();
    int64_t bytes = 0;
    bool made = map != NULL;
    for (int32_t i = 0; i < table->count; i++) {
        char name[LIMIT_NAME_BYTES];
        file_name(name, places[i].file, file_count);
        made = made && json_object_set_new(map, table->params[i].name, json_string(name)) == 0;
        bytes += tensor_bytes(&table->params[i], dtype);
    }
    json_t *root =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)bytes, "weight_map", map);
    char *text = made && root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    bool written = (text || err_set(err, ERR_MEMORY, "no memory for the index of an export")) &&
                   write_new(partial, "model.safetensors.index.json", text, strlen(text), err);
    free(text);
    json_decref(root);
    return written;
}

/* One file's header, and its size taken on the disk; the ranks write the tensors. */
static bool make_file(const char *partial, const struct param_table *table, enum dtype dtype,
                      const struct hub_export_place *places, int32_t file, int32_t file_count,
                      struct safetensor *tensors, struct err *err)
{
    static const struct safetensors_note note = {"format", "pt"}; /* transformers asks for it */
    char name[LIMIT_NAME_BYTES], path[MANIFEST_PATH_BYTES];
    int64_t count = 0;
    for (int32_t i = 0; i < table->count; i++) {
        const struct param *param = &table->params[i];
        if (places[i].file != file)
            continue;
        struct safetensor *t = &tensors[count++];
        *t = (struct safetensor){.dtype = dtype,
                                 .dims = param->columns ? 2 : 1,
                                 .shape = {param->whole_rows, param->whole_columns}};
        snprintf(t->name, sizeof t->name, "%s", param->name);
    }
    file_name(name, file, file_count);
    struct safetensors_writer writer;
    if (!file_join(path, sizeof path, partial, name, err) ||
        !safetensors_writer_open(&writer, path, tensors, count, &note, 1, err))
        return false;
    bool synced = fsync(writer.fd) == 0 || err_errno(err, "cannot sync %s", path);
    close(writer.fd); /* not finished: no data of this writer's own are missing */
    return synced;
}

static bool make_files(const char *partial, const struct param_table *table,
                       const struct hub_export_options *options, struct err *err)
{
    struct hub_export_place *places = calloc((size_t)table->count, sizeof *places);
    struct safetensor *tensors = calloc((size_t)table->count, sizeof *tensors);
    bool made = (places && tensors) || err_set(err, ERR_MEMORY, "no memory to lay an export out");
    int32_t file_count = made ? assign_files(table, options, places) : 0;
    for (int32_t file = 0; made && file < file_count; file++)
        made = make_file(partial, table, options->dtype, places, file, file_count, tensors, err);
    made = made && write_index(partial, table, options->dtype, places, file_count, err);
    free(places);
    free(tensors);
    return made;
}

bool hub_export_begin(const char *folder, const struct model_config *config, const struct param_table *table,
                      const struct hub_export_options *options, struct err *err)
{
    char final[LIMIT_PATH_BYTES], partial[MANIFEST_PATH_BYTES], parent[LIMIT_PATH_BYTES];
    INVARIANT(options->dtype == DTYPE_BF16 || options->dtype == DTYPE_F32);
    if (!final_path(final, folder, err) || !partial_path(partial, folder, err))
        return false;
    if (rmdir(final) != 0 && errno != ENOENT) { /* an empty folder is as good as none */
        err_set(err, ERR_STATE, "%s exists and is not an empty folder", final);
        return err_hint(err, "export to a folder that does not exist yet");
    }
    parent_path(parent, final);
    return file_make_folder(parent, 0755, err) && file_remove_tree(partial, err) &&
           file_make_folder(partial, 0755, err) && write_config(partial, config, options->dtype, err) &&
           carry_over(partial, options->source, err) && make_files(partial, table, options, err);
}

/* ---- every rank ---- */

/* Opens one file to write into, and takes its tensors' places from the header that begin wrote. */
static bool join_file(struct hub_export *export, int32_t file, struct err *err)
{
    char path[MANIFEST_PATH_BYTES];
    struct safetensors header;
    if (!file_join(path, sizeof path, export->partial, export->files[file].name, err) ||
        !safetensors_open(&header, path, err))
        return false;
    bool found = true;
    for (int32_t i = 0; found && i < export->table->count; i++) {
        if (export->places[i].file != file)
            continue;
        const struct param *param = &export->table->params[i];
        const struct safetensor *t = safetensors_find(&header, param->name);
        found = (t && t->dtype == export->dtype && t->elements == param_whole_elements(param)) ||
                err_set(err, ERR_CORRUPT, "%s is not what rank 0 wrote: %s", path, param->name);
        export->places[i].offset = found ? (int64_t)t->start : 0;
    }
    safetensors_close(&header);
    if (!found)
        return false;
    export->files[file].fd = open(path, O_WRONLY | O_CLOEXEC);
    return export->files[file].fd >= 0 || err_errno(err, "cannot open %s", path);
}

bool hub_export_join(struct hub_export *export, const char *folder, const struct param_table *table,
                     const struct hub_export_options *options, struct err *err)
{
    struct hub_export e = {.table = table, .dtype = options->dtype};
    if (!partial_path(e.partial, folder, err))
        return false;
    e.places = calloc((size_t)table->count, sizeof *e.places);
    int32_t file_count = e.places ? assign_files(table, options, e.places) : 0;
    e.files = calloc((size_t)file_count + 1, sizeof *e.files);
    e.buffer = malloc(HUB_PIECE_ELEMENTS * sizeof(float));
    bool joined =
        (e.places && e.files && e.buffer) || err_set(err, ERR_MEMORY, "no memory to write %s", folder);
    for (; joined && e.file_count < file_count; e.file_count++) {
        struct hub_export_file *file = &e.files[e.file_count];
        file->fd = -1;
        file_name(file->name, e.file_count, file_count);
        joined = join_file(&e, e.file_count, err);
    }
    if (!joined) {
        hub_export_done(&e);
        return false;
    }
    *export = e;
    return true;
}

static void convert(void *to, enum dtype to_dtype, const void *from, enum dtype from_dtype, int64_t count)
{
    if (to_dtype == from_dtype)
        memcpy(to, from, (size_t)count * dtype_bytes(to_dtype));
    else if (to_dtype == DTYPE_BF16)
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)to)[i] = bf16_from_float(((const float *)from)[i]);
    else
        for (int64_t i = 0; i < count; i++)
            ((float *)to)[i] = bf16_to_float(((const uint16_t *)from)[i]);
}

/* Converted values, wherever in the file they lie side by side. */
static bool write_range(struct hub_export *export, int32_t tensor, const struct band_range *range,
                        struct err *err)
{
    const struct hub_export_place *place = &export->places[tensor];
    int64_t width = (int64_t)dtype_bytes(export->dtype), together;
    for (int64_t done = 0; done < range->count; done += together) {
        together = band_together(&range->band, range->start + done, range->count - done);
        if (!file_write_all(export->files[place->file].fd, export->buffer + done * width,
                            (size_t)(together * width),
                            place->offset + band_at(&range->band, range->start + done) * width, err))
            return false;
    }
    return true;
}

bool hub_export_put(struct hub_export *export, int32_t tensor, const struct band_range *range,
                    enum dtype dtype, const void *values, struct err *err)
{
    INVARIANT(dtype == DTYPE_BF16 || dtype == DTYPE_F32);
    INVARIANT(tensor >= 0 && tensor < export->table->count);
    INVARIANT(range->count == 0 || band_fits(range, param_whole_elements(&export->table->params[tensor])));
    for (int64_t done = 0; done < range->count; done += HUB_PIECE_ELEMENTS) {
        struct band_range piece = {range->band, range->start + done, range->count - done};
        if (piece.count > HUB_PIECE_ELEMENTS)
            piece.count = HUB_PIECE_ELEMENTS;
        const char *from = (const char *)values + done * (int64_t)dtype_bytes(dtype);
        convert(export->buffer, export->dtype, from, dtype, piece.count);
        if (!write_range(export, tensor, &piece, err))
            return false;
        watch_tick();
    }
    return true;
}

bool hub_export_finish(struct hub_export *export, struct err *err)
{
    for (int32_t i = 0; i < export->file_count; i++)
        if (fsync(export->files[i].fd) != 0)
            return err_errno(err, "cannot sync %s/%s", export->partial, export->files[i].name);
    return true;
}

void hub_export_done(struct hub_export *export)
{
    for (int32_t i = 0; i < export->file_count; i++)
        if (export->files[i].fd >= 0)
            close(export->files[i].fd);
    free(export->files);
    free(export->places);
    free(export->buffer);
    *export = (struct hub_export){0};
}

/* ---- commit: rank 0 ---- */

static bool folder_bytes(const char *folder, int64_t *bytes, struct err *err)
{
    struct safetensors_set set;
    if (!safetensors_set_open(&set, folder, err)) /* the reader's own check of what was written */
        return false;
    *bytes = 0;
    for (int64_t i = 0; i < set.files; i++)
        *bytes += (int64_t)set.file[i].map.count;
    safetensors_set_close(&set);
    return true;
}

bool hub_export_commit(const char *folder, int64_t *bytes, struct err *err)
{
    char final[LIMIT_PATH_BYTES], partial[MANIFEST_PATH_BYTES], parent[LIMIT_PATH_BYTES];
    int64_t total;
    if (!final_path(final, folder, err) || !partial_path(partial, folder, err) ||
        !folder_bytes(partial, &total, err) || !file_sync_folder(partial, err))
        return false;
    parent_path(parent, final);
    if (renameat2(AT_FDCWD, partial, AT_FDCWD, final, RENAME_NOREPLACE) != 0)
        return err_errno(err, "cannot rename %s to %s", partial, final);
    if (!file_sync_folder(parent, err)) { /* not known to be on the disk: it must not stand as if it were */
        (void)rename(final, partial);
        return false;
    }
    if (bytes)
        *bytes = total;
    return true;
}

void hub_export_abort(const char *folder)
{
    struct err err = ERR_INIT;
    char partial[MANIFEST_PATH_BYTES];
    if (partial_path(partial, folder, &err) && !file_remove_tree(partial, &err))
        log_err("store", &err);
}
