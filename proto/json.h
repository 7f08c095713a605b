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
