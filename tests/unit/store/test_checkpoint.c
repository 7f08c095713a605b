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

/* Columns cut in any way come back cut in any other: bands, ranges of them, or the whole array's ranges. */
static void columns_agree(void **unused)
{
    (void)unused;
    const char *const configs[] = {SMALL_CONFIG, WIDE_CONFIG};
    const struct checkpoint_formats formats[] = {{WEIGHT_SPLIT8, MOMENT_Q8, MOMENT_Q8},
                                                 {WEIGHT_KAHAN, MOMENT_BF16, MOMENT_FP32}};
    const struct cuts cuts[] = {{1, 1}, {3, 1}, {1, 2}, {3, 2}, {1, 4}, {2, 5}};
    const size_t count = sizeof cuts / sizeof *cuts;
    for (size_t c = 0; c < 2; c++) {
        struct fixture f;
        fixture_make(&f, configs[c]);
        for (size_t i = 0; i < 2 * count; i++) {
            struct err err = ERR_INIT;
            struct saving s = saving_of("c", cuts[i / 2].ranks, formats[i % 2]);
            s.bands = cuts[i / 2].bands;
            s.replace = true;
            check_ok(save(&f, &s, &err), &err);
            for (size_t k = 0; k < count; k++)
                check_ok(load_equal_cut(f.folder.path, "c", cuts[k], &err), &err);
        }
        fixture_done(&f);
    }
}

/* More than a buffer holds of one tensor: 10 MB of rows and of columns. */
static void large_columns_agree(void **unused)
{
    (void)unused;
    const char *config =
        "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"hidden_size\": 2, "
        "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"num_key_value_heads\": 1, \"head_dim\": 2, "
        "\"intermediate_size\": 1300001, \"vocab_size\": 4, \"max_position_embeddings\": 64, "
        "\"rms_norm_eps\": 1e-6, \"rope_theta\": 1000000.0, \"tie_word_embeddings\": true}";
    const struct cuts cuts[] = {{1, 1}, {2, 1}, {2, 3}, {1, 2}};
    struct fixture f;
    fixture_make(&f, config);
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        struct err err = ERR_INIT;
        struct saving s =
            saving_of("c", cuts[i].ranks, (struct checkpoint_formats){WEIGHT_FP32, MOMENT_BF16, MOMENT_Q8});
        s.bands = cuts[i].bands;
        s.replace = true;
        check_ok(save(&f, &s, &err), &err);
        size_t other = (i + 2) % 4;
        check_ok(load_equal_cut(f.folder.path, "c", cuts[other], &err), &err);
    }
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

