/* Checkpoints: any layout reads what any other wrote; damage anywhere is found; a save that fails or dies
 * anywhere leaves what was there before. */
#include "store_fixture.h"

#include "damage.h"
#include "faults.h"
#include "safetensors.h"

#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static const struct checkpoint_formats plain = {WEIGHT_FP32, MOMENT_FP32, MOMENT_FP32};

static struct saving saving_of(const char *name, int ranks, struct checkpoint_formats formats)
{
    return (struct saving){.name = name,
                           .ranks = ranks,
                           .formats = formats,
                           .about = {.run = "r1", .policy = "fp32-master", .step = 7, .total_steps = 9}};
}

/* A fixture with one checkpoint in it. */
static void fixture_with(struct fixture *f, const char *config, const char *name, int ranks,
                         struct checkpoint_formats formats)
{
    struct err err = ERR_INIT;
    struct saving s = saving_of(name, ranks, formats);
    fixture_make(f, config);
    check_ok(save(f, &s, &err), &err);
}

static void layouts_agree(void **unused)
{
    (void)unused;
    struct fixture f;
    fixture_make(&f, SMALL_CONFIG);
    json_t *state =
        json_pack("{s:I, s:f, s:{s:s}}", "k", (json_int_t)7, "lr", 0.1, "schedule", "kind", "cosine");
    const struct checkpoint_formats formats[] = {
        plain,
        {WEIGHT_SPLIT8, MOMENT_Q8, MOMENT_Q8},
        {WEIGHT_KAHAN, MOMENT_BF16, MOMENT_FP32},
        {WEIGHT_SPLIT, MOMENT_Q8, MOMENT_BF16S},
    };
    const int ranks[] = {1, 2, 3, 8};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        for (size_t j = 0; j < sizeof ranks / sizeof *ranks; j++) {
            struct err err = ERR_INIT;
            struct saving s = saving_of("c", ranks[j], formats[i]);
            s.state = state;
            s.replace = true;
            check_ok(save(&f, &s, &err), &err);
            for (size_t k = 0; k < sizeof ranks / sizeof *ranks; k++)
                check_ok(load_equal(f.folder.path, "c", ranks[k], &err), &err);
        }
    }
    struct err err = ERR_INIT;
    struct checkpoint c;
    check_ok(checkpoint_open(&c, f.folder.path, "c", &err), &err);
    assert_true(json_equal(c.state, state));
    assert_string_equal(c.about.run, "r1");
    assert_int_equal(c.about.step, 7);
    assert_int_equal(c.about.total_steps, 9);
    assert_int_equal(c.about.serial, 16); /* each replaced the one before */
    assert_int_equal(c.file_count, 8);
    checkpoint_close(&c);
    assert_int_equal(entries_ending(f.folder.path, ""), 1);
    json_decref(state);
    fixture_done(&f);
}

/* Other tools read the shards: they are safetensors, and a slice says in its name what it is. */
static void shards_are_safetensors(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    fixture_with(&f, SMALL_CONFIG, "c", 1, (struct checkpoint_formats){WEIGHT_FP32, MOMENT_Q8, MOMENT_BF16});
    struct safetensors file;
    check_ok(safetensors_open(&file, temp_path(&f.folder, "c/shard-00000.safetensors"), &err), &err);
    const struct safetensor *t = safetensors_find(&file, "model.layers.1.mlp.up_proj.weight:m.scale:0");
    assert_non_null(t);
    assert_int_equal(t->dtype, DTYPE_BF16);
    assert_int_equal(t->elements, (41 * 25 + 31) / 32);
    int32_t row = param_table_find(&f.table, "model.layers.1.mlp.up_proj.weight");
    for (int64_t i = 0; i < (int64_t)t->bytes; i++)
        assert_int_equal(safetensors_data(&file, t)[i], value_byte(row, 3, i));
    safetensors_close(&file);
    fixture_done(&f);
}

