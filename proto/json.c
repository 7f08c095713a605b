#include "json.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *from_real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* The shortest decimal that reads back as the same float: 0.1f is 0.1, not 0.10000000149. */
static json_t *from_float(float value)
{
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        float back;
        if (sscanf(text, "%f", &back) == 1 && memcmp(&back, &value, sizeof back) == 0)
            break;
    }
    double shortest = (double)value;
    sscanf(text, "%lf", &shortest);
    return from_real(shortest);
}

static json_t *from_unsigned(uint64_t value)
{
    if (value <= INT64_MAX)
        return json_integer((json_int_t)value);
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    return json_string(text);
}

static json_t *from_bytes(const ProtobufCBinaryData *data)
{
    static const char digits[] = "0123456789abcdef";
    char *text = malloc(2 * data->len + 1);
    if (!text)
        return NULL;
    for (size_t i = 0; i < data->len; i++) {
        text[2 * i] = digits[data->data[i] >> 4];
        text[2 * i + 1] = digits[data->data[i] & 15];
    }
    text[2 * data->len] = '\0';
    json_t *value = json_string(text);
    free(text);
    return value;
}

static json_t *from_enum(const ProtobufCEnumDescriptor *descriptor, int number)
{
    const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(descriptor, number);
    return value ? json_string(value->name) : json_integer(number);
}

/* A peer's text may be no UTF-8; JSON must be. */
static json_t *from_text(const char *text)
{
    if (!text)
        return json_string("");
    json_t *value = json_string(text);
    return value ? value : json_string("(not UTF-8)");
}

/* One value of the field's type at `member`. */
static json_t *from_member(const ProtobufCFieldDescriptor *field, const void *member)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        return json_integer(*(const int32_t *)member);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return json_integer(*(const int64_t *)member);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return json_integer(*(const uint32_t *)member);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return from_unsigned(*(const uint64_t *)member);
    case PROTOBUF_C_TYPE_FLOAT:
        return from_float(*(const float *)member);
    case PROTOBUF_C_TYPE_DOUBLE:
        return from_real(*(const double *)member);
    case PROTOBUF_C_TYPE_BOOL:
        return json_boolean(*(const protobuf_c_boolean *)member);
    case PROTOBUF_C_TYPE_ENUM:
        return from_enum(field->descriptor, *(const int *)member);
    case PROTOBUF_C_TYPE_STRING:
        return from_text(*(char *const *)member);
    case PROTOBUF_C_TYPE_BYTES:
        return from_bytes(member);
    case PROTOBUF_C_TYPE_MESSAGE: {
        const ProtobufCMessage *message = *(ProtobufCMessage *const *)member;
        return message ? json_from_message(message) : json_null();
    }
    }
    return json_null();
}

static size_t member_bytes(const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return sizeof(int64_t);
    case PROTOBUF_C_TYPE_DOUBLE:
        return sizeof(double);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_ENUM:
        break;
    }
    return sizeof(int32_t);
}

json_t *json_from_field(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    const char *base = (const char *)message;
    const void *member = base + field->offset;
    if (field->label != PROTOBUF_C_LABEL_REPEATED)
        return from_member(field, member);

    json_t *list = json_array();
    size_t count = *(const size_t *)(const void *)(base + field->quantifier_offset);
    const char *elements = *(const char *const *)member;
    for (size_t i = 0; list && i < count; i++) {
        json_t *value = from_member(field, elements + i * member_bytes(field));
        if (!value || json_array_append_new(list, value) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* A oneof's quantifier holds the number of the member that is set. */
static bool in_other_case(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    if (!(field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
        return false;
    uint32_t set = *(const uint32_t *)(const void *)((const char *)message + field->quantifier_offset);
    return set != field->id;
}

json_t *json_from_message(const ProtobufCMessage *message)
{
    json_t *object = json_object();
    for (unsigned i = 0; object && i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        if (in_other_case(message, field))
            continue;
        json_t *value = json_from_field(message, field);
        if (!value || json_object_set_new(object, field->name, value) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

static bool to_text(char **member, const json_t *value)
{
    if (!json_is_string(value) || json_string_length(value) == 0)
        return true; /* the default is an empty text, which nobody frees */
    char *copy = strdup(json_string_value(value));
    if (copy)
        *member = copy;
    return copy != NULL;
}

static bool to_member(void *member, const ProtobufCFieldDescriptor *field, const json_t *value)
{
    switch ((int)field->type) {
    case PROTOBUF_C_TYPE_DOUBLE:
        *(double *)member = json_is_number(value) ? json_number_value(value) : (double)NAN;
        return true;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_UINT64:
        if (json_is_integer(value))
            *(int64_t *)member = json_integer_value(value);
        return true;
    case PROTOBUF_C_TYPE_INT32:
        if (json_is_integer(value))
            *(int32_t *)member = (int32_t)json_integer_value(value);
        return true;
    case PROTOBUF_C_TYPE_BOOL:
        if (json_is_boolean(value))
            *(protobuf_c_boolean *)member = json_is_true(value);
        return true;
    case PROTOBUF_C_TYPE_STRING:
        return to_text(member, value);
    case PROTOBUF_C_TYPE_MESSAGE:
        if (!json_is_object(value))
            return true;
        *(ProtobufCMessage **)member = json_to_message(field->descriptor, value);
        return *(ProtobufCMessage **)member != NULL;
    default:
        return true; /* nothing that is read back has these */
    }
}

ProtobufCMessage *json_to_message(const ProtobufCMessageDescriptor *descriptor, const json_t *value)
{
    ProtobufCMessage *message = json_is_object(value) ? malloc(descriptor->sizeof_message) : NULL;
    if (!message)
        return NULL;
    protobuf_c_message_init(descriptor, message);
    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &descriptor->fields[i];
        if (field->label == PROTOBUF_C_LABEL_REPEATED || (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
            continue;
        if (!to_member((char *)message + field->offset, field, json_object_get(value, field->name))) {
            protobuf_c_message_free_unpacked(message, NULL);
            return NULL;
        }
    }
    return message;
}
