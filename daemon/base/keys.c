/* The key tables' engine: a text to its row's field. YAML is read in keys_yaml.c, printed in keys_print.c. */
#include "keys_inside.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const char *place_text(struct place at, char *text, size_t bytes)
{
    text[0] = '\0';
    if (at.origin && at.line > 0)
        snprintf(text, bytes, "%.200s:%d: ", at.origin, at.line);
    else if (at.origin)
        snprintf(text, bytes, "%.200s: ", at.origin);
    else if (at.line > 0)
        snprintf(text, bytes, "line %d: ", at.line);
    return text;
}

bool keys_refuse(struct place at, struct err *err, const char *format, ...)
{
    char where[256], sentence[ERR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    return err_set(err, ERR_INVALID, "%s%s", place_text(at, where, sizeof where), sentence);
}

/* True if name is a group: "optimizer" of "optimizer.lr". */
bool keys_is_group(const struct key *keys, size_t count, const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < count; i++)
        if (strncmp(keys[i].name, name, length) == 0 && keys[i].name[length] == '.')
            return true;
    return false;
}

const struct key *keys_find(const struct key *keys, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    return NULL;
}

/* The right name: the same last part in another group ("lr" for "optimizer.lr"), else the nearest spelling.
 */
bool keys_refuse_unknown(const struct key *keys, size_t count, const char *name, struct place at,
                         struct err *err)
{
    const char *names[KEYS_COUNT_MAX] = {0}, *right = NULL;
    const char *dot = strrchr(name, '.');
    const char *last = dot ? dot + 1 : name;
    for (size_t i = 0; i < count; i++) {
        names[i] = keys[i].name;
        const char *key_dot = strrchr(keys[i].name, '.');
        if (!right && strcmp(key_dot ? key_dot + 1 : keys[i].name, last) == 0)
            right = keys[i].name;
    }
    const char *nearest = err_nearest(name, names, count);
    if (nearest)
        right = nearest;
    keys_refuse(at, err, "there is no key \"%.*s\"", KEYS_VALUE_SEEN, name);
    if (right)
        return err_hint(err, "did you mean \"%s\"?", right);
    return err_hint(err, "look the keys up with --help");
}

const char *keys_wants(const struct key *key, char *text, size_t bytes)
{
    bool bounded = key->min != key->max;
    switch (key->type) {
    case KEY_BOOL:
        snprintf(text, bytes, "true or false");
        break;
    case KEY_INT:
    case KEY_DOUBLE:
        snprintf(text, bytes, key->type == KEY_INT ? "a whole number" : "a number");
        if (bounded)
            snprintf(text + strlen(text), bytes - strlen(text), " from %.15g to %.15g", key->min, key->max);
        break;
    case KEY_STRING:
        snprintf(text, bytes, "a text of at most %zu bytes", key->size - 1);
        break;
    case KEY_CHOICE:
        snprintf(text, bytes, "one of %s", key->choices);
        break;
    case KEY_PAIR:
        snprintf(text, bytes, "a pair of numbers [a, b]");
        if (bounded)
            snprintf(text + strlen(text), bytes - strlen(text), " from %.15g to %.15g", key->min, key->max);
        break;
    }
    return text;
}

static bool in_bounds(const struct key *key, double value)
{
    return isfinite(value) && (key->min == key->max || (value >= key->min && value <= key->max));
}

/* Decimal only: strtod would also take hexadecimal, nan and infinity. */
static bool parse_double(const char *text, const char **end, double *value)
{
    size_t digits = strspn(text, "0123456789+-.eE");
    char copy[64];
    if (digits == 0 || digits >= sizeof copy)
        return false;
    memcpy(copy, text, digits);
    copy[digits] = '\0';
    char *stop;
    *value = strtod(copy, &stop);
    *end = text + digits;
    return stop == copy + digits;
}

static bool parse_bool(const char *text, bool *value)
{
    static const char *const words[2][3] = {{"false", "no", "off"}, {"true", "yes", "on"}};
    for (int truth = 0; truth < 2; truth++)
        for (int i = 0; i < 3; i++)
            if (strcmp(text, words[truth][i]) == 0) {
                *value = truth;
                return true;
            }
    return false;
}

