#include "checkpoint_index.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const part_names[CHECKPOINT_PARTS] = {"weight", "weight.extra", "m", "m.scale",
                                                         "v",      "v.scale"};

const char *checkpoint_part_name(int part)
{
    INVARIANT(part >= 0 && part < CHECKPOINT_PARTS);
    return part_names[part];
}

static int part_from_name(const char *name)
{
    for (int part = 0; part < CHECKPOINT_PARTS; part++)
        if (strcmp(name, part_names[part]) == 0)
            return part;
    return -1;
}

struct format_row {
    enum dtype main, extra;
    int64_t group; /* elements that share one entry of the second array */
};

static const struct format_row weight_rows[] = {
#define X(format, name, main, extra) [format] = {main, extra, 1},
    WEIGHT_FORMATS(X)
#undef X
};

static const struct format_row moment_rows[] = {
#define X(format, name, main, extra) [format] = {main, extra, Q8_GROUP},
    MOMENT_FORMATS(X)
#undef X
};

bool checkpoint_part_shape(const struct checkpoint_formats *formats, int part, int64_t elements,
                           enum dtype *dtype, int64_t *length)
{
    const struct format_row *row = part / 2 == STATE_W   ? &weight_rows[formats->weight]
                                   : part / 2 == STATE_M ? &moment_rows[formats->m]
                                                         : &moment_rows[formats->v];
    bool extra = part % 2 == 1;
    enum dtype found = extra ? row->extra : row->main;
    if (found == DTYPE_COUNT)
        return false;
    *dtype = found;
    *length = extra ? (elements + row->group - 1) / row->group : elements;
    return true;
}

