/* Datasets: written, sorted, cut, read back; and every byte of a small one cut off or changed: an error or an
 * equal read, never a crash (run under the sanitizers). */
#include "dataset.h"

#include "damage.h"
#include "sample_data.h"

#include <inttypes.h>
#include <sys/stat.h>
#include <xxhash.h>

static const int32_t lengths[] = {5, 1, 9, 2, 12, 3}, first[] = {2, 0, 8, 1, 9, 3};

static void test_round_trip(void **state)
{
    (void)state;
    struct dataset d;
    struct err err = ERR_INIT;
    const char *path = temp_path(&test_folder, "round");
    assert_true(sample_data_make(path, lengths, first, 6, 9, &err));
    if (!dataset_open(&d, path, &err))
        fail_msg("%s: %s", err.what, err.why);
    /* Left out: row 1 (one token), row 4 (cut before its first trained token), row 5 (nothing trained). */
    assert_int_equal(dataset_rows(&d), 3);
    assert_int_equal(d.statistics.dropped, 3);
    assert_int_equal(d.statistics.cut, 0);
    assert_int_equal(d.statistics.tokens, 16);
    assert_int_equal(d.statistics.labelled, 3 + 1 + 1);
    assert_int_equal(d.statistics.longest, 9);
    assert_int_equal(d.statistics.percentile[2], 5);
    assert_int_equal(d.statistics.percentile[0], 2);
    assert_int_equal(d.statistics.percentile[4], 9);
    assert_int_equal(d.vocabulary, BYTES_VOCABULARY);
    assert_int_equal(d.cutoff, 9);
    assert_string_equal(d.tokenizer, TOKENIZER_BYTES_NAME);
    assert_string_equal(d.sort_key, "");
    static const int64_t source[] = {0, 2, 3};
    for (int64_t row = 0; row < 3; row++) {
        int32_t tokens[16];
        uint8_t trained[16];
        int64_t length = dataset_row_length(&d, row);
        assert_int_equal(length, lengths[source[row]]);
        dataset_row_read(&d, row, length, tokens, trained);
        for (int64_t t = 0; t < length; t++) {
            assert_int_equal(tokens[t], source[row] + t);
            assert_int_equal(trained[t], t >= first[source[row]]);
        }
        assert_int_equal(dataset_row_first_trained(&d, row), first[source[row]]);
    }
    assert_int_equal(dataset_row_labels(&d, 0, 100), 3);
    assert_int_equal(dataset_row_labels(&d, 0, 4), 2);
    assert_int_equal(dataset_row_labels(&d, 0, 2), 0);
    dataset_close(&d);
    dataset_close(&d);
}

static void test_cut_and_wide(void **state)
{
    (void)state;
    struct dataset d;
    struct err err = ERR_INIT;
    struct dataset_writer w = {0};
    struct dataset_writer_options options = {
        .tokenizer = "x", .tokenizer_hash = "y", .vocabulary = 70000, .cutoff = 3};
    uint32_t tokens[] = {69999, 1, 65536, 3};
    uint8_t trained[] = {1, 0, 1, 1};
    int32_t got[3];
    assert_true(dataset_writer_open(&w, temp_path(&test_folder, "wide//"), &options, &err));
    assert_true(dataset_writer_add(&w, tokens, trained, 4, NULL, &err));
    assert_true(dataset_writer_finish(&w, &err));
    assert_true(dataset_open(&d, temp_path(&test_folder, "wide"), &err));
    assert_true(d.wide);
    assert_int_equal(d.statistics.cut, 1);
    assert_int_equal(d.statistics.labelled, 1);
    dataset_row_read(&d, 0, 3, got, NULL);
    assert_true(got[0] == 69999 && got[1] == 1 && got[2] == 65536);
    dataset_close(&d);
}

static void write_sorted(const char *name, const struct dataset_sort_value *values, int count,
                         struct err *err)
{
    struct dataset_writer w = {0};
    struct dataset_writer_options options = {
        .tokenizer = "x", .tokenizer_hash = "y", .vocabulary = 100, .cutoff = 9, .sort_key = "instance_id"};
    *err = (struct err)ERR_INIT;
    bool good = dataset_writer_open(&w, temp_path(&test_folder, name), &options, err);
    for (int i = 0; good && i < count; i++) {
        uint32_t tokens[2] = {(uint32_t)i, 1};
        good = dataset_writer_add(&w, tokens, (uint8_t[]){0, 1}, 2, &values[i], err);
    }
    good = good && dataset_writer_finish(&w, err);
    dataset_writer_abandon(&w);
    assert_true(good == (err->code == ERR_OK));
}

