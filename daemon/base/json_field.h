/* Fields of a JSON object that came from a file: there, of the right type and within bounds, or ERR_CORRUPT
 * naming file and key. A library of its own, json_field_dep: not all of base's users want jansson. */
#pragma once

#include "err.h"

#include <stddef.h>
#include <stdint.h>

struct json_t; /* jansson's */

/* Where the object came from, for errors: "PATH is not a sound KIND: \"key\" is …; HINT". */
struct json_origin {
    const char *path, *kind, *hint;
};

/* A text that fits, with its end, into value_bytes. */
bool json_field_text(const struct json_origin *origin, const struct json_t *object, const char *key,
                     char *value, size_t value_bytes, struct err *err) MUST_USE;
/* The same, or "" where it is absent or null. */
bool json_field_optional_text(const struct json_origin *origin, const struct json_t *object, const char *key,
                              char *value, size_t value_bytes, struct err *err) MUST_USE;
bool json_field_integer(const struct json_origin *origin, const struct json_t *object, const char *key,
                        int64_t least, int64_t most, int64_t *value, struct err *err) MUST_USE;
bool json_field_boolean(const struct json_origin *origin, const struct json_t *object, const char *key,
                        bool *value, struct err *err) MUST_USE;
/* Borrowed. */
bool json_field_array(const struct json_origin *origin, const struct json_t *object, const char *key,
                      struct json_t **value, struct err *err) MUST_USE;
bool json_field_object(const struct json_origin *origin, const struct json_t *object, const char *key,
                       struct json_t **value, struct err *err) MUST_USE;