static int by_place(const void *a, const void *b)
{
    const struct checkpoint_place *x = a, *y = b;
    if (x->tensor != y->tensor)
        return x->tensor < y->tensor ? -1 : 1;
    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* A range of a file, to find two slices that share bytes. */
struct extent {
    int32_t file;
    int64_t offset, end;
};

static int by_offset(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static bool refuse(const char *origin, const char *name, int part, const char *what, struct err *err)
{
    err_set(err, ERR_CORRUPT, "%s: %s of %s %s", origin, part_names[part], name, what);
    return err_hint(err, "use another checkpoint");
}

/* Each part's slices, in order, must begin where the one before ended, from 0 to the part's length. */
static bool check_cover(const struct param_table *table, const struct checkpoint_formats *formats,
                        const struct checkpoint_place *places, int64_t place_count, const char *origin,
                        struct err *err)
{
    int64_t at = 0;
    for (int32_t tensor = 0; tensor < table->count; tensor++) {
        for (int part = 0; part < CHECKPOINT_PARTS; part++) {
            const char *name = table->params[tensor].name;
            enum dtype dtype;
            int64_t length = 0, covered = 0;
            (void)checkpoint_part_shape(formats, part, table->params[tensor].elements, &dtype, &length);
            for (; at < place_count && places[at].tensor == tensor && places[at].part == part; at++) {
                if (length == 0)
                    return refuse(origin, name, part, "does not exist in this policy", err);
                if (places[at].start != covered)
                    return refuse(origin, name, part,
                                  places[at].start < covered ? "is there twice in part" : "has a hole", err);
                if (places[at].count > length - covered)
                    return refuse(origin, name, part, "is longer than the model's", err);
                covered += places[at].count;
            }
            if (covered != length)
                return refuse(origin, name, part, covered ? "ends too early" : "is missing", err);
        }
    }
    INVARIANT(at == place_count); /* rows and parts were checked when they were parsed */
    return true;
}

static bool check_extents(struct extent *extents, int64_t count, const char *origin, struct err *err)
{
    qsort(extents, (size_t)count, sizeof *extents, by_offset);
    for (int64_t i = 1; i < count; i++)
        if (extents[i].file == extents[i - 1].file && extents[i].offset < extents[i - 1].end)
            return err_set(err, ERR_CORRUPT, "%s: two slices share bytes of one file", origin);
    return true;
}

static bool check_bounds(const struct param_table *table, const struct checkpoint_formats *formats,
                         const struct checkpoint_file *files, int64_t file_count,
                         const struct checkpoint_place *places, int64_t place_count, struct extent *extents,
                         const char *origin, struct err *err)
{
    for (int64_t i = 0; i < place_count; i++) {
        const struct checkpoint_place *p = &places[i];
        const struct param *param = &table->params[p->tensor];
        enum dtype dtype;
        int64_t length;
        if (!checkpoint_part_shape(formats, p->part, param->elements, &dtype, &length))
            return refuse(origin, param->name, p->part, "does not exist in this policy", err);
        if (p->file < 0 || p->file >= file_count || p->count < 1 || p->count > length || p->start < 0 ||
            p->start > length - p->count)
            return refuse(origin, param->name, p->part, "has a slice that is out of bounds", err);
        int64_t bytes = p->count * (int64_t)dtype_bytes(dtype); /* length <= 2^40: no overflow */
        if (p->offset < 0 || p->offset > files[p->file].bytes - bytes)
            return refuse(origin, param->name, p->part, "has a slice that passes its file's end", err);
        extents[i] = (struct extent){p->file, p->offset, p->offset + bytes};
    }
    return true;
}

bool checkpoint_index_check(const struct param_table *table, const struct checkpoint_formats *formats,
                            const struct checkpoint_file *files, int64_t file_count,
                            struct checkpoint_place *places, int64_t place_count, const char *origin,
                            struct err *err)
{
    if (place_count < 1)
        return err_set(err, ERR_CORRUPT, "%s lists no slices", origin);
    struct extent *extents = malloc((size_t)place_count * sizeof *extents);
    if (!extents)
        return err_set(err, ERR_MEMORY, "no memory to check the %" PRId64 " slices of %s", place_count,
                       origin);
    qsort(places, (size_t)place_count, sizeof *places, by_place);
    bool whole = check_bounds(table, formats, files, file_count, places, place_count, extents, origin, err) &&
                 check_extents(extents, place_count, origin, err) &&
                 check_cover(table, formats, places, place_count, origin, err);
    free(extents);
    return whole;
}

int64_t checkpoint_index_find(const struct checkpoint_place *places, int64_t place_count, int32_t tensor,
                              int part, int64_t start)
{
    int64_t low = 0, high = place_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const struct checkpoint_place *p = &places[middle];
        bool before = p->tensor != tensor ? p->tensor < tensor
                      : p->part != part   ? p->part < part
                                          : p->start + p->count <= start;
        if (before)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Names come mostly in table order, so the search starts at the row found last. */
static int32_t row_find(const struct param_table *table, const char *name, int32_t hint)
{
    for (int32_t i = hint; i < table->count && i < hint + 2; i++)
        if (strcmp(table->params[i].name, name) == 0)
            return i;
    return param_table_find(table, name);
}

static bool place_parse(const struct manifest *manifest, const json_t *slice, const struct param_table *table,
                        const struct checkpoint_formats *formats, int64_t file_count, int32_t hint,
                        struct checkpoint_place *place, struct err *err)
{
    char tensor[LIMIT_NAME_BYTES], part[LIMIT_NAME_BYTES], type[LIMIT_NAME_BYTES];
    int64_t file, length;
    enum dtype dtype;
    if (!manifest_string(manifest, slice, "tensor", tensor, sizeof tensor, err) ||
        !manifest_string(manifest, slice, "part", part, sizeof part, err) ||
        !manifest_string(manifest, slice, "dtype", type, sizeof type, err) ||
        !manifest_integer(manifest, slice, "start", 0, INT64_MAX, &place->start, err) ||
        !manifest_integer(manifest, slice, "count", 1, INT64_MAX, &place->count, err) ||
        !manifest_integer(manifest, slice, "file", 0, file_count - 1, &file, err) ||
        !manifest_integer(manifest, slice, "offset", 0, INT64_MAX, &place->offset, err))
        return false;
    place->tensor = row_find(table, tensor, hint);
    place->part = part_from_name(part);
    place->file = (int32_t)file;
    if (place->tensor < 0 || place->part < 0 ||
        !checkpoint_part_shape(formats, place->part, table->params[place->tensor].elements, &dtype,
                               &length) ||
        strcmp(type, dtype_hub_name(dtype)) != 0)
        return err_set(err, ERR_CORRUPT, "%s lists %s of %s as %s, which model and policy have not",
                       manifest->path, part, tensor, type);
    return true;
}

static bool file_parse(const struct manifest *manifest, const json_t *entry, struct checkpoint_file *file,
                       struct err *err)
{
    *file = (struct checkpoint_file){.fd = -1};
    if (!manifest_string(manifest, entry, "name", file->name, sizeof file->name, err) ||
        !manifest_integer(manifest, entry, "bytes", 0, INT64_MAX, &file->bytes, err) ||
        !manifest_string(manifest, entry, "xxh3", file->hash, sizeof file->hash, err))
        return false;
    if (strchr(file->name, '/') || file->name[0] == '.' ||
        file->name[0] == '\0') /* never outside the folder */
        return err_set(err, ERR_CORRUPT, "%s names a file \"%s\"", manifest->path, file->name);
    return true;
}

bool checkpoint_index_parse(const struct manifest *manifest, const struct param_table *table,
                            const struct checkpoint_formats *formats, struct checkpoint_file **files_out,
                            int64_t *file_count, struct checkpoint_place **places_out, int64_t *place_count,
                            struct err *err)
{
    json_t *file_list, *slice_list;
    if (!manifest_array(manifest, "files", &file_list, err) ||
        !manifest_array(manifest, "slices", &slice_list, err))
        return false;
    size_t n = json_array_size(file_list), slices = json_array_size(slice_list);
    if (n > CHECKPOINT_FILES_MAX)
        return err_set(err, ERR_CORRUPT, "%s lists %zu files", manifest->path, n);
    struct checkpoint_file *files = calloc(n ? n : 1, sizeof *files);
    struct checkpoint_place *places = calloc(slices ? slices : 1, sizeof *places);
    bool parsed = (files && places) || err_set(err, ERR_MEMORY, "no memory to read %s", manifest->path);
    for (size_t i = 0; parsed && i < n; i++)
        parsed = file_parse(manifest, json_array_get(file_list, i), &files[i], err);
    for (size_t i = 0; parsed && i < slices; i++)
        parsed = place_parse(manifest, json_array_get(slice_list, i), table, formats, (int64_t)n,
                             i ? places[i - 1].tensor : 0, &places[i], err);
    if (!parsed) {
        free(files);
        free(places);
        return false;
    }
    *files_out = files;
    *places_out = places;
    *file_count = (int64_t)n;
    *place_count = (int64_t)slices;
    return true;
}
