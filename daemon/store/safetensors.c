#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ELEMENTS_MAX (1ll << 48) /* of one tensor: products and byte counts stay far from overflow */
#define PREFIX_BYTES 8           /* the header's length, little-endian */

static uint64_t read_u64(const unsigned char *bytes)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | bytes[i];
    return value;
}

#define refuse(path, err, ...)                                                                               \
    err_unsound(err, path, "safetensors file",                                                               \
                "it may have been cut short or damaged on the way: copy it again or use another",            \
                __VA_ARGS__)

static bool parse_dtype(struct safetensor *t, const json_t *value, const char *path, struct err *err)
{
    const char *name = json_string_value(value);
    if (!name)
        return refuse(path, err, "tensor %s has no dtype", t->name);
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++)
        if (strcmp(name, dtype_hub_name((enum dtype)dtype)) == 0) {
            t->dtype = (enum dtype)dtype;
            return true;
        }
    return err_set(err, ERR_UNSUPPORTED,
                   "tensor %s of %.200s has the dtype \"%.20s\", which is not read here", t->name, path,
                   name);
}

static bool parse_shape(struct safetensor *t, const json_t *value, const char *path, struct err *err)
{
    size_t dims = json_array_size(value);
    if (!json_is_array(value))
        return refuse(path, err, "tensor %s has no shape", t->name);
    if (dims > LIMIT_DIMS)
        return err_set(err, ERR_UNSUPPORTED, "tensor %s of %.200s has %zu dimensions, more than %d", t->name,
                       path, dims, LIMIT_DIMS);
    t->dims = (int)dims;
    t->elements = 1;
    for (size_t i = 0; i < dims; i++) {
        const json_t *size = json_array_get(value, i);
        int64_t extent = json_integer_value(size);
        if (!json_is_integer(size) || extent < 0 || extent > ELEMENTS_MAX)
            return refuse(path, err, "tensor %s has an impossible shape", t->name);
        if (extent > 0 && t->elements > ELEMENTS_MAX / extent)
            return refuse(path, err, "tensor %s has more than 2^48 elements", t->name);
        t->shape[i] = extent;
        t->elements *= extent;
    }
    return true;
}

/* data_bytes: what the file has after its header. */
static bool parse_range(struct safetensor *t, const json_t *value, uint64_t data_start, uint64_t data_bytes,
                        const char *path, struct err *err)
{
    const json_t *first = json_array_get(value, 0), *end = json_array_get(value, 1);
    if (json_array_size(value) != 2 || !json_is_integer(first) || !json_is_integer(end))
        return refuse(path, err, "tensor %s has no data_offsets", t->name);
    int64_t from = json_integer_value(first), to = json_integer_value(end);
    if (from < 0 || to < from || (uint64_t)to > data_bytes)
        return refuse(path, err,
                      "tensor %s lies at %" PRId64 " … %" PRId64 ", outside the file's %" PRIu64
                      " bytes of data",
                      t->name, from, to, data_bytes);
    t->start = data_start + (uint64_t)from;
    t->bytes = (uint64_t)(to - from);
    if (t->bytes != (uint64_t)t->elements * dtype_bytes(t->dtype))
        return refuse(path, err, "tensor %s has %" PRIu64 " bytes, but its shape and dtype say %" PRIu64,
                      t->name, t->bytes, (uint64_t)t->elements * dtype_bytes(t->dtype));
    return true;
}

static bool parse_tensor(struct safetensor *t, const char *name, const json_t *entry, uint64_t data_start,
                         uint64_t data_bytes, const char *path, struct err *err)
{
    size_t length = strlen(name);
    if (length == 0 || length >= sizeof t->name)
        return refuse(path, err, "the tensor name \"%.60s\" is empty or longer than %zu bytes", name,
                      sizeof t->name - 1);
    memcpy(t->name, name, length + 1);
    return parse_dtype(t, json_object_get(entry, "dtype"), path, err) &&
           parse_shape(t, json_object_get(entry, "shape"), path, err) &&
           parse_range(t, json_object_get(entry, "data_offsets"), data_start, data_bytes, path, err);
}

static int by_start(const void *left, const void *right)
{
    const struct safetensor *a = left, *b = right;
    if (a->start != b->start)
        return a->start < b->start ? -1 : 1;
    return (a->bytes > b->bytes) -
           (a->bytes < b->bytes); /* empty ones before the one that begins where they lie */
}

static int by_name(const void *left, const void *right)
{
    return strcmp(((const struct safetensor *)left)->name, ((const struct safetensor *)right)->name);
}

