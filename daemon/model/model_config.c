/* Reads and writes the hub's config.json.
 *
 * Three tables say all there is to know: the fields that we use with their bounds, the fields that must have
 * one value because nothing else is implemented, and the fields that the printed file has besides. A field
 * that is in none of them is bookkeeping of other programs and is passed over. Numbers written as text, or
 * fractions where a count is meant, are refused: a config that is wrong in form is likely wrong in content.
 */
#include "model_config.h"

#include "file.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define ARCHITECTURE      "Qwen3ForCausalLM"
#define SHOWN_VALUE_BYTES 80 /* of a refused value, in an error */

enum field_type { FIELD_COUNT, FIELD_REAL, FIELD_BOOL };

struct field {
    const char *name;
    enum field_type type;
    size_t offset;
    double min, max;
    bool required;
    double fallback;
};

#define AT(member) offsetof(struct model_config, member)

/* The bounds keep every product of sizes far from the end of int64; real models are well inside. */
// clang-format off
static const struct field fields[] = {
    {"hidden_size",             FIELD_COUNT, AT(hidden),            1, 1 << 20,          true,  0},
    {"num_hidden_layers",       FIELD_COUNT, AT(layers),            1, LIMIT_LAYERS,     true,  0},
    {"num_attention_heads",     FIELD_COUNT, AT(q_heads),           1, 4096,             true,  0},
    {"num_key_value_heads",     FIELD_COUNT, AT(kv_heads),          1, 4096,             true,  0},
    {"head_dim",                FIELD_COUNT, AT(head_dim),          2, 512,              true,  0}, /* attention's rows hold so much */
    {"intermediate_size",       FIELD_COUNT, AT(ffn),               1, 1 << 22,          true,  0},
    {"vocab_size",              FIELD_COUNT, AT(vocabulary),        1, LIMIT_VOCABULARY, true,  0},
    {"max_position_embeddings", FIELD_COUNT, AT(positions),         1, 1 << 24,          true,  0},
    {"rms_norm_eps",            FIELD_REAL,  AT(rms_eps),           0, 1,                true,  0},
    {"rope_theta",              FIELD_REAL,  AT(rope_theta),        1, 1e12,             true,  0},
    {"initializer_range",       FIELD_REAL,  AT(initializer_range), 0, 10,               false, 0.02},
    {"tie_word_embeddings",     FIELD_BOOL,  AT(tied),              0, 1,                true,  0},
};

/* Absent and null are the wanted value too. */
static const struct {
    const char *name, *wanted, *hint;
} demands[] = {
    {"model_type",            "\"qwen3\"", "trainerd computes dense Qwen3 models; take one of those"},
    {"hidden_act",            "\"silu\"",  "the feed-forward block is SwiGLU, as in every published Qwen3"},
    {"attention_bias",        "false",     "take a model without biases, as every published Qwen3"},
    {"mlp_bias",              "false",     "take a model without biases, as every published Qwen3"},
    {"attention_dropout",     "0",         "set it to 0"},
    {"rope_scaling",          "null",      "set it to null and keep sequences within the model's trained length"},
    {"partial_rotary_factor", "1",         "take a model that rotates the whole head"},
    {"quantization_config",   "null",      "take the model's unquantized weights (bf16 or fp32)"},
    {"is_encoder_decoder",    "false",     "take a decoder-only model"},
};
// clang-format on

static const char *shown(const json_t *value, char text[SHOWN_VALUE_BYTES])
{
    char *dump = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    snprintf(text, SHOWN_VALUE_BYTES, "%s", dump ? dump : "?");
    if (dump && strlen(dump) >= SHOWN_VALUE_BYTES)
        memcpy(text + SHOWN_VALUE_BYTES - 4, "...", 4);
    free(dump);
    return text;
}

static bool refuse_value(const char *origin, const char *name, const json_t *value, const char *wanted,
                         const char *hint, struct err *err)
{
    char text[SHOWN_VALUE_BYTES];
    err_set(err, ERR_UNSUPPORTED, "%s: %s = %s is not implemented", origin, name, shown(value, text));
    err_why(err, "only %s = %s is", name, wanted);
    return err_hint(err, "%s", hint);
}

static bool same_value(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b))
        return json_number_value(a) == json_number_value(b);
    return json_equal(a, b);
}

static bool check_demands(const json_t *root, const char *origin, struct err *err)
{
    for (size_t i = 0; i < sizeof demands / sizeof *demands; i++) {
        const json_t *value = json_object_get(root, demands[i].name);
        if (!value || json_is_null(value))
            continue;
        json_t *wanted = json_loads(demands[i].wanted, JSON_DECODE_ANY, NULL);
        bool same = wanted && same_value(value, wanted);
        json_decref(wanted);
        if (!same)
            return refuse_value(origin, demands[i].name, value, demands[i].wanted, demands[i].hint, err);
    }
    return true;
}

