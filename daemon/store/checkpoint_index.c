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
    if (x->range.band.first != y->range.band.first)
        return x->range.band.first < y->range.band.first ? -1 : 1;
    return x->range.start < y->range.start ? -1 : x->range.start > y->range.start;
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

/* The places of one part, whose length is not 0; *at passes them. In each band a range must begin where the
 * one before ended, from the band's first element to its last, and bands lie side by side from column 0 to
 * the row's end. The whole array is a band too: one row of all columns. */
static bool check_part(const struct checkpoint_place *places, int64_t count, int64_t length,
                       const char *origin, const char *name, int part, int64_t *at, struct err *err)
{
    int64_t columns = 0, stride = 0;
    while (*at < count) {
        const struct band band = places[*at].range.band;
        int64_t elements = band_elements(&band, length), covered = 0;
        if (band.first != columns)
            return refuse(origin, name, part, band.first < columns ? "is there twice in part" : "has a hole",
                          err);
        for (; *at < count && places[*at].range.band.first == band.first; (*at)++) {
            const struct band_range *range = &places[*at].range;
            if (!band_equal(&range->band, &band))
                return refuse(origin, name, part, "is cut in two ways", err);
            if (range->start != covered)
                return refuse(origin, name, part,
                              range->start < covered ? "is there twice in part" : "has a hole", err);
            if (range->count > elements - covered)
                return refuse(origin, name, part, "is longer than the model's", err);
            covered += range->count;
        }
        if (covered != elements)
            return refuse(origin, name, part, "ends too early", err);
        if (columns > 0 && band.stride != stride)
            return refuse(origin, name, part, "is cut in two ways", err);
        columns += band.run ? band.run : length;
        stride = band.run ? band.stride : length;
    }
    if (columns != stride || columns == 0)
        return refuse(origin, name, part, columns ? "lacks its last columns" : "is missing", err);
    return true;
}

static bool check_cover(const struct param_table *table, const struct checkpoint_formats *formats,
                        const struct checkpoint_place *places, int64_t place_count, const char *origin,
                        struct err *err)
{
    int64_t at = 0;
    for (int32_t tensor = 0; tensor < table->count; tensor++) {
        const struct param *param = &table->params[tensor];
        for (int part = 0; part < CHECKPOINT_PARTS; part++) {
            enum dtype dtype;
            int64_t length = 0, end = at;
            if (!checkpoint_part_shape(formats, part, param_whole_elements(param), &dtype, &length))
                continue;
            while (end < place_count && places[end].tensor == tensor && places[end].part == part)
                end++;
            if (!check_part(places, end, length, origin, param->name, part, &at, err))
                return false;
        }
    }
    INVARIANT(at == place_count); /* rows and parts were checked when they were parsed, and with the bounds */
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
        if (!checkpoint_part_shape(formats, p->part, param_whole_elements(param), &dtype, &length))
            return refuse(origin, param->name, p->part, "does not exist in this policy", err);
        if (p->file < 0 || p->file >= file_count || !band_fits(&p->range, length))
            return refuse(origin, param->name, p->part, "has a slice that is out of bounds", err);
        int64_t bytes = p->range.count * (int64_t)dtype_bytes(dtype); /* length <= 2^40: no overflow */
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

int64_t checkpoint_index_find(const struct checkpoint *checkpoint, int32_t tensor, int part,
                              const struct band_range *range)
{
    int64_t low = 0, high = checkpoint->place_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        const struct checkpoint_place *p = &checkpoint->places[middle];
        bool before = p->tensor != tensor ? p->tensor < tensor
                      : p->part != part   ? p->part < part
                      : p->range.band.first != range->band.first
                          ? p->range.band.first < range->band.first
                          : p->range.start + p->range.count <= range->start;
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

/* "first", "run" and "stride" of a band; none of them where the slice is a range of the whole array. */
static bool band_parse(const struct manifest *manifest, const json_t *slice, struct band *band,
                       struct err *err)
{
    *band = (struct band){0};
    return (!json_object_get(slice, "first") && !json_object_get(slice, "run") &&
            !json_object_get(slice, "stride")) ||
           (manifest_integer(manifest, slice, "first", 0, INT64_MAX, &band->first, err) &&
            manifest_integer(manifest, slice, "run", 1, INT64_MAX, &band->run, err) &&
            manifest_integer(manifest, slice, "stride", 1, INT64_MAX, &band->stride, err));
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
        !manifest_integer(manifest, slice, "start", 0, INT64_MAX, &place->range.start, err) ||
        !manifest_integer(manifest, slice, "count", 1, INT64_MAX, &place->range.count, err) ||
        !band_parse(manifest, slice, &place->range.band, err) ||
        !manifest_integer(manifest, slice, "file", 0, file_count - 1, &file, err) ||
        !manifest_integer(manifest, slice, "offset", 0, INT64_MAX, &place->offset, err))
        return false;
    place->tensor = row_find(table, tensor, hint);
    place->part = part_from_name(part);
    place->file = (int32_t)file;
    if (place->tensor < 0 || place->part < 0 ||
        !checkpoint_part_shape(formats, place->part, param_whole_elements(&table->params[place->tensor]),
                               &dtype, &length) ||
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
