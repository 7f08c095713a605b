#include "tokenizer_bytes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const struct {
    int id;
    const char *text;
} specials[] = {
#define X(constant, id, text) {id, text},
    TOKENIZER_BYTES_SPECIALS(X)
#undef X
};

#define SPECIALS (sizeof specials / sizeof specials[0])
_Static_assert(256 + SPECIALS == BYTES_VOCABULARY, "the vocabulary is the bytes and the specials");

void bytes_row_done(struct bytes_row *row)
{
    free(row->tokens);
    free(row->trained);
    *row = (struct bytes_row){0};
}

static bool make_room(struct bytes_row *row, size_t more, struct err *err)
{
    if (more <= row->capacity - row->count)
        return true;
    size_t capacity = row->capacity ? row->capacity : 1024;
    while (capacity - row->count < more && capacity < SIZE_MAX / 16)
        capacity *= 2;
    uint32_t *tokens = realloc(row->tokens, capacity * sizeof *tokens);
    if (tokens)
        row->tokens = tokens;
    uint8_t *trained = tokens ? realloc(row->trained, capacity) : NULL;
    if (!trained)
        return err_set(err, ERR_MEMORY, "no memory for a row of %zu tokens", row->count + more);
    row->trained = trained;
    row->capacity = capacity;
    return true;
}

bool bytes_append_text(struct bytes_row *row, const char *text, size_t bytes, bool trained, struct err *err)
{
    if (!make_room(row, bytes, err))
        return false;
    for (size_t i = 0; i < bytes; i++) {
        row->tokens[row->count] = (unsigned char)text[i];
        row->trained[row->count++] = trained;
    }
    return true;
}

bool bytes_append_special(struct bytes_row *row, int special, bool trained, struct err *err)
{
    INVARIANT(special >= 256 && special < BYTES_VOCABULARY);
    if (!make_room(row, 1, err))
        return false;
    row->tokens[row->count] = (uint32_t)special;
    row->trained[row->count++] = trained;
    return true;
}

bool bytes_append_message(struct bytes_row *row, const char *role, const char *content, size_t content_bytes,
                          struct err *err)
{
    bool trained = strcmp(role, "assistant") == 0;
    return bytes_append_special(row, BYTES_IM_START, false, err) &&
           bytes_append_text(row, role, strlen(role), false, err) &&
           bytes_append_text(row, "\n", 1, false, err) &&
           bytes_append_text(row, content, content_bytes, trained, err) &&
           bytes_append_special(row, BYTES_IM_END, trained, err) &&
           bytes_append_text(row, "\n", 1, trained, err);
}

bool bytes_append_answer_start(struct bytes_row *row, struct err *err)
{
    return bytes_append_special(row, BYTES_IM_START, false, err) &&
           bytes_append_text(row, "assistant\n", strlen("assistant\n"), false, err);
}

const char *bytes_token_text(int64_t token, char one[2], size_t *bytes)
{
    one[0] = one[1] = '\0';
    *bytes = 0;
    if (token >= 0 && token < 256) {
        one[0] = (char)token;
        *bytes = 1;
    }
    for (size_t i = 0; i < SPECIALS; i++)
        if (specials[i].id == token) {
            *bytes = strlen(specials[i].text);
            return specials[i].text;
        }
    return one;
}

const char *tokenizer_bytes_hash(char text[17])
{
    char described[512] = TOKENIZER_BYTES_NAME " <|im_start|>role\\ncontent<|im_end|>\\n";
    for (size_t i = 0; i < SPECIALS; i++)
        snprintf(described + strlen(described), sizeof described - strlen(described), " %d=%s",
                 specials[i].id, specials[i].text);
    snprintf(text, 17, "%016" PRIx64, (uint64_t)XXH3_64bits(described, strlen(described)));
    return text;
}