/* The tensors must tile the data: no overlap, no hole, no rest. */
static bool check_tiling(struct safetensors *file, uint64_t data_start, const char *path, struct err *err)
{
    uint64_t end = data_start;
    qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, by_start);
    for (int64_t i = 0; i < file->count; i++) {
        const struct safetensor *t = &file->tensors[i];
        if (t->start < end)
            return refuse(path, err, "tensors %s and %s overlap", file->tensors[i - 1].name, t->name);
        if (t->start > end)
            return refuse(path, err, "there is a hole of %" PRIu64 " bytes before tensor %s", t->start - end,
                          t->name);
        end += t->bytes;
    }
    if (end != file->map.count)
        return refuse(path, err, "%" PRIu64 " bytes at its end belong to no tensor",
                      (uint64_t)file->map.count - end);
    qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, by_name);
    return true;
}

static bool take_metadata(struct safetensors *file, json_t *entry, const char *path, struct err *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(entry))
        return refuse(path, err, "its __metadata__ is not a table of texts");
    json_object_foreach(entry, key, value) if (!json_is_string(value)) return refuse(
        path, err, "its __metadata__ has something other than a text in it");
    file->metadata = json_incref(entry);
    return true;
}

static bool parse_header(struct safetensors *file, json_t *header, uint64_t data_start, const char *path,
                         struct err *err)
{
    size_t entries = json_object_size(header);
    if (!json_is_object(header))
        return refuse(path, err, "its header is not a JSON object");
    if (entries > SAFETENSORS_TENSORS_MAX)
        return refuse(path, err, "its header has %zu entries, more than %d", entries,
                      SAFETENSORS_TENSORS_MAX);
    file->tensors = calloc(entries ? entries : 1, sizeof *file->tensors);
    if (!file->tensors)
        return err_set(err, ERR_MEMORY, "no memory for the %zu tensors of %.200s", entries, path);
    const char *name;
    json_t *entry;
    json_object_foreach(header, name, entry)
    {
        bool good = strcmp(name, "__metadata__") == 0
                        ? take_metadata(file, entry, path, err)
                        : parse_tensor(&file->tensors[file->count], name, entry, data_start,
                                       file->map.count - data_start, path, err);
        if (!good)
            return false;
        file->count += strcmp(name, "__metadata__") != 0;
    }
    return check_tiling(file, data_start, path, err);
}

static bool read_header(struct safetensors *file, const char *path, struct err *err)
{
    if (file->map.count < PREFIX_BYTES)
        return refuse(path, err, "it has only %zu bytes", file->map.count);
    uint64_t bytes = read_u64(file->map.bytes);
    if (bytes > file->map.count - PREFIX_BYTES || bytes > LIMIT_JSON_BYTES)
        return refuse(path, err, "its header claims %" PRIu64 " bytes", bytes);
    json_error_t problem;
    json_t *header = json_loadb((const char *)file->map.bytes + PREFIX_BYTES, (size_t)bytes,
                                JSON_REJECT_DUPLICATES, &problem);
    if (!header)
        return refuse(path, err, "its header is not JSON: %.200s", problem.text);
    bool good = parse_header(file, header, PREFIX_BYTES + bytes, path, err);
    json_decref(header);
    return good;
}

bool safetensors_open(struct safetensors *file, const char *path, struct err *err)
{
    struct safetensors made = {.fd = -1};
    if (!file_map_open(&made.map, path, err))
        return false;
    made.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (made.fd < 0)
        err_errno(err, "cannot open %s", path);
    if (made.fd < 0 || !read_header(&made, path, err)) {
        safetensors_close(&made);
        return false;
    }
    *file = made;
    return true;
}

void safetensors_close(struct safetensors *file)
{
    if (file->map.bytes && file->fd >= 0)
        close(file->fd);
    file_map_close(&file->map);
    json_decref(file->metadata);
    free(file->tensors);
    *file = (struct safetensors){.fd = -1};
}

static int name_to_tensor(const void *name, const void *tensor)
{
    return strcmp(name, ((const struct safetensor *)tensor)->name);
}

const struct safetensor *safetensors_find(const struct safetensors *file, const char *name)
{
    return bsearch(name, file->tensors, (size_t)file->count, sizeof *file->tensors, name_to_tensor);
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
    return json_string_value(json_object_get(file->metadata, key));
}

const unsigned char *safetensors_data(const struct safetensors *file, const struct safetensor *t)
{
    return file->map.bytes + t->start;
}

bool safetensors_read(const struct safetensors *file, const struct safetensor *t, uint64_t first, void *bytes,
                      size_t count, struct err *err)
{
    INVARIANT(first <= t->bytes && count <= t->bytes - first);
    return file_read_all(file->fd, bytes, count, (int64_t)(t->start + first), err);
}

/* ---- writing ---- */

static json_t *header_entry(const struct safetensor *t, uint64_t start)
{
    json_t *shape = json_array();
    for (int i = 0; i < t->dims; i++)
        json_array_append_new(shape, json_integer(t->shape[i]));
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype_hub_name(t->dtype), "shape", shape, "data_offsets",
                     (json_int_t)start, (json_int_t)(start + t->bytes));
}

/* Lays the tensors out, relative to the data's start, and returns the header's text (malloc'ed, NULL: no
 * memory). */
