/* Hub-shaped folders: strict in, byte for byte out. */
#include "store_fixture.h"

#include "bf16.h"
#include "faults.h"
#include "hub.h"

#include <math.h>

/* ---- a source folder, made tensor by tensor ---- */

struct source {
    struct safetensor tensors[64];
    int64_t count;
};

static void source_add(struct source *s, const char *name, enum dtype dtype, int64_t rows, int64_t columns)
{
    struct safetensor *t = &s->tensors[s->count++];
    *t = (struct safetensor){.dtype = dtype, .dims = columns ? 2 : 1, .shape = {rows, columns}};
    snprintf(t->name, sizeof t->name, "%s", name);
}

static void source_of_table(struct source *s, const struct param_table *table, enum dtype dtype)
{
    *s = (struct source){0};
    for (int32_t i = 0; i < table->count; i++)
        source_add(s, table->params[i].name, dtype, table->params[i].rows, table->params[i].columns);
}

/* Bytes by value_byte of the tensor's number; the duplicate head (if any) has the embedding's. */
static void source_write(struct source *s, const char *folder, const char *config_text)
{
    struct err err = ERR_INIT;
    char path[512];
    struct safetensors_writer writer;
    check_ok(file_make_folder(folder, 0755, &err), &err);
    snprintf(path, sizeof path, "%s/config.json", folder);
    check_ok(file_replace(path, config_text, strlen(config_text), &err), &err);
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    check_ok(safetensors_writer_open(&writer, path, s->tensors, s->count, NULL, 0, &err), &err);
    for (int64_t i = 0; i < s->count; i++) {
        unsigned char *bytes = malloc(s->tensors[i].bytes);
        bool head = strcmp(s->tensors[i].name, "lm_head.weight") == 0 && i + 1 == s->count;
        value_fill(bytes, head ? 0 : (int32_t)i, 0, 0, (int64_t)s->tensors[i].bytes, 1, 0);
        check_ok(safetensors_writer_put(&writer, i, 0, bytes, s->tensors[i].bytes, &err), &err);
        free(bytes);
    }
    check_ok(safetensors_writer_finish(&writer, &err), &err);
}

static bool opens(const char *folder, struct err *err)
{
    struct hub hub;
    if (!hub_open(&hub, folder, err))
        return false;
    bool good = hub_check_tied(&hub, 0, 2, err) && hub_check_tied(&hub, 1, 2, err);
    hub_close(&hub);
    return good;
}

/* ---- in ---- */

struct received {
    float *values;
    int64_t first, count;
};

static void receive(void *context, int32_t tensor, int64_t start, const float *values, int64_t count)
{
    struct received *r = context;
    (void)tensor;
    assert_int_equal(start, r->first + r->count);
    memcpy(r->values + r->count, values, (size_t)count * sizeof(float));
    r->count += count;
}

