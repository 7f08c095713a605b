/* Reading hub-shaped folders. */
#include "hub.h"

#include "bf16.h"
#include "watch.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEAD_NAME      "lm_head.weight"
#define EMBEDDING_NAME "model.embed_tokens.weight"

/* fp16 to fp32, exact. The exponent is rebased by a multiplication, which also normalizes subnormals;
 * infinities and NaNs get fp32's exponent. */
static float fp16_to_float(uint16_t half)
{
    uint32_t magnitude = (uint32_t)(half & 0x7fffu) << 13, sign = (uint32_t)(half & 0x8000u) << 16;
    if (magnitude >= 0x7c00u << 13)
        return float_from_bits(magnitude | 0x7f800000u | sign);
    return float_from_bits(float_bits(float_from_bits(magnitude) * 0x1p112f) | sign);
}

static void widen(float *to, const void *from, enum dtype dtype, int64_t count)
{
    const uint16_t *halves = from;
    if (dtype == DTYPE_BF16)
        for (int64_t i = 0; i < count; i++)
            to[i] = bf16_to_float(halves[i]);
    else
        for (int64_t i = 0; i < count; i++)
            to[i] = fp16_to_float(halves[i]);
}

static bool is_rotary_buffer(const char *name)
{
    static const char end[] = "rotary_emb.inv_freq";
    size_t length = strlen(name);
    return length >= sizeof end - 1 && strcmp(name + length - (sizeof end - 1), end) == 0;
}

/* "[512, 128]" */
static const char *shape_text(const int64_t *shape, int dims, char text[128])
{
    int at = snprintf(text, 128, "[");
    for (int i = 0; i < dims && at < 100; i++)
        at += snprintf(text + at, 128 - (size_t)at, "%s%" PRId64, i ? ", " : "", shape[i]);
    snprintf(text + at, 128 - (size_t)at, "]");
    return text;
}

static bool check_tensor(const struct hub *hub, const struct safetensor *tensor, const struct param *param,
                         struct err *err)
{
    const int64_t wanted[2] = {param->rows, param->columns};
    int dims = param->columns ? 2 : 1;
    bool same = tensor->dims == dims && memcmp(tensor->shape, wanted, (size_t)dims * sizeof *wanted) == 0;
    if (!same) {
        char got[128], want[128];
        err_set(err, ERR_INVALID, "%s: %s has the shape %s and config.json asks for %s", hub->folder,
                tensor->name, shape_text(tensor->shape, tensor->dims, got), shape_text(wanted, dims, want));
        return err_hint(err, "config.json and the weights are of different models");
    }
    if (tensor->dtype != DTYPE_F32 && tensor->dtype != DTYPE_BF16 && tensor->dtype != DTYPE_F16) {
        err_set(err, ERR_UNSUPPORTED, "%s: %s is stored as %s", hub->folder, tensor->name,
                dtype_hub_name(tensor->dtype));
        return err_hint(err, "take a model in bf16, fp16 or fp32");
    }
    return true;
}

static bool find_rows(struct hub *hub, struct err *err)
{
    for (int32_t i = 0; i < hub->table.count; i++) {
        const struct param *param = &hub->table.params[i];
        hub->rows[i] = safetensors_set_find(&hub->files, param->name);
        if (!hub->rows[i]) {
            err_set(err, ERR_INVALID, "%s has no tensor %s", hub->folder, param->name);
            return err_hint(err, "the folder is not complete, or config.json is of another model");
        }
        if (!check_tensor(hub, hub->rows[i]->tensor, param, err))
            return false;
    }
    return true;
}

/* Rows were found by name, so every name that is not a row's is one too many. */
static bool refuse_strangers(struct hub *hub, struct err *err)
{
    for (int64_t i = 0; i < hub->files.count; i++) {
        const struct safetensors_place *place = &hub->files.places[i];
        const char *name = place->tensor->name;
        if (param_table_find(&hub->table, name) >= 0 || is_rotary_buffer(name))
            continue;
        if (hub->config.tied && strcmp(name, HEAD_NAME) == 0) {
            int32_t embedding = param_table_find(&hub->table, EMBEDDING_NAME);
            INVARIANT(embedding >= 0);
            if (!check_tensor(hub, place->tensor, &hub->table.params[embedding], err))
                return false;
            hub->tied_head = place;
            continue;
        }
        err_set(err, ERR_UNSUPPORTED, "%s has a tensor %s, which a %s has not", hub->folder, name,
                hub->config.architecture);
        return err_hint(err, "leaving it out would compute another model: take one of this architecture");
    }
    return true;
}

static bool hub_reserve(struct hub *hub, struct err *err)
{
    hub->rows = calloc((size_t)hub->table.count, sizeof *hub->rows);
    hub->raw = malloc(HUB_PIECE_ELEMENTS * sizeof(float));
    hub->values = malloc(HUB_PIECE_ELEMENTS * sizeof(float));
    if (!hub->rows || !hub->raw || !hub->values)
        return err_set(err, ERR_MEMORY, "no memory to read %s", hub->folder);
    return true;
}

