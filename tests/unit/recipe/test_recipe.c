/* Recipes: the contract's own, defaults, overrides, contradictions, what a socket may bring. */
#include "recipe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The contract's section 5, word for word. */
static const char contract[] =
    "data: DIR\norder: shuffled(17)\n"
    "epochs: 4                # or steps: N\n"
    "global_batch: 64         # sequences an update\n"
    "micro_batch: 1           # sequences, or max_tokens: N to pack\n"
    "cutoff: 32768\n"
    "optimizer: {policy: fp32-master, lr: 1e-4, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01, decay: "
    "matrices, "
    "clip: 1.0}\n"
    "schedule: {kind: cosine, warmup_ratio: 0.1, min_lr: 0}\n"
    "loss: cross_entropy      # mean over the labelled tokens of the global batch\n"
    "checkpoint: {every: 50, keep: 3}   # the oldest goes only after the new one verifies\n"
    "evaluate: {data: DIR2, every: 50}\n";

static bool parse(struct recipe *recipe, const char *text, const char *const *overrides, size_t count,
                  struct err *err)
{
    *err = (struct err)ERR_INIT;
    return recipe_parse(recipe, "r.yaml", text, text ? strlen(text) : 0, overrides, count, err);
}

static void test_contract(void **state)
{
    (void)state;
    struct recipe r;
    struct err err;
    uint64_t seed;
    if (!parse(&r, contract, NULL, 0, &err))
        fail_msg("%s: %s", err.what, err.why);
    assert_string_equal(r.data, "DIR");
    assert_true(recipe_is_shuffled(&r, &seed));
    assert_int_equal(seed, 17);
    assert_int_equal(r.epochs, 4);
    assert_int_equal(r.steps, -1);
    assert_int_equal(r.global_batch, 64);
    assert_int_equal(r.micro_batch, 1);
    assert_int_equal(r.max_tokens, -1);
    assert_int_equal(r.cutoff, 32768);
    assert_false(r.drop_last);
    assert_string_equal(r.optimizer.policy, "fp32-master");
    assert_true(r.optimizer.lr == 1e-4 && r.optimizer.betas[0] == 0.9 && r.optimizer.betas[1] == 0.999);
    assert_true(r.optimizer.eps == 1e-8 && r.optimizer.weight_decay == 0.01 && r.optimizer.clip == 1);
    assert_int_equal(r.optimizer.decay, RECIPE_DECAY_MATRICES);
    assert_int_equal(r.schedule.kind, SCHEDULE_COSINE);
    assert_true(r.schedule.warmup_ratio == 0.1 && r.schedule.min_lr == 0);
    assert_true(r.schedule.warmup_steps < 0 && r.schedule.decay_steps < 0);
    assert_int_equal(r.checkpoint.every, 50);
    assert_int_equal(r.checkpoint.keep, 3);
    assert_string_equal(r.evaluate.data, "DIR2");
    struct optimizer_settings settings = recipe_optimizer_settings(&r);
    assert_true(settings.lr == 1e-4 && settings.beta2 == 0.999 && !settings.decay_all && settings.clip == 1);
}

static void test_defaults_and_names(void **state)
{
    (void)state;
    struct recipe r;
    struct err err;
    uint64_t seed;
    assert_true(parse(&r, "data: d\nsteps: 5\n", NULL, 0, &err));
    assert_false(recipe_is_shuffled(&r, &seed));
    assert_int_equal(r.micro_batch, 1);
    assert_int_equal(r.cutoff, -1);
    assert_string_equal(r.optimizer.policy, "");
    struct optimizer_settings settings = recipe_optimizer_settings(&r),
                              defaults = optimizer_settings_default();
    assert_true(settings.lr == defaults.lr && settings.beta1 == defaults.beta1 &&
                settings.eps == defaults.eps);
    size_t count;
    const struct key *keys = recipe_keys(&count);
    for (size_t i = 0; i < count; i++)
        if (strcmp(keys[i].name, "schedule.kind") == 0) { /* the key's words in the schedule's order */
            char words[128] = "";
            for (int k = 0; k < SCHEDULE_KIND_COUNT; k++) {
                strcat(words, k ? "|" : "");
                strcat(words, schedule_kind_name((enum schedule_kind)k));
            }
            assert_string_equal(words, keys[i].choices);
        }
}

