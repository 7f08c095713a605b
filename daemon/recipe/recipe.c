#include "recipe.h"

#include "file.h"
#include "policy.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS_MAX (1 << 20) /* of a sequence or a micro-batch */
#define STEPS_MAX  1e12
#define BATCH_MAX  (1 << 20)

_Static_assert(sizeof(enum schedule_kind) == sizeof(int32_t), "KEY_CHOICE writes an int32_t");

#define AT(field) offsetof(struct recipe, field), sizeof(((struct recipe *)0)->field)

// clang-format off
/* A number below its row's least, or an empty text, is "not said": such rows are neither printed nor bounded. */
static const struct key keys[] = {
    {"data", KEY_STRING, AT(data), 0, 0, NULL, "the dataset's folder, made by `trainctl data prepare`"},
    {"order", KEY_STRING, AT(order), 0, 0, NULL, "sorted (as stored, the default), shuffled or shuffled(SEED): anew each epoch"},
    {"epochs", KEY_INT, AT(epochs), 1, 1e9, NULL, "passes over the data; or say steps"},
    {"steps", KEY_INT, AT(steps), 1, STEPS_MAX, NULL, "updates to make; or say epochs"},
    {"global_batch", KEY_INT, AT(global_batch), 1, BATCH_MAX, NULL, "sequences an update (default 64)"},
    {"micro_batch", KEY_INT, AT(micro_batch), 1, BATCH_MAX, NULL, "sequences computed at a time on a rank (default 1); or say max_tokens"},
    {"max_tokens", KEY_INT, AT(max_tokens), 2, TOKENS_MAX, NULL, "tokens computed at a time: packs as many whole sequences as fit"},
    {"cutoff", KEY_INT, AT(cutoff), 2, TOKENS_MAX, NULL, "tokens a sequence, longer ones are cut (default: the dataset's)"},
    {"drop_last", KEY_BOOL, AT(drop_last), 0, 0, NULL, "leave out the short last batch of an epoch (default false)"},
    {"optimizer.policy", KEY_STRING, AT(optimizer.policy), 0, 0, NULL, "precision policy to convert to first (default: the current one)"},
    {"optimizer.lr", KEY_DOUBLE, AT(optimizer.lr), 0, 1e6, NULL, "the largest learning rate (default 1e-4)"},
    {"optimizer.betas", KEY_PAIR, AT(optimizer.betas), 0, 1, NULL, "decay of the moments, below 1 (default [0.9, 0.999])"},
    {"optimizer.eps", KEY_DOUBLE, AT(optimizer.eps), 0, 1, NULL, "added to the denominator (default 1e-8)"},
    {"optimizer.weight_decay", KEY_DOUBLE, AT(optimizer.weight_decay), 0, 1e3, NULL, "decoupled (default 0.01)"},
    {"optimizer.decay", KEY_CHOICE, AT(optimizer.decay), 0, 0, "matrices|all", "which tensors decay (default matrices)"},
    {"optimizer.clip", KEY_DOUBLE, AT(optimizer.clip), 0, 1e9, NULL, "largest gradient norm, 0: off (default 1)"},
    {"schedule.kind", KEY_CHOICE, AT(schedule.kind), 0, 0, "constant|linear|cosine|wsd", "after the warm-up (default cosine)"},
    {"schedule.warmup_ratio", KEY_DOUBLE, AT(schedule.warmup_ratio), 0, 1, NULL, "warm-up as a share of all steps; or say warmup_steps"},
    {"schedule.warmup_steps", KEY_INT, AT(schedule.warmup_steps), 0, STEPS_MAX, NULL, "warm-up in steps (default 0)"},
    {"schedule.warmup_init", KEY_DOUBLE, AT(schedule.warmup_init), 0, 1, NULL, "the warm-up's first factor (default 0)"},
    {"schedule.min_lr", KEY_DOUBLE, AT(schedule.min_lr), 0, 1e6, NULL, "the learning rate at the end, absolute (default 0)"},
    {"schedule.decay_steps", KEY_INT, AT(schedule.decay_steps), 1, STEPS_MAX, NULL, "cosine, linear: the absolute step that reaches min_lr (default: the last)"},
    {"schedule.wsd_decay", KEY_INT, AT(schedule.wsd_decay), 1, STEPS_MAX, NULL, "wsd: how many steps the final decay takes"},
    {"loss", KEY_CHOICE, AT(loss), 0, 0, "cross_entropy", "mean over the labelled tokens of the global batch"},
    {"checkpoint.every", KEY_INT, AT(checkpoint.every), 0, STEPS_MAX, NULL, "updates between checkpoints, 0: only at the end (default 0)"},
    {"checkpoint.keep", KEY_INT, AT(checkpoint.keep), 1, 1e6, NULL, "checkpoints of the run to keep (default 3)"},
    {"evaluate.data", KEY_STRING, AT(evaluate.data), 0, 0, NULL, "a dataset held out (default: none)"},
    {"evaluate.every", KEY_INT, AT(evaluate.every), 0, STEPS_MAX, NULL, "updates between evaluations, 0: only at the end (default 0)"},
};

