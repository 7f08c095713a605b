#include "manifest.h"

#include "file.h"
#include "json_field.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define SEAL_BEFORE "\"xxh3\": \""
#define SEAL_AFTER  "\"\n}\n"
#define SEAL_BYTES  (sizeof SEAL_BEFORE - 1 + MANIFEST_HASH_BYTES - 1 + sizeof SEAL_AFTER - 1)

static void hash_text(XXH128_hash_t hash, char text[MANIFEST_HASH_BYTES])
{
    snprintf(text, MANIFEST_HASH_BYTES, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64,
             (uint64_t)hash.low64);
}

void manifest_hash_print(const struct XXH3_state_s *state, char hash[MANIFEST_HASH_BYTES])
{
    hash_text(XXH3_128bits_digest(state), hash);
}

static bool corrupt(const char *path, const char *why, struct err *err)
{
    err_set(err, ERR_CORRUPT, "%s is damaged", path);
    err_why(err, "%s", why);
    return err_hint(err, "use another checkpoint, or copy this one again from where it is whole");
}

static bool seal_check(const char *path, const char *text, size_t bytes, char hash[MANIFEST_HASH_BYTES],
                       struct err *err)
{
    if (bytes < SEAL_BYTES)
        return corrupt(path, "it is too short to hold its checksum", err);
    char seal[SEAL_BYTES + 1];
    size_t body = bytes - SEAL_BYTES;
    hash_text(XXH3_128bits(text, body), hash);
    snprintf(seal, sizeof seal, SEAL_BEFORE "%s" SEAL_AFTER, hash);
    if (memcmp(text + body, seal, SEAL_BYTES) != 0)
        return corrupt(path, "its bytes do not give the checksum at its end", err);
    return true;
}

bool manifest_load(struct manifest *manifest, const char *path, struct err *err)
{
    if (strlen(path) >= sizeof manifest->path)
        return err_set(err, ERR_INVALID, "the path is too long: %.80s…", path);
    if (access(path, F_OK) != 0)
        return err_set(err, ERR_NOT_FOUND, "there is no %s", path);
    char *text, hash[MANIFEST_HASH_BYTES];
    size_t bytes;
    if (!file_slurp(path, LIMIT_JSON_BYTES, &text, &bytes, err))
        return false;
    json_t *root = NULL;
    if (seal_check(path, text, bytes, hash, err)) {
        json_error_t where;
        root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &where);
        if (!json_is_object(root)) { /* sealed, and yet not ours */
            corrupt(path, root ? "it is not a JSON object" : where.text, err);
            json_decref(root);
            root = NULL;
        }
    }
    free(text);
    if (!root)
        return false;
    manifest->root = root;
    snprintf(manifest->path, sizeof manifest->path, "%s", path);
    memcpy(manifest->hash, hash, sizeof hash);
    return true;
}

void manifest_close(struct manifest *manifest)
{
    json_decref(manifest->root);
    *manifest = (struct manifest){0};
}

/* One element a line where the elements are objects; the rest on the key's own line. */
static bool value_print(FILE *out, const json_t *value)
{
    const size_t flags = JSON_ENCODE_ANY | JSON_REAL_PRECISION(17);
    if (!json_is_array(value) || !json_is_object(json_array_get(value, 0)))
        return json_dumpf(value, out, flags) == 0;
    size_t i;
    json_t *element;
    bool printed = fputs("[", out) >= 0;
    json_array_foreach(value, i, element) printed =
        printed && fputs(i ? ",\n  " : "\n  ", out) >= 0 && json_dumpf(element, out, flags) == 0;
    return printed && fputs("\n]", out) >= 0;
}

static bool body_print(FILE *out, const json_t *root)
{
    const char *key;
    json_t *value;
    bool printed = fputs("{\n", out) >= 0;
    json_object_foreach((json_t *)(uintptr_t)root, key, value)
    {
        json_t *name = json_string(key); /* quoted as JSON wants it */
        printed = printed && name && json_dumpf(name, out, JSON_ENCODE_ANY) == 0 && fputs(": ", out) >= 0 &&
                  value_print(out, value) && fputs(",\n", out) >= 0;
        json_decref(name);
    }
    return printed;
}

bool manifest_text(const struct json_t *root, char **text, size_t *bytes, struct err *err)
{
    INVARIANT(json_object_size(root) > 0);
    char *buffer = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&buffer, &size);
    bool printed = out && body_print(out, root) && fflush(out) == 0;
    if (printed) {
        char hash[MANIFEST_HASH_BYTES];
        hash_text(XXH3_128bits(buffer, size), hash);
        printed = fprintf(out, SEAL_BEFORE "%s" SEAL_AFTER, hash) > 0;
    }
    printed = (!out || fclose(out) == 0) && printed;
    if (printed && size <= LIMIT_JSON_BYTES) {
        *text = buffer;
        *bytes = size;
        return true;
    }
    free(buffer);
    if (printed)
        return err_set(err, ERR_UNSUPPORTED, "the manifest would have %zu bytes, more than %d", size,
                       LIMIT_JSON_BYTES);
    return err_set(err, ERR_MEMORY, "no memory to print a manifest");
}

static struct json_origin origin_of(const struct manifest *manifest)
{
    return (struct json_origin){manifest->path, "checkpoint manifest",
                                "it was not written by this version of trainerd"};
}

bool manifest_string(const struct manifest *manifest, const struct json_t *object, const char *key,
                     char *value, size_t value_bytes, struct err *err)
{
    const struct json_origin origin = origin_of(manifest);
    return json_field_text(&origin, object, key, value, value_bytes, err);
}

bool manifest_integer(const struct manifest *manifest, const struct json_t *object, const char *key,
                      int64_t least, int64_t most, int64_t *value, struct err *err)
{
    const struct json_origin origin = origin_of(manifest);
    return json_field_integer(&origin, object, key, least, most, value, err);
}

bool manifest_boolean(const struct manifest *manifest, const struct json_t *object, const char *key,
                      bool *value, struct err *err)
{
    const struct json_origin origin = origin_of(manifest);
    return json_field_boolean(&origin, object, key, value, err);
}

bool manifest_array(const struct manifest *manifest, const char *key, struct json_t **value, struct err *err)
{
    const struct json_origin origin = origin_of(manifest);
    return json_field_array(&origin, manifest->root, key, value, err);
}

bool manifest_object(const struct manifest *manifest, const char *key, struct json_t **value, struct err *err)
{
    const struct json_origin origin = origin_of(manifest);
    return json_field_object(&origin, manifest->root, key, value, err);
}
