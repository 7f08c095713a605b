/* Named settings as a table: a row says name, type, where it lives in a plain struct, its bounds and its
 * help; parsing of YAML files, flags and the environment, nearest-name hints, `--help` and printing all fall
 * out of the rows.
 *
 * Nested YAML mappings become dotted names ("optimizer.lr"). Errors name the line, the key and the nearest
 * right name. JSON is a subset of YAML, so the same call reads both. */
#pragma once

#include "err.h"

#include <stdint.h>
#include <stdio.h>

enum key_type {
    KEY_BOOL,   /* bool */
    KEY_INT,    /* int64_t, min … max */
    KEY_DOUBLE, /* double, min … max */
    KEY_STRING, /* char[size] */
    KEY_CHOICE, /* int32_t: the index in choices */
    KEY_PAIR,   /* double[2], YAML [a, b], flag a,b */
};

struct key {
    const char *name; /* dotted: "optimizer.betas" */
    enum key_type type;
    size_t offset, size; /* in the struct; size for KEY_STRING */
    double min, max;     /* for numbers, inclusive; both the same: any finite number */
    const char *choices; /* "sorted|shuffled" */
    const char *help;    /* one line, with the unit and the default */
};

/* Sets one key from text. key_is_set, if given, has one bool a row and records what was said. line 0: no line
 * known. */
bool keys_set(const struct key *keys, size_t count, void *object, bool *key_is_set, const char *name,
              const char *value, int line, struct err *err) MUST_USE;

/* Every scalar (or pair) of a YAML document. origin names the text in errors ("recipe.yaml"). lines, if
 * given, has one int a row and gets the line on which each was said, 0 where it was not: for errors that only
 * the whole shows. */
bool keys_load_yaml(const struct key *keys, size_t count, void *object, int *lines, const char *origin,
                    const char *text, size_t bytes, struct err *err) MUST_USE;

/* The object as YAML, only rows set where key_is_set is given; doubles round-trip. malloc'ed. */
char *keys_print_yaml(const struct key *keys, size_t count, const void *object, const bool *key_is_set);

void keys_print_help(FILE *out, const struct key *keys, size_t count, const char *prefix);