static void assert_rows(const char *name, const int32_t *wanted, int count)
{
    struct dataset d;
    struct err err = ERR_INIT;
    assert_true(dataset_open(&d, temp_path(&test_folder, name), &err));
    assert_int_equal(dataset_rows(&d), count);
    assert_string_equal(d.sort_key, "instance_id");
    for (int i = 0; i < count; i++) {
        int32_t token;
        dataset_row_read(&d, i, 1, &token, NULL);
        assert_int_equal(token, wanted[i]);
    }
    dataset_close(&d);
}

static void test_sorting(void **state)
{
    (void)state;
    struct err err;
#define TEXT(t)                                                                                              \
    {                                                                                                        \
        .type = DATASET_SORT_TEXT, .text = t                                                                 \
    }
#define NUMBER(n)                                                                                            \
    {                                                                                                        \
        .type = DATASET_SORT_NUMBER, .number = n                                                             \
    }
    const struct dataset_sort_value texts[] = {TEXT("b"), TEXT("a"), TEXT("\xc3\xa9"),
                                               TEXT("B"), TEXT("a"), TEXT("")};
    const struct dataset_sort_value numbers[] = {NUMBER(10), NUMBER(9), NUMBER(-1e300), NUMBER(9),
                                                 NUMBER(0.5)};
    const struct dataset_sort_value mixed[] = {NUMBER(10), TEXT("a")}, missing[] = {NUMBER(1), {0}};
    write_sorted("texts", texts, 6, &err);
    assert_rows("texts", (int32_t[]){5, 3, 1, 4, 0, 2}, 6);
    write_sorted("numbers", numbers, 5, &err);
    assert_rows("numbers", (int32_t[]){2, 4, 1, 3, 0}, 5);
    write_sorted("mixed", mixed, 2, &err);
    assert_non_null(strstr(err.what, "cannot be sorted"));
    write_sorted("missing", missing, 2, &err);
    assert_non_null(strstr(err.what, "instance_id"));
    assert_int_not_equal(access(temp_path(&test_folder, "missing"), F_OK), 0);
}

static void test_places(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct dataset d;
    struct dataset_writer w = {0};
    struct dataset_writer_options options = {
        .tokenizer = "x", .tokenizer_hash = "y", .vocabulary = 100, .cutoff = 9};
    char path[256], inside[512];
    snprintf(path, sizeof path, "%s/place", test_folder.path);
    assert_true(sample_data_make(path, lengths, first, 6, 9, &err)); /* new */
    assert_true(sample_data_make(path, lengths, first, 1, 9, &err)); /* overwrite */
    assert_true(dataset_open(&d, path, &err));
    assert_int_equal(dataset_rows(&d), 1);
    dataset_close(&d);
    assert_false(dataset_writer_open(&w, path, &options, &err)); /* not asked to */
    assert_non_null(strstr(err.hint, "--overwrite"));
    snprintf(inside, sizeof inside, "%s/manifest.json", path);
    assert_int_equal(unlink(inside), 0);
    err = (struct err)ERR_INIT;
    options.overwrite = true;
    assert_false(dataset_writer_open(&w, path, &options, &err)); /* not a dataset: never */
    assert_non_null(strstr(err.why, "not a dataset"));
    snprintf(path, sizeof path, "%s/a/b/c", test_folder.path); /* parents are made */
    err = (struct err)ERR_INIT;
    assert_true(sample_data_make(path, lengths, first, 6, 9, &err));
    snprintf(path, sizeof path, "%s/none", test_folder.path);
    const int32_t none[] = {9};
    assert_false(sample_data_make(path, lengths, none, 1, 9, &err));
    assert_non_null(strstr(err.what, "anything to train on"));
    assert_int_not_equal(access(path, F_OK), 0);
    err = (struct err)ERR_INIT;
    assert_false(dataset_open(&d, path, &err));
    assert_non_null(strstr(err.hint, "data prepare"));
    err = (struct err)ERR_INIT;
    assert_false(dataset_writer_open(&w, "/proc/nowhere", &options, &err));
    assert_int_equal(err.code, ERR_IO);
}

