/* A hub folder as one table of tensors: the single file, or the index and its shards. */
#include "safetensors.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME  "model.safetensors.index.json"

static int by_name(const void *left, const void *right)
{
    const struct safetensors_place *a = left, *b = right;
    return strcmp(a->tensor->name, b->tensor->name);
}

/* One sorted table over all files; a name in two of them is refused. */
static bool gather(struct safetensors_set *set, const char *folder, struct err *err)
{
    int64_t total = 0;
    for (int64_t f = 0; f < set->files; f++)
        total += set->file[f].count;
    set->places = calloc(total ? (size_t)total : 1, sizeof *set->places);
    if (!set->places)
        return err_set(err, ERR_MEMORY, "no memory for the %lld tensors of %.200s", (long long)total, folder);
    for (int64_t f = 0; f < set->files; f++)
        for (int64_t i = 0; i < set->file[f].count; i++)
            set->places[set->count++] = (struct safetensors_place){&set->file[f].tensors[i], &set->file[f]};
    qsort(set->places, (size_t)set->count, sizeof *set->places, by_name);
    for (int64_t i = 1; i < set->count; i++)
        if (by_name(&set->places[i - 1], &set->places[i]) == 0)
            return err_set(err, ERR_CORRUPT, "tensor %s is in two files of %.200s",
                           set->places[i].tensor->name, folder);
    return true;
}

static int by_text(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The index's file names, each once, sorted; they point into the JSON. count is set to how many. */
static const char **shard_names(const json_t *map, size_t *count, const char *path, struct err *err)
{
    size_t entries = json_object_size(map), kept = 0;
    if (entries == 0 || entries > SAFETENSORS_TENSORS_MAX) {
        err_set(err, ERR_CORRUPT, "%.200s has no usable weight_map", path);
        return NULL;
    }
    const char **names = calloc(entries, sizeof *names);
    const char *tensor;
    json_t *value;
    if (!names) {
        err_set(err, ERR_MEMORY, "no memory to read %.200s", path);
        return NULL;
    }
    json_object_foreach((json_t *)(uintptr_t)map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (!name || !*name || *name == '.' || strchr(name, '/') || strlen(name) > 255) {
            err_set(err, ERR_CORRUPT, "%.200s names no proper file for tensor %.100s", path, tensor);
            free(names);
            return NULL;
        }
        names[kept++] = name;
    }
    qsort(names, kept, sizeof *names, by_text);
    *count = 0;
    for (size_t i = 0; i < kept; i++)
        if (i == 0 || strcmp(names[i], names[i - 1]) != 0)
            names[(*count)++] = names[i];
    return names;
}

static bool open_files(struct safetensors_set *set, const char *folder, const char *const *names,
                       size_t count, struct err *err)
{
    INVARIANT(count > 0);
    if (count > SAFETENSORS_SHARDS_MAX)
        return err_set(err, ERR_INVALID, "%.200s has %zu shards, more than %d", folder, count,
                       SAFETENSORS_SHARDS_MAX);
    set->file = calloc(count, sizeof *set->file);
    if (!set->file)
        return err_set(err, ERR_MEMORY, "no memory to open %.200s", folder);
    for (size_t i = 0; i < count; i++) {
        char path[LIMIT_PATH_BYTES];
        if (!file_join(path, sizeof path, folder, names[i], err) ||
            !safetensors_open(&set->file[i], path, err))
            return false;
        set->files++;
    }
    return gather(set, folder, err);
}

/* Every tensor of the index is where it says. */
static bool check_index(const struct safetensors_set *set, json_t *map, const char *const *names,
                        const char *path, struct err *err)
{
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value)
    {
        const struct safetensors_place *place = safetensors_set_find(set, tensor);
        if (!place || strcmp(names[place->file - set->file], json_string_value(value)) != 0)
            return err_set(err, ERR_CORRUPT, "%.200s says that tensor %.100s is in %.100s, but it is not",
                           path, tensor, json_string_value(value));
    }
    return true;
}

static bool open_index(struct safetensors_set *set, const char *folder, const char *path, struct err *err)
{
    char *text;
    size_t bytes, count;
    json_error_t problem;
    if (!file_slurp(path, LIMIT_JSON_BYTES, &text, &bytes, err))
        return false;
    json_t *index = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &problem);
    free(text);
    if (!index) {
        err_set(err, ERR_CORRUPT, "%.200s is not JSON", path);
        return err_why(err, "line %d: %.200s", problem.line, problem.text);
    }
    json_t *map = json_object_get(index, "weight_map");
    const char **names = shard_names(map, &count, path, err);
    bool good =
        names && open_files(set, folder, names, count, err) && check_index(set, map, names, path, err);
    free(names);
    json_decref(index);
    return good;
}

bool safetensors_set_open(struct safetensors_set *set, const char *folder, struct err *err)
{
    char single[LIMIT_PATH_BYTES], index[LIMIT_PATH_BYTES];
    struct stat info;
    struct safetensors_set made = {0};
    const char *const one = SINGLE_NAME;
    bool good;
    if (!file_join(single, sizeof single, folder, SINGLE_NAME, err) ||
        !file_join(index, sizeof index, folder, INDEX_NAME, err))
        return false;
    if (stat(single, &info) == 0) {
        good = open_files(&made, folder, &one, 1, err);
    } else if (stat(index, &info) == 0) {
        good = open_index(&made, folder, index, err);
    } else {
        err_set(err, ERR_NOT_FOUND, "%.200s holds no model weights", folder);
        err_why(err, "neither " SINGLE_NAME " nor " INDEX_NAME " is there");
        good = err_hint(err, "name a folder as the hub has them, with config.json and safetensors");
    }
    if (!good) {
        safetensors_set_close(&made);
        return false;
    }
    *set = made;
    return true;
}

void safetensors_set_close(struct safetensors_set *set)
{
    for (int64_t i = 0; i < set->files; i++)
        safetensors_close(&set->file[i]);
    free(set->file);
    free(set->places);
    *set = (struct safetensors_set){0};
}

static int name_to_place(const void *name, const void *place)
{
    return strcmp(name, ((const struct safetensors_place *)place)->tensor->name);
}

const struct safetensors_place *safetensors_set_find(const struct safetensors_set *set, const char *name)
{
    return bsearch(name, set->places, (size_t)set->count, sizeof *set->places, name_to_place);
}