static double half_value(uint16_t half)
{
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double magnitude = exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
                       : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                      : ldexp(fraction, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

/* Every fp16 and bf16 there is, read through a file: 65536 values in an embedding of [2048][32]. */
static void every_half_is_exact(void **unused)
{
    (void)unused;
    const enum dtype dtypes[] = {DTYPE_F16, DTYPE_BF16};
    for (int k = 0; k < 2; k++) {
        struct fixture f;
        struct err err = ERR_INIT;
        struct source s;
        char config[1024];
        snprintf(
            config, sizeof config,
            "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"hidden_size\": 32, "
            "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"num_key_value_heads\": 1, \"head_dim\": "
            "2, "
            "\"intermediate_size\": 1, \"vocab_size\": 2048, \"max_position_embeddings\": 8, "
            "\"rms_norm_eps\": 1e-6, \"rope_theta\": 10000.0, \"tie_word_embeddings\": true}");
        fixture_make(&f, config);
        source_of_table(&s, &f.table, dtypes[k]);
        const char *folder = temp_path(&f.folder, "m");
        source_write(&s, folder, config);
        uint16_t all[65536];
        for (int i = 0; i < 65536; i++)
            all[i] = (uint16_t)i;
        int fd = open(temp_path(&f.folder, "m/model.safetensors"), O_WRONLY);
        assert_int_equal(pwrite(fd, all, sizeof all, (off_t)s.tensors[0].start), sizeof all);
        close(fd);
        struct hub hub;
        struct received r = {.values = malloc(65536 * sizeof(float))};
        check_ok(hub_open(&hub, folder, &err), &err);
        check_ok(hub_read(&hub, 0, &(struct band_range){.count = 65536}, receive, &r, &err), &err);
        for (int i = 0; i < 65536; i++) {
            double want = k ? (double)bf16_to_float((uint16_t)i) : half_value((uint16_t)i);
            if (isnan(want) ? !isnan(r.values[i])
                            : (double)r.values[i] != want || !signbit(r.values[i]) != !signbit(want))
                fail_msg("%s %04x reads %g, want %g", k ? "bf16" : "fp16", i, (double)r.values[i], want);
        }
        free(r.values);
        hub_close(&hub);
        fixture_done(&f);
    }
}

static void only_the_right_model_is_taken(void **unused)
{
    (void)unused;
    struct fixture f;
    struct source s;
    struct err err = ERR_INIT;
    fixture_make(&f, TINY_CONFIG);
    const char *folder = temp_path(&f.folder, "m");
    const int64_t C = f.config.hidden, V = f.config.vocabulary;

    source_of_table(&s, &f.table, DTYPE_F32);
    source_write(&s, folder, TINY_CONFIG);
    check_ok(opens(folder, &err), &err);
    check_ok(opens(temp_path(&f.folder, "m/config.json"), &err), &err); /* the same folder */
    source_add(&s, "model.layers.0.self_attn.rotary_emb.inv_freq", DTYPE_F32, 1, 0);
    source_add(&s, "lm_head.weight", DTYPE_F32, V, C); /* the duplicate of a tied model */
    source_write(&s, folder, TINY_CONFIG);
    check_ok(opens(folder, &err), &err);

    struct err other_head = ERR_INIT; /* not the embedding: one byte, in the last element */
    int fd = open(temp_path(&f.folder, "m/model.safetensors"), O_WRONLY);
    const struct safetensor *head = &s.tensors[s.count - 1];
    assert_int_equal(pwrite(fd, "\x7", 1, (off_t)(head->start + head->bytes - 1)), 1);
    close(fd);
    check_refused(opens(folder, &other_head), &other_head, ERR_INVALID);

    struct err stranger = ERR_INIT;
    source_of_table(&s, &f.table, DTYPE_F32);
    source_add(&s, "model.layers.0.self_attn.q_proj.bias", DTYPE_F32, 2, 0);
    source_write(&s, folder, TINY_CONFIG);
    check_refused(opens(folder, &stranger), &stranger, ERR_UNSUPPORTED);
    assert_true(strstr(stranger.what, "q_proj.bias") != NULL);

    struct err missing = ERR_INIT;
    source_of_table(&s, &f.table, DTYPE_F32);
    s.count--;
    source_write(&s, folder, TINY_CONFIG);
    check_refused(opens(folder, &missing), &missing, ERR_INVALID);
    assert_true(strstr(missing.what, "model.norm.weight") != NULL);

    struct err turned = ERR_INIT;
    source_of_table(&s, &f.table, DTYPE_F32);
    s.tensors[0].shape[0] = C, s.tensors[0].shape[1] = V;
    source_write(&s, folder, TINY_CONFIG);
    check_refused(opens(folder, &turned), &turned, ERR_INVALID);
    assert_true(strstr(turned.what, "[2, 4]") && strstr(turned.what, "[4, 2]"));

    struct err integers = ERR_INIT;
    source_of_table(&s, &f.table, DTYPE_F32);
    s.tensors[3].dtype = DTYPE_I32;
    source_write(&s, folder, TINY_CONFIG);
    check_refused(opens(folder, &integers), &integers, ERR_UNSUPPORTED);

    struct err absent = ERR_INIT;
    check_refused(opens(temp_path(&f.folder, "nowhere"), &absent), &absent, ERR_NOT_FOUND);
    fixture_done(&f);
}

/* ---- out ---- */

/* value_byte's bytes as fp32: some are NaN or infinite, which must survive too. */
static bool export_ranks(const struct fixture *f, const char *folder,
                         const struct hub_export_options *options, int ranks, int64_t *bytes, struct err *err)
{
    bool good = hub_export_begin(folder, &f->config, &f->table, options, err);
    for (int rank = 0; good && rank < ranks; rank++) {
        struct hub_export export = {0};
        good = hub_export_join(&export, folder, &f->table, options, err);
        for (int32_t i = 0; good && i < f->table.count; i++) {
            int64_t length = f->table.params[i].elements;
            int64_t start = cut(length, rank, ranks, i), count = cut(length, rank + 1, ranks, i) - start;
            float *values = malloc((size_t)count * sizeof(float) + 1);
            value_fill((unsigned char *)values, i, 0, start, count, sizeof(float), 0);
            good = hub_export_put(&export, i, &(struct band_range){.start = start, .count = count}, DTYPE_F32,
                                  values, err);
            free(values);
        }
        good = good && hub_export_finish(&export, err);
        hub_export_done(&export);
    }
    good = good && hub_export_commit(folder, bytes, err);
    if (!good)
        hub_export_abort(folder);
    return good;
}

/* What several ranks take of one matrix, each its columns, is the matrix, in every format of the file. */
static void columns_come_in_and_go_out(void **unused)
{
    (void)unused;
    const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    const char *config = /* down_proj: [2][1300001], more than two pieces */
        "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"hidden_size\": 2, "
        "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"num_key_value_heads\": 1, \"head_dim\": 2, "
        "\"intermediate_size\": 1300001, \"vocab_size\": 4, \"max_position_embeddings\": 64, "
        "\"rms_norm_eps\": 1e-6, \"rope_theta\": 1000000.0, \"tie_word_embeddings\": true}";
    for (int k = 0; k < 2; k++) {
        struct fixture f;
        struct source s;
        struct err err = ERR_INIT;
        struct hub hub;
        struct hub_export export;
        const struct hub_export_options options = {.dtype = dtypes[k]};
        fixture_make(&f, config);
        source_of_table(&s, &f.table, dtypes[k]);
        const char *from = temp_path(&f.folder, "from"), *to = temp_path(&f.folder, "to");
        source_write(&s, from, config);
        check_ok(hub_open(&hub, from, &err), &err);
        check_ok(hub_export_begin(to, &f.config, &f.table, &options, &err), &err);
        check_ok(hub_export_join(&export, to, &f.table, &options, &err), &err);
        for (int32_t i = 0; i < f.table.count; i++)
            for (int rank = 0; rank < 6; rank++) {
                const struct param *p = &f.table.params[i];
                struct band_range range =
                    cut_range(p, p->elements, (struct cuts){2, 3}, rank / 3, rank % 3, i);
                struct received r = {.values = malloc((size_t)range.count * sizeof(float) + 1),
                                     .first = range.start};
                check_ok(hub_read(&hub, i, &range, receive, &r, &err), &err);
                assert_int_equal(r.count, range.count);
                check_ok(hub_export_put(&export, i, &range, DTYPE_F32, r.values, &err), &err);
                free(r.values);
            }
        hub_close(&hub);
        check_ok(hub_export_finish(&export, &err), &err);
        hub_export_done(&export);
        check_ok(hub_export_commit(to, NULL, &err), &err);
        struct safetensors one, other;
        check_ok(safetensors_open(&one, temp_path(&f.folder, "from/model.safetensors"), &err), &err);
        check_ok(safetensors_open(&other, temp_path(&f.folder, "to/model.safetensors"), &err), &err);
        for (int32_t i = 0; i < f.table.count; i++) {
            const struct safetensor *a = safetensors_find(&one, f.table.params[i].name);
            const struct safetensor *b = safetensors_find(&other, f.table.params[i].name);
            assert_true(a && b && a->bytes == b->bytes);
            uint16_t *want = malloc(a->bytes);
            memcpy(want, safetensors_data(&one, a), a->bytes);
            for (int64_t e = 0; k == 1 && e < a->elements; e++) /* a NaN becomes a quiet one */
                want[e] = bf16_from_float(bf16_to_float(want[e]));
            assert_memory_equal(want, safetensors_data(&other, b), a->bytes);
            free(want);
        }
        safetensors_close(&one);
        safetensors_close(&other);
        fixture_done(&f);
    }
}

static void expect_export(const struct fixture *f, const char *folder, enum dtype dtype)
{
    struct err err = ERR_INIT;
    struct hub hub;
    check_ok(hub_open(&hub, folder, &err), &err);
    assert_memory_equal(&hub.config, &f->config, sizeof hub.config);
    for (int32_t i = 0; i < f->table.count; i++) {
        int64_t length = f->table.params[i].elements, first = length / 3;
        assert_int_equal(hub.rows[i]->tensor->dtype, dtype);
        struct received r = {.values = malloc((size_t)length * sizeof(float)), .first = first};
        float *want = malloc((size_t)length * sizeof(float));
        const struct band_range range = {.start = first, .count = length - first};
        check_ok(hub_read(&hub, i, &range, NULL, NULL, &err), &err);
        check_ok(hub_read(&hub, i, &range, receive, &r, &err), &err);
        assert_int_equal(r.count, length - first);
        value_fill((unsigned char *)want, i, 0, first, length - first, sizeof(float), 0);
        for (int64_t j = 0; dtype == DTYPE_BF16 && j < length - first; j++)
            want[j] = bf16_to_float(bf16_from_float(want[j]));
        assert_memory_equal(r.values, want, (size_t)(length - first) * sizeof(float));
        free(want);
        free(r.values);
    }
    hub_close(&hub);
}

static void what_goes_out_comes_in(void **unused)
{
    (void)unused;
    const int64_t shard_bytes[] = {0, 20000, 1};
    const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    struct fixture f;
    fixture_make(&f, SMALL_CONFIG);
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 2; k++) {
            for (int ranks = 1; ranks <= 5; ranks += 2) {
                struct err err = ERR_INIT;
                char folder[512];
                int64_t bytes;
                struct hub_export_options options = {.dtype = dtypes[k], .shard_bytes = shard_bytes[i]};
                snprintf(folder, sizeof folder, "%s/out/%d-%d-%d///", f.folder.path, i, k, ranks);
                check_ok(export_ranks(&f, folder, &options, ranks, &bytes, &err), &err);
                assert_true(bytes > f.table.elements * (k ? 2 : 4));
                assert_int_equal(entries_ending(folder, ".safetensors") > 1, i > 0);
                assert_int_equal(entries_ending(folder, "index.json"), i > 0);
                expect_export(&f, folder, dtypes[k]);
            }
        }
    }
    fixture_done(&f);
}

