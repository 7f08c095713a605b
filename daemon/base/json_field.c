#include "json_field.h"

#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#define refuse(origin, err, ...) err_unsound(err, (origin)->path, (origin)->kind, (origin)->hint, __VA_ARGS__)

bool json_field_text(const struct json_origin *origin, const json_t *object, const char *key, char *value,
                     size_t value_bytes, struct err *err)
{
    const json_t *field = json_object_get(object, key);
    /* jansson refuses \u0000 inside texts, so the length is strlen's. */
    if (!json_is_string(field) || json_string_length(field) >= value_bytes)
        return refuse(origin, err, "\"%s\" is missing or no text of at most %zu bytes", key, value_bytes - 1);
    memcpy(value, json_string_value(field), json_string_length(field) + 1);
    return true;
}

bool json_field_optional_text(const struct json_origin *origin, const json_t *object, const char *key,
                              char *value, size_t value_bytes, struct err *err)
{
    const json_t *field = json_object_get(object, key);
    if (field && !json_is_null(field))
        return json_field_text(origin, object, key, value, value_bytes, err);
    value[0] = '\0';
    return true;
}

bool json_field_integer(const struct json_origin *origin, const json_t *object, const char *key,
                        int64_t least, int64_t most, int64_t *value, struct err *err)
{
    const json_t *field = json_object_get(object, key);
    int64_t number = json_integer_value(field);
    if (!json_is_integer(field) || number < least || number > most)
        return refuse(origin, err, "\"%s\" is missing or no number from %" PRId64 " to %" PRId64, key, least,
                      most);
    *value = number;
    return true;
}

bool json_field_boolean(const struct json_origin *origin, const json_t *object, const char *key, bool *value,
                        struct err *err)
{
    const json_t *field = json_object_get(object, key);
    if (!json_is_boolean(field))
        return refuse(origin, err, "\"%s\" is missing or neither true nor false", key);
    *value = json_is_true(field);
    return true;
}

bool json_field_array(const struct json_origin *origin, const json_t *object, const char *key, json_t **value,
                      struct err *err)
{
    json_t *field = json_object_get(object, key);
    if (!json_is_array(field))
        return refuse(origin, err, "\"%s\" is missing or no list", key);
    *value = field;
    return true;
}

bool json_field_object(const struct json_origin *origin, const json_t *object, const char *key,
                       json_t **value, struct err *err)
{
    json_t *field = json_object_get(object, key);
    if (!json_is_object(field))
        return refuse(origin, err, "\"%s\" is missing or no object", key);
    *value = field;
    return true;
}
