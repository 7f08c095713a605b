/* config.json in and out, what is refused and what the refusal says, and the published parameter counts. */
#include "check.h"
#include "model_config.h"
#include "params.h"

#include <stdio.h>
#include <stdlib.h>

/* The published sizes (mission.md). */
static const struct {
    const char *name;
    int64_t hidden, layers, q_heads, ffn;
    bool tied;
    int64_t parameters;
} published[] = {
    {"0.6B", 1024, 28, 16, 3072, true, 596049920},    {"1.7B", 2048, 28, 16, 6144, true, 1720574976},
    {"4B", 2560, 36, 32, 9728, true, 4022468096},     {"8B", 4096, 36, 32, 12288, false, 8190735360},
    {"14B", 5120, 40, 40, 17408, false, 14768307200}, {"32B", 5120, 64, 64, 25600, false, 32762123264},
};

/* Qwen3-0.6B's file as it is on the hub. */
static const char hub_text[] =
    "{\"architectures\": [\"Qwen3ForCausalLM\"], \"attention_bias\": false, \"attention_dropout\": 0.0,"
    " \"bos_token_id\": 151643, \"eos_token_id\": 151645, \"head_dim\": 128, \"hidden_act\": \"silu\","
    " \"hidden_size\": 1024, \"initializer_range\": 0.02, \"intermediate_size\": 3072,"
    " \"max_position_embeddings\": 40960, \"max_window_layers\": 28, \"model_type\": \"qwen3\","
    " \"num_attention_heads\": 16, \"num_hidden_layers\": 28, \"num_key_value_heads\": 8, \"rms_norm_eps\": "
    "1e-06,"
    " \"rope_scaling\": null, \"rope_theta\": 1000000, \"sliding_window\": null, \"tie_word_embeddings\": "
    "true,"
    " \"torch_dtype\": \"bfloat16\", \"transformers_version\": \"4.51.0\", \"use_cache\": true,"
    " \"use_sliding_window\": false, \"vocab_size\": 151936}";

static bool parse(struct model_config *config, const char *text, struct err *err)
{
    *err = (struct err)ERR_INIT;
    return model_config_parse(config, "config.json", text, strlen(text), err);
}

/* hub_text with the first `from` replaced by `to`. malloc'ed. */
static char *edited(const char *from, const char *to)
{
    const char *at = strstr(hub_text, from);
    assert_non_null(at);
    size_t head = (size_t)(at - hub_text), bytes = sizeof hub_text + strlen(to);
    char *text = malloc(bytes);
    snprintf(text, bytes, "%.*s%s%s", (int)head, hub_text, to, at + strlen(from));
    return text;
}

static void test_reads_the_hubs_file(void **state)
{
    (void)state;
    struct model_config c;
    struct err err;
    assert_true(parse(&c, hub_text, &err));
    assert_string_equal(c.architecture, "Qwen3ForCausalLM");
    assert_int_equal(c.hidden, 1024);
    assert_int_equal(c.layers, 28);
    assert_int_equal(c.q_heads, 16);
    assert_int_equal(c.kv_heads, 8);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.ffn, 3072);
    assert_int_equal(c.vocabulary, 151936);
    assert_int_equal(c.positions, 40960);
    assert_true(c.rms_eps == 1e-6 && c.rope_theta == 1e6 && c.initializer_range == 0.02);
    assert_true(c.tied);
    assert_int_equal(c.eos_token, 151645);
}

/* What transformers 5 writes: theta inside rope_parameters, the kinds of layers spelled out, a list of end
 * tokens. */
