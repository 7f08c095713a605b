/* The key tables' engine: text to fields, YAML to text, fields to YAML and help.
 *
 * YAML is read as a stream of libyaml's events, never as a tree: depth and size are bounded by ours, aliases
 * and anchors are refused as they come (so nothing can be multiplied), and every value still knows its line.
 */
#include "keys.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define KEYS_TEXT_MAX   (4 << 20) /* a document */
#define KEYS_NAME_BYTES 128       /* a dotted name */
#define KEYS_DEPTH      4         /* nested groups */
#define KEYS_COUNT_MAX  256       /* rows of a table */
#define KEYS_VALUE_SEEN 48        /* bytes of a wrong value that an error repeats */

struct place {          /* where a value was said */
    const char *origin; /* NULL: not from a file */
    int line;           /* 0: no line known */
};

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

/* Refuses with the place in front; the sentence is what was wrong. */
static bool refuse(struct place at, struct err *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static bool refuse(struct place at, struct err *err, const char *format, ...)
{
    char where[256], sentence[ERR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    return err_set(err, ERR_INVALID, "%s%s", place_text(at, where, sizeof where), sentence);
}

/* True if name is a group: "optimizer" of "optimizer.lr". */
static bool is_group(const struct key *keys, size_t count, const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < count; i++)
        if (strncmp(keys[i].name, name, length) == 0 && keys[i].name[length] == '.')
            return true;
    return false;
}

static const struct key *find(const struct key *keys, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    return NULL;
}

/* The right name: the same last part in another group ("lr" for "optimizer.lr"), else the nearest spelling.
 */
static bool refuse_unknown(const struct key *keys, size_t count, const char *name, struct place at,
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
    refuse(at, err, "there is no key \"%.*s\"", KEYS_VALUE_SEEN, name);
    if (right)
        return err_hint(err, "did you mean \"%s\"?", right);
    return err_hint(err, "look the keys up with --help");
}

static const char *type_wants(const struct key *key, char *text, size_t bytes)
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
    refuse(at, err, "%s is \"%.*s\", which is not one of %s", key->name, KEYS_VALUE_SEEN, value,
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

static bool set_at(const struct key *keys, size_t count, void *object, bool *key_is_set, const char *name,
                   const char *value, struct place at, struct err *err)
{
    char wants[1200];
    INVARIANT(count <= KEYS_COUNT_MAX);
    const struct key *key = find(keys, count, name);
    if (!key && is_group(keys, count, name)) {
        refuse(at, err, "%s is a group of keys, not a value", name);
        return err_hint(err, "write %s: {KEY: VALUE, …}", name);
    }
    if (!key)
        return refuse_unknown(keys, count, name, at, err);
    if (!parse_value(key, (char *)object + key->offset, value)) {
        if (key->type == KEY_CHOICE)
            return refuse_choice(key, value, at, err);
        return refuse(at, err, "%s is \"%.*s\", but must be %s", name, KEYS_VALUE_SEEN, value,
                      type_wants(key, wants, sizeof wants));
    }
    if (key_is_set)
        key_is_set[key - keys] = true;
    return true;
}

bool keys_set(const struct key *keys, size_t count, void *object, bool *key_is_set, const char *name,
              const char *value, int line, struct err *err)
{
    return set_at(keys, count, object, key_is_set, name, value, (struct place){NULL, line}, err);
}

/* ---- YAML ---- */

struct yaml_load {
    const struct key *keys;
    size_t count;
    void *object;
    int said_on[KEYS_COUNT_MAX]; /* the line of each key in this document, 0: not said */
    struct place at;
    char name[KEYS_NAME_BYTES]; /* the dotted name being read */
    size_t name_end[KEYS_DEPTH + 1];
    int depth;       /* open mappings */
    bool want_value; /* a key was read, its value comes next */
    bool in_pair;
    char pair[160];
    int pair_items;
    int documents;
};

/* The key's text becomes the last part of the dotted name. */
static bool take_key(struct yaml_load *load, const char *text, struct err *err)
{
    size_t end = load->name_end[load->depth];
    int wrote = snprintf(load->name + end, sizeof load->name - end, "%s%s", end ? "." : "", text);
    if (wrote < 0 || (size_t)wrote >= sizeof load->name - end)
        return refuse(load->at, err, "the key \"%.*s…\" is too long", KEYS_VALUE_SEEN, text);
    if (!*text || strchr(text, '\n'))
        return refuse(load->at, err, "a key is empty or has a line end in it");
    load->want_value = true;
    return true;
}

static bool take_value(struct yaml_load *load, const char *value, struct err *err)
{
    load->want_value = false;
    const struct key *key = find(load->keys, load->count, load->name);
    if (key) {
        int *said_on = &load->said_on[key - load->keys];
        if (*said_on) {
            refuse(load->at, err, "%s is said a second time", load->name);
            return err_why(err, "it is on line %d already", *said_on);
        }
        *said_on = load->at.line;
    }
    return set_at(load->keys, load->count, load->object, NULL, load->name, value, load->at, err);
}

static bool on_scalar(struct yaml_load *load, const yaml_event_t *event, struct err *err)
{
    const char *text = (const char *)event->data.scalar.value;
    if (strlen(text) != event->data.scalar.length)
        return refuse(load->at, err, "a text has a zero byte in it");
    if (load->in_pair) {
        size_t used = strlen(load->pair);
        int wrote =
            snprintf(load->pair + used, sizeof load->pair - used, "%s%s", load->pair_items ? "," : "", text);
        if (wrote < 0 || (size_t)wrote >= sizeof load->pair - used || ++load->pair_items > 2)
            return refuse(load->at, err, "%s has more than a pair of numbers in it", load->name);
        return true;
    }
    if (load->depth == 0)
        return refuse(load->at, err, "this is a single text, not KEY: VALUE lines");
    if (!load->want_value)
        return take_key(load, text, err);
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    if (plain && (!*text || strcmp(text, "~") == 0 || strcmp(text, "null") == 0)) {
        refuse(load->at, err, "%s has no value", load->name);
        return err_hint(err, "leave the key out to have its default");
    }
    return take_value(load, text, err);
}

static bool on_mapping_start(struct yaml_load *load, struct err *err)
{
    if (load->in_pair || (load->depth > 0 && !load->want_value))
        return refuse(load->at, err, "a group of keys cannot stand here");
    if (load->depth > 0) {
        if (!is_group(load->keys, load->count, load->name)) {
            if (find(load->keys, load->count, load->name))
                return refuse(load->at, err, "%s is one value, not a group of keys", load->name);
            /* Propose the group where the group is what was misspelled. */
            char groups[KEYS_COUNT_MAX][KEYS_NAME_BYTES];
            const char *names[KEYS_COUNT_MAX] = {0};
            for (size_t i = 0; i < load->count; i++) {
                snprintf(groups[i], sizeof groups[i], "%.*s", (int)strcspn(load->keys[i].name, "."),
                         load->keys[i].name);
                names[i] = groups[i];
            }
            const char *nearest = err_nearest(load->name, names, load->count);
            refuse(load->at, err, "there is no group of keys \"%.*s\"", KEYS_VALUE_SEEN, load->name);
            return nearest ? err_hint(err, "did you mean \"%s\"?", nearest) : false;
        }
        if (load->depth == KEYS_DEPTH)
            return refuse(load->at, err, "keys are nested too deeply");
    }
    load->depth++;
    load->name_end[load->depth] = load->depth > 1 ? strlen(load->name) : 0;
    load->want_value = false;
    return true;
}

static bool on_sequence_start(struct yaml_load *load, struct err *err)
{
    const struct key *key = find(load->keys, load->count, load->name);
    if (load->in_pair || load->depth == 0 || !load->want_value)
        return refuse(load->at, err, "a list cannot stand here");
    if (!key && !is_group(load->keys, load->count, load->name))
        return refuse_unknown(load->keys, load->count, load->name, load->at, err);
    if (!key || key->type != KEY_PAIR)
        return refuse(load->at, err, "%s cannot be a list", load->name);
    load->in_pair = true;
    load->pair_items = 0;
    load->pair[0] = '\0';
    return true;
}

/* One event of libyaml's. Returns false with err, or when the document has ended (*ended). */
static bool on_event(struct yaml_load *load, const yaml_event_t *event, bool *ended, struct err *err)
{
    load->at.line = (int)event->start_mark.line + 1;
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        if (event->data.scalar.anchor)
            return refuse(load->at, err, "anchors (&name) are not taken here");
        return on_scalar(load, event, err);
    case YAML_MAPPING_START_EVENT:
        if (event->data.mapping_start.anchor)
            return refuse(load->at, err, "anchors (&name) are not taken here");
        return on_mapping_start(load, err);
    case YAML_MAPPING_END_EVENT:
        load->depth--;
        load->want_value = false;
        return true;
    case YAML_SEQUENCE_START_EVENT:
        return on_sequence_start(load, err);
    case YAML_SEQUENCE_END_EVENT:
        load->in_pair = false;
        return take_value(load, load->pair, err);
    case YAML_ALIAS_EVENT:
        return refuse(load->at, err, "aliases (*name) are not taken here");
    case YAML_DOCUMENT_START_EVENT:
        return load->documents++ == 0 || refuse(load->at, err, "a second document begins");
    case YAML_STREAM_END_EVENT:
        *ended = true;
        return true;
    case YAML_NO_EVENT:
    case YAML_STREAM_START_EVENT:
    case YAML_DOCUMENT_END_EVENT:
        return true;
    }
    return true;
}

bool keys_load_yaml(const struct key *keys, size_t count, void *object, int *lines, const char *origin,
                    const char *text, size_t bytes, struct err *err)
{
    INVARIANT(count <= KEYS_COUNT_MAX);
    struct yaml_load load = {.keys = keys, .count = count, .object = object, .at = {.origin = origin}};
    if (bytes > KEYS_TEXT_MAX)
        return refuse(load.at, err, "the text has %zu bytes, more than the %d that settings may have", bytes,
                      KEYS_TEXT_MAX);
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return err_set(err, ERR_MEMORY, "no memory to read %.200s", origin ? origin : "settings");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    bool good = true, ended = false;
    while (good && !ended) { /* every event takes at least a byte of the text, or ends it */
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            load.at.line =
                (int)(parser.problem_mark.line ? parser.problem_mark.line : parser.context_mark.line) + 1;
            good = refuse(load.at, err, "this is not YAML");
            err_why(err, "%s", parser.problem ? parser.problem : "it cannot be read");
            break;
        }
        good = on_event(&load, &event, &ended, err);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    if (lines)
        memcpy(lines, load.said_on, count * sizeof *lines);
    return good;
}

/* ---- printing ---- */

static void print_double(FILE *out, double value)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    fputs(text, out);
}