static bool check_architecture(const json_t *root, const char *origin, struct err *err)
{
    const json_t *list = json_object_get(root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name || json_array_size(list) != 1) {
        err_set(err, ERR_INVALID, "%s: architectures is missing or is not a list of one name", origin);
        return err_hint(err, "a config.json of a hub model has \"architectures\": [\"" ARCHITECTURE "\"]");
    }
    if (strcmp(name, ARCHITECTURE) != 0) {
        err_set(err, ERR_UNSUPPORTED, "%s: the architecture %.80s is not implemented", origin, name);
        return err_hint(err, "take a dense Qwen3 model (" ARCHITECTURE ")");
    }
    return true;
}

static bool read_field(struct model_config *config, const struct field *field, const json_t *value,
                       const char *origin, struct err *err)
{
    static const char *const kinds[] = {"a whole number", "a number", "true or false"};
    char text[SHOWN_VALUE_BYTES];
    char *place = (char *)config + field->offset;
    bool fits = (field->type == FIELD_COUNT && json_is_integer(value)) ||
                (field->type == FIELD_REAL && json_is_number(value)) ||
                (field->type == FIELD_BOOL && json_is_boolean(value));
    if (!fits) {
        err_set(err, ERR_INVALID, "%s: %s = %s makes no sense", origin, field->name, shown(value, text));
        return err_why(err, "it must be %s", kinds[field->type]);
    }
    if (field->type == FIELD_BOOL) {
        *(bool *)place = json_is_true(value);
        return true;
    }
    double number = json_number_value(value);
    if (!(number >= field->min && number <= field->max)) {
        err_set(err, ERR_INVALID, "%s: %s = %s makes no sense", origin, field->name, shown(value, text));
        return err_why(err, "it must be from %.15g to %.15g", field->min, field->max);
    }
    if (field->type == FIELD_COUNT)
        *(int64_t *)(void *)place = json_integer_value(value);
    else
        *(double *)(void *)place = number;
    return true;
}

static bool read_fields(struct model_config *config, const json_t *root, const char *origin, struct err *err)
{
    const json_t *rope = json_object_get(root, "rope_parameters"); /* where transformers 5 keeps rope_theta */
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const struct field *field = &fields[i];
        const json_t *value = json_object_get(root, field->name);
        if ((!value || json_is_null(value)) && field->offset == AT(rope_theta))
            value = json_object_get(rope, field->name);
        if (value && !json_is_null(value)) {
            if (!read_field(config, field, value, origin, err))
                return false;
        } else if (field->required) {
            err_set(err, ERR_INVALID, "%s: %s is missing", origin, field->name);
            return err_hint(err, "add it, or take the model's folder from the hub anew");
        } else {
            *(double *)(void *)((char *)config + field->offset) = field->fallback;
        }
    }
    return true;
}

/* An id, a list of ids (the first is the one that ends a turn), or nothing. */
static bool read_eos(struct model_config *config, const json_t *root, const char *origin, struct err *err)
{
    const json_t *value = json_object_get(root, "eos_token_id");
    if (json_is_array(value))
        value = json_array_get(value, 0);
    config->eos_token = -1;
    if (!value || json_is_null(value))
        return true;
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= config->vocabulary) {
        char text[SHOWN_VALUE_BYTES];
        err_set(err, ERR_INVALID, "%s: eos_token_id = %s makes no sense", origin, shown(value, text));
        return err_why(err, "it must be a token id under vocab_size = %lld", (long long)config->vocabulary);
    }
    config->eos_token = json_integer_value(value);
    return true;
}

/* A window counts only where some layer would use it: published configs carry the field switched off. */
static bool check_attention_layers(const struct model_config *config, const json_t *root, const char *origin,
                                   struct err *err)
{
    static const char hint[] = "take a model in which every layer sees the whole sequence";
    const json_t *types = json_object_get(root, "layer_types");
    for (size_t i = 0; i < json_array_size(types); i++) {
        const json_t *type = json_array_get(types, i);
        const char *name = json_string_value(type);
        if (!name || strcmp(name, "full_attention") != 0)
            return refuse_value(origin, "layer_types", type, "\"full_attention\"", hint, err);
    }
    if (json_is_array(types))
        return true;
    const json_t *window = json_object_get(root, "sliding_window");
    const json_t *from = json_object_get(root, "max_window_layers");
    bool used = json_is_true(json_object_get(root, "use_sliding_window")) && window &&
                !json_is_null(window) &&
                !(json_is_integer(from) && json_integer_value(from) >= config->layers);
    return !used || refuse_value(origin, "sliding_window", window, "null", hint, err);
}

static bool check_rope(const json_t *root, const char *origin, struct err *err)
{
    const json_t *rope = json_object_get(root, "rope_parameters");
    const json_t *type = json_object_get(rope, "rope_type");
    const char *name = json_string_value(type);
    if (rope && !json_is_null(rope) && !json_is_object(rope))
        return refuse_value(origin, "rope_parameters", rope, "{\"rope_type\": \"default\", …}",
                            "write an object", err);
    if (type && (!name || strcmp(name, "default") != 0))
        return refuse_value(origin, "rope_parameters.rope_type", type, "\"default\"",
                            "take the plain rotation and keep sequences within the model's trained length",
                            err);
    const json_t *partial = json_object_get(rope, "partial_rotary_factor");
    if (partial && !json_is_null(partial) && json_number_value(partial) != 1.0)
        return refuse_value(origin, "rope_parameters.partial_rotary_factor", partial, "1",
                            "take a model that rotates the whole head", err);
    return true;
}

