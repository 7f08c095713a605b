/* Reading a checkpoint. */
#include "checkpoint.h"
#include "checkpoint_index.h"

#include "file.h"
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static int name_index(const char *const *names, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

static bool parse_formats(struct checkpoint_formats *formats, const struct manifest *manifest,
                          struct err *err)
{
    static const char *const weights[] = {
#define X(format, name, main, extra) name,
        WEIGHT_FORMATS(X)
#undef X
    };
    static const char *const moments[] = {
#define X(format, name, main, extra) name,
        MOMENT_FORMATS(X)
#undef X
    };
    char weight[32], m[32], v[32];
    json_t *object;
    if (!manifest_object(manifest, "formats", &object, err) ||
        !manifest_string(manifest, object, "weight", weight, sizeof weight, err) ||
        !manifest_string(manifest, object, "m", m, sizeof m, err) ||
        !manifest_string(manifest, object, "v", v, sizeof v, err))
        return false;
    int w = name_index(weights, WEIGHT_FORMAT_COUNT, weight);
    int first = name_index(moments, MOMENT_FORMAT_COUNT, m),
        second = name_index(moments, MOMENT_FORMAT_COUNT, v);
    if (w < 0 || first < 0 || second < 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s stores weight=%s m=%s v=%s, which this trainerd does not know", manifest->path,
                       weight, m, v);
    *formats = (struct checkpoint_formats){(enum weight_format)w, (enum moment_format)first,
                                           (enum moment_format)second};
    return true;
}

static bool parse_config(struct model_config *config, const struct manifest *manifest, struct err *err)
{
    json_t *object;
    if (!manifest_object(manifest, "config", &object, err))
        return false;
    char *text = json_dumps(object, JSON_REAL_PRECISION(17));
    if (!text)
        return err_set(err, ERR_MEMORY, "no memory to read %s", manifest->path);
    bool parsed = model_config_parse(config, manifest->path, text, strlen(text), err);
    free(text);
    return parsed;
}

/* "FOLDER/NAME/FILE" of a file that the manifest names. */
static bool file_path(const struct checkpoint *checkpoint, const struct checkpoint_file *file,
                      char path[MANIFEST_PATH_BYTES], struct err *err)
{
    return file_join(path, MANIFEST_PATH_BYTES, checkpoint->folder, file->name, err);
}

static bool wrong_size(const char *path, int64_t bytes, int64_t wanted, struct err *err)
{
    err_set(err, ERR_CORRUPT, "%s has %" PRId64 " bytes and should have %" PRId64, path, bytes, wanted);
    return err_hint(err, "it was cut short or mixed up: use another checkpoint");
}

static bool check_files(const struct checkpoint *checkpoint, struct err *err)
{
    for (int64_t i = 0; i < checkpoint->file_count; i++) {
        const struct checkpoint_file *file = &checkpoint->files[i];
        char path[MANIFEST_PATH_BYTES];
        struct stat info;
        if (!file_path(checkpoint, file, path, err))
            return false;
        if (stat(path, &info) != 0 && errno == ENOENT)
            return err_set(err, ERR_CORRUPT, "%s is missing", path);
        if (stat(path, &info) != 0)
            return err_errno(err, "cannot stat %s", path);
        if (!S_ISREG(info.st_mode))
            return err_set(err, ERR_CORRUPT, "%s is not a regular file", path);
        if (info.st_size != file->bytes)
            return wrong_size(path, info.st_size, file->bytes, err);
    }
    return true;
}

bool checkpoint_open(struct checkpoint *checkpoint, const char *folder, const char *name, struct err *err)
{
    char path[MANIFEST_PATH_BYTES];
    struct checkpoint c = {0};
    struct manifest manifest = {0};
    json_t *state = NULL;
    if (!checkpoint_name_check(name, err) || !checkpoint_path(c.folder, folder, name, "", NULL, err) ||
        !checkpoint_path(path, folder, name, "", CHECKPOINT_MANIFEST, err))
        return false;
    bool opened = manifest_load(&manifest, path, err) && checkpoint_about_parse(&c.about, &manifest, err) &&
                  parse_formats(&c.formats, &manifest, err) && parse_config(&c.config, &manifest, err) &&
                  param_table_init(&c.table, &c.config, err) &&
                  manifest_object(&manifest, "state", &state, err) &&
                  checkpoint_index_parse(&manifest, &c.table, &c.formats, &c.files, &c.file_count, &c.places,
                                         &c.place_count, err) &&
                  checkpoint_index_check(&c.table, &c.formats, c.files, c.file_count, c.places, c.place_count,
                                         path, err) &&
                  check_files(&c, err);
    c.state = opened ? json_incref(state) : NULL;
    manifest_close(&manifest);
    if (!opened) {
        checkpoint_close(&c);
        if (err->code == ERR_NOT_FOUND)
            err_hint(err, "`trainctl checkpoint list` shows the checkpoints there are");
        return false;
    }
    *checkpoint = c;
    return true;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    for (int64_t i = 0; i < checkpoint->file_count; i++)
        if (checkpoint->files[i].fd >= 0)
            close(checkpoint->files[i].fd);
    free(checkpoint->files);
    free(checkpoint->places);
    param_table_done(&checkpoint->table);
    json_decref(checkpoint->state);
    *checkpoint = (struct checkpoint){0};
}

/* ---- verify ---- */

static bool hash_file(int fd, int64_t bytes, char *buffer, XXH3_state_t *hash, struct err *err)
{
    XXH3_128bits_reset(hash);
    for (int64_t at = 0; at < bytes; at += CHECKPOINT_BUFFER_BYTES) {
        size_t piece = bytes - at < CHECKPOINT_BUFFER_BYTES ? (size_t)(bytes - at) : CHECKPOINT_BUFFER_BYTES;
        if (!file_read_all(fd, buffer, piece, at, err))
            return false;
        XXH3_128bits_update(hash, buffer, piece);
        watch_tick();
    }
    return true;
}

static bool verify_file(const struct checkpoint *checkpoint, const struct checkpoint_file *file, char *buffer,
                        XXH3_state_t *state, struct err *err)
{
    char path[MANIFEST_PATH_BYTES], hash[MANIFEST_HASH_BYTES];
    struct stat info;
    if (!file_path(checkpoint, file, path, err))
        return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, "cannot open %s", path);
    /* What the disk holds is asked for, not what the page cache remembers of writing it. */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    bool read = fstat(fd, &info) == 0 || err_errno(err, "cannot stat %s", path);
    if (read && info.st_size != file->bytes)
        read = wrong_size(path, info.st_size, file->bytes, err);
    if (read && !hash_file(fd, file->bytes, buffer, state, err))
        read = err_why(err, "while verifying %s", path);
    close(fd);
    if (!read)
        return false;
    manifest_hash_print(state, hash);
    if (strcmp(hash, file->hash) == 0)
        return true;
    err_set(err, ERR_CORRUPT, "%s is damaged", path);
    err_why(err, "its checksum is %s and should be %s", hash, file->hash);
    return err_hint(err, "use another checkpoint, or copy this one again from where it is whole");
}