/* One slice left out, twice, too long, or of another place: never committed. */
static void holes_are_refused(void **unused)
{
    (void)unused;
    struct fixture f;
    fixture_make(&f, TINY_CONFIG);
    for (int fault = 0; fault < 5; fault++) {
        struct err err = ERR_INIT;
        struct checkpoint_about about = {.name = "c", .policy = "fp32-master"};
        char *fragment = NULL;
        check_ok(checkpoint_save_begin(f.folder.path, "c", false, &err), &err);
        struct cutting c = cutting_make(&f.table, &plain, 0, 1);
        struct checkpoint_slice slices[64];
        int64_t count = c.count;
        memcpy(slices, c.slices, (size_t)count * sizeof *slices);
        if (fault == 0)
            slices[5] = slices[--count];
        else if (fault == 1)
            slices[5] = slices[6], slices[5].start++, slices[5].count--;
        else if (fault == 4) /* as many elements as there should be, some of them twice */
            slices[0].count = 5, slices[count] = slices[0], slices[count].start = 2,
            slices[count++].count = 3;
        else if (fault == 2)
            slices[5].start++, slices[5].count--;
        else
            slices[5].count--;
        check_ok(checkpoint_save_shard(f.folder.path, "c", 0, &f.table, &plain, slices, count, &far_device,
                                       &fragment, &err),
                 &err);
        struct checkpoint_record record = {&about, &f.table, &plain, f.config_text, f.state};
        check_refused(checkpoint_save_commit(f.folder.path, &record, (const char *const *)&fragment, 1, false,
                                             NULL, &err),
                      &err, ERR_CORRUPT);
        checkpoint_save_abort(f.folder.path, "c");
        assert_int_equal(entries_ending(f.folder.path, ""), 0);
        free(fragment);
        cutting_done(&c);
    }
    fixture_done(&f);
}

static void names_are_kept(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT, again = ERR_INIT, missing = ERR_INIT;
    struct saving s = saving_of("c", 2, plain);
    fixture_with(&f, TINY_CONFIG, "c", 2, plain);
    check_refused(save(&f, &s, &again), &again, ERR_STATE);
    check_ok(load_equal(f.folder.path, "c", 3, &err), &err);
    struct checkpoint c;
    check_refused(checkpoint_open(&c, f.folder.path, "d", &missing), &missing, ERR_NOT_FOUND);
    fixture_done(&f);
}

/* ---- damage ---- */

struct damaged {
    const struct fixture *fixture;
    const char *file;
};

static void expect_damage(void *context, enum damage how, size_t place)
{
    const struct damaged *d = context;
    struct err err = ERR_INIT;
    if (load_equal(d->fixture->folder.path, "c", 1, &err))
        fail_msg("%s %s %zu was taken for whole", d->file, damage_names[how], place);
    if (err.code != ERR_CORRUPT || !strstr(err.what, d->file))
        fail_msg("%s %s %zu: %s: %s", d->file, damage_names[how], place, err_code_name(err.code), err.what);
}

static void damage_one(const struct fixture *f, const char *file)
{
    char path[512];
    struct err err = ERR_INIT;
    snprintf(path, sizeof path, "%s/c/%s", f->folder.path, file);
    damage_file(path, &(struct damage_plan){.flip_end = SIZE_MAX, .cut_step = 61}, expect_damage,
                &(struct damaged){f, file});
    check_ok(load_equal(f->folder.path, "c", 1, &err), &err);
}

static void damage_is_found(void **unused)
{
    (void)unused;
    struct fixture f;
    fixture_with(&f, TINY_CONFIG, "c", 2, (struct checkpoint_formats){WEIGHT_SPLIT8, MOMENT_Q8, MOMENT_BF16});
    damage_one(&f, "manifest.json");
    damage_one(&f, "shard-00000.safetensors");
    damage_one(&f, "shard-00001.safetensors");

    char one[512], two[512], aside[512];
    snprintf(one, sizeof one, "%s/c/shard-00000.safetensors", f.folder.path);
    snprintf(two, sizeof two, "%s/c/shard-00001.safetensors", f.folder.path);
    snprintf(aside, sizeof aside, "%s/aside", f.folder.path);
    assert_int_equal(rename(one, aside), 0);
    expect_damage(&(struct damaged){&f, "shard-00000.safetensors"}, DAMAGE_CUT, 0); /* missing */
    assert_int_equal(rename(two, one), 0);
    assert_int_equal(rename(aside, two), 0);
    struct err mixed = ERR_INIT;
    assert_false(load_equal(f.folder.path, "c", 1, &mixed)); /* each other's place */
    assert_int_equal(mixed.code, ERR_CORRUPT);
    fixture_done(&f);
}

