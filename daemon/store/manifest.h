/* A sealed JSON object in a file: the last field is the XXH3-128 of every byte before it, so one flipped or
 * missing byte anywhere is found before a field is believed. Readable by any JSON reader; sealed ones are
 * written only here.
 *
 * The layout of the text: one key of the root a line, in the order of insertion; arrays of objects one
 * element a line. */
#pragma once

#include "bounds.h"
#include "err.h"

#include <stddef.h>
#include <stdint.h>

#define MANIFEST_HASH_BYTES 33 /* 32 lower-case hexadecimal digits and the end */
#define MANIFEST_PATH_BYTES (LIMIT_PATH_BYTES + 2 * LIMIT_NAME_BYTES + 64)

struct json_t; /* jansson's */
struct XXH3_state_s;

struct manifest {
    struct json_t *root;
    char path[MANIFEST_PATH_BYTES];
    char hash[MANIFEST_HASH_BYTES];
};

/* Any change of the bytes since manifest_text made them is ERR_CORRUPT; an absent file ERR_NOT_FOUND. */
bool manifest_load(struct manifest *manifest, const char *path, struct err *err) MUST_USE;
void manifest_close(struct manifest *manifest); /* zeroed: fine */

/* The sealed text of root, which has no key "xxh3" and at least one other; malloc'ed. Refused above
 * LIMIT_JSON_BYTES. */
bool manifest_text(const struct json_t *root, char **text, size_t *bytes, struct err *err) MUST_USE;

/* Fields, checked: a missing one, a wrong type, a number outside [least, most] are ERR_CORRUPT naming file
 * and key. */
bool manifest_string(const struct manifest *manifest, const struct json_t *object, const char *key,
                     char *value, size_t value_bytes, struct err *err) MUST_USE;
bool manifest_integer(const struct manifest *manifest, const struct json_t *object, const char *key,
                      int64_t least, int64_t most, int64_t *value, struct err *err) MUST_USE;
bool manifest_boolean(const struct manifest *manifest, const struct json_t *object, const char *key,
                      bool *value, struct err *err) MUST_USE;
/* The array or object under key of the root, borrowed. */
bool manifest_array(const struct manifest *manifest, const char *key, struct json_t **value,
                    struct err *err) MUST_USE;
bool manifest_object(const struct manifest *manifest, const char *key, struct json_t **value,
                     struct err *err) MUST_USE;

/* XXH3-128 of a stream as text. */
void manifest_hash_print(const struct XXH3_state_s *state, char hash[MANIFEST_HASH_BYTES]);
