/* YAML into a key table's object: a stream of libyaml's events, never a tree. Depth and size are bounded by
 * ours, aliases and anchors are refused as they come (so nothing can be multiplied), and every value knows
 * its line. */
#include "keys_inside.h"

#include <stdio.h>
#include <string.h>
#include <yaml.h>

#define KEYS_TEXT_MAX   (4 << 20) /* a document */
#define KEYS_NAME_BYTES 128       /* a dotted name */
#define KEYS_DEPTH      4         /* nested groups */

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
        return keys_refuse(load->at, err, "the key \"%.*s…\" is too long", KEYS_VALUE_SEEN, text);
    if (!*text || strchr(text, '\n'))
        return keys_refuse(load->at, err, "a key is empty or has a line end in it");
    load->want_value = true;
    return true;
}

static bool take_value(struct yaml_load *load, const char *value, struct err *err)
{
    load->want_value = false;
    const struct key *key = keys_find(load->keys, load->count, load->name);
    if (key) {
        int *said_on = &load->said_on[key - load->keys];
        if (*said_on) {
            keys_refuse(load->at, err, "%s is said a second time", load->name);
            return err_why(err, "it is on line %d already", *said_on);
        }
        *said_on = load->at.line;
    }
    return keys_set_at(load->keys, load->count, load->object, NULL, load->name, value, load->at, err);
}

static bool on_scalar(struct yaml_load *load, const yaml_event_t *event, struct err *err)
{
    const char *text = (const char *)event->data.scalar.value;
    if (strlen(text) != event->data.scalar.length)
        return keys_refuse(load->at, err, "a text has a zero byte in it");
    if (load->in_pair) {
        size_t used = strlen(load->pair);
        int wrote =
            snprintf(load->pair + used, sizeof load->pair - used, "%s%s", load->pair_items ? "," : "", text);
        if (wrote < 0 || (size_t)wrote >= sizeof load->pair - used || ++load->pair_items > 2)
            return keys_refuse(load->at, err, "%s has more than a pair of numbers in it", load->name);
        return true;
    }
    if (load->depth == 0)
        return keys_refuse(load->at, err, "this is a single text, not KEY: VALUE lines");
    if (!load->want_value)
        return take_key(load, text, err);
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    if (plain && (!*text || strcmp(text, "~") == 0 || strcmp(text, "null") == 0)) {
        keys_refuse(load->at, err, "%s has no value", load->name);
        return err_hint(err, "leave the key out to have its default");
    }
    return take_value(load, text, err);
}

static bool on_mapping_start(struct yaml_load *load, struct err *err)
{
    if (load->in_pair || (load->depth > 0 && !load->want_value))
        return keys_refuse(load->at, err, "a group of keys cannot stand here");
    if (load->depth > 0) {
        if (!keys_is_group(load->keys, load->count, load->name)) {
            if (keys_find(load->keys, load->count, load->name))
                return keys_refuse(load->at, err, "%s is one value, not a group of keys", load->name);
            /* Propose the group where the group is what was misspelled. */
            char groups[KEYS_COUNT_MAX][KEYS_NAME_BYTES];
            const char *names[KEYS_COUNT_MAX] = {0};
            for (size_t i = 0; i < load->count; i++) {
                snprintf(groups[i], sizeof groups[i], "%.*s", (int)strcspn(load->keys[i].name, "."),
                         load->keys[i].name);
                names[i] = groups[i];
            }
            const char *nearest = err_nearest(load->name, names, load->count);
            keys_refuse(load->at, err, "there is no group of keys \"%.*s\"", KEYS_VALUE_SEEN, load->name);
            return nearest ? err_hint(err, "did you mean \"%s\"?", nearest) : false;
        }
        if (load->depth == KEYS_DEPTH)
            return keys_refuse(load->at, err, "keys are nested too deeply");
    }
    load->depth++;
    load->name_end[load->depth] = load->depth > 1 ? strlen(load->name) : 0;
    load->want_value = false;
    return true;
}

static bool on_sequence_start(struct yaml_load *load, struct err *err)
{
    const struct key *key = keys_find(load->keys, load->count, load->name);
    if (load->in_pair || load->depth == 0 || !load->want_value)
        return keys_refuse(load->at, err, "a list cannot stand here");
    if (!key && !keys_is_group(load->keys, load->count, load->name))
        return keys_refuse_unknown(load->keys, load->count, load->name, load->at, err);
    if (!key || key->type != KEY_PAIR)
        return keys_refuse(load->at, err, "%s cannot be a list", load->name);
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
            return keys_refuse(load->at, err, "anchors (&name) are not taken here");
        return on_scalar(load, event, err);
    case YAML_MAPPING_START_EVENT:
        if (event->data.mapping_start.anchor)
            return keys_refuse(load->at, err, "anchors (&name) are not taken here");
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
        return keys_refuse(load->at, err, "aliases (*name) are not taken here");
    case YAML_DOCUMENT_START_EVENT:
        return load->documents++ == 0 || keys_refuse(load->at, err, "a second document begins");
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
        return keys_refuse(load.at, err, "the text has %zu bytes, more than the %d that settings may have",
                           bytes, KEYS_TEXT_MAX);
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
            good = keys_refuse(load.at, err, "this is not YAML");
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