bool checkpoint_verify(const struct checkpoint *checkpoint, int64_t index, int64_t count, struct err *err)
{
    INVARIANT(count > 0 && index >= 0 && index < count);
    char *buffer = malloc(CHECKPOINT_BUFFER_BYTES);
    XXH3_state_t *state = XXH3_createState();
    bool verified = (buffer && state) || err_set(err, ERR_MEMORY, "no memory to verify a checkpoint");
    for (int64_t i = index; verified && i < checkpoint->file_count; i += count)
        verified = verify_file(checkpoint, &checkpoint->files[i], buffer, state, err);
    free(buffer);
    XXH3_freeState(state);
    return verified;
}

/* ---- read ---- */

static bool file_open(struct checkpoint *checkpoint, struct checkpoint_file *file, struct err *err)
{
    char path[MANIFEST_PATH_BYTES];
    if (file->fd >= 0)
        return true;
    if (!file_path(checkpoint, file, path, err))
        return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, "cannot open %s", path);
    file->fd = fd;
    return true;
}

/* Bytes of a file into device memory: straight where the host may touch it, else by pieces of the buffer. */
static bool read_bytes(int fd, int64_t offset, struct device *device, char *memory, size_t bytes,
                       char *buffer, struct err *err)
{
    for (size_t at = 0; at < bytes; at += CHECKPOINT_BUFFER_BYTES) {
        size_t piece = bytes - at < CHECKPOINT_BUFFER_BYTES ? bytes - at : CHECKPOINT_BUFFER_BYTES;
        if (!file_read_all(fd, buffer ? buffer : memory + at, piece, offset + (int64_t)at, err))
            return false;
        if (buffer)
            device_copy_in(device, memory + at, buffer, piece);
        watch_tick();
    }
    return true;
}

/* Whether a place holds a range of the slice's band. */
static bool is_of(const struct checkpoint_place *place, const struct checkpoint_slice *slice)
{
    return place->tensor == slice->tensor && place->part == slice->part &&
           band_equal(&place->range.band, &slice->range.band);
}