static char *lay_out(struct safetensor *tensors, int64_t count, const struct safetensors_note *notes,
                     size_t note_count, uint64_t *data_bytes)
{
    uint64_t start = 0;
    json_t *header = json_object();
    if (note_count > 0) {
        json_t *metadata = json_object();
        for (size_t i = 0; i < note_count; i++)
            json_object_set_new(metadata, notes[i].key, json_string(notes[i].value));
        json_object_set_new(header, "__metadata__", metadata);
    }
    for (int64_t i = 0; i < count; i++) {
        struct safetensor *t = &tensors[i];
        INVARIANT(t->dims >= 0 && t->dims <= LIMIT_DIMS);
        t->elements = 1;
        for (int d = 0; d < t->dims; d++)
            t->elements *= t->shape[d];
        t->bytes = (uint64_t)t->elements * dtype_bytes(t->dtype);
        t->start = start;
        json_object_set_new(header, t->name, header_entry(t, start));
        start += t->bytes;
    }
    bool whole =
        json_object_size(header) == (size_t)count + (note_count > 0); /* less: no memory, or a name twice */
    char *text = whole ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    *data_bytes = start;
    return text;
}

/* The prefix and the header, filled up with blanks so that the data begin at a multiple of 64. */
static char *frame_header(const char *text, size_t *bytes)
{
    size_t length = strlen(text);
    *bytes = (PREFIX_BYTES + length + 63) / 64 * 64;
    char *frame = malloc(*bytes);
    if (!frame)
        return NULL;
    memset(frame, ' ', *bytes);
    for (int i = 0; i < PREFIX_BYTES; i++)
        frame[i] = (char)((*bytes - PREFIX_BYTES) >> (8 * i) & 0xff);
    memcpy(frame + PREFIX_BYTES, text, length);
    return frame;
}

/* Some file systems cannot reserve; there a full disk shows when bytes are put. */
static bool reserve(int fd, uint64_t bytes, const char *path, struct err *err)
{
    if (bytes == 0 || fallocate(fd, 0, 0, (off_t)bytes) == 0)
        return true;
    if (errno != EOPNOTSUPP && errno != ENOSYS) {
        err_errno(err, "cannot take %" PRIu64 " bytes for %.200s", bytes, path);
        return err_hint(err, "make room, or choose another folder");
    }
    return ftruncate(fd, (off_t)bytes) == 0 ||
           err_errno(err, "cannot take %" PRIu64 " bytes for %.200s", bytes, path);
}

bool safetensors_writer_open(struct safetensors_writer *writer, const char *path, struct safetensor *tensors,
                             int64_t count, const struct safetensors_note *notes, size_t note_count,
                             struct err *err)
{
    uint64_t data_bytes;
    size_t header_bytes = 0;
    char *text = lay_out(tensors, count, notes, note_count, &data_bytes);
    char *frame = text ? frame_header(text, &header_bytes) : NULL;
    free(text);
    if (!frame)
        return err_set(err, ERR_MEMORY, "the header of %.200s cannot be made", path);
    struct safetensors_writer made = {
        .count = count, .tensors = tensors, .data_bytes = data_bytes, .open = true};
    bool good = snprintf(made.path, sizeof made.path, "%s", path) < (int)sizeof made.path ||
                err_set(err, ERR_INVALID, "the path is too long: %.80s…", path);
    made.fd = good ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
    if (good && made.fd < 0)
        good = err_errno(err, "cannot create %s", path);
    if (good && !(reserve(made.fd, header_bytes + data_bytes, path, err) &&
                  file_write_all(made.fd, frame, header_bytes, 0, err))) {
        safetensors_writer_abandon(&made);
        good = false;
    }
    free(frame);
    if (!good)
        return false;
    for (int64_t i = 0; i < count; i++)
        tensors[i].start += header_bytes;
    *writer = made;
    return true;
}

bool safetensors_writer_put(struct safetensors_writer *writer, int64_t tensor, uint64_t first,
                            const void *bytes, size_t count, struct err *err)
{
    INVARIANT(writer->open && tensor >= 0 && tensor < writer->count);
    const struct safetensor *t = &writer->tensors[tensor];
    INVARIANT(first <= t->bytes && count <= t->bytes - first);
    if (!file_write_all(writer->fd, bytes, count, (int64_t)(t->start + first), err))
        return false;
    writer->written += count;
    return true;
}

bool safetensors_writer_finish(struct safetensors_writer *writer, struct err *err)
{
    INVARIANT(writer->open && writer->written == writer->data_bytes);
    if (fsync(writer->fd) != 0) {
        err_errno(err, "cannot sync %s", writer->path);
        safetensors_writer_abandon(writer);
        return false;
    }
    writer->open = false;
    return close(writer->fd) == 0 || err_errno(err, "cannot close %s", writer->path);
}

void safetensors_writer_abandon(struct safetensors_writer *writer)
{
    if (!writer->open)
        return;
    close(writer->fd);
    unlink(writer->path);
    writer->open = false;
}
