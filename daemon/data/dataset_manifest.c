#include "dataset_manifest.h"

#include "file.h"
#include "json_field.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define FORMAT_NAME "trainerd-dataset"

void dataset_manifest_hash_data(char text[DATASET_HASH_BYTES], const void *bytes, size_t count)
{
    XXH128_hash_t hash = XXH3_128bits(bytes, count);
    snprintf(text, DATASET_HASH_BYTES, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64,
             (uint64_t)hash.low64);
}

void dataset_manifest_done(struct dataset_manifest *manifest)
{
    free(manifest->lengths);
    free(manifest->first_trained);
    *manifest = (struct dataset_manifest){0};
}

#define KIND                   "dataset manifest"
#define HINT                   "make the dataset again with `trainctl data prepare`"
#define refuse(path, err, ...) err_unsound(err, path, KIND, HINT, __VA_ARGS__)

/* 16 hex digits over the manifest without its own checksum, in one canonical form. False: no memory. */
static bool canonical_hash(json_t *root, char text[DATASET_HASH_BYTES])
{
    json_t *bare = json_copy(root);
    json_object_del(bare, "checksum");
    char *canonical = bare ? json_dumps(bare, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    json_decref(bare);
    if (canonical)
        snprintf(text, DATASET_HASH_BYTES, "%016" PRIx64,
                 (uint64_t)XXH3_64bits(canonical, strlen(canonical)));
    free(canonical);
    return canonical;
}

/* rows.key as int32_t[count], each least … most. */
static bool get_column(json_t *rows, const char *key, int64_t count, int64_t least, int64_t most,
                       int32_t **column, const char *path, struct err *err)
{
    json_t *array = json_object_get(rows, key);
    if (!json_is_array(array) || json_array_size(array) != (size_t)count)
        return refuse(path, err, "rows.%s is missing or has not %" PRId64 " entries", key, count);
    *column = malloc((size_t)count * sizeof **column);
    if (!*column)
        return err_set(err, ERR_MEMORY, "no memory for the %" PRId64 " rows of %.200s", count, path);
    for (int64_t i = 0; i < count; i++) {
        json_t *entry = json_array_get(array, (size_t)i);
        int64_t number = json_integer_value(entry);
        if (!json_is_integer(entry) || number < least || number > most)
            return refuse(path, err, "rows.%s has an impossible entry for row %" PRId64, key, i);
        (*column)[i] = (int32_t)number;
    }
    return true;
}

static bool check_checksum(json_t *root, const char *path, struct err *err)
{
    const struct json_origin origin = {path, KIND, HINT};
    char said[DATASET_HASH_BYTES], counted[DATASET_HASH_BYTES];
    if (!json_field_optional_text(&origin, root, "checksum", said, sizeof said, err))
        return false;
    if (!canonical_hash(root, counted))
        return err_set(err, ERR_MEMORY, "no memory to check %.200s", path);
    return !*said || strcmp(said, counted) == 0 ||
           refuse(path, err, "its checksum does not match its contents");
}

static bool parse(struct dataset_manifest *m, json_t *root, const char *path, struct err *err)
{
    const struct json_origin origin = {path, KIND, HINT};
    char format[LIMIT_NAME_BYTES];
    int64_t version = 0;
    json_t *tokenizer = json_object_get(root, "tokenizer"), *statistics = json_object_get(root, "statistics");
    json_t *rows = json_object_get(root, "rows");
    const int64_t tokens_max = (int64_t)DATASET_ROWS_MAX * DATASET_ROW_TOKENS_MAX;
    if (!json_field_text(&origin, root, "format", format, sizeof format, err) ||
        !json_field_integer(&origin, root, "version", 1, INT32_MAX, &version, err))
        return false;
    if (strcmp(format, FORMAT_NAME) != 0)
        return refuse(path, err, "its format is \"%.60s\", not \"" FORMAT_NAME "\"", format);
    if (version != DATASET_VERSION)
        return err_set(err, ERR_UNSUPPORTED, "%.200s has version %" PRId64 ", this build reads %d", path,
                       version, DATASET_VERSION);
    return check_checksum(root, path, err) &&
           json_field_text(&origin, tokenizer, "name", m->tokenizer, sizeof m->tokenizer, err) &&
           json_field_text(&origin, tokenizer, "hash", m->tokenizer_hash, sizeof m->tokenizer_hash, err) &&
           json_field_integer(&origin, tokenizer, "vocabulary", 1, LIMIT_VOCABULARY, &m->vocabulary, err) &&
           json_field_optional_text(&origin, root, "sort_key", m->sort_key, sizeof m->sort_key, err) &&
           json_field_optional_text(&origin, root, "data_xxh3", m->data_xxh3, sizeof m->data_xxh3, err) &&
           json_field_integer(&origin, root, "cutoff", 1, DATASET_ROW_TOKENS_MAX, &m->cutoff, err) &&
           json_field_integer(&origin, statistics, "rows", 1, DATASET_ROWS_MAX, &m->statistics.rows, err) &&
           json_field_integer(&origin, statistics, "tokens", 1, tokens_max, &m->statistics.tokens, err) &&
           json_field_integer(&origin, statistics, "labelled", 0, tokens_max, &m->statistics.labelled, err) &&
           json_field_integer(&origin, statistics, "cut", 0, INT64_MAX, &m->statistics.cut, err) &&
           json_field_integer(&origin, statistics, "dropped", 0, INT64_MAX, &m->statistics.dropped, err) &&
           get_column(rows, "length", m->statistics.rows, 1, DATASET_ROW_TOKENS_MAX, &m->lengths, path,
                      err) &&
           get_column(rows, "first_trained", m->statistics.rows, -1, DATASET_ROW_TOKENS_MAX,
                      &m->first_trained, path, err);
}

bool dataset_manifest_read(struct dataset_manifest *manifest, const char *folder, struct err *err)
{
    char path[LIMIT_PATH_BYTES], *text;
    size_t bytes;
    json_error_t problem;
    struct dataset_manifest made = {0};
    if (!file_join(path, sizeof path, folder, DATASET_MANIFEST_NAME, err))
        return false;
    if (access(path, F_OK) != 0 && errno == ENOENT) {
        err_set(err, ERR_NOT_FOUND, "there is no dataset in %.300s", folder);
        return err_hint(err, "a dataset is a folder made by `trainctl data prepare`");
    }
    if (!file_slurp(path, LIMIT_JSON_BYTES, &text, &bytes, err))
        return err_hint(err, "a dataset is a folder made by `trainctl data prepare`");
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &problem);
    free(text);
    if (!root)
        return refuse(path, err, "line %d: %.200s", problem.line, problem.text);
    bool good = parse(&made, root, path, err);
    json_decref(root);
    if (good)
        *manifest = made;
    else
        dataset_manifest_done(&made);
    return good;
}

