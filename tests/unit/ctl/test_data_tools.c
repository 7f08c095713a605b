/* data prepare and data show: chats, documents, sorting, cutoffs, what people read, and bad input by file and
 * line. */
#include "data_tools.h"

#include "check.h"
#include "temp_folder.h"

#include <jansson.h>
#include <unistd.h>

static const char *put(const char *name, const char *text, size_t bytes)
{
    const char *path = temp_path(&test_folder, name);
    temp_write(path, text, bytes);
    return path;
}

/* Prepares one file into folder/set, anew. */
static bool prepare(const char *name, const char *text, size_t bytes, const char *sort_by, int64_t cutoff,
                    json_t **result, struct err *err)
{
    char file[256], output[256];
    snprintf(file, sizeof file, "%s", put(name, text, bytes));
    snprintf(output, sizeof output, "%s/set", test_folder.path);
    const char *const files[] = {file};
    struct data_prepare_options options = {.files = files,
                                           .file_count = 1,
                                           .output = output,
                                           .sort_by = sort_by,
                                           .cutoff = cutoff,
                                           .overwrite = true};
    *err = (struct err)ERR_INIT;
    return data_prepare(&options, result, err);
}

/* What data show prints of the samples, after the statistics. */
static char *shown(int64_t first, int64_t count, int64_t tokens, bool colour)
{
    char output[256], *text = NULL;
    size_t bytes;
    json_t *result;
    struct err err = ERR_INIT;
    snprintf(output, sizeof output, "%s/set", test_folder.path);
    if (!data_show(output, &(struct data_show_options){first, count, tokens}, &result, &err))
        fail_msg("%s", err.what);
    FILE *out = open_memstream(&text, &bytes);
    data_show_print(out, result, colour);
    fclose(out);
    json_decref(result);
    return text;
}

static int64_t number(const json_t *result, const char *name)
{
    assert_true(json_is_integer(json_object_get(result, name)));
    return json_integer_value(json_object_get(result, name));
}

#define CHAT(id, question, answer)                                                                           \
    "{\"instance_id\": " id ", \"messages\": [{\"role\": \"user\", \"content\": \"" question                 \
    "\"}, {\"role\": \"assistant\", \"content\": \"" answer "\"}]}\n"

static void test_chats(void **state)
{
    (void)state;
    json_t *result;
    struct err err;
    const char text[] =
        "\xef\xbb\xbf" CHAT("\"b\"", "second", "two") "\n  \r\n" CHAT("\"a\"", "first?", "one \\u001b\\u0000")
            CHAT("\"c\"", "third", "drei");
    if (!prepare("chats.jsonl", text, sizeof text - 1, "instance_id", -1, &result, &err))
        fail_msg("%s: %s", err.what, err.why);
    assert_int_equal(number(result, "rows"), 3);
    assert_int_equal(number(result, "cutoff"), DATA_PREPARE_CUTOFF_CHAT);
    assert_int_equal(number(result, "dropped"), 0);
    assert_string_equal(json_string_value(json_object_get(result, "sort_key")), "instance_id");
    assert_null(json_object_get(result, "samples"));
    /* "<s>user\nsecond<e>\n<s>assistant\n" is 25 tokens, "two<e>\n" 5 more */
    assert_int_equal(number(result, "length_p5"), 30);
    assert_int_equal(number(result, "labelled_tokens"), 5 + 8 + 6);
    json_decref(result);
    char *all = shown(0, 9, -1, false), *first = strstr(all, "first?"), *second = strstr(all, "second");
    assert_true(first && second && first < second && strstr(all, "drei") > second);
    assert_non_null(strstr(all, "<|im_start|>assistant\n⟦two<|im_end|>\n⟧"));
    assert_non_null(strstr(all, "⟦one \\x1b\\x00<|im_end|>\n⟧")); /* the terminal is not steered */
    assert_null(strchr(all, '\033'));
    free(all);
    all = shown(1, 1, 8, true);
    assert_non_null(strstr(all, "row 1"));
    assert_null(strstr(all, "row 0"));
    assert_non_null(strstr(all, "<|im_start|>user\nse… and 22 tokens more"));
    free(all);
    all = shown(1, 1, -1, true);
    assert_non_null(strstr(all, "\033[32mtwo<|im_end|>\n\033[0m"));
    free(all);
}