static void test_overrides(void **state)
{
    (void)state;
    struct recipe r;
    struct err err;
    const char *const some[] = {"steps=10",
                                "optimizer.policy=bf16-kahan+m=fp32",
                                "max_tokens=40000",
                                "schedule.warmup_steps=2",
                                "optimizer.betas=0.8,0.9",
                                "drop_last=true",
                                "data=a=b"};
    if (!parse(&r, contract, some, 7, &err))
        fail_msg("%s: %s", err.what, err.why);
    assert_int_equal(r.steps, 10);
    assert_int_equal(r.epochs, -1);
    assert_int_equal(r.micro_batch, -1);
    assert_int_equal(r.max_tokens, 40000);
    assert_int_equal(r.schedule.warmup_steps, 2);
    assert_true(r.schedule.warmup_ratio < 0 && r.optimizer.betas[0] == 0.8 && r.drop_last);
    assert_string_equal(r.data, "a=b");
    assert_true(parse(&r, NULL, some, 7, &err)); /* flags alone are a recipe */
    const char *const both[] = {"steps=10", "epochs=2"};
    assert_false(parse(&r, contract, both, 2, &err));
    assert_non_null(strstr(err.what, "both"));
    const char *const bad[] = {"steps"};
    assert_false(parse(&r, contract, bad, 1, &err));
    const char *const unknown[] = {"optimizer.ls=3"};
    assert_false(parse(&r, contract, unknown, 1, &err));
    assert_non_null(strstr(err.hint, "optimizer.lr"));
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text, *what;
    } cases[] = {
        {"steps: 5\n", "names no data"},
        {"data: d\n", "neither epochs nor steps"},
        {"data: d\nepochs: 1\nsteps: 5\n", "epochs and steps are both said"},
        {"data: d\nsteps: 5\nmicro_batch: 2\nmax_tokens: 100\n", "both said"},
        {"data: d\nsteps: 5\nschedule: {warmup_ratio: 0.1, warmup_steps: 3}\n", "both said"},
        {"data: d\nsteps: 5\nevaluate: {every: 3}\n", "no evaluate.data"},
        {"data: d\nsteps: 5\norder: random\n", "order is \"random\""},
        {"data: d\nsteps: 5\norder: shuffled()\n", "order is"},
        {"data: d\nsteps: 5\norder: shuffled(1\n", "order is"},
        {"data: d\nsteps: 5\norder: shuffled(-1)\n", "order is"},
        {"data: d\nsteps: 5\norder: shuffled(1))\n", "order is"},
        {"data: d\nsteps: 5\norder: shuffled(99999999999999999999999)\n", "order is"},
        {"data: d\nsteps: 5\noptimizer: {policy: fp32-mastre}\n", "fp32-mastre"},
        {"data: d\nsteps: 5\noptimizer: {betas: [0.9, 1]}\n", "beta2"},
        {"data: d\nsteps: 5\noptimizer: {lr: -1}\n", "optimizer.lr"},
        {"data: d\nsteps: 5\noptimizer: {lr: 1e-4}\nschedule: {min_lr: 1e-3}\n", "min_lr"},
        {"data: d\nepochs: 5\noptimizer: {lr: 1e-4}\nschedule: {min_lr: 1e-3, warmup_ratio: 0.1}\n",
         "min_lr"},
        {"data: d\nsteps: 5\nschedule: {kind: wsd}\n", "wsd"},
        {"data: d\nsteps: 5\nglobal_batch: 0\n", "global_batch"},
        {"data: d\nsteps: 5\nglobal_batch: -1\n", "global_batch"},
        {"data: d\nsteps: 5\ncutoff: 1\n", "cutoff"},
        {"data: d\nsteps: 5\nloss: mse\n", "loss"},
        {"data: d\nsteps: 5\ncheckpoint: {keep: 0}\n", "checkpoint.keep"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct recipe r;
        struct err err;
        bool good = parse(&r, cases[i].text, NULL, 0, &err);
        if (good || !strstr(err.what, cases[i].what))
            fail_msg("%s: wanted \"%s\", got \"%s\"", cases[i].text, cases[i].what, err.what);
        assert_true(err.code == ERR_INVALID);
    }
}