/* bf16 in, bf16 out is the same file but for its metadata: the tensors in the table's order, bit for bit. */
static void stored_bf16_goes_out_as_it_is(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    fixture_make(&f, SMALL_CONFIG);
    const struct hub_export_options options = {.dtype = DTYPE_BF16};
    const char *folder = temp_path(&f.folder, "out");
    struct hub_export export;
    check_ok(hub_export_begin(folder, &f.config, &f.table, &options, &err), &err);
    check_ok(hub_export_join(&export, folder, &f.table, &options, &err), &err);
    for (int32_t i = 0; i < f.table.count; i++) {
        int64_t count = f.table.params[i].elements;
        uint16_t *values = malloc((size_t)count * 2);
        value_fill((unsigned char *)values, i, 0, 0, count, 2, 0);
        check_ok(hub_export_put(&export, i, &(struct band_range){.count = count}, DTYPE_BF16, values, &err),
                 &err);
        free(values);
    }
    check_ok(hub_export_finish(&export, &err), &err);
    hub_export_done(&export);
    check_ok(hub_export_commit(folder, NULL, &err), &err);
    struct safetensors file;
    uint64_t end = 0;
    check_ok(safetensors_open(&file, temp_path(&f.folder, "out/model.safetensors"), &err), &err);
    for (int32_t i = 0; i < f.table.count; i++) {
        const struct safetensor *t = safetensors_find(&file, f.table.params[i].name);
        assert_non_null(t);
        assert_true(t->start > end || t->start == end);
        end = t->start + t->bytes;
        for (uint64_t j = 0; j < t->bytes; j++)
            assert_int_equal(safetensors_data(&file, t)[j], value_byte(i, 0, (int64_t)j));
    }
    safetensors_close(&file);
    fixture_done(&f);
}

