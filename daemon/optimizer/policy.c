/* Policies as values: the presets' table, the `PRESET+key=value…` algebra over one table of keys, canonical
 * names. */
#include "policy.h"

#include <stdio.h>
#include <string.h>

// clang-format off
const struct policy_preset policy_presets[] = {
    {"fp32-master", WEIGHT_FP32,   MOMENT_FP32,  MOMENT_FP32,  "fp32 weight and moments; the bf16 the model sees is made when it is gathered"},
    {"fp32-lean",   WEIGHT_FP32,   MOMENT_BF16,  MOMENT_BF16S, "fp32 weights, 16-bit moments"},
    {"fp32-q8",     WEIGHT_FP32,   MOMENT_Q8,    MOMENT_Q8,    "fp32 weights and 8-bit moments, in the bytes of the fault"},
    {"fp24-q8",     WEIGHT_SPLIT8, MOMENT_Q8,    MOMENT_Q8,    "24-bit weights and 8-bit moments: fewer bytes than the fault"},
    {"fp32-split",  WEIGHT_SPLIT,  MOMENT_FP32,  MOMENT_FP32,  "fp32 in two halves, for resident parameters: no second copy"},
    {"bf16-kahan",  WEIGHT_KAHAN,  MOMENT_BF16,  MOMENT_BF16,  "bf16 with a compensation for each weight (AnyPrecision)"},
    {"bf16-sr",     WEIGHT_BF16S,  MOMENT_BF16S, MOMENT_BF16S, "bf16 with stochastic rounding throughout"},
    {"bf16",        WEIGHT_BF16,   MOMENT_BF16,  MOMENT_BF16,  "plain bf16 throughout: small updates vanish; asks for --yes"},
};
// clang-format on
const int policy_preset_count = sizeof policy_presets / sizeof *policy_presets;

static const char *const weight_names[] = {
#define X(format, name, main, extra) name,
    WEIGHT_FORMATS(X)
#undef X
};

static const char *const moment_names[] = {
#define X(format, name, main, extra) name,
    MOMENT_FORMATS(X)
#undef X
};

const enum dtype weight_storage[][2] = {
#define X(format, name, main, extra) {main, extra},
    WEIGHT_FORMATS(X)
#undef X
};

const enum dtype moment_storage[][2] = {
#define X(format, name, main, extra) {main, extra},
    MOMENT_FORMATS(X)
#undef X
};

static const char *const type_names[] = {"fp32", "bf16"}; /* in the order of DTYPE_F32, DTYPE_BF16 */

const char *weight_format_name(enum weight_format format)
{
    return weight_names[format];
}

const char *moment_format_name(enum moment_format format)
{
    return moment_names[format];
}

bool policy_stores_copy(const struct policy *policy)
{
    return policy->compute == DTYPE_BF16 && weight_storage[policy->weight][0] == DTYPE_BF16;
}

/* ---- keys ---- */

enum { KEY_WEIGHT, KEY_M, KEY_V, KEY_ACCUMULATE, KEY_REDUCE, KEY_COMPUTE, KEYS };

static const struct {
    const char *name;
    const char *const *values;
    int count;
} keys[KEYS] = {
    [KEY_WEIGHT] = {"weight", weight_names, WEIGHT_FORMAT_COUNT},
    [KEY_M] = {"m", moment_names, MOMENT_FORMAT_COUNT},
    [KEY_V] = {"v", moment_names, MOMENT_FORMAT_COUNT},
    [KEY_ACCUMULATE] = {"accumulate", type_names, 2},
    [KEY_REDUCE] = {"reduce", type_names, 2},
    [KEY_COMPUTE] = {"compute", type_names, 2},
};

/* Every key's value is its index in the key's names: the enums are in that order. */
static int key_get(const struct policy *p, int key)
{
    const int values[KEYS] = {
        (int)p->weight,          (int)p->m, (int)p->v, p->accumulate == DTYPE_BF16, p->reduce == DTYPE_BF16,
        p->compute == DTYPE_BF16};
    return values[key];
}

static void key_set(struct policy *p, int key, int value)
{
    enum dtype type = value == 0 ? DTYPE_F32 : DTYPE_BF16;
    if (key == KEY_WEIGHT)
        p->weight = (enum weight_format)value;
    else if (key == KEY_M)
        p->m = (enum moment_format)value;
    else if (key == KEY_V)
        p->v = (enum moment_format)value;
    else if (key == KEY_ACCUMULATE)
        p->accumulate = type;
    else if (key == KEY_REDUCE)
        p->reduce = type;
    else
        p->compute = type;
}

static struct policy preset_policy(const struct policy_preset *preset)
{
    struct policy p = {.weight = preset->weight,
                       .m = preset->m,
                       .v = preset->v,
                       .accumulate = DTYPE_F32,
                       .reduce = DTYPE_F32,
                       .compute = DTYPE_BF16};
    snprintf(p.name, sizeof p.name, "%s", preset->name);
    return p;
}

struct policy policy_default(void)
{
    return preset_policy(&policy_presets[0]);
}