/* The file, the line, the key and the nearest right name, also of what only the whole recipe shows. */
static void test_where_it_was_said(void **state)
{
    (void)state;
    static const struct {
        const char *text, *what, *hint;
    } cases[] = {
        {"data: d\nsteps: 5\noptimizer:\n  policy: fp32-mastre\n",
         "r.yaml:4: optimizer.policy: there is no policy", "fp32-master"},
        {"data: d\nsteps: 5\noptimizer:\n  lr: 1\n  policy: fp32-master+m=q9\n",
         "r.yaml:5: optimizer.policy: there is no m format", "q8"},
        {"data: d\n\nsteps: 5\norder: suffled\n", "r.yaml:4: order is \"suffled\"", "shuffled"},
        {"schedule:\n  kind: cosin\n", "r.yaml:2: schedule.kind is \"cosin\"", "cosine"},
        {"optimizer:\n  decay: matrix\n", "r.yaml:2: optimizer.decay is \"matrix\"", "matrices"},
        {"loss: cross-entropy\n", "r.yaml:1: loss is \"cross-entropy\"", "cross_entropy"},
        {"data: d\nsteps: 5\noptimizer: {\n betas: [0.9, 1]}\n", "r.yaml:4: optimizer.betas: beta2", ""},
        {"data: d\nsteps: 5\noptimizer: {\n eps: 0}\n", "r.yaml:4: optimizer.eps: eps", ""},
        {"data: d\nsteps: 5\noptimizer: {\n lr: 0}\n", "r.yaml:4: optimizer.lr: a peak learning rate", ""},
        {"data: d\nsteps: 5\nschedule:\n  kind: wsd\n", "r.yaml:4: schedule.kind: a wsd schedule needs", ""},
        {"data: d\nsteps: 5\nschedule:\n  kind: wsd\n  wsd_decay: 9\n",
         "r.yaml:5: schedule.wsd_decay: warm-up and decay overlap", ""},
        {"data: d\nsteps: 5\nschedule:\n  wsd_decay: 2\n", "r.yaml:4: schedule.wsd_decay: wsd_decay means",
         ""},
        {"data: d\nsteps: 5\nschedule:\n  warmup_steps: 9\n", "r.yaml:4: schedule.warmup_steps: the warm-up",
         ""},
        {"data: d\nsteps: 100\nschedule:\n  warmup_ratio: 0.5\n  decay_steps: 5\n",
         "r.yaml:5: schedule.decay_steps: decay_steps", ""},
        {"data: d\nsteps: 5\nschedule:\n  min_lr: 1\n", "r.yaml:4: schedule.min_lr: min_lr 1 is above", ""},
        {"data: d\nepochs: 5\nschedule:\n  warmup_ratio: 0\n  min_lr: 1\n", "r.yaml:5: schedule.min_lr is 1",
         ""},
        {"data: d\nepochs: 1\n\nsteps: 5\n", "r.yaml:4: epochs and steps are both said", "one of them"},
        {"data: d\nsteps: 5\nevaluate:\n  every: 3\n", "r.yaml:4: evaluate.every is 3", ""},
        {"steps: 5\n", "r.yaml: the recipe names no data", "data:"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct recipe r;
        struct err err;
        assert_false(parse(&r, cases[i].text, NULL, 0, &err));
        if (strncmp(err.what, cases[i].what, strlen(cases[i].what)) != 0 || !strstr(err.hint, cases[i].hint))
            fail_msg("%s: wanted \"%s\" (%s), got \"%s\" (%s)", cases[i].text, cases[i].what, cases[i].hint,
                     err.what, err.hint);
    }
    /* What a flag said is on no line. */
    const char *const flag[] = {"optimizer.policy=fp32-mastre"};
    struct recipe r;
    struct err err;
    assert_false(parse(&r, contract, flag, 1, &err));
    assert_memory_equal(err.what, "optimizer.policy: there", 23);
}

/* A schedule can be looked at before there are data; what is said must be right all the same. */
static void test_a_part(void **state)
{
    (void)state;
    struct recipe r;
    struct err err = ERR_INIT;
    const char *text = "schedule: {kind: linear}\n", *wrong = "epochs: 1\norder: random\n";
    assert_true(recipe_parse_part(&r, "r.yaml", text, strlen(text), NULL, 0, &err));
    assert_false(recipe_parse_part(&r, "r.yaml", wrong, strlen(wrong), NULL, 0, &err));
    assert_non_null(strstr(err.what, "r.yaml:2: order"));
}

/* A recipe from a socket is checked without the key table's reading. */
static void test_check_of_bytes(void **state)
{
    (void)state;
    struct recipe good, r;
    struct err err = ERR_INIT;
    assert_true(parse(&good, contract, NULL, 0, &err));
    r = good;
    assert_true(recipe_check(&r, &err));
#define REFUSED(change)                                                                                      \
    r = good;                                                                                                \
    change;                                                                                                  \
    err = (struct err)ERR_INIT;                                                                              \
    assert_false(recipe_check(&r, &err))
    REFUSED(r.schedule.kind = (enum schedule_kind)77);
    REFUSED(r.loss = -1);
    REFUSED(r.optimizer.lr = (double)__builtin_nanf(""));
    REFUSED(r.optimizer.betas[1] = (double)__builtin_nanf(""));
    REFUSED(r.global_batch = 0);
    REFUSED(r.global_batch = INT64_MAX);
    REFUSED(r.checkpoint.keep = -1);
    REFUSED(memset(r.order, 'x', sizeof r.order));
    REFUSED(r.steps = 3);
#undef REFUSED
    r = good;
    memset(r.data, 'x', sizeof r.data);
    err = (struct err)ERR_INIT;
    assert_true(recipe_check(&r, &err));
    assert_int_equal(strlen(r.data), sizeof r.data - 1);
}

static void test_print_round_trip(void **state)
{
    (void)state;
    const char *const texts[] = {
        contract, "data: d\nsteps: 5\n",
        "data: \"a \\\"b\\\"\"\nsteps: 7\nmax_tokens: 99\nschedule: {kind: wsd, wsd_decay: 3}\n"};
    for (size_t i = 0; i < 3; i++) {
        struct recipe r, again;
        struct err err;
        assert_true(parse(&r, texts[i], NULL, 0, &err));
        char *text = recipe_print(&r);
        if (!parse(&again, text, NULL, 0, &err))
            fail_msg("%s\n%s", err.what, text);
        assert_memory_equal(&r, &again, sizeof r);
        free(text);
    }
}

static void test_paths(void **state)
{
    (void)state;
    struct recipe r;
    struct err err;
    assert_true(parse(&r, contract, NULL, 0, &err));
    assert_true(recipe_paths_absolute(&r, "/base", &err));
    assert_string_equal(r.data, "/base/DIR");
    assert_string_equal(r.evaluate.data, "/base/DIR2");
    assert_true(recipe_paths_absolute(&r, "/other", &err));
    assert_string_equal(r.data, "/base/DIR");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contract),       cmocka_unit_test(test_defaults_and_names),
        cmocka_unit_test(test_overrides),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_check_of_bytes), cmocka_unit_test(test_print_round_trip),
        cmocka_unit_test(test_paths),          cmocka_unit_test(test_where_it_was_said),
        cmocka_unit_test(test_a_part),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