static void test_parts_and_drops(void **state)
{
    (void)state;
    json_t *result;
    struct err err;
    const char text[] =
        "{\"messages\": [{\"role\": \"assistant\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, "
        "{\"text\": \"b\"}]}]}\n"
        "{\"messages\": [{\"role\": \"user\", \"content\": \"nobody answers\"}]}\n" /* dropped */
        CHAT("1", "a question that is longer than the cutoff allows", "x")          /* dropped */
        CHAT("1", "q", "an answer that loses its end");
    assert_true(prepare("parts.jsonl", text, sizeof text - 1, NULL, 30, &result, &err));
    assert_int_equal(number(result, "rows"), 2);
    assert_int_equal(number(result, "dropped"), 2);
    assert_int_equal(number(result, "cut"), 1);
    assert_int_equal(number(result, "longest"), 30);
    assert_true(json_is_null(json_object_get(result, "sort_key")));
    json_decref(result);
    char *all = shown(0, 2, -1, false);
    assert_non_null(strstr(all, "⟦ab<|im_end|>\n⟧"));
    assert_non_null(strstr(all, "(1 cut at 30 tokens, 2 left out: nothing trained in them)"));
    free(all);
}

static void test_documents(void **state)
{
    (void)state;
    json_t *result;
    struct err err;
    char text[2500];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)('a' + i % 26);
    assert_true(prepare("book.txt", text, sizeof text, NULL, -1, &result, &err));
    assert_int_equal(number(result, "cutoff"), DATA_PREPARE_CUTOFF_TEXT);
    assert_int_equal(number(result, "rows"), 3);
    assert_int_equal(number(result, "tokens"), 2501); /* the end token */
    assert_int_equal(number(result, "labelled_tokens"), 2501 - 3);
    json_decref(result);
    char *last = shown(2, 1, -1, false);
    assert_non_null(strstr(last, "wxyzabcd<|endoftext|>⟧"));
    free(last);
    assert_true(
        prepare("book.txt", text, 2048, NULL, 1024, &result, &err)); /* the end token alone is no row */
    assert_int_equal(number(result, "rows"), 2);
    assert_int_equal(number(result, "dropped"), 0);
    json_decref(result);
    const char lines[] = "{\"text\": \"one\", \"n\": 10}\n{\"text\": \"two\", \"n\": 9.5}\n{\"text\": \"cut "
                         "in two\", \"n\": -3}";
    assert_true(prepare("docs.jsonl", lines, sizeof lines - 1, "n", 8, &result, &err));
    assert_int_equal(number(result, "rows"), 4);
    json_decref(result);
    char *all = shown(0, 4, -1, false);
    const char *cut = strstr(all, "⟦cut in t⟧"), *rest = strstr(all, "⟦wo<|endoftext|>⟧"),
               *two = strstr(all, "⟦two<");
    assert_true(cut && rest && two && cut < rest && rest < two && two < strstr(all, "⟦one<"));
    free(all);
}

static void test_broken_utf8_is_shown(void **state)
{
    (void)state;
    json_t *result;
    struct err err;
    assert_true(prepare("raw.bin", "ok \xff\xc3\xa9\xe2\x82", 8, NULL, 16, &result, &err));
    json_decref(result);
    char *all = shown(0, 1, -1, false);
    assert_non_null(strstr(all, "⟦ok \xef\xbf\xbd\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd<|endoftext|>⟧"));
    free(all);
}

static void test_bad_lines(void **state)
{
    (void)state;
    static const struct {
        const char *line, *what, *hint;
    } cases[] = {
        {"{\"messages\": [", "is not JSON", NULL},
        {"not json", "is not JSON", NULL},
        {"{} {}", "is not JSON", NULL},
        {"{\"messages\": [], \"messages\": []}", "is not JSON", NULL},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\"}]}", "is not JSON", NULL},
        {"[1, 2]", "not a JSON object", "jq"},
        {"7", "is not", NULL},
        {"{\"prompt\": \"x\"}", "neither a list", "messages"},
        {"{\"messages\": []}", "neither a list", NULL},
        {"{\"messages\": \"hi\"}", "neither a list", NULL},
        {"{\"messages\": [7]}", "message 1 has no role", NULL},
        {"{\"messages\": [{\"role\": \"user\"}]}", "message 1 has no content", NULL},
        {"{\"messages\": [{\"role\": \"asistant\", \"content\": \"x\"}]}", "\"asistant\"", "\"assistant\""},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}", "not text",
         NULL},
        {"{\"messages\": [{\"role\": \"user\", \"content\": null}]}", "no content", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[512], file[256], output[256];
        struct err err = ERR_INIT;
        json_t *result;
        int bytes = snprintf(text, sizeof text, "%s\n%s\n", "{\"text\": \"good\"}", cases[i].line);
        snprintf(file, sizeof file, "%s", put("bad.jsonl", text, (size_t)bytes));
        snprintf(output, sizeof output, "%s/never", test_folder.path);
        const char *const files[] = {file};
        struct data_prepare_options options = {
            .files = files, .file_count = 1, .output = output, .cutoff = -1};
        assert_false(data_prepare(&options, &result, &err));
        if (!strstr(err.what, "bad.jsonl:2: ") || !strstr(err.what, cases[i].what) ||
            (cases[i].hint && !strstr(err.hint, cases[i].hint)))
            fail_msg("%s: wanted \"%s\", got \"%s; %s\"", cases[i].line, cases[i].what, err.what, err.hint);
        assert_int_not_equal(access(output, F_OK), 0);
    }
}

