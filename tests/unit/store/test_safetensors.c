/* safetensors: write and read back, hand-made files that lie about themselves, and every byte of a small file
 * cut off or changed: always an error or an equal read. */
#include "safetensors.h"

#include "damage.h"
#include "temp_folder.h"

#include <sys/stat.h>

/* A file with this header and data_bytes bytes after it. */
static const char *make_file(const char *name, const char *header, size_t data_bytes)
{
    unsigned char bytes[4096] = {0};
    size_t length = strlen(header);
    bytes[0] = (unsigned char)(length & 0xff);
    bytes[1] = (unsigned char)(length >> 8);
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        bytes[8 + length + i] = (unsigned char)i;
    const char *path = temp_path(&test_folder, name);
    temp_write(path, bytes, 8 + length + data_bytes);
    return path;
}

static const float values[6] = {0, 1, -2, 3.5f, 1e30f, -0.0f};
static const unsigned char codes[5] = {1, 2, 3, 4, 255};

static void write_sample(const char *path)
{
    struct safetensor tensors[] = {{.name = "w.weight", .dtype = DTYPE_F32, .dims = 2, .shape = {2, 3}},
                                   {.name = "a \"q\" \xc3\xa9", .dtype = DTYPE_U8, .dims = 1, .shape = {5}},
                                   {.name = "nothing", .dtype = DTYPE_BF16, .dims = 2, .shape = {0, 7}},
                                   {.name = "scalar", .dtype = DTYPE_U8, .dims = 0}};
    const struct safetensors_note notes[] = {{"format", "pt"}, {"made by", "a test"}};
    struct safetensors_writer writer = {0};
    struct err err = ERR_INIT;
    assert_true(safetensors_writer_open(&writer, path, tensors, 4, notes, 2, &err));
    assert_int_equal(tensors[0].start % 64, 0);
    assert_true(safetensors_writer_put(&writer, 3, 0, "x", 1, &err));
    assert_true(
        safetensors_writer_put(&writer, 0, 8, values + 2, 16, &err)); /* the end before the beginning */
    assert_true(safetensors_writer_put(&writer, 0, 0, values, 8, &err));
    assert_true(safetensors_writer_put(&writer, 1, 0, codes, 5, &err));
    assert_true(safetensors_writer_finish(&writer, &err));
    safetensors_writer_abandon(&writer); /* nothing: it is finished */
}

static bool same_as_sample(const struct safetensors *file)
{
    const struct safetensor *w = safetensors_find(file, "w.weight"),
                            *a = safetensors_find(file, "a \"q\" \xc3\xa9");
    const struct safetensor *n = safetensors_find(file, "nothing"), *s = safetensors_find(file, "scalar");
    return file->count == 4 && w && a && n && s && w->dtype == DTYPE_F32 && w->dims == 2 &&
           w->shape[0] == 2 && w->shape[1] == 3 && a->dtype == DTYPE_U8 && a->dims == 1 && a->shape[0] == 5 &&
           n->elements == 0 && n->dims == 2 && s->dims == 0 && s->elements == 1 &&
           memcmp(safetensors_data(file, w), values, sizeof values) == 0 &&
           memcmp(safetensors_data(file, a), codes, sizeof codes) == 0 && *safetensors_data(file, s) == 'x';
}

static void test_write_and_read(void **state)
{
    (void)state;
    const char *path = temp_path(&test_folder, "sample.safetensors");
    struct safetensors file;
    struct err err = ERR_INIT;
    write_sample(path);
    assert_true(safetensors_open(&file, path, &err));
    assert_true(same_as_sample(&file));
    assert_null(safetensors_find(&file, "w.weigh"));
    assert_string_equal(safetensors_metadata(&file, "made by"), "a test");
    assert_null(safetensors_metadata(&file, "unmade"));
    float two[2];
    assert_true(safetensors_read(&file, safetensors_find(&file, "w.weight"), 12, two, sizeof two, &err));
    assert_memory_equal(two, values + 3, sizeof two);
    safetensors_close(&file);
    safetensors_close(&file);
}

static void assert_refused(const char *header, size_t data_bytes, const char *why)
{
    struct safetensors file;
    struct err err = ERR_INIT;
    assert_false(safetensors_open(&file, make_file("bad", header, data_bytes), &err));
    if (!strstr(err.why, why) && !strstr(err.what, why))
        fail_msg("for %s wanted \"%s\", got \"%s: %s\"", header, why, err.what, err.why);
}

#define ROW(name, shape, from, to)                                                                           \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]}"

