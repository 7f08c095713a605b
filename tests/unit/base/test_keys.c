/* Key tables: every type, every refusal with its line and hint, YAML as people write it, JSON, hostile
 * documents. */
#include "keys.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct settings {
    bool drop;
    int64_t steps;
    char data[32];
    int32_t kind;
    struct {
        double lr;
        double betas[2];
    } optimizer;
};

#define AT(field) offsetof(struct settings, field), sizeof(((struct settings *)0)->field)

static const struct key keys[] = {
    {"data", KEY_STRING, AT(data), 0, 0, NULL, "the dataset's folder"},
    {"steps", KEY_INT, AT(steps), 1, 1e9, NULL, "updates"},
    {"drop_last", KEY_BOOL, AT(drop), 0, 0, NULL, "leave out the short last batch"},
    {"kind", KEY_CHOICE, AT(kind), 0, 0, "sorted|shuffled|reversed", "the order"},
    {"optimizer.lr", KEY_DOUBLE, AT(optimizer.lr), 0, 10, NULL, "learning rate"},
    {"optimizer.betas", KEY_PAIR, AT(optimizer.betas), 0, 0.9999999, NULL, "decay of the moments"},
};
#define COUNT (sizeof keys / sizeof keys[0])

static bool load(struct settings *settings, int *lines, const char *text, struct err *err)
{
    *err = (struct err)ERR_INIT;
    return keys_load_yaml(keys, COUNT, settings, lines, "run.yaml", text, strlen(text), err);
}

static void assert_refused(const char *text, const char *what, const char *hint)
{
    struct settings settings = {0};
    struct err err;
    assert_false(load(&settings, NULL, text, &err));
    assert_int_equal(err.code, ERR_INVALID);
    if (!strstr(err.what, what))
        fail_msg("for \"%s\" wanted \"%s\", got \"%s\"", text, what, err.what);
    if (hint && !strstr(err.hint, hint))
        fail_msg("for \"%s\" wanted the hint \"%s\", got \"%s\"", text, hint, err.hint);
}

static void check_example(const struct settings *s)
{
    assert_string_equal(s->data, "some where");
    assert_int_equal(s->steps, 12);
    assert_true(s->drop);
    assert_int_equal(s->kind, 1);
    assert_true(s->optimizer.lr == 1e-4 && s->optimizer.betas[0] == 0.9 && s->optimizer.betas[1] == 0.999);
}

