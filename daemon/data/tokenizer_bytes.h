/* The byte-level vocabulary and ChatML framing: no files, every text representable, 0 … 255 the bytes
 * themselves.
 *
 * A message is framed as <|im_start|>role\ncontent<|im_end|>\n. Content, end token and newline of the
 * assistant are trained; everything else is context. Specials are never made from content: "<|im_end|>" in a
 * message is 10 bytes. */
#pragma once

#include "err.h"

#include <stddef.h>
#include <stdint.h>

#define TOKENIZER_BYTES_NAME "bytes-chatml"

/* X(constant, id, text) */
#define TOKENIZER_BYTES_SPECIALS(X)                                                                          \
    X(BYTES_IM_START, 256, "<|im_start|>")                                                                   \
    X(BYTES_IM_END, 257, "<|im_end|>")                                                                       \
    X(BYTES_END_OF_TEXT, 258, "<|endoftext|>")

enum {
#define X(constant, id, text) constant = id,
    TOKENIZER_BYTES_SPECIALS(X)
#undef X
        BYTES_VOCABULARY = 259
};

struct bytes_row { /* a growing row of tokens and their flags; zeroed is empty */
    uint32_t *tokens;
    uint8_t *trained; /* 0 or 1 */
    size_t count, capacity;
};
void bytes_row_done(struct bytes_row *row);

/* Appends. text need not be UTF-8 and may hold zeros. Only ERR_MEMORY can happen. */
bool bytes_append_text(struct bytes_row *row, const char *text, size_t bytes, bool trained,
                       struct err *err) MUST_USE;
bool bytes_append_special(struct bytes_row *row, int special, bool trained, struct err *err) MUST_USE;
bool bytes_append_message(struct bytes_row *row, const char *role, const char *content, size_t content_bytes,
                          struct err *err) MUST_USE;
/* The opening of an answer: "<|im_start|>assistant\n", for generation. */
bool bytes_append_answer_start(struct bytes_row *row, struct err *err) MUST_USE;

/* The text of one token: its byte, a special's text, or "" for what is no token of this vocabulary. */
const char *bytes_token_text(int64_t token, char one[2], size_t *bytes);

/* 16 hex digits over the name, the framing and the specials: datasets and models made under another differ.
 */
const char *tokenizer_bytes_hash(char text[17]);