void policy_rename(struct policy *policy)
{
    int best = 0, fewest = KEYS + 1;
    for (int i = 0; i < policy_preset_count; i++) {
        struct policy preset = preset_policy(&policy_presets[i]);
        int different = 0;
        for (int key = 0; key < KEYS; key++)
            different += key_get(policy, key) != key_get(&preset, key);
        if (different < fewest) {
            fewest = different;
            best = i;
        }
    }
    struct policy preset = preset_policy(&policy_presets[best]);
    size_t length = (size_t)snprintf(policy->name, sizeof policy->name, "%s", preset.name);
    for (int key = 0; key < KEYS; key++) {
        int value = key_get(policy, key);
        if (value == key_get(&preset, key))
            continue;
        INVARIANT(length < sizeof policy->name);
        length += (size_t)snprintf(policy->name + length, sizeof policy->name - length, "+%s=%s",
                                   keys[key].name, keys[key].values[value]);
    }
    INVARIANT(length < sizeof policy->name);
}

bool policy_equal(const struct policy *a, const struct policy *b)
{
    for (int key = 0; key < KEYS; key++)
        if (key_get(a, key) != key_get(b, key))
            return false;
    return true;
}

/* ---- parsing ---- */

/* The index of a word among names, or -1 with the error set: `there is no WHAT 'word'`, the names, the
 * nearest one. */
static int name_find(const char *word, size_t length, const char *what, const char *const *names, int count,
                     struct err *err)
{
    char text[64], list[256] = "";
    snprintf(text, sizeof text, "%.*s", (int)(length < 60 ? length : 60), word);
    for (int i = 0; i < count; i++)
        if (strlen(names[i]) == length && memcmp(names[i], word, length) == 0)
            return i;
    for (int i = 0; i < count; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i > 0 ? ", " : "", names[i]);
    err_set(err, ERR_INVALID, "there is no %s '%s'", what, text);
    err_why(err, "it is one of %s", list);
    const char *nearest = err_nearest(text, names, (size_t)count);
    if (nearest)
        err_hint(err, "did you mean '%s'?", nearest);
    return -1;
}

static bool key_parse(struct policy *p, bool said[KEYS], const char *text, size_t length, struct err *err)
{
    const char *names[KEYS];
    for (int key = 0; key < KEYS; key++)
        names[key] = keys[key].name;
    const char *equals = memchr(text, '=', length);
    int key = name_find(text, equals ? (size_t)(equals - text) : length, "policy key", names, KEYS, err);
    if (key < 0)
        return false;
    if (!equals) {
        err_set(err, ERR_INVALID, "the policy key '%s' has no value", names[key]);
        return err_hint(err, "write +%s=%s, for example", names[key], keys[key].values[0]);
    }
    if (said[key]) {
        err_set(err, ERR_INVALID, "the policy states '%s' twice", names[key]);
        return err_hint(err, "say it once");
    }
    char what[32];
    snprintf(what, sizeof what, "%s format", names[key]);
    int value = name_find(equals + 1, length - (size_t)(equals + 1 - text), what, keys[key].values,
                          keys[key].count, err);
    if (value < 0)
        return false;
    said[key] = true;
    key_set(p, key, value);
    return true;
}

static bool compute_apply(struct policy *p, const bool said[KEYS], const char *compute, struct err *err)
{
    if (!compute)
        return true;
    int value = name_find(compute, strlen(compute), "compute type", type_names, 2, err);
    if (value < 0)
        return false;
    if (said[KEY_COMPUTE] && value != key_get(p, KEY_COMPUTE)) {
        err_set(err, ERR_INVALID, "the computation is stated twice, and differently");
        err_why(err, "the policy says +compute=%s, --compute says %s", type_names[key_get(p, KEY_COMPUTE)],
                compute);
        return err_hint(err, "say it once");
    }
    key_set(p, KEY_COMPUTE, value);
    return true;
}

bool policy_parse(struct policy *policy, const char *text, const char *compute, struct err *err)
{
    enum { PRESETS_MAX = 32 };
    const char *names[PRESETS_MAX];
    INVARIANT(policy_preset_count <= PRESETS_MAX);
    for (int i = 0; i < policy_preset_count; i++)
        names[i] = policy_presets[i].name;
    size_t length = strcspn(text, "+");
    int preset = name_find(text, length, "policy", names, policy_preset_count, err);
    if (preset < 0)
        return false;
    struct policy p = preset_policy(&policy_presets[preset]);
    bool said[KEYS] = {false};
    for (const char *at = text + length; *at == '+'; at += length) {
        at++;
        length = strcspn(at, "+");
        if (!key_parse(&p, said, at, length, err))
            return false;
    }
    if (!compute_apply(&p, said, compute, err))
        return false;
    policy_rename(&p);
    *policy = p;
    return true;
}

/* ---- bytes ---- */

static double storage_bytes(const enum dtype storage[2], bool q8)
{
    double bytes = (double)dtype_bytes(storage[0]);
    if (storage[1] != DTYPE_COUNT)
        bytes += (double)dtype_bytes(storage[1]) / (q8 ? Q8_GROUP : 1);
    return bytes;
}

double policy_bytes_per_parameter(const struct policy *policy)
{
    return storage_bytes(weight_storage[policy->weight], false) +
           storage_bytes(moment_storage[policy->m], policy->m == MOMENT_Q8) +
           storage_bytes(moment_storage[policy->v], policy->v == MOMENT_Q8);
}