static void print_text(FILE *out, const char *text)
{
    putc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\x%02x", c);
        else
            putc(c, out);
    }
    putc('"', out);
}

static void print_value(FILE *out, const struct key *key, const void *object)
{
    const char *field = (const char *)object + key->offset;
    double pair[2];
    int64_t whole;
    int32_t index;
    const char *word = key->choices;
    switch (key->type) {
    case KEY_BOOL:
        fputs(*(const bool *)field ? "true" : "false", out);
        break;
    case KEY_INT:
        memcpy(&whole, field, sizeof whole);
        fprintf(out, "%" PRId64, whole);
        break;
    case KEY_DOUBLE:
        memcpy(pair, field, sizeof pair[0]);
        print_double(out, pair[0]);
        break;
    case KEY_STRING:
        print_text(out, field);
        break;
    case KEY_CHOICE:
        memcpy(&index, field, sizeof index);
        for (; index > 0 && strchr(word, '|'); index--)
            word = strchr(word, '|') + 1;
        fprintf(out, "%.*s", (int)strcspn(word, "|"), word);
        break;
    case KEY_PAIR:
        memcpy(pair, field, sizeof pair);
        putc('[', out);
        print_double(out, pair[0]);
        fputs(", ", out);
        print_double(out, pair[1]);
        putc(']', out);
        break;
    }
}