/* So are slices of columns: the name says which. */
static void shards_name_their_columns(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    struct saving s = saving_of("c", 1, plain);
    s.bands = 2;
    fixture_make(&f, SMALL_CONFIG);
    check_ok(save(&f, &s, &err), &err);
    struct safetensors file;
    check_ok(safetensors_open(&file, temp_path(&f.folder, "c/shard-00001.safetensors"), &err), &err);
    int32_t row = param_table_find(&f.table, "model.layers.1.mlp.down_proj.weight");
    int64_t first = cut(41, 1, 2, row);
    char name[128];
    snprintf(name, sizeof name, "model.layers.1.mlp.down_proj.weight:m[:,%d:41]:0", (int)first);
    const struct safetensor *t = safetensors_find(&file, name);
    assert_non_null(t);
    assert_int_equal(t->elements, 25 * (41 - first));
    for (int64_t i = 0; i < (int64_t)t->bytes; i++) {
        int64_t byte = (first + i / 4 / (41 - first) * 41 + i / 4 % (41 - first)) * 4 + i % 4;
        assert_int_equal(safetensors_data(&file, t)[i], value_byte(row, 2, byte));
    }
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
        struct cutting c = cutting_make(&f.table, &plain, (struct cuts){1, 1}, 0, 0);
        struct checkpoint_slice slices[64];
        int64_t count = c.count;
        memcpy(slices, c.slices, (size_t)count * sizeof *slices);
        if (fault == 0)
            slices[5] = slices[--count];
        else if (fault == 1)
            slices[5] = slices[6], slices[5].range.start++, slices[5].range.count--;
        else if (fault == 4) /* as many elements as there should be, some of them twice */
            slices[0].range.count = 5, slices[count] = slices[0], slices[count].range.start = 2,
            slices[count++].range.count = 3;
        else if (fault == 2)
            slices[5].range.start++, slices[5].range.count--;
        else
            slices[5].range.count--;
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

/* The same of columns: one band left out, wider, narrower, elsewhere, of other rows, ending early; or a part
 * cut in two ways at once. */
static void holes_in_columns_are_refused(void **unused)
{
    (void)unused;
    struct fixture f;
    fixture_make(&f, SMALL_CONFIG);
    const int32_t tensor = param_table_find(&f.table, "model.layers.0.mlp.down_proj.weight"); /* [25][41] */
    const struct band_range faults[] = {
        {{20, 21, 41}, 0, 25 * 21}, /* right: committed */
        {{0}, 0, 0},
        {{19, 21, 41}, 0, 25 * 21},
        {{21, 20, 41}, 0, 25 * 20},
        {{20, 20, 41}, 0, 25 * 20},
        {{20, 21, 41}, 0, 24 * 21},
        {{20, 21, 41}, 1, 25 * 21 - 1},
        {{20, 5, 25}, 0, 41 * 5},
        {{0}, 20 * 25, 21 * 25},
        {{0, 20, 41}, 0, 25 * 20},
        {{0, 21, 41}, 0, 25 * 21},
        {{20, 21, 205}, 0, 5 * 21},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        struct err err = ERR_INIT;
        struct checkpoint_about about = {.name = "c", .policy = "fp32-master"};
        char *fragments[2] = {NULL, NULL};
        static char memory[25 * 41 * 4];
        struct cutting c = cutting_make(&f.table, &plain, (struct cuts){1, 1}, 0, 0);
        for (int64_t k = 0; k < c.count; k++)
            if (c.slices[k].tensor == tensor && c.slices[k].part == 0)
                c.slices[k].range = (struct band_range){{0, 20, 41}, 0, 25 * 20};
        const struct checkpoint_slice other = {tensor, 0, faults[i], memory};
        check_ok(checkpoint_save_begin(f.folder.path, "c", true, &err), &err);
        check_ok(checkpoint_save_shard(f.folder.path, "c", 0, &f.table, &plain, c.slices, c.count,
                                       &far_device, &fragments[0], &err),
                 &err);
        check_ok(checkpoint_save_shard(f.folder.path, "c", 1, &f.table, &plain, &other, faults[i].count > 0,
                                       &far_device, &fragments[1], &err),
                 &err);
        struct checkpoint_record record = {&about, &f.table, &plain, f.config_text, f.state};
        bool committed = checkpoint_save_commit(f.folder.path, &record, (const char *const *)fragments, 2,
                                                true, NULL, &err);
        if (committed != (i == 0) || (i > 0 && err.code != ERR_CORRUPT))
            fail_msg("fault %zu: %s", i, committed ? "committed" : err_code_name(err.code));
        checkpoint_save_abort(f.folder.path, "c");
        free(fragments[0]);
        free(fragments[1]);
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
        {"slices", "first", json_integer(0)}, /* the others are missing */
        {"slices", "run", json_integer(0)},
        {"slices", "stride", json_string("2")},
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
        cmocka_unit_test(columns_agree),
        cmocka_unit_test(large_columns_agree),
        cmocka_unit_test(shards_are_safetensors),
        cmocka_unit_test(shards_name_their_columns),
        cmocka_unit_test(holes_are_refused),
        cmocka_unit_test(holes_in_columns_are_refused),
        cmocka_unit_test(names_are_kept),
        cmocka_unit_test(damage_is_found),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(every_failure_leaves_the_last),
        cmocka_unit_test(every_death_leaves_the_last),
        cmocka_unit_test(a_full_disk_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