/* Of each of these pairs only one may be said. */
static const char *const either[][2] = {
    {"epochs", "steps"}, {"micro_batch", "max_tokens"}, {"schedule.warmup_ratio", "schedule.warmup_steps"},
};
// clang-format on

#define KEYS   (sizeof keys / sizeof keys[0])
#define EITHER (sizeof either / sizeof either[0])

const struct key *recipe_keys(size_t *count)
{
    *count = KEYS;
    return keys;
}

void recipe_init(struct recipe *recipe)
{
    struct optimizer_settings settings = optimizer_settings_default();
    memset(recipe, 0, sizeof *recipe); /* its padding too: recipes are compared and sent as bytes */
    strcpy(recipe->order, "sorted");
    recipe->epochs = recipe->steps = recipe->micro_batch = recipe->max_tokens = recipe->cutoff = -1;
    recipe->global_batch = 64;
    recipe->optimizer.lr = settings.lr;
    recipe->optimizer.betas[0] = settings.beta1;
    recipe->optimizer.betas[1] = settings.beta2;
    recipe->optimizer.eps = settings.eps;
    recipe->optimizer.weight_decay = settings.weight_decay;
    recipe->optimizer.decay = settings.decay_all ? RECIPE_DECAY_ALL : RECIPE_DECAY_MATRICES;
    recipe->optimizer.clip = settings.clip;
    struct schedule_settings schedule = schedule_settings_default();
    recipe->schedule.kind = schedule.kind;
    recipe->schedule.warmup_ratio = recipe->schedule.warmup_init = recipe->schedule.min_lr = -1;
    recipe->schedule.warmup_steps = recipe->schedule.decay_steps = recipe->schedule.wsd_decay = -1;
    recipe->loss = RECIPE_LOSS_CROSS_ENTROPY;
    recipe->checkpoint.keep = 3;
}

struct optimizer_settings recipe_optimizer_settings(const struct recipe *recipe)
{
    return (struct optimizer_settings){
        .lr = recipe->optimizer.lr,
        .beta1 = recipe->optimizer.betas[0],
        .beta2 = recipe->optimizer.betas[1],
        .eps = recipe->optimizer.eps,
        .weight_decay = recipe->optimizer.weight_decay,
        .decay_all = recipe->optimizer.decay == RECIPE_DECAY_ALL,
        .clip = recipe->optimizer.clip,
    };
}

static const void *field_of(const struct recipe *recipe, const struct key *key)
{
    return (const char *)recipe + key->offset;
}

/* The row's number; only of KEY_INT and KEY_DOUBLE rows. */
static double number_of(const struct recipe *recipe, const struct key *key)
{
    int64_t whole;
    double number;
    if (key->type == KEY_INT) {
        memcpy(&whole, field_of(recipe, key), sizeof whole);
        return (double)whole;
    }
    memcpy(&number, field_of(recipe, key), sizeof number);
    return number;
}

static bool is_said(const struct recipe *recipe, const struct key *key)
{
    switch (key->type) {
    case KEY_INT:
    case KEY_DOUBLE:
        return !(number_of(recipe, key) < key->min);
    case KEY_STRING:
        return *(const char *)field_of(recipe, key) != '\0';
    case KEY_BOOL:
    case KEY_CHOICE:
    case KEY_PAIR:
        return true;
    }
    return true;
}

static const struct key *key_named(const char *name)
{
    for (size_t i = 0; i < KEYS; i++)
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    err_invariant_failed("a key's name is in the table", __FILE__, __LINE__); /* the names are ours */
}

static void unset(struct recipe *recipe, const struct key *key)
{
    int64_t whole = -1;
    double number = -1;
    memcpy((char *)recipe + key->offset, key->type == KEY_INT ? (void *)&whole : (void *)&number,
           sizeof whole);
}