static void test_lies(void **state)
{
    (void)state;
    struct safetensors file;
    struct err err = ERR_INIT;
    assert_true(safetensors_open(
        &file, make_file("good", "{" ROW("b", "[3]", "4", "7") "," ROW("a", "[2,2]", "0", "4") "}", 7),
        &err));
    safetensors_close(&file);
    assert_refused("{" ROW("a", "[4]", "0", "4") "," ROW("b", "[3]", "3", "6") "}", 6, "overlap");
    assert_refused("{" ROW("a", "[4]", "0", "4") "," ROW("b", "[3]", "0", "3") "}", 4, "overlap");
    assert_refused("{" ROW("a", "[4]", "0", "4") "," ROW("b", "[2]", "5", "7") "}", 7, "hole");
    assert_refused("{" ROW("a", "[4]", "1", "5") "}", 5, "hole");
    assert_refused("{" ROW("a", "[4]", "0", "4") "}", 5, "belong to no tensor");
    assert_refused("{}", 5, "belong to no tensor");
    assert_refused("{" ROW("a", "[4]", "0", "4") "}", 3, "outside");
    assert_refused("{" ROW("a", "[4]", "4", "0") "}", 4, "outside");
    assert_refused("{" ROW("a", "[4]", "-4", "0") "}", 4, "outside");
    assert_refused("{" ROW("a", "[4]", "0", "9223372036854775807") "}", 4, "outside");
    assert_refused("{" ROW("a", "[4]", "0", "9223372036854775808") "}", 4, "not JSON");
    assert_refused("{" ROW("a", "[5]", "0", "4") "}", 4, "its shape and dtype say 5");
    assert_refused("{" ROW("a", "[-4]", "0", "4") "}", 4, "impossible shape");
    assert_refused("{" ROW("a", "[4.0]", "0", "4") "}", 4, "impossible shape");
    assert_refused("{" ROW("a", "[4294967296,4294967296,16]", "0", "0") "}", 0, "2^48");
    assert_refused(
        "{" ROW("a", "[281474976710656,281474976710656,281474976710656,281474976710656]", "0", "0") "}", 0,
        "2^48");
    assert_refused("{" ROW("a", "[1,1,1,1,4]", "0", "4") "}", 4, "5 dimensions");
    assert_refused("{" ROW("a", "4", "0", "4") "}", 4, "no shape");
    assert_refused("{" ROW("a", "[4]", "0", "4") "," ROW("a", "[4]", "0", "4") "}", 4, "not JSON");
    assert_refused("{" ROW("", "[4]", "0", "4") "}", 4, "empty");
    assert_refused("{\"a\":{\"dtype\":\"U9\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "\"U9\"");
    assert_refused("{\"a\":{\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "no dtype");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, "no data_offsets");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4,8]}}", 4, "no data_offsets");
    assert_refused("{\"a\":7}", 4, "no dtype");
    assert_refused("{\"__metadata__\":{\"a\":7}}", 0, "other than a text");
    assert_refused("{\"__metadata__\":7}", 0, "table of texts");
    assert_refused("[]", 0, "not a JSON object");
    assert_refused("{", 0, "not JSON");
    char longest[600] = "{\"";
    memset(longest + 2, 'n', 300);
    strcpy(longest + 302, "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}");
    assert_refused(longest, 4, "longer than");
}