static void test_every_type(void **state)
{
    (void)state;
    static const char *const documents[] = {
        "# a comment\ndata: some where   # and another\nsteps: 12\ndrop_last: yes\nkind: shuffled\n"
        "optimizer:\n  lr: 1e-4\n  betas: [0.9, 0.999]\n",
        "data: \"some where\"\nsteps: 12\ndrop_last: true\nkind: shuffled\noptimizer: {lr: 1.0e-4, betas: "
        "[.9, .999]}\n",
        "optimizer.lr: 0.0001\noptimizer.betas: 0.9,0.999\ndata: some where\nsteps: +12\ndrop_last: "
        "on\nkind: shuffled",
        "{\"data\": \"some where\", \"steps\": 12, \"drop_last\": true, \"kind\": \"shuffled\",\n"
        " \"optimizer\": {\"lr\": 0.0001,\n\t\"betas\": [0.9, 0.999]}}",
    };
    for (size_t i = 0; i < sizeof documents / sizeof documents[0]; i++) {
        struct settings settings = {0};
        int lines[COUNT] = {0};
        struct err err;
        if (!load(&settings, lines, documents[i], &err))
            fail_msg("document %zu: %s: %s", i, err.what, err.why);
        check_example(&settings);
        for (size_t k = 0; k < COUNT; k++)
            assert_true(lines[k] > 0);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    assert_refused("steps: 1\nstep: 2\n", "run.yaml:2: there is no key \"step\"", "\"steps\"");
    assert_refused("optimizer:\n  lr: 1\n  beta: [1, 2]\n", "run.yaml:3: there is no key \"optimizer.beta\"",
                   "\"optimizer.betas\"");
    assert_refused("lr: 1e-4\n", "there is no key \"lr\"", "\"optimizer.lr\"");
    assert_refused("optimiser: {lr: 1}\n", "there is no group of keys \"optimiser\"", "\"optimizer\"");
    assert_refused("optimizer: 3\n", "optimizer is a group", NULL);
    assert_refused("steps: {a: 1}\n", "steps is one value", NULL);
    assert_refused("\n\nsteps: many\n", "run.yaml:3: steps is \"many\", but must be a whole number", NULL);
    assert_refused("steps: 1.5\n", "a whole number from 1 to 1000000000", NULL);
    assert_refused("steps: 99999999999999999999\n", "a whole number", NULL);
    assert_refused("steps: 0\n", "from 1 to", NULL);
    assert_refused("steps:\n", "steps has no value", NULL);
    assert_refused("steps: [1, 2]\n", "steps cannot be a list", NULL);
    assert_refused("optimizer: {lr: -1}\n", "from 0 to 10", NULL);
    assert_refused("optimizer: {lr: .nan}\n", "a number", NULL);
    assert_refused("optimizer: {lr: 1e999}\n", "a number", NULL);
    assert_refused("optimizer: {lr: 0x10}\n", "a number", NULL);
    assert_refused("optimizer: {betas: [0.9]}\n", "a pair", NULL);
    assert_refused("optimizer: {betas: [0.9, 0.9, 0.9]}\n", "more than a pair", NULL);
    assert_refused("optimizer: {betas: [0.9, 1]}\n", "from 0 to 0.9999999", NULL);
    assert_refused("optimizer: {betas: [[0.9], 1]}\n", "a list cannot", NULL);
    assert_refused("kind: shuffle\n", "not one of sorted|shuffled|reversed", "\"shuffled\"");
    assert_refused("drop_last: 7\n", "true or false", NULL);
    assert_refused("data: 0123456789012345678901234567890123456789\n", "at most 31 bytes", NULL);
    assert_refused("data: a\nsteps: 3\ndata: b\n", "run.yaml:3: data is said a second time", NULL);
    assert_refused("just a text", "a single text", NULL);
    assert_refused("- a\n- b\n", "a list cannot", NULL);
    assert_refused("data: a\n---\ndata: b\n", "second document", NULL);
    assert_refused("data: \"a\\0b\"\n", "zero byte", NULL);
}

static void test_hostile_documents(void **state)
{
    (void)state;
    assert_refused("data: &a x\nsteps: *a\n", "anchors", NULL);
    assert_refused("steps: *a\n", "aliases", NULL);
    assert_refused("optimizer: &a {lr: 1}\n", "anchors", NULL);
    assert_refused("? {a: 1}\n: 2\n", "a group of keys cannot", NULL);
    assert_refused("data: [\n", "", NULL);
    assert_refused("data: \"unfinished", "this is not YAML", NULL);
    assert_refused("\xff\xfe\x01", "", NULL);
    size_t bytes = 1 << 20;
    char *deep = malloc(bytes + 1);
    for (const char *open = "[{"; *open; open++) {
        memset(deep, *open, bytes);
        deep[bytes] = '\0';
        assert_refused(deep, "", NULL);
        memcpy(deep, "data: ", 6);
        assert_refused(deep, "", NULL);
    }
    memset(deep, 'a', bytes);
    assert_refused(deep, "", NULL);
    memcpy(deep + bytes - 3, ": 1", 3);
    assert_refused(deep, "", NULL);
    free(deep);
    bytes = (5u << 20);
    deep = calloc(1, bytes + 1);
    memset(deep, '\n', bytes);
    assert_refused(deep, "more than the", NULL);
    free(deep);
}

/* Whatever bytes stand where: an answer, never a crash (run under the sanitizers). */
static void test_flipped_bytes(void **state)
{
    (void)state;
    const char *text = "data: x\noptimizer: {lr: 1, betas: [0.9, 0.99]}\nkind: sorted\n";
    const char with[] = {'\0', '\n', '\t', ' ', ':', '{', '}', '[',    ']',
                         '"',  '\'', '&',  '*', '-', '?', '|', '\x80', '\xff'};
    size_t bytes = strlen(text);
    for (size_t at = 0; at < bytes; at++)
        for (size_t w = 0; w < sizeof with; w++) {
            char copy[128];
            memcpy(copy, text, bytes);
            copy[at] = with[w];
            struct settings settings = {0};
            struct err err = ERR_INIT;
            bool good = keys_load_yaml(keys, COUNT, &settings, NULL, "x", copy, bytes, &err);
            assert_true(good == (err.code == ERR_OK));
            err = (struct err)ERR_INIT;
            good = keys_load_yaml(keys, COUNT, &settings, NULL, NULL, text, at, &err);
            assert_true(good == (err.code == ERR_OK));
        }
}

static void test_flags(void **state)
{
    (void)state;
    struct settings settings = {0};
    bool is_set[COUNT] = {0};
    struct err err = ERR_INIT;
    assert_true(keys_set(keys, COUNT, &settings, is_set, "optimizer.betas", "[ 0.5 , 0.25 ]", 0, &err));
    assert_true(settings.optimizer.betas[0] == 0.5 && settings.optimizer.betas[1] == 0.25);
    assert_true(is_set[5] && !is_set[0]);
    assert_false(keys_set(keys, COUNT, &settings, is_set, "stepz", "1", 7, &err));
    assert_non_null(strstr(err.what, "line 7: there is no key"));
    err = (struct err)ERR_INIT;
    assert_false(keys_set(keys, COUNT, &settings, is_set, "optimizer.betas", "0.5,0.25]", 0, &err));
    assert_false(is_set[1]);
}

static void test_print_round_trip(void **state)
{
    (void)state;
    struct settings settings; /* its padding too, since the bytes are compared */
    memset(&settings, 0, sizeof settings);
    settings.drop = true;
    settings.steps = 1000000000;
    settings.kind = 2;
    settings.optimizer.lr = 0.1 + 0.2;
    settings.optimizer.betas[0] = 0.9;
    settings.optimizer.betas[1] = 1.0 / 3;
    strcpy(settings.data, "a \"b\"\\ \t#: \xc3\xa9");
    char *text = keys_print_yaml(keys, COUNT, &settings, NULL);
    assert_non_null(strstr(text, "optimizer:\n  lr: 0.30000000000000004\n  betas: ["));
    struct settings again;
    memset(&again, 0, sizeof again);
    struct err err;
    if (!load(&again, NULL, text, &err))
        fail_msg("%s", err.what);
    assert_memory_equal(&settings, &again, sizeof again);
    free(text);
    bool is_set[COUNT] = {[1] = true};
    text = keys_print_yaml(keys, COUNT, &settings, is_set);
    assert_string_equal(text, "steps: 1000000000\n");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_hostile_documents),
        cmocka_unit_test(test_flipped_bytes),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_print_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