static void test_reads_newer_spellings(void **state)
{
    (void)state;
    struct model_config c;
    struct err err;
    char *text = edited("\"rope_scaling\": null, \"rope_theta\": 1000000, \"sliding_window\": null",
                        "\"rope_parameters\": {\"rope_theta\": 5000.0, \"rope_type\": \"default\"},"
                        "\"layer_types\": [\"full_attention\", \"full_attention\"]");
    assert_true(parse(&c, text, &err));
    assert_true(c.rope_theta == 5000.0);
    free(text);
    text = edited("\"eos_token_id\": 151645", "\"eos_token_id\": [151643, 7]");
    assert_true(parse(&c, text, &err));
    assert_int_equal(c.eos_token, 151643);
    free(text);
    text = edited("\"eos_token_id\": 151645", "\"eos_token_id\": null");
    assert_true(parse(&c, text, &err));
    assert_int_equal(c.eos_token, -1);
    free(text);
}

static void test_print_reads_back(void **state)
{
    (void)state;
    for (int odd = 0; odd < 2; odd++) {
        struct model_config c, again;
        struct err err;
        memset(&c, 0, sizeof c);
        memset(&again, 0, sizeof again);
        assert_true(parse(&c, hub_text, &err));
        if (odd) { /* doubles that 15 digits do not hold */
            c.initializer_range = 0.1 + 0.2;
            c.eos_token = -1;
            c.tied = false;
        }
        char *text = model_config_print(&c, "bfloat16");
        assert_true(parse(&again, text, &err));
        assert_memory_equal(&c, &again, sizeof c);
        assert_non_null(strstr(text, "\"torch_dtype\": \"bfloat16\""));
        if (!odd)
            assert_non_null(strstr(text, "1e-6"));
        free(text);
    }
}