/* ---- damage ---- */

/* A number over everything that a reader of the dataset can see. */
static uint64_t fingerprint(const struct dataset *d)
{
    char text[1024];
    snprintf(text, sizeof text, "%s|%s|%s|%" PRId64 "|%" PRId64 "|%" PRId64 "|%" PRId64 "|%" PRId64,
             d->tokenizer, d->tokenizer_hash, d->sort_key, d->vocabulary, d->cutoff, d->statistics.cut,
             d->statistics.dropped, d->statistics.labelled);
    uint64_t hash = XXH3_64bits(text, strlen(text));
    for (int64_t row = 0; row < dataset_rows(d); row++) {
        int32_t tokens[64];
        uint8_t trained[64];
        int64_t length = dataset_row_length(d, row);
        assert_in_range(length, 1, 64);
        dataset_row_read(d, row, length, tokens, trained);
        for (int64_t t = 0; t < length; t++)
            assert_true(tokens[t] >= 0 && tokens[t] < d->vocabulary && trained[t] <= 1);
        hash = XXH3_64bits_withSeed(tokens, (size_t)length * sizeof *tokens, hash);
        hash = XXH3_64bits_withSeed(trained, (size_t)length, hash);
    }
    return hash;
}

struct damaged {
    const char *path;
    uint64_t wanted;
    bool checksummed;
    size_t tried, opened;
};

/* With checksums: refused, or read as it was. Without: what is read stays within its bounds. */
static void check_damaged(void *context, enum damage how, size_t at)
{
    struct damaged *damaged = context;
    struct dataset d;
    struct err err = ERR_INIT;
    damaged->tried++;
    if (!dataset_open(&d, damaged->path, &err)) {
        assert_int_not_equal(err.code, ERR_OK);
        return;
    }
    damaged->opened++;
    if (how != DAMAGE_FLIP || (fingerprint(&d) != damaged->wanted && damaged->checksummed))
        fail_msg("a dataset %s %zu was taken for whole", damage_names[how], at);
    dataset_close(&d);
}

static void damage(const char *path, const char *name, bool checksummed)
{
    char file[512];
    struct dataset d;
    struct err err = ERR_INIT;
    struct damaged damaged = {.path = path, .checksummed = checksummed};
    check_ok(dataset_open(&d, path, &err), &err);
    damaged.wanted = fingerprint(&d);
    dataset_close(&d);
    snprintf(file, sizeof file, "%s/%s", path, name);
    damage_file(file, &(struct damage_plan){.flip_end = SIZE_MAX, .every_bit = true, .cut_step = 1},
                check_damaged, &damaged);
    check_ok(dataset_open(&d, path, &err), &err);
    assert_true(fingerprint(&d) == damaged.wanted);
    dataset_close(&d);
    if (checksummed)
        assert_true(damaged.opened * 20 < damaged.tried); /* hardly any change is harmless */
}

static void test_damage(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    char path[256];
    snprintf(path, sizeof path, "%s/damaged", test_folder.path);
    assert_true(sample_data_make(path, lengths, first, 6, 9, &err));
    damage(path, "data.safetensors", true);
    damage(path, "manifest.json", true);
}

/* Datasets of other tools may come without checksums; then everything else must hold. */
static void test_damage_without_checksums(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    char path[256], file[300], *bytes;
    size_t count;
    snprintf(path, sizeof path, "%s/foreign", test_folder.path);
    assert_true(sample_data_make(path, lengths, first, 6, 9, &err));
    snprintf(file, sizeof file, "%s/manifest.json", path);
    assert_true(file_slurp(file, 1 << 20, &bytes, &count, &err));
    memcpy(strstr(bytes, "\"checksum\""), "\"cheksums\"", 10);
    memcpy(strstr(bytes, "\"data_xxh3\""), "\"data_xxh4\"", 11);
    temp_write(file, bytes, count);
    free(bytes);
    damage(path, "data.safetensors", false);
    damage(path, "manifest.json", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_cut_and_wide),
        cmocka_unit_test(test_sorting),    cmocka_unit_test(test_places),
        cmocka_unit_test(test_damage),     cmocka_unit_test(test_damage_without_checksums),
    };
    return cmocka_run_group_tests(tests, temp_folder_setup, temp_folder_teardown);
}