static void test_bad_inputs(void **state)
{
    (void)state;
    json_t *result;
    struct err err = ERR_INIT;
    char output[256];
    snprintf(output, sizeof output, "%s/never", test_folder.path);
    const char *const folders[] = {test_folder.path}, *const absent[] = {"/nowhere/chats.jsonl"};
    struct data_prepare_options options = {.files = folders, .file_count = 1, .output = output, .cutoff = -1};
    assert_false(data_prepare(&options, &result, &err));
    assert_non_null(strstr(err.hint, "*.jsonl"));
    options.files = absent;
    err = (struct err)ERR_INIT;
    assert_false(data_prepare(&options, &result, &err));
    assert_non_null(strstr(err.what, "/nowhere/chats.jsonl"));
    options.file_count = 0;
    err = (struct err)ERR_INIT;
    assert_false(data_prepare(&options, &result, &err));
    assert_false(prepare("empty.txt", "", 0, NULL, -1, &result, &err));
    assert_non_null(strstr(err.what, "is empty"));
    assert_false(prepare("blank.jsonl", "\n\n", 2, NULL, -1, &result, &err));
    assert_false(prepare("text.txt", "abc", 3, "id", -1, &result, &err));
    assert_non_null(strstr(err.what, "to sort by"));
    assert_false(prepare("one.txt", "abc", 3, NULL, 1, &result, &err));
    assert_non_null(strstr(err.what, "cutoff"));
    const char missing[] = "{\"text\": \"a\", \"id\": 1}\n{\"text\": \"b\"}\n",
               mixed[] = "{\"text\": \"a\", \"id\": 1}\n{\"text\": \"b\", \"id\": \"x\"}\n";
    assert_false(prepare("missing.jsonl", missing, sizeof missing - 1, "id", -1, &result, &err));
    assert_non_null(strstr(err.what, "missing.jsonl:2"));
    assert_false(prepare("mixed.jsonl", mixed, sizeof mixed - 1, "id", -1, &result, &err));
    assert_non_null(strstr(err.what, "cannot be sorted"));
    assert_false(data_show(output, &(struct data_show_options){0, 1, 1}, &result, &err));
    assert_true(prepare("good.txt", "abc", 3, NULL, -1, &result, &err));
    json_decref(result);
    snprintf(output, sizeof output, "%s/set", test_folder.path);
    assert_false(data_show(output, &(struct data_show_options){1, 1, 1}, &result, &err));
    assert_non_null(strstr(err.what, "no row 1"));
}

static void test_stop_and_progress(void **state)
{
    (void)state;
    volatile sig_atomic_t stop = 1;
    char output[256], file[256], *progress = NULL;
    size_t bytes;
    json_t *result;
    struct err err = ERR_INIT;
    snprintf(output, sizeof output, "%s/stopped", test_folder.path);
    snprintf(file, sizeof file, "%s", put("some.txt", "some text", 9));
    const char *const files[] = {file};
    FILE *out = open_memstream(&progress, &bytes);
    struct data_prepare_options options = {
        .files = files, .file_count = 1, .output = output, .cutoff = -1, .progress = out, .stop = &stop};
    assert_false(data_prepare(&options, &result, &err));
    assert_int_equal(err.code, ERR_RUN);
    assert_int_not_equal(access(output, F_OK), 0);
    stop = 0;
    err = (struct err)ERR_INIT;
    assert_true(data_prepare(&options, &result, &err));
    json_decref(result);
    fclose(out);
    assert_non_null(strstr(progress, "100%"));
    assert_string_equal(progress + bytes - 4, "\r\033[K"); /* nothing of it is left on the line */
    free(progress);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chats),
        cmocka_unit_test(test_parts_and_drops),
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_broken_utf8_is_shown),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_bad_inputs),
        cmocka_unit_test(test_stop_and_progress),
    };
    return cmocka_run_group_tests(tests, temp_folder_setup, temp_folder_teardown);
}
