/* Frames: a varint length, then so many bytes of a protobuf message; what protobuf's own delimited helpers
 * read and write. Used by both sides. Nothing here trusts the peer: a frame that claims more than the limit
 * is refused before anything is allocated for it, memory grows with the bytes that have really come, and
 * decoding has a budget. */
#pragma once

#include "err.h"

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

struct frame_reader {
    size_t limit;          /* largest message accepted, in bytes */
    uint64_t length;       /* of the message under way, once its header is whole */
    unsigned header_bytes; /* of the header, so far; header_whole says that length holds */
    bool header_whole;
    unsigned char *bytes;
    size_t count, capacity;
};

void frame_reader_init(struct frame_reader *reader, size_t limit);
void frame_reader_done(struct frame_reader *reader); /* zeroed: fine */

/* Takes from bytes[count] up to the end of one frame. *used says how many were taken. Where a frame became
 * whole, *frame points at its *frame_bytes bytes, which stay valid until the next call, else *frame is NULL.
 * Call again with the rest while *used < count. ERR_INVALID: the stream is not one of frames, or a frame is
 * too large; close it. */
bool frame_reader_feed(struct frame_reader *reader, const void *bytes, size_t count, size_t *used,
                       const unsigned char **frame, size_t *frame_bytes, struct err *err) MUST_USE;

/* The message as one frame, header included, malloc'ed. NULL: no memory. */
unsigned char *frame_pack(const ProtobufCMessage *message, size_t *frame_bytes);

/* Decodes one message, allocating at most `budget` bytes. Free with protobuf_c_message_free_unpacked(message,
 * NULL). */
bool frame_unpack(ProtobufCMessage **message, const ProtobufCMessageDescriptor *descriptor,
                  const unsigned char *bytes, size_t count, size_t budget, struct err *err) MUST_USE;

/* The budget for a frame of so many bytes: messages decode to more than they weigh, but not to much more. */
size_t frame_budget(size_t count);