static bool check_sizes(const struct model_config *config, const char *origin, struct err *err)
{
    if (config->q_heads % config->kv_heads != 0) {
        err_set(err, ERR_INVALID, "%s: %lld query heads cannot share %lld key/value heads", origin,
                (long long)config->q_heads, (long long)config->kv_heads);
        return err_hint(err, "num_attention_heads must be a multiple of num_key_value_heads");
    }
    if (config->head_dim % 2 != 0) {
        err_set(err, ERR_INVALID, "%s: head_dim = %lld is odd", origin, (long long)config->head_dim);
        return err_why(err, "the rotary embedding turns pairs");
    }
    if (!(config->rms_eps > 0)) {
        err_set(err, ERR_INVALID, "%s: rms_norm_eps = 0 makes no sense", origin);
        return err_why(err, "a row of zeros would be divided by zero");
    }
    return true;
}

bool model_config_parse(struct model_config *config, const char *origin, const char *json, size_t bytes,
                        struct err *err)
{
    json_error_t at;
    json_t *root = json_loadb(json, bytes, JSON_REJECT_DUPLICATES, &at);
    if (!json_is_object(root)) {
        json_decref(root);
        err_set(err, ERR_INVALID, "%s is not a model's config.json", origin);
        if (root)
            return err_why(err, "it holds no JSON object");
        return err_why(err, "line %d, column %d: %s", at.line, at.column, at.text);
    }
    struct model_config read = {.architecture = ARCHITECTURE};
    bool good = check_architecture(root, origin, err) && check_demands(root, origin, err) &&
                check_rope(root, origin, err) && read_fields(&read, root, origin, err) &&
                read_eos(&read, root, origin, err) && check_attention_layers(&read, root, origin, err) &&
                check_sizes(&read, origin, err);
    json_decref(root);
    if (good)
        *config = read;
    return good;
}

bool model_config_load(struct model_config *config, const char *path, struct err *err)
{
    char inside[LIMIT_PATH_BYTES];
    struct stat status;
    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode)) {
        if (!file_join(inside, sizeof inside, path, "config.json", err))
            return false;
        path = inside;
    }
    char *text;
    size_t bytes;
    if (!file_slurp(path, LIMIT_JSON_BYTES, &text, &bytes, err))
        return err_hint(err, "name a hub-shaped folder with a config.json, or the file itself");
    bool good = model_config_parse(config, path, text, bytes, err);
    free(text);
    return good;
}

/* 15 digits read back as written by people (1e-06); 17 always read back the same bits. */
static size_t digits_wanted(const struct model_config *config)
{
    const double values[] = {config->rms_eps, config->rope_theta, config->initializer_range};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char text[40];
        snprintf(text, sizeof text, "%.15g", values[i]);
        if (strtod(text, NULL) != values[i])
            return 17;
    }
    return 15;
}

char *model_config_print(const struct model_config *config, const char *torch_dtype)
{
    json_t *root = json_pack("{s:[s], s:b, s:f, s:s, s:s, s:n, s:n, s:b, s:b, s:s}", "architectures",
                             config->architecture, "attention_bias", 0, "attention_dropout", 0.0,
                             "hidden_act", "silu", "model_type", "qwen3", "rope_scaling", "sliding_window",
                             "use_cache", 1, "use_sliding_window", 0, "torch_dtype", torch_dtype);
    INVARIANT(root != NULL);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const void *place = (const char *)config + fields[i].offset;
        json_t *value = fields[i].type == FIELD_COUNT  ? json_integer(*(const int64_t *)place)
                        : fields[i].type == FIELD_REAL ? json_real(*(const double *)place)
                                                       : json_boolean(*(const bool *)place);
        INVARIANT(json_object_set_new(root, fields[i].name, value) == 0);
    }
    if (config->eos_token >= 0)
        INVARIANT(json_object_set_new(root, "eos_token_id", json_integer(config->eos_token)) == 0);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS |
                                      (size_t)JSON_REAL_PRECISION(digits_wanted(config)));
    INVARIANT(text != NULL);
    json_decref(root);
    return text;
}

int64_t model_config_parameters(const struct model_config *config)
{
    int64_t C = config->hidden, D = config->head_dim;
    int64_t q = config->q_heads * D, kv = config->kv_heads * D;
    int64_t block = 2 * C + 2 * D + 2 * q * C + 2 * kv * C + 3 * config->ffn * C;
    return (config->tied ? 1 : 2) * config->vocabulary * C + config->layers * block + C;
}

double model_config_flops(const struct model_config *config, int64_t tokens, double squared_lengths)
{
    double products = 6.0 * (double)model_config_parameters(config) * (double)tokens;
    double attention = 6.0 * (double)(config->layers * config->q_heads * config->head_dim) * squared_lengths;
    return products + attention;
}