/* "order" in full: sorted, shuffled, shuffled(SEED). */
static bool parse_order(const char *text, bool *shuffled, uint64_t *seed)
{
    char end;
    *seed = 0;
    *shuffled = strcmp(text, "sorted") != 0;
    if (!*shuffled || strcmp(text, "shuffled") == 0)
        return true;
    const char *digits = text + strlen("shuffled(");
    return strncmp(text, "shuffled(", strlen("shuffled(")) == 0 && strspn(digits, "0123456789") > 0 &&
           strspn(digits, "0123456789") < 20 && sscanf(digits, "%" SCNu64 ")%c", seed, &end) == 1 &&
           text[strlen(text) - 1] == ')';
}

bool recipe_is_shuffled(const struct recipe *recipe, uint64_t *seed)
{
    bool shuffled;
    INVARIANT(parse_order(recipe->order, &shuffled, seed));
    return shuffled;
}

static int32_t choice_count(const char *choices)
{
    int32_t count = 1;
    for (; *choices; choices++)
        count += *choices == '|';
    return count;
}

/* What the key table promises, for recipes that did not come through it. Below its least a number is "not
 * said", which only rows may be that are not said by default. */
static bool check_number(const struct recipe *recipe, const struct recipe *defaults, const struct key *key,
                         struct err *err)
{
    bool bounded = number_of(recipe, key) <= key->max;
    if (bounded && (is_said(recipe, key) || !is_said(defaults, key)))
        return true;
    return err_set(err, ERR_INVALID, "%s is %.15g, but must be from %.15g to %.15g", key->name,
                   number_of(recipe, key), key->min, key->max);
}

static bool check_row(struct recipe *recipe, const struct recipe *defaults, const struct key *key,
                      struct err *err)
{
    char *text = (char *)recipe + key->offset;
    int32_t choice;
    double pair[2];
    switch (key->type) {
    case KEY_STRING:
        text[key->size - 1] = '\0';
        return true;
    case KEY_INT:
    case KEY_DOUBLE:
        return check_number(recipe, defaults, key, err);
    case KEY_CHOICE:
        memcpy(&choice, text, sizeof choice);
        if (choice >= 0 && choice < choice_count(key->choices))
            return true;
        return err_set(err, ERR_INVALID, "%s is not one of %s", key->name, key->choices);
    case KEY_PAIR:
        memcpy(pair, text, sizeof pair);
        if (pair[0] >= key->min && pair[0] <= key->max && pair[1] >= key->min && pair[1] <= key->max)
            return true;
        return err_set(err, ERR_INVALID, "%s is [%.15g, %.15g], but both must be from %.15g to %.15g",
                       key->name, pair[0], pair[1], key->min, key->max);
    case KEY_BOOL:
        return true;
    }
    return true;
}

/* The checks below also say which key is to blame (*blame), so that whoever read a file can name the line;
 * NULL: none that was said. */
static bool check_either(const struct recipe *recipe, const char **blame, struct err *err)
{
    for (size_t i = 0; i < EITHER; i++)
        if (is_said(recipe, key_named(either[i][0])) && is_said(recipe, key_named(either[i][1]))) {
            *blame = either[i][1];
            err_set(err, ERR_INVALID, "%s and %s are both said", either[i][0], either[i][1]);
            return err_hint(err, "say one of them");
        }
    return true;
}

static bool check_order(const struct recipe *recipe, const char **blame, struct err *err)
{
    static const char *const orders[] = {"sorted", "shuffled"};
    bool shuffled;
    uint64_t seed;
    if (parse_order(recipe->order, &shuffled, &seed))
        return true;
    *blame = "order";
    err_set(err, ERR_INVALID, "order is \"%.60s\", which is not one of sorted, shuffled, shuffled(SEED)",
            recipe->order);
    const char *near = strchr(recipe->order, '(') ? NULL : err_nearest(recipe->order, orders, 2);
    return near ? err_hint(err, "did you mean \"%s\"?", near)
                : err_hint(err, "SEED is a whole number, as in shuffled(1)");
}

/* What a run needs, and a look at its schedule does not. */
static bool check_whole(const struct recipe *recipe, struct err *err)
{
    if (!*recipe->data) {
        err_set(err, ERR_INVALID, "the recipe names no data");
        return err_hint(err, "say data: DIR, a folder made by `trainctl data prepare`");
    }
    if (recipe->epochs < 0 && recipe->steps < 0) {
        err_set(err, ERR_INVALID, "the recipe says neither epochs nor steps");
        return err_hint(err, "say epochs: N (passes over the data) or steps: N (updates)");
    }
    return true;
}