static bool parse_choice(const char *choices, const char *text, int32_t *value)
{
    size_t length = strlen(text);
    int32_t index = 0;
    for (const char *word = choices; length > 0; index++) {
        size_t word_length = strcspn(word, "|");
        if (word_length == length && memcmp(word, text, length) == 0) {
            *value = index;
            return true;
        }
        if (!word[word_length])
            return false;
        word += word_length + 1;
    }
    return false;
}

static bool refuse_choice(const struct key *key, const char *value, struct place at, struct err *err)
{
    char words[1024];
    const char *names[64] = {0};
    size_t count = 0;
    snprintf(words, sizeof words, "%s", key->choices);
    for (char *save = NULL, *word = strtok_r(words, "|", &save); word && count < 64;
         word = strtok_r(NULL, "|", &save))
        names[count++] = word;
    const char *nearest = err_nearest(value, names, count);
    keys_refuse(at, err, "%s is \"%.*s\", which is not one of %s", key->name, KEYS_VALUE_SEEN, value,
                key->choices);
    return nearest ? err_hint(err, "did you mean \"%s\"?", nearest) : false;
}

static const char *skip_blanks(const char *text)
{
    return text + strspn(text, " \t");
}

/* "a,b", with or without brackets around it. */
static bool parse_pair(const char *text, double pair[2])
{
    text = skip_blanks(text);
    bool bracket = *text == '[';
    if (bracket)
        text = skip_blanks(text + 1);
    if (!parse_double(text, &text, &pair[0]) || *(text = skip_blanks(text)) != ',' ||
        !parse_double(skip_blanks(text + 1), &text, &pair[1]))
        return false;
    text = skip_blanks(text);
    if (bracket && *text == ']')
        return *skip_blanks(text + 1) == '\0';
    return !bracket && *text == '\0';
}

static bool parse_int(const char *text, int64_t *value)
{
    char *stop;
    if (text[strspn(text, "+-0123456789")] || !*text)
        return false;
    errno = 0;
    *value = strtoll(text, &stop, 10);
    return errno == 0 && *stop == '\0';
}

/* The field's bytes for this text; false where the text is not of the type or out of its bounds. */
static bool parse_value(const struct key *key, void *field, const char *value)
{
    const char *end;
    double number, pair[2];
    int64_t whole;
    switch (key->type) {
    case KEY_BOOL:
        return parse_bool(value, field);
    case KEY_INT:
        if (!parse_int(value, &whole) || !in_bounds(key, (double)whole))
            return false;
        memcpy(field, &whole, sizeof whole);
        return true;
    case KEY_DOUBLE:
        if (!parse_double(value, &end, &number) || *end || !in_bounds(key, number))
            return false;
        memcpy(field, &number, sizeof number);
        return true;
    case KEY_STRING:
        if (strlen(value) >= key->size)
            return false;
        memset(field, 0, key->size);
        memcpy(field, value, strlen(value));
        return true;
    case KEY_CHOICE:
        return parse_choice(key->choices, value, field);
    case KEY_PAIR:
        if (!parse_pair(value, pair) || !in_bounds(key, pair[0]) || !in_bounds(key, pair[1]))
            return false;
        memcpy(field, pair, sizeof pair);
        return true;
    }
    return false;
}

bool keys_set_at(const struct key *keys, size_t count, void *object, bool *key_is_set, const char *name,
                 const char *value, struct place at, struct err *err)
{
    char wants[1200];
    INVARIANT(count <= KEYS_COUNT_MAX);
    const struct key *key = keys_find(keys, count, name);
    if (!key && keys_is_group(keys, count, name)) {
        keys_refuse(at, err, "%s is a group of keys, not a value", name);
        return err_hint(err, "write %s: {KEY: VALUE, …}", name);
    }
    if (!key)
        return keys_refuse_unknown(keys, count, name, at, err);
    if (!parse_value(key, (char *)object + key->offset, value)) {
        if (key->type == KEY_CHOICE)
            return refuse_choice(key, value, at, err);
        return keys_refuse(at, err, "%s is \"%.*s\", but must be %s", name, KEYS_VALUE_SEEN, value,
                           keys_wants(key, wants, sizeof wants));
    }
    if (key_is_set)
        key_is_set[key - keys] = true;
    return true;
}

bool keys_set(const struct key *keys, size_t count, void *object, bool *key_is_set, const char *name,
              const char *value, int line, struct err *err)
{
    return keys_set_at(keys, count, object, key_is_set, name, value, (struct place){NULL, line}, err);
}
