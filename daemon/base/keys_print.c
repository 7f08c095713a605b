/* A key table's object as YAML, and its rows as help. */
#include "keys_inside.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
                keys_wants(&keys[i], wants, sizeof wants));
    }
}