static json_t *column(const int32_t *entries, int64_t count)
{
    json_t *array = json_array();
    for (int64_t i = 0; i < count; i++)
        json_array_append_new(array, json_integer(entries[i]));
    return array;
}

static json_t *describe(const struct dataset_manifest *m)
{
    const struct dataset_statistics *s = &m->statistics;
    json_t *percentiles = json_object();
    for (int i = 0; i < DATASET_PERCENTILES; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", dataset_percentiles[i]);
        json_object_set_new(percentiles, name, json_integer(s->percentile[i]));
    }
    return json_pack(
        "{s:s, s:i, s:{s:s, s:s, s:I}, s:o, s:I, s:s, s:{s:I, s:I, s:I, s:I, s:I, s:I, s:o}, s:{s:o, s:o}}",
        "format", FORMAT_NAME, "version", DATASET_VERSION, "tokenizer", "name", m->tokenizer, "hash",
        m->tokenizer_hash, "vocabulary", (json_int_t)m->vocabulary, "sort_key",
        *m->sort_key ? json_string(m->sort_key) : json_null(), "cutoff", (json_int_t)m->cutoff, "data_xxh3",
        m->data_xxh3, "statistics", "rows", (json_int_t)s->rows, "tokens", (json_int_t)s->tokens, "labelled",
        (json_int_t)s->labelled, "longest", (json_int_t)s->longest, "cut", (json_int_t)s->cut, "dropped",
        (json_int_t)s->dropped, "length_percentiles", percentiles, "rows", "length",
        column(m->lengths, s->rows), "first_trained", column(m->first_trained, s->rows));
}

bool dataset_manifest_write(const struct dataset_manifest *manifest, const char *folder, struct err *err)
{
    char path[LIMIT_PATH_BYTES], checksum[DATASET_HASH_BYTES];
    if (!file_join(path, sizeof path, folder, DATASET_MANIFEST_NAME, err))
        return false;
    json_t *root = describe(manifest);
    char *text = NULL;
    if (root && canonical_hash(root, checksum) &&
        json_object_set_new(root, "checksum", json_string(checksum)) == 0)
        text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!text)
        return err_set(err, ERR_MEMORY, "the manifest %.200s cannot be made", path);
    bool good = strlen(text) <= LIMIT_JSON_BYTES ||
                err_set(err, ERR_INVALID, "the manifest of %" PRId64 " rows is larger than %d bytes",
                        manifest->statistics.rows, LIMIT_JSON_BYTES);
    good = good && file_replace(path, text, strlen(text), err);
    free(text);
    return good;
}