static void an_export_is_whole_or_absent(void **unused)
{
    (void)unused;
    struct fixture f;
    struct err err = ERR_INIT;
    fixture_make(&f, TINY_CONFIG);
    const struct hub_export_options options = {
        .dtype = DTYPE_F32, .shard_bytes = 128, .source = f.folder.path};
    check_ok(file_replace(temp_path(&f.folder, "tokenizer.json"), "{}", 2, &err), &err);
    const char *folder = temp_path(&f.folder, "out");
    for (int kind = FAULT_ERROR; kind <= FAULT_SHORT; kind++) {
        for (int nth = 1;; nth++) {
            struct err failed = ERR_INIT;
            faults_arm((enum fault_kind)kind, nth);
            bool exported = export_ranks(&f, folder, &options, 2, NULL, &failed);
            if (!faults_met()) {
                assert_true(exported && nth > 20);
                break;
            }
            assert_false(exported);
            assert_int_equal(failed.code, ERR_IO);
            assert_int_equal(entries_ending(f.folder.path, "out"), 0);
            assert_int_equal(entries_ending(f.folder.path, "partial"), 0);
        }
        expect_export(&f, folder, DTYPE_F32);
        assert_int_equal(access(temp_path(&f.folder, "out/tokenizer.json"), R_OK), 0); /* carried over */
        struct err there = ERR_INIT; /* never written over */
        check_refused(hub_export_begin(folder, &f.config, &f.table, &options, &there), &there, ERR_STATE);
        check_ok(file_remove_tree(folder, &err), &err);
    }
    const char *const names[] = {"", ".", "..", "/", "x/..", "x/."};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct err bad = ERR_INIT;
        check_refused(hub_export_begin(names[i], &f.config, &f.table, &options, &bad), &bad, ERR_INVALID);
    }
    fixture_done(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_is_exact),           cmocka_unit_test(only_the_right_model_is_taken),
        cmocka_unit_test(columns_come_in_and_go_out),    cmocka_unit_test(what_goes_out_comes_in),
        cmocka_unit_test(stored_bf16_goes_out_as_it_is), cmocka_unit_test(an_export_is_whole_or_absent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
