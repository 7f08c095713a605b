#include "frame.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_CAPACITY = 4096, VARINT_BYTES = 10 };

void frame_reader_init(struct frame_reader *reader, size_t limit)
{
    *reader = (struct frame_reader){.limit = limit};
}

void frame_reader_done(struct frame_reader *reader)
{
    free(reader->bytes);
    *reader = (struct frame_reader){.limit = reader->limit};
}

static bool take_header_byte(struct frame_reader *reader, unsigned char byte, struct err *err)
{
    unsigned shift = 7 * reader->header_bytes++;
    if (reader->header_bytes == VARINT_BYTES && byte > 1)
        return err_set(err, ERR_INVALID, "the length of a frame has more than 64 bits");
    reader->length |= (uint64_t)(byte & 0x7f) << shift;
    if (byte & 0x80)
        return true;
    if (reader->length > reader->limit) {
        err_set(err, ERR_INVALID, "a frame of %llu bytes is too large", (unsigned long long)reader->length);
        return err_why(err, "the limit here is %zu bytes", reader->limit);
    }
    reader->header_whole = true;
    return true;
}

/* Memory follows the bytes that came, not the length that was claimed. */
static bool make_room(struct frame_reader *reader, size_t more, struct err *err)
{
    if (reader->count + more <= reader->capacity)
        return true;
    size_t capacity = reader->capacity ? reader->capacity : FIRST_CAPACITY;
    while (capacity < reader->count + more)
        capacity *= 2;
    unsigned char *bytes = realloc(reader->bytes, capacity);
    if (!bytes)
        return err_set(err, ERR_MEMORY, "no memory for a frame of %zu bytes", capacity);
    reader->bytes = bytes;
    reader->capacity = capacity;
    return true;
}

/* The frame handed out last time is over; one that was large gives its memory back. */
static void begin_frame(struct frame_reader *reader)
{
    reader->length = 0;
    reader->header_bytes = 0;
    reader->header_whole = false;
    reader->count = 0;
    if (reader->capacity > 16 * FIRST_CAPACITY) {
        free(reader->bytes);
        reader->bytes = NULL;
        reader->capacity = 0;
    }
}

bool frame_reader_feed(struct frame_reader *reader, const void *bytes, size_t count, size_t *used,
                       const unsigned char **frame, size_t *frame_bytes, struct err *err)
{
    const unsigned char *from = bytes;
    size_t taken = 0;
    if (reader->header_whole && reader->count == reader->length)
        begin_frame(reader);
    while (taken < count && !reader->header_whole)
        if (!take_header_byte(reader, from[taken++], err))
            return false;
    if (reader->header_whole) {
        size_t missing = (size_t)reader->length - reader->count;
        size_t piece = count - taken < missing ? count - taken : missing;
        if (!make_room(reader, piece ? piece : 1, err))
            return false;
        if (piece > 0)
            memcpy(reader->bytes + reader->count, from + taken, piece);
        reader->count += piece;
        taken += piece;
    }
    bool whole = reader->header_whole && reader->count == reader->length;
    *used = taken;
    *frame = whole ? reader->bytes : NULL;
    *frame_bytes = whole ? reader->count : 0;
    return true;
}

unsigned char *frame_pack(const ProtobufCMessage *message, size_t *frame_bytes)
{
    size_t length = protobuf_c_message_get_packed_size(message);
    unsigned char *bytes = malloc(length + VARINT_BYTES);
    if (!bytes)
        return NULL;
    size_t header = 0;
    for (uint64_t rest = length;; rest >>= 7) {
        bytes[header++] = (unsigned char)((rest & 0x7f) | (rest > 0x7f ? 0x80 : 0));
        if (rest <= 0x7f)
            break;
    }
    protobuf_c_message_pack(message, bytes + header);
    *frame_bytes = header + length;
    return bytes;
}

struct budget {
    size_t left;
};

static void *budget_alloc(void *context, size_t bytes)
{
    struct budget *budget = context;
    size_t cost = bytes + 16; /* malloc's own, so that many small pieces count too */
    if (cost < bytes || cost > budget->left)
        return NULL;
    budget->left -= cost;
    return malloc(bytes);
}

static void budget_free(void *context, void *memory)
{
    (void)context; /* a budget is for one decoding; what is freed within is small */
    free(memory);
}

size_t frame_budget(size_t count)
{
    return 16 * count + (64 << 10);
}

bool frame_unpack(ProtobufCMessage **message, const ProtobufCMessageDescriptor *descriptor,
                  const unsigned char *bytes, size_t count, size_t budget, struct err *err)
{
    struct budget left = {budget};
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &left};
    ProtobufCMessage *decoded = protobuf_c_message_unpack(descriptor, &allocator, count, bytes);
    if (!decoded) {
        err_set(err, ERR_INVALID, "a frame of %zu bytes is not a %s", count, descriptor->short_name);
        return err_hint(err, "the schema is proto/trainerd.proto; frames are varint-length-delimited");
    }
    *message = decoded;
    return true;
}