/* The folder, of a path to it or to its config.json. */
static bool folder_path(char folder[LIMIT_PATH_BYTES], const char *path, struct err *err)
{
    if (snprintf(folder, LIMIT_PATH_BYTES, "%s", path) >= LIMIT_PATH_BYTES)
        return err_set(err, ERR_INVALID, "the path is too long: %.80s…", path);
    if (access(path, F_OK) != 0) {
        err_set(err, ERR_NOT_FOUND, "there is no %s", path);
        return err_hint(err, "name a folder as the hub has them, with config.json and safetensors");
    }
    char *slash = strrchr(folder, '/'), *last = slash ? slash + 1 : folder;
    struct stat info;
    if (strcmp(last, "config.json") == 0 && stat(path, &info) == 0 && S_ISREG(info.st_mode))
        memcpy(last, slash ? "" : ".", slash ? 1 : 2);
    return true;
}

bool hub_open(struct hub *hub, const char *path, struct err *err)
{
    struct hub h = {0};
    if (!folder_path(h.folder, path, err))
        return false;
    const char *folder = h.folder;
    if (!model_config_load(&h.config, folder, err) || !param_table_init(&h.table, &h.config, err) ||
        !safetensors_set_open(&h.files, folder, err) || !hub_reserve(&h, err) || !find_rows(&h, err) ||
        !refuse_strangers(&h, err)) {
        hub_close(&h);
        return false;
    }
    *hub = h;
    return true;
}

void hub_close(struct hub *hub)
{
    safetensors_set_close(&hub->files);
    param_table_done(&hub->table);
    free(hub->rows);
    free(hub->raw);
    free(hub->values);
    *hub = (struct hub){0};
}

/* count <= HUB_PIECE_ELEMENTS, into values. */
static bool read_piece(const struct safetensors_place *place, int64_t start, int64_t count, char *raw,
                       float *values, struct err *err)
{
    const struct safetensor *t = place->tensor;
    size_t width = dtype_bytes(t->dtype);
    void *to = t->dtype == DTYPE_F32 ? (void *)values : raw;
    if (!safetensors_read(place->file, t, (uint64_t)start * width, to, (size_t)count * width, err))
        return err_why(err, "while reading %s", t->name);
    if (t->dtype != DTYPE_F32)
        widen(values, raw, t->dtype, count);
    watch_tick();
    return true;
}

/* count <= HUB_PIECE_ELEMENTS elements of a band, into values. Spans of the file go through one half of raw,
 * and halves (bf16, fp16) are gathered in the other before they are widened. */
static bool read_columns(const struct safetensors_place *place, const struct band_range *range, char *raw,
                         float *values, struct err *err)
{
    const struct safetensor *t = place->tensor;
    size_t width = dtype_bytes(t->dtype);
    const int64_t most = HUB_PIECE_ELEMENTS / 2;
    char *gathered = t->dtype == DTYPE_F32 ? (char *)values : raw + (size_t)HUB_PIECE_ELEMENTS * 2;
    struct band_range rest = band_clip(&(struct band_range){.count = t->elements}, range);
    while (rest.count > 0) {
        struct band_range span = rest;
        span.count = rest.count < most ? rest.count : most;
        if (!safetensors_read(place->file, t, (uint64_t)span.start * width, raw, (size_t)span.count * width,
                              err))
            return err_why(err, "while reading %s", t->name);
        band_copy(gathered, range, raw, &span, width);
        rest.start += span.count;
        rest.count -= span.count;
        watch_tick();
    }
    if (t->dtype != DTYPE_F32)
        widen(values, gathered, t->dtype, range->count);
    return true;
}

bool hub_read(struct hub *hub, int32_t tensor, const struct band_range *range, hub_sink sink, void *context,
              struct err *err)
{
    INVARIANT(tensor >= 0 && tensor < hub->table.count);
    INVARIANT(range->count == 0 || band_fits(range, hub->table.params[tensor].elements));
    for (int64_t done = 0; done < range->count; done += HUB_PIECE_ELEMENTS) {
        struct band_range piece = {range->band, range->start + done, range->count - done};
        if (piece.count > HUB_PIECE_ELEMENTS)
            piece.count = HUB_PIECE_ELEMENTS;
        const struct safetensors_place *place = hub->rows[tensor];
        if (!(range->band.run ? read_columns(place, &piece, hub->raw, hub->values, err)
                              : read_piece(place, piece.start, piece.count, hub->raw, hub->values, err)))
            return false;
        if (sink)
            sink(context, tensor, piece.start, hub->values, piece.count);
    }
    return true;
}

/* Half pieces: both tensors of a comparison share the buffer. Values are compared, so the dtypes may differ.
 */
bool hub_check_tied(struct hub *hub, int64_t index, int64_t count, struct err *err)
{
    INVARIANT(count > 0 && index >= 0 && index < count);
    if (!hub->tied_head)
        return true;
    const int64_t half = HUB_PIECE_ELEMENTS / 2;
    const struct safetensors_place *embedding = hub->rows[param_table_find(&hub->table, EMBEDDING_NAME)];
    int64_t elements = embedding->tensor->elements, step = half * count;
    for (int64_t at = half * index; at < elements; at += step) {
        int64_t piece = elements - at < half ? elements - at : half;
        if (!read_piece(embedding, at, piece, hub->raw, hub->values, err) ||
            !read_piece(hub->tied_head, at, piece, hub->raw, hub->values + half, err))
            return false;
        if (memcmp(hub->values, hub->values + half, (size_t)piece * sizeof(float)) == 0)
            continue;
        err_set(err, ERR_INVALID, "%s: " HEAD_NAME " is not the embedding, though config.json ties them",
                hub->folder);
        return err_hint(err,
                        "set tie_word_embeddings to false if the head is its own, else remove " HEAD_NAME);
    }
    return true;
}