static bool check_evaluate(const struct recipe *recipe, const char **blame, struct err *err)
{
    if (recipe->evaluate.every > 0 && !*recipe->evaluate.data) {
        *blame = "evaluate.every";
        err_set(err, ERR_INVALID, "evaluate.every is %" PRId64 ", but there is no evaluate.data",
                recipe->evaluate.every);
        return err_hint(err, "name the dataset to evaluate on");
    }
    return true;
}

/* The optimizer's and the schedule's rooms speak of their own fields: the first row whose word is in the
 * sentence, and whose key was said, is the key that is meant. */
static const char *key_meant(const struct recipe *recipe, const char *sentence)
{
    static const char *const words[][2] = {
        {"beta1", "optimizer.betas"},
        {"beta2", "optimizer.betas"},
        {"eps =", "optimizer.eps"},
        {"clip =", "optimizer.clip"},
        {"weight_decay =", "optimizer.weight_decay"},
        {"peak learning rate", "optimizer.lr"},
        {"wsd_decay", "schedule.wsd_decay"},
        {"decay overlap", "schedule.wsd_decay"},
        {"decay_steps", "schedule.decay_steps"},
        {"min_lr", "schedule.min_lr"},
        {"warm-up", "schedule.warmup_steps"},
        {"warm-up", "schedule.warmup_ratio"},
        {"lr =", "optimizer.lr"},
        {"", "schedule.kind"},
    };
    size_t i = 0;
    while (!strstr(sentence, words[i][0]) || !is_said(recipe, key_named(words[i][1])))
        i++; /* the last row is always meant */
    return words[i][1];
}

/* With epochs the number of steps is not known yet: what does not depend on it is checked with a very large
 * one. */
static bool check_schedule(const struct recipe *recipe, struct err *err)
{
    struct schedule schedule;
    bool knows_steps = recipe->steps > 0;
    if (!knows_steps && recipe->schedule.warmup_ratio >= 0)
        return recipe->schedule.min_lr <= recipe->optimizer.lr ||
               err_set(err, ERR_INVALID, "schedule.min_lr is %.15g, more than optimizer.lr, which is %.15g",
                       recipe->schedule.min_lr, recipe->optimizer.lr);
    return schedule_resolve(&schedule, &recipe->schedule, recipe->optimizer.lr,
                            knows_steps ? recipe->steps : 2 * (int64_t)STEPS_MAX, err);
}

static bool check_rows(struct recipe *recipe, const char **blame, struct err *err)
{
    struct recipe defaults;
    recipe_init(&defaults);
    for (size_t i = 0; i < KEYS; i++)
        if (!check_row(recipe, &defaults, &keys[i], err)) {
            *blame = keys[i].name;
            return false;
        }
    return true;
}

static bool check(struct recipe *recipe, bool whole, const char **blame, struct err *err)
{
    struct policy policy;
    *blame = NULL;
    if (!check_rows(recipe, blame, err) || !check_either(recipe, blame, err) ||
        !check_order(recipe, blame, err) || !check_evaluate(recipe, blame, err))
        return false;
    if (recipe->max_tokens < 0 && recipe->micro_batch < 0)
        recipe->micro_batch = 1;
    if (*recipe->optimizer.policy && !policy_parse(&policy, recipe->optimizer.policy, NULL, err)) {
        *blame = "optimizer.policy";
        return false;
    }
    struct optimizer_settings settings = recipe_optimizer_settings(recipe);
    if (!optimizer_settings_check(&settings, err) || !check_schedule(recipe, err)) {
        *blame = key_meant(recipe, err->what);
        return false;
    }
    return !whole || check_whole(recipe, err);
}

bool recipe_check(struct recipe *recipe, struct err *err)
{
    const char *blame;
    return check(recipe, true, &blame, err);
}

/* Where a recipe's keys were said. */
struct places {
    const char *origin; /* NULL: there is no text */
    int lines[KEYS];    /* 0: not there */
    bool by_override[KEYS];
};