static void test_refuses(void **state)
{
    (void)state;
    // clang-format off
    static const struct {
        const char *from, *to;
        enum err_code code;
        const char *says; /* must be in the error's line */
    } cases[] = {
        {"Qwen3ForCausalLM", "LlamaForCausalLM", ERR_UNSUPPORTED, "LlamaForCausalLM"},
        {"[\"Qwen3ForCausalLM\"]", "[]", ERR_INVALID, "architectures"},
        {"[\"Qwen3ForCausalLM\"]", "\"Qwen3ForCausalLM\"", ERR_INVALID, "architectures"},
        {"\"attention_bias\": false", "\"attention_bias\": true", ERR_UNSUPPORTED, "attention_bias = true"},
        {"\"attention_dropout\": 0.0", "\"attention_dropout\": 0.1", ERR_UNSUPPORTED, "attention_dropout = 0.1"},
        {"\"rope_scaling\": null", "\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0}", ERR_UNSUPPORTED, "yarn"},
        {"\"rope_scaling\": null", "\"rope_parameters\": {\"rope_type\": \"yarn\"}", ERR_UNSUPPORTED, "yarn"},
        {"\"rope_scaling\": null", "\"rope_parameters\": 3", ERR_UNSUPPORTED, "rope_parameters"},
        {"\"rope_scaling\": null", "\"partial_rotary_factor\": 0.5", ERR_UNSUPPORTED, "partial_rotary_factor"},
        {"\"silu\"", "\"gelu\"", ERR_UNSUPPORTED, "hidden_act"},
        {"\"qwen3\"", "\"qwen3_moe\"", ERR_UNSUPPORTED, "qwen3_moe"},
        {"\"sliding_window\": null, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\", \"transformers_version\": \"4.51.0\", \"use_cache\": true, \"use_sliding_window\": false",
         "\"sliding_window\": 4096, \"tie_word_embeddings\": true, \"use_sliding_window\": true, \"max_window_layer\": 1, \"x\": 1", ERR_OK, NULL}, /* max_window_layers 28: none */
        {"\"max_window_layers\": 28", "\"layer_types\": [\"full_attention\", \"sliding_attention\"]", ERR_UNSUPPORTED, "sliding_attention"},
        {"\"use_cache\": true", "\"quantization_config\": {\"bits\": 4}", ERR_UNSUPPORTED, "quantization_config"},
        {"\"hidden_size\": 1024, ", "", ERR_INVALID, "hidden_size is missing"},
        {"\"head_dim\": 128, ", "", ERR_INVALID, "head_dim is missing"},
        {"\"rope_theta\": 1000000, ", "", ERR_INVALID, "rope_theta is missing"},
        {"\"tie_word_embeddings\": true, ", "", ERR_INVALID, "tie_word_embeddings is missing"},
        {"\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": null", ERR_INVALID, "rms_norm_eps is missing"},
        {"\"hidden_size\": 1024", "\"hidden_size\": 0", ERR_INVALID, "hidden_size = 0"},
        {"\"hidden_size\": 1024", "\"hidden_size\": -1024", ERR_INVALID, "hidden_size = -1024"},
        {"\"hidden_size\": 1024", "\"hidden_size\": 9223372036854775807", ERR_INVALID, "hidden_size"},
        {"\"hidden_size\": 1024", "\"hidden_size\": 1024.5", ERR_INVALID, "a whole number"},
        {"\"hidden_size\": 1024", "\"hidden_size\": \"1024\"", ERR_INVALID, "a whole number"},
        {"\"num_hidden_layers\": 28", "\"num_hidden_layers\": 1000000", ERR_INVALID, "num_hidden_layers"},
        {"\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": 0", ERR_INVALID, "rms_norm_eps"},
        {"\"rope_theta\": 1000000", "\"rope_theta\": 0", ERR_INVALID, "rope_theta"},
        {"\"tie_word_embeddings\": true", "\"tie_word_embeddings\": 1", ERR_INVALID, "true or false"},
        {"\"num_key_value_heads\": 8", "\"num_key_value_heads\": 5", ERR_INVALID, "num_key_value_heads"},
        {"\"head_dim\": 128", "\"head_dim\": 514", ERR_INVALID, "head_dim = 514"},
        {"\"head_dim\": 128", "\"head_dim\": 127", ERR_INVALID, "head_dim = 127 is odd"},
        {"\"eos_token_id\": 151645", "\"eos_token_id\": 151936", ERR_INVALID, "eos_token_id"},
        {"\"eos_token_id\": 151645", "\"eos_token_id\": -3", ERR_INVALID, "eos_token_id"},
        {"\"head_dim\": 128", "\"head_dim\": 128, \"head_dim\": 64", ERR_INVALID, "head_dim"},
        {"\"vocab_size\": 151936}", "\"vocab_size\": 151936", ERR_INVALID, "line 1"},
        {"\"vocab_size\": 151936}", "\"vocab_size\": 151936}}", ERR_INVALID, "line 1"},
    };
    // clang-format on
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config c = {.hidden = 77};
        struct err err;
        char line[3 * ERR_TEXT_BYTES + 8];
        char *text = edited(cases[i].from, cases[i].to);
        bool good = parse(&c, text, &err);
        free(text);
        if (err.code != cases[i].code)
            fail_msg("case %zu (%s): code %s", i, cases[i].to, err_code_name(err.code));
        assert_true(good == (cases[i].code == ERR_OK));
        if (good)
            continue;
        assert_int_equal(c.hidden, 77); /* outputs are set only on success */
        err_line(&err, line, sizeof line);
        if (!strstr(line, cases[i].says))
            fail_msg("case %zu: \"%s\" does not say \"%s\"", i, line, cases[i].says);
    }
    struct model_config c;
    struct err err;
    assert_false(parse(&c, "[]", &err));
    assert_non_null(strstr(err.why, "no JSON object"));
    assert_false(parse(&c, "", &err));
    char *text = edited("\"use_sliding_window\": false", "\"use_sliding_window\": true");
    char *window = strstr(text, "\"sliding_window\": null");
    memcpy(window, "\"sliding_window\": 4096", 22);
    memcpy(strstr(text, "\"max_window_layers\": 28"), "\"max_window_layers\": 27", 23);
    assert_false(parse(&c, text, &err)); /* the last layer would use it */
    assert_non_null(strstr(err.what, "sliding_window = 4096"));
    free(text);
}

static void test_load_takes_folder_or_file(void **state)
{
    (void)state;
    char folder[] = "/tmp/model_config_XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/config.json", folder);
    struct model_config c;
    struct err err = ERR_INIT;
    assert_false(model_config_load(&c, folder, &err));
    assert_true(err.code != ERR_OK && err.hint[0]);
    FILE *file = fopen(path, "w");
    fputs(hub_text, file);
    fclose(file);
    err = (struct err)ERR_INIT;
    assert_true(model_config_load(&c, folder, &err));
    assert_true(model_config_load(&c, path, &err));
    remove(path);
    remove(folder);
}

