/* Messages as JSON values, by the descriptors that protoc-c makes: the field names of the protocol are those
 * of every
 * `-o json`, and no table has to be kept beside the schema. */
#pragma once

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>

/* A new reference, or NULL without memory. Every field is there: an absent message or an unknown real (NaN,
 * infinity) is null, an empty list []. Of a oneof only the member that is set. Enums as names; bytes as
 * lower-case hexadecimal; uint64 above 2^63-1 as a string. */
json_t *json_from_message(const ProtobufCMessage *message);

/* One field of a message as JSON scalar, object or array: what the tables of trainctl print. */
json_t *json_from_field(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field);

/* The other way: a message of this kind, fields by name. A real that is absent or null is NaN; any other
 * field that is absent, of another type or repeated keeps its default. Free with
 * protobuf_c_message_free_unpacked(message, NULL). NULL: no memory, or value is no object. */
ProtobufCMessage *json_to_message(const ProtobufCMessageDescriptor *descriptor, const json_t *value);