/* Opens the groups of name that the name before did not have; returns how deep the key itself is. */
static int print_groups(FILE *out, const char *before, const char *name)
{
    int depth = 0;
    bool shared = true;
    for (const char *dot; (dot = strchr(name, '.')); depth++) {
        size_t length = (size_t)(dot - name) + 1;
        shared = shared && strncmp(before, name, length) == 0;
        if (!shared)
            fprintf(out, "%*s%.*s:\n", 2 * depth, "", (int)length - 1, name);
        before += shared ? length : 0;
        name += length;
    }
    return depth;
}

char *keys_print_yaml(const struct key *keys, size_t count, const void *object, const bool *key_is_set)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return NULL;
    const char *before = "";
    for (size_t i = 0; i < count; i++) {
        if (key_is_set && !key_is_set[i])
            continue;
        int depth = print_groups(out, before, keys[i].name);
        const char *dot = strrchr(keys[i].name, '.');
        fprintf(out, "%*s%s: ", 2 * depth, "", dot ? dot + 1 : keys[i].name);
        print_value(out, &keys[i], object);
        putc('\n', out);
        before = keys[i].name;
    }
    bool failed = ferror(out);
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}

void keys_print_help(FILE *out, const struct key *keys, size_t count, const char *prefix)
{
    int width = 0;
    for (size_t i = 0; i < count; i++)
        if ((int)strlen(keys[i].name) > width)
            width = (int)strlen(keys[i].name);
    for (size_t i = 0; i < count; i++) {
        char wants[1200];
        fprintf(out, "  %s%-*s  %s\n", prefix, width, keys[i].name, keys[i].help);
        fprintf(out, "  %*s  %s\n", width + (int)strlen(prefix), "",
                type_wants(&keys[i], wants, sizeof wants));
    }
}