static void test_short_and_absent(void **state)
{
    (void)state;
    struct safetensors file;
    struct err err = ERR_INIT;
    assert_false(safetensors_open(&file, temp_path(&test_folder, "absent"), &err));
    assert_int_equal(err.code, ERR_IO);
    err = (struct err)ERR_INIT;
    temp_write(temp_path(&test_folder, "empty"), "", 0);
    assert_false(safetensors_open(&file, temp_path(&test_folder, "empty"), &err));
    err = (struct err)ERR_INIT;
    temp_write(temp_path(&test_folder, "huge"), "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    assert_false(safetensors_open(&file, temp_path(&test_folder, "huge"), &err));
    assert_int_equal(err.code, ERR_CORRUPT);
    err = (struct err)ERR_INIT;
    assert_false(safetensors_open(&file, test_folder.path, &err));
}

/* Another name or shape, it may be, but inside the file; shorter or longer, never. */
static void check_damaged(void *path, enum damage how, size_t at)
{
    struct safetensors file;
    struct err err = ERR_INIT;
    if (!safetensors_open(&file, path, &err)) {
        assert_int_not_equal(err.code, ERR_OK);
        return;
    }
    if (how != DAMAGE_FLIP)
        fail_msg("a file %s %zu was taken for whole", damage_names[how], at);
    unsigned char sum = 0;
    for (int64_t i = 0; i < file.count; i++) {
        assert_true(file.tensors[i].start + file.tensors[i].bytes <= file.map.count);
        for (uint64_t b = 0; b < file.tensors[i].bytes; b++)
            sum = (unsigned char)(sum + safetensors_data(&file, &file.tensors[i])[b]);
    }
    (void)sum;
    safetensors_close(&file);
}

/* Data bytes are the caller's to checksum; a changed header byte is an error, or changes nothing that we
 * read. */
static void test_every_byte(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/sample2.safetensors", test_folder.path);
    struct safetensors file;
    struct err err = ERR_INIT;
    write_sample(path);
    check_ok(safetensors_open(&file, path, &err), &err);
    size_t header = file.tensors[0].start; /* of the first by name, not far into the data */
    safetensors_close(&file);
    damage_file(path, &(struct damage_plan){.flip_end = header, .every_bit = true, .cut_step = 1},
                check_damaged, path);
}

static void test_folders(void **state)
{
    (void)state;
    struct safetensors_set set;
    struct err err = ERR_INIT;
    char model[128], path[192];
    snprintf(model, sizeof model, "%s/model", test_folder.path);
    assert_int_equal(mkdir(model, 0700), 0);
    assert_false(safetensors_set_open(&set, model, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    snprintf(path, sizeof path, "model/%s", "one.safetensors");
    make_file("model/one.safetensors", "{" ROW("b", "[3]", "0", "3") "}", 3);
    make_file("model/two.safetensors", "{" ROW("a", "[2]", "0", "2") "," ROW("c", "[1]", "2", "3") "}", 3);
    static const struct {
        const char *index, *what;
    } cases[] = {
        {"{\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\",\"c\":\"two.safetensors\"}}",
         NULL},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\",\"c\":\"two.safetensors\"}}",
         "but it is not"},
        {"{\"weight_map\":{\"a\":\"two.safetensors\",\"d\":\"two.safetensors\"}}", "but it is not"},
        {"{\"weight_map\":{\"a\":\"../two.safetensors\"}}", "no proper file"},
        {"{\"weight_map\":{\"a\":7}}", "no proper file"},
        {"{\"weight_map\":{}}", "no usable weight_map"},
        {"{\"weight_map\":3}", "no usable weight_map"},
        {"[]", "no usable weight_map"},
        {"{\"weight_map\":{\"a\":\"three.safetensors\"}}", "cannot open"},
        {"{", "is not JSON"},
    };
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", model);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        err = (struct err)ERR_INIT;
        temp_write(path, cases[i].index, strlen(cases[i].index));
        bool good = safetensors_set_open(&set, model, &err);
        if (cases[i].what && (good || !strstr(err.what, cases[i].what)))
            fail_msg("%s: wanted \"%s\", got \"%s\"", cases[i].index, cases[i].what, err.what);
        if (cases[i].what)
            continue;
        assert_true(good);
        assert_int_equal(set.count, 3);
        const struct safetensors_place *place = safetensors_set_find(&set, "c");
        unsigned char byte;
        assert_true(safetensors_read(place->file, place->tensor, 0, &byte, 1, &err));
        assert_int_equal(byte, 2);
        assert_null(safetensors_set_find(&set, "d"));
        safetensors_set_close(&set);
    }
    make_file("model/two.safetensors", "{" ROW("a", "[2]", "0", "2") "," ROW("b", "[1]", "2", "3") "}", 3);
    temp_write(path, "{\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}}", 60);
    err = (struct err)ERR_INIT;
    assert_false(safetensors_set_open(&set, model, &err));
    snprintf(path, sizeof path, "%s/model.safetensors", model);
    write_sample(path);
    err = (struct err)ERR_INIT;
    assert_true(safetensors_set_open(&set, model, &err)); /* the single file goes before an index */
    assert_int_equal(set.count, 4);
    safetensors_set_close(&set);
}

static void test_abandon_and_no_room(void **state)
{
    (void)state;
    struct safetensor tensors[] = {
        {.name = "w", .dtype = DTYPE_F32, .dims = 2, .shape = {1ll << 30, 1ll << 17}}};
    struct safetensors_writer writer = {0};
    struct err err = ERR_INIT;
    const char *path = temp_path(&test_folder, "aside");
    safetensors_writer_abandon(&writer);
    bool taken = safetensors_writer_open(&writer, path, tensors, 1, NULL, 0, &err); /* 512 TiB */
    assert_true(taken || err.code == ERR_IO);
    safetensors_writer_abandon(&writer);
    assert_int_not_equal(access(path, F_OK), 0);
    tensors[0].shape[0] = tensors[0].shape[1] = 2;
    err = (struct err)ERR_INIT;
    assert_true(safetensors_writer_open(&writer, path, tensors, 1, NULL, 0, &err));
    assert_int_equal(access(path, F_OK), 0);
    safetensors_writer_abandon(&writer);
    assert_int_not_equal(access(path, F_OK), 0);
    err = (struct err)ERR_INIT;
    assert_false(safetensors_writer_open(&writer, "/nowhere/at/all", tensors, 1, NULL, 0, &err));
    assert_int_equal(err.code, ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_and_read),   cmocka_unit_test(test_lies),
        cmocka_unit_test(test_short_and_absent), cmocka_unit_test(test_every_byte),
        cmocka_unit_test(test_folders),          cmocka_unit_test(test_abandon_and_no_room),
    };
    return cmocka_run_group_tests(tests, temp_folder_setup, temp_folder_teardown);
}