static struct model_config published_config(size_t i)
{
    struct model_config c;
    struct err err;
    assert_true(parse(&c, hub_text, &err));
    c.hidden = published[i].hidden;
    c.layers = published[i].layers;
    c.q_heads = published[i].q_heads;
    c.ffn = published[i].ffn;
    c.tied = published[i].tied;
    return c;
}

static void test_published_counts(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        struct model_config c = published_config(i);
        struct param_table table;
        struct err err = ERR_INIT;
        assert_int_equal(model_config_parameters(&c), published[i].parameters);
        assert_true(param_table_init(&table, &c, &err));
        assert_int_equal(table.elements, published[i].parameters);
        assert_int_equal(table.unit_count, c.layers + 2);
        assert_int_equal(table.count, 1 + 11 * c.layers + (c.tied ? 1 : 2));
        param_table_done(&table);
    }
}

static void test_table_layout(void **state)
{
    (void)state;
    struct model_config c = published_config(3);
    c.hidden = 40; /* not a multiple of 256: every vector leaves a gap */
    c.head_dim = 10;
    struct param_table table;
    struct err err = ERR_INIT;
    assert_true(param_table_init(&table, &c, &err));
    int64_t index = 0, elements = 0;
    for (int32_t u = 0; u < table.unit_count; u++) {
        const struct param_unit *unit = &table.units[u];
        assert_int_equal(unit->elements % 256, 0);
        int64_t unit_start = index;
        for (int32_t i = unit->first; i < unit->first + unit->count; i++) {
            const struct param *p = &table.params[i];
            assert_int_equal(p->unit, u);
            assert_int_equal(p->index0, index);
            assert_int_equal(p->unit_offset, index - unit_start);
            assert_int_equal(p->elements, p->rows * (p->columns ? p->columns : 1));
            assert_true(p->decay == (p->columns > 0) && p->norm == !p->decay);
            index += (p->elements + 255) / 256 * 256;
            elements += p->elements;
        }
        assert_int_equal(index - unit_start, unit->elements);
    }
    assert_int_equal(elements, table.elements);
    int32_t q = param_table_find(&table, "model.layers.35.self_attn.q_proj.weight");
    assert_int_equal(table.params[q].unit, 36);
    assert_int_equal(table.params[q].rows, 320);
    assert_int_equal(table.params[q].columns, 40);
    assert_int_equal(table.params[param_table_find(&table, "model.layers.0.self_attn.o_proj.weight")].columns,
                     320);
    assert_int_equal(table.params[param_table_find(&table, "model.layers.0.mlp.down_proj.weight")].rows, 40);
    assert_int_equal(param_table_find(&table, "lm_head.weight"), table.count - 1);
    assert_int_equal(param_table_find(&table, "model.layers.36.mlp.up_proj.weight"), -1);
    param_table_done(&table);
    param_table_done(&table);
    c.tied = true;
    assert_true(param_table_init(&table, &c, &err));
    assert_int_equal(param_table_find(&table, "lm_head.weight"), -1);
    param_table_done(&table);
}

/* Over the ranks of a tensor group every element of every tensor is held as often as the table says, and the
 * holders of one piece are numbered from 0. */