/* The file, the line and the key in front of the sentence. */
static bool refuse_at(const struct places *places, const char *blame, struct err *err)
{
    char whole[2 * ERR_TEXT_BYTES], where[224] = "", name[LIMIT_NAME_BYTES + 2] = "";
    const struct key *key = blame ? key_named(blame) : NULL;
    bool in_text = places->origin && !(key && places->by_override[key - keys]);
    if (in_text && key && places->lines[key - keys] > 0)
        snprintf(where, sizeof where, "%.200s:%d: ", places->origin, places->lines[key - keys]);
    else if (in_text)
        snprintf(where, sizeof where, "%.200s: ", places->origin);
    if (blame && !strstr(err->what, blame))
        snprintf(name, sizeof name, "%s: ", blame);
    snprintf(whole, sizeof whole, "%s%s%s", where, name, err->what);
    snprintf(err->what, sizeof err->what, "%.*s", (int)sizeof err->what - 1, whole);
    return false;
}

/* Splits "key=value" and sets it. */
static bool set_override(struct recipe *recipe, bool *is_set, const char *text, struct err *err)
{
    char name[LIMIT_NAME_BYTES];
    const char *equals = strchr(text, '=');
    if (!equals || equals == text || (size_t)(equals - text) >= sizeof name) {
        err_set(err, ERR_INVALID, "\"%.60s\" is not KEY=VALUE", text);
        return err_hint(err, "for example optimizer.lr=1e-4");
    }
    snprintf(name, sizeof name, "%.*s", (int)(equals - text), text);
    return keys_set(keys, KEYS, recipe, is_set, name, equals + 1, 0, err);
}

/* Overrides on top; each takes back what the text said of the other key of its pair. */
static bool override(struct recipe *recipe, struct places *places, const char *const *overrides, size_t count,
                     struct err *err)
{
    for (size_t i = 0; i < count; i++)
        if (!set_override(recipe, places->by_override, overrides[i], err))
            return false;
    for (size_t i = 0; i < EITHER; i++)
        for (int side = 0; side < 2; side++) {
            const struct key *said = key_named(either[i][side]), *other = key_named(either[i][!side]);
            if (places->by_override[said - keys] && !places->by_override[other - keys])
                unset(recipe, other);
        }
    return true;
}

static bool parse(struct recipe *recipe, bool whole, const char *origin, const char *text, size_t bytes,
                  const char *const *overrides, size_t override_count, struct err *err)
{
    struct recipe made;
    struct places places = {.origin = text ? origin : NULL};
    const char *blame = NULL;
    recipe_init(&made);
    if (bytes > RECIPE_TEXT_BYTES)
        return err_set(err, ERR_INVALID, "%.200s has %zu bytes, more than the %d of a recipe", origin, bytes,
                       RECIPE_TEXT_BYTES);
    if (text && !keys_load_yaml(keys, KEYS, &made, places.lines, origin, text, bytes, err))
        return false;
    if (!check_either(&made, &blame, err))
        return refuse_at(&places, blame, err);
    if (!override(&made, &places, overrides, override_count, err))
        return false;
    if (!check(&made, whole, &blame, err))
        return refuse_at(&places, blame, err);
    *recipe = made;
    return true;
}

bool recipe_parse(struct recipe *recipe, const char *origin, const char *text, size_t bytes,
                  const char *const *overrides, size_t override_count, struct err *err)
{
    return parse(recipe, true, origin, text, bytes, overrides, override_count, err);
}

bool recipe_parse_part(struct recipe *recipe, const char *origin, const char *text, size_t bytes,
                       const char *const *overrides, size_t override_count, struct err *err)
{
    return parse(recipe, false, origin, text, bytes, overrides, override_count, err);
}

static bool make_absolute(char *path, const char *folder, struct err *err)
{
    char joined[LIMIT_PATH_BYTES];
    if (!*path || *path == '/')
        return true;
    if (!file_join(joined, sizeof joined, folder, path, err))
        return false;
    memset(path, 0, LIMIT_PATH_BYTES);
    strcpy(path, joined);
    return true;
}

bool recipe_paths_absolute(struct recipe *recipe, const char *folder, struct err *err)
{
    return make_absolute(recipe->data, folder, err) && make_absolute(recipe->evaluate.data, folder, err);
}

char *recipe_print(const struct recipe *recipe)
{
    bool is_set[KEYS];
    for (size_t i = 0; i < KEYS; i++)
        is_set[i] = is_said(recipe, &keys[i]);
    return keys_print_yaml(keys, KEYS, recipe, is_set);
}

void recipe_help(FILE *out)
{
    keys_print_help(out, keys, KEYS, "");
}
