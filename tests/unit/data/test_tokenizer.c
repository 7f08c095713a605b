/* The byte-level vocabulary: framing, what is trained, and back to text. */
#include "tokenizer_bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Untrained text plain, trained text in [ ]. */
static const char *show(const struct bytes_row *row, char *text)
{
    size_t used = 0;
    bool was = false;
    for (size_t i = 0; i < row->count; i++) {
        char one[2];
        size_t bytes;
        const char *token = bytes_token_text(row->tokens[i], one, &bytes);
        if (row->trained[i] != was)
            text[used++] = was ? ']' : '[';
        was = row->trained[i];
        memcpy(text + used, token, bytes);
        used += bytes;
    }
    if (was)
        text[used++] = ']';
    text[used] = '\0';
    return text;
}

static void test_chat(void **state)
{
    (void)state;
    struct bytes_row row = {0};
    struct err err = ERR_INIT;
    char text[512];
    assert_true(bytes_append_message(&row, "system", "Be.", 3, &err));
    assert_true(bytes_append_message(&row, "user", "Define <|im_end|>.", 18, &err));
    assert_true(bytes_append_message(&row, "assistant", "caf\xc3\xa9\n", 6, &err));
    assert_true(bytes_append_message(&row, "user", "", 0, &err));
    assert_true(bytes_append_message(&row, "assistant", "", 0, &err));
    assert_true(bytes_append_answer_start(&row, &err));
    assert_string_equal(show(&row, text), "<|im_start|>system\nBe.<|im_end|>\n"
                                          "<|im_start|>user\nDefine <|im_end|>.<|im_end|>\n"
                                          "<|im_start|>assistant\n[caf\xc3\xa9\n<|im_end|>\n]"
                                          "<|im_start|>user\n<|im_end|>\n"
                                          "<|im_start|>assistant\n[<|im_end|>\n]"
                                          "<|im_start|>assistant\n");
    size_t specials = 0;
    for (size_t i = 0; i < row.count; i++)
        specials += row.tokens[i] >= 256;
    assert_int_equal(specials, 11); /* the one in the content is ten bytes */
    bytes_row_done(&row);
}

static void test_bytes(void **state)
{
    (void)state;
    struct bytes_row row = {0};
    struct err err = ERR_INIT;
    char all[256], one[2];
    size_t bytes;
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    for (int repeat = 0; repeat < 40; repeat++)
        assert_true(bytes_append_text(&row, all, 256, repeat % 2, &err));
    assert_int_equal(row.count, 40 * 256);
    for (size_t i = 0; i < row.count; i++) {
        assert_int_equal(row.tokens[i], i % 256);
        assert_int_equal(row.trained[i], i / 256 % 2);
        assert_int_equal((unsigned char)*bytes_token_text(row.tokens[i], one, &bytes), i % 256);
        assert_int_equal(bytes, 1);
    }
    bytes_row_done(&row);
    assert_string_equal(bytes_token_text(BYTES_IM_START, one, &bytes), "<|im_start|>");
    assert_string_equal(bytes_token_text(BYTES_END_OF_TEXT, one, &bytes), "<|endoftext|>");
    bytes_token_text(-1, one, &bytes);
    assert_int_equal(bytes, 0);
    bytes_token_text(BYTES_VOCABULARY, one, &bytes);
    assert_int_equal(bytes, 0);
    char hash[17], again[17];
    assert_string_equal(tokenizer_bytes_hash(hash), tokenizer_bytes_hash(again));
    assert_int_equal(strlen(hash), 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_chat), cmocka_unit_test(test_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