static void check_pieces(const struct model_config *c, int32_t t)
{
    struct param_table whole, piece;
    struct err err = ERR_INIT;
    assert_true(param_table_init(&whole, c, &err));
    int64_t room = whole.params[whole.count - 1].index0 + whole.elements;
    int32_t *held = calloc((size_t)room, sizeof *held), *first = calloc((size_t)room, sizeof *first);
    for (int32_t rank = 0; rank < t; rank++) {
        assert_true(param_table_init_piece(&piece, c, (struct tensor_place){t, rank}, &err));
        assert_int_equal(piece.whole_elements, whole.elements);
        for (int32_t i = 0; i < piece.count; i++) {
            const struct param *p = &piece.params[i];
            struct param_map map = param_map(p);
            assert_string_equal(p->name, whole.params[i].name);
            assert_int_equal(p->index0, whole.params[i].index0);
            assert_in_range(p->holder, 0, p->holders - 1);
            for (int64_t e = 0; e < p->elements; e++) {
                int64_t at = map.first + e / map.run * map.stride + e % map.run;
                assert_in_range(at, 0, whole.params[i].elements - 1);
                assert_int_equal(held[p->index0 + at] % p->holders, p->holder);
                held[p->index0 + at]++;
                first[p->index0 + at] += p->holder == 0;
            }
        }
        param_table_done(&piece);
    }
    for (int32_t i = 0; i < whole.count; i++)
        for (int64_t e = 0; e < whole.params[i].elements; e++)
            assert_int_equal(first[whole.params[i].index0 + e], 1);
    free(held);
    free(first);
    param_table_done(&whole);
}

static void test_pieces(void **state)
{
    (void)state;
    struct model_config c = published_config(0);
    c.layers = 2;
    c.hidden = 24;
    c.head_dim = 4;
    c.q_heads = 8;
    c.kv_heads = 2;
    c.ffn = 40;
    c.vocabulary = 97; /* no t divides it */
    for (int tied = 0; tied < 2; tied++)
        for (int32_t t = 1; t <= 8; t *= 2) {
            c.tied = tied;
            check_pieces(&c, t);
        }
    struct param_table piece, whole;
    struct err err = ERR_INIT;
    assert_true(param_table_init_piece(&piece, &c, (struct tensor_place){8, 5}, &err));
    const struct param *k = &piece.params[param_table_find(&piece, "model.layers.0.self_attn.k_proj.weight")];
    assert_int_equal(k->holders, 4); /* two heads on eight ranks */
    assert_int_equal(k->first_row, 4);
    assert_int_equal(piece.params[param_table_find(&piece, "model.layers.0.self_attn.q_norm.weight")].holders,
                     8);
    const struct param *o = &piece.params[param_table_find(&piece, "model.layers.0.self_attn.o_proj.weight")];
    assert_int_equal(o->columns, 4);
    assert_int_equal(o->first_column, 20);
    param_table_done(&piece);
    assert_false(param_table_init_piece(&whole, &c, (struct tensor_place){3, 0}, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.why, "64"));
    c.ffn = 44;
    err = (struct err)ERR_INIT;
    assert_false(param_table_init_piece(&whole, &c, (struct tensor_place){8, 0}, &err));
    assert_non_null(strstr(err.why, "ffn of 44"));
}

static void test_flops(void **state)
{
    (void)state;
    struct model_config c = published_config(0);
    /* one sequence of 2048: 6 P T + 6 * 28 * 16 * 128 * 2048^2 */
    assert_true(model_config_flops(&c, 2048, 2048.0 * 2048.0) ==
                6.0 * 596049920 * 2048 + 6.0 * 57344 * 4194304);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_the_hubs_file),
        cmocka_unit_test(test_reads_newer_spellings),
        cmocka_unit_test(test_print_reads_back),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_load_takes_folder_or_file),
        cmocka_unit_test(test_published_counts),
        cmocka_unit_test(test_table_layout),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_flops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