/* Where the slice was saved in ranges of the same band: straight into its memory. `i` is the first place. */
static bool read_alike(struct checkpoint *checkpoint, struct device *device,
                       const struct checkpoint_slice *slice, int64_t i, size_t width, char *buffer,
                       struct err *err)
{
    char *memory = slice->memory;
    int64_t at = slice->range.start, end = at + slice->range.count;
    for (; at < end; i++) {
        INVARIANT(i < checkpoint->place_count); /* open has checked that everything is covered */
        const struct checkpoint_place *place = &checkpoint->places[i];
        INVARIANT(is_of(place, slice) && place->range.start <= at);
        int64_t past = place->range.start + place->range.count, stop = past < end ? past : end;
        struct checkpoint_file *file = &checkpoint->files[place->file];
        int64_t offset = place->offset + (at - place->range.start) * (int64_t)width;
        if (!file_open(checkpoint, file, err) ||
            !read_bytes(file->fd, offset, device, memory + (at - slice->range.start) * (int64_t)width,
                        (size_t)(stop - at) * width, buffer, err))
            return err_why(err, "while reading %s/%s", checkpoint->folder, file->name);
        at = stop;
    }
    return true;
}

/* What one saved slice has of `range`: read in spans, of which the elements that are wanted are picked. */
static bool pick(struct checkpoint *checkpoint, const struct checkpoint_place *place,
                 const struct band_range *range, size_t width, char *to, char *span, struct err *err)
{
    struct checkpoint_file *file = &checkpoint->files[place->file];
    struct band_range rest = band_clip(&place->range, range);
    while (rest.count > 0) {
        struct band_range piece = rest;
        if (piece.count > CHECKPOINT_BUFFER_BYTES / (int64_t)width)
            piece.count = CHECKPOINT_BUFFER_BYTES / (int64_t)width;
        int64_t offset = place->offset + (piece.start - place->range.start) * (int64_t)width;
        if (!file_open(checkpoint, file, err) ||
            !file_read_all(file->fd, span, (size_t)piece.count * width, offset, err))
            return err_why(err, "while reading %s/%s", checkpoint->folder, file->name);
        band_copy(to, range, span, &piece, width);
        rest.start += piece.count;
        rest.count -= piece.count;
        watch_tick();
    }
    return true;
}

/* Where columns were cut otherwise: by stretches of the slice that fit a buffer, each from every saved slice
 * of the part that has something of it. `first` is the part's first place. */
static bool read_across(struct checkpoint *checkpoint, struct device *device,
                        const struct checkpoint_slice *slice, int64_t first, size_t width, char *buffer,
                        size_t buffer_bytes, struct err *err)
{
    char *span = malloc(buffer_bytes), *memory = slice->memory;
    bool read = span || err_set(err, ERR_MEMORY, "no memory to read a checkpoint");
    struct band_range range = slice->range;
    int64_t end = range.start + range.count, most = CHECKPOINT_BUFFER_BYTES / (int64_t)width;
    for (; read && range.start < end; range.start += range.count) {
        range.count = end - range.start < most ? end - range.start : most;
        char *target = memory + (range.start - slice->range.start) * (int64_t)width;
        char *to = buffer ? buffer : target;
        for (int64_t i = first; read && i < checkpoint->place_count; i++) {
            const struct checkpoint_place *place = &checkpoint->places[i];
            if (place->tensor != slice->tensor || place->part != slice->part)
                break;
            read = pick(checkpoint, place, &range, width, to, span, err);
        }
        if (read && buffer)
            device_copy_in(device, target, buffer, (size_t)range.count * width);
    }
    free(span);
    return read;
}

bool checkpoint_read(struct checkpoint *checkpoint, struct device *device,
                     const struct checkpoint_slice *slice, struct err *err)
{
    enum dtype dtype = DTYPE_COUNT;
    int64_t length = 0;
    INVARIANT(slice->tensor >= 0 && slice->tensor < checkpoint->table.count);
    bool has = checkpoint_part_shape(&checkpoint->formats, slice->part,
                                     checkpoint->table.params[slice->tensor].elements, &dtype, &length);
    INVARIANT(has && band_fits(&slice->range, length));
    size_t width = dtype_bytes(dtype), bytes = (size_t)length * width;
    if (bytes > CHECKPOINT_BUFFER_BYTES)
        bytes = CHECKPOINT_BUFFER_BYTES;
    char *buffer = NULL;
    if (!device->host_access && !(buffer = malloc(bytes)))
        return err_set(err, ERR_MEMORY, "no memory to read a checkpoint");
    int64_t i = checkpoint_index_find(checkpoint, slice->tensor, slice->part, &slice->range);
    bool read;
    if (i < checkpoint->place_count && is_of(&checkpoint->places[i], slice)) {
        read = read_alike(checkpoint, device, slice, i, width, buffer, err);
    } else {
        i = checkpoint_index_find(checkpoint, slice->tensor, slice->part, &(struct band_range){.count = 1});
        read = read_across(checkpoint, device, slice, i, width, buffer, bytes, err);
    }
    free(buffer);
    return read;
}