/* A manifest that is sealed and still makes no sense: every field is checked, none trusted. */
static void nonsense_is_refused(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    fixture_with(&f, TINY_CONFIG, "c", 1, plain);
    const char *path = temp_path(&f.folder, "c/manifest.json");
    const struct {
        const char *list, *key;
        json_t *value;
    } changes[] = {
        {NULL, "kind", json_string("something else")},
        {NULL, "version", json_integer(CHECKPOINT_VERSION + 1)},
        {NULL, "version", json_string("1")},
        {NULL, "policy", NULL},
        {NULL, "total_steps", json_integer(-1)},
        {NULL, "formats", json_pack("{s:s,s:s,s:s}", "weight", "fp64", "m", "fp32", "v", "fp32")},
        {NULL, "formats", json_pack("{s:s,s:s,s:s}", "weight", "kahan", "m", "fp32", "v", "fp32")},
        {NULL, "config", json_object()},
        {NULL, "state", json_integer(1)},
        {NULL, "files", json_array()},
        {NULL, "slices", json_array()},
        {"files", "name", json_string("../c/shard-00000.safetensors")},
        {"files", "name", json_string("")},
        {"files", "bytes", json_integer(1 << 20)},
        {"files", "xxh3", json_string("00")},
        {"slices", "tensor", json_string("model.layers.9.mlp.up_proj.weight")},
        {"slices", "part", json_string("w")},
        {"slices", "dtype", json_string("BF16")},
        {"slices", "start", json_integer(-1)},
        {"slices", "start", json_integer(INT64_MAX)},
        {"slices", "count", json_integer(INT64_MAX)},
        {"slices", "count", json_integer(0)},
        {"slices", "file", json_integer(1)},
        {"slices", "offset", json_integer(INT64_MAX)},
        {"slices", "offset", json_real(8)},
        {"slices", "offset", json_null()}, /* one more: into the next slice */
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct manifest manifest = {0};
        struct err broken = ERR_INIT;
        char *text;
        size_t bytes;
        check_ok(manifest_load(&manifest, path, &err), &err);
        json_t *root = json_deep_copy(manifest.root);
        json_object_del(root, "xxh3");
        json_t *object = changes[i].list ? json_array_get(json_object_get(root, changes[i].list), 0) : root;
        if (json_is_null(changes[i].value))
            json_object_set_new(
                object, changes[i].key,
                json_integer(json_integer_value(json_object_get(object, changes[i].key)) + 1));
        else if (changes[i].value)
            json_object_set_new(object, changes[i].key, changes[i].value);
        else
            json_object_del(object, changes[i].key);
        check_ok(manifest_text(root, &text, &bytes, &err), &err);
        size_t whole;
        char *before;
        check_ok(file_slurp(path, 1 << 24, &before, &whole, &err), &err);
        temp_write(path, text, bytes);
        if (load_equal(f.folder.path, "c", 1, &broken))
            fail_msg("change %zu of %s was taken", i, changes[i].key);
        if (broken.code != ERR_CORRUPT && broken.code != ERR_UNSUPPORTED && broken.code != ERR_INVALID)
            fail_msg("change %zu of %s: %s", i, changes[i].key, err_code_name(broken.code));
        temp_write(path, before, whole);
        free(before);
        free(text);
        json_decref(root);
        manifest_close(&manifest);
    }
    check_ok(load_equal(f.folder.path, "c", 1, &err), &err);
    fixture_done(&f);
}

/* ---- failures while saving ---- */

/* The good one is still there and whole, nothing half-made shows. */
static void expect_untouched(const struct fixture *f, bool partial_allowed)
{
    struct err err = ERR_INIT;
    struct checkpoint_list list;
    check_ok(checkpoint_list_read(&list, f->folder.path, &err), &err);
    assert_int_equal(list.count, 1);
    assert_string_equal(list.items[0].name, "good");
    checkpoint_list_done(&list);
    check_ok(load_equal(f->folder.path, "good", 2, &err), &err);
    if (!partial_allowed)
        assert_int_equal(entries_ending(f->folder.path, ""), 1);
}

static void every_failure_leaves_the_last(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    fixture_with(&f, TINY_CONFIG, "good", 2, plain);
    const enum fault_kind kinds[] = {FAULT_ERROR, FAULT_SHORT};
    for (size_t kind = 0; kind < 2; kind++) {
        int nth = 1;
        for (;; nth++) {
            struct err failed = ERR_INIT;
            struct saving s = saving_of("next", 2, plain);
            faults_arm(kinds[kind], nth);
            bool saved = save(&f, &s, &failed);
            if (!faults_met())
                break;
            if (saved) /* a short write that was taken up again, or a file system that cannot reserve: fine if
                          whole */
                fail_msg("fault %d was not noticed", nth);
            assert_int_equal(failed.code, ERR_IO);
            expect_untouched(&f, false);
        }
        assert_true(nth > 12); /* two reservations, writes and syncs of three files, renames, folders */
        check_ok(load_equal(f.folder.path, "next", 2, &err), &err);
        check_ok(checkpoint_delete(f.folder.path, "next", &err), &err);
    }
    /* Replacing: the old one of this name stands until the new one does. */
    for (int nth = 1;; nth++) {
        struct err failed = ERR_INIT;
        struct saving s = saving_of("good", 1, plain);
        s.replace = true;
        faults_arm(FAULT_ERROR, nth);
        bool saved = save(&f, &s, &failed);
        if (!faults_met())
            break;
        assert_false(saved);
        struct checkpoint c;
        check_ok(checkpoint_open(&c, f.folder.path, "good", &err), &err);
        assert_int_equal(c.file_count, 2);
        checkpoint_close(&c);
        expect_untouched(&f, false);
    }
    check_ok(load_equal(f.folder.path, "good", 2, &err), &err);
    fixture_done(&f);
}

static void every_death_leaves_the_last(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    fixture_with(&f, TINY_CONFIG, "good", 2, plain);
    for (int nth = 1;; nth++) {
        pid_t child = fork();
        if (child == 0) {
            struct err ignored = ERR_INIT;
            struct saving s = saving_of("next", 2, plain);
            faults_arm(FAULT_KILL, nth);
            _exit(save(&f, &s, &ignored) ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            break;
        }
        /* Killed: the new one is there and whole (it had its name), or it is not there. */
        struct checkpoint_list list;
        check_ok(checkpoint_list_read(&list, f.folder.path, &err), &err);
        if (list.count == 2) {
            check_ok(load_equal(f.folder.path, "next", 2, &err), &err);
            check_ok(checkpoint_delete(f.folder.path, "next", &err), &err);
        }
        checkpoint_list_done(&list);
        expect_untouched(&f, true);
    }
    check_ok(load_equal(f.folder.path, "next", 2, &err), &err); /* what the dead left was no hindrance */
    assert_int_equal(entries_ending(f.folder.path, ""), 2);
    fixture_done(&f);
}

static void a_full_disk_is_an_error(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    struct rlimit before, small;
    fixture_with(&f, SMALL_CONFIG, "good", 2, plain);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t limit = 0; limit < 200000; limit += 9973) {
        struct err full = ERR_INIT;
        struct saving s = saving_of("next", 2, plain);
        small = (struct rlimit){limit, before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        bool saved = save(&f, &s, &full);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        if (saved) {
            check_ok(load_equal(f.folder.path, "next", 2, &err), &err);
            check_ok(checkpoint_delete(f.folder.path, "next", &err), &err);
        } else {
            assert_int_equal(full.code, ERR_IO);
        }
        expect_untouched(&f, false);
    }
    fixture_done(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layouts_agree),
        cmocka_unit_test(shards_are_safetensors),
        cmocka_unit_test(holes_are_refused),
        cmocka_unit_test(names_are_kept),
        cmocka_unit_test(damage_is_found),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(every_failure_leaves_the_last),
        cmocka_unit_test(every_death_leaves_the_last),
        cmocka_unit_test(a_full_disk_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
