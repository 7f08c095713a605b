/* What the files of the key tables share. Private to this folder. */
#pragma once

#include "keys.h"

#define KEYS_COUNT_MAX  256 /* rows of a table */
#define KEYS_VALUE_SEEN 48  /* bytes of a wrong value that an error repeats */

struct place {          /* where a value was said */
    const char *origin; /* NULL: not from a file */
    int line;           /* 0: no line known */
};

/* Refuses with the place in front; the sentence is what was wrong. */
bool keys_refuse(struct place at, struct err *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

bool keys_refuse_unknown(const struct key *keys, size_t count, const char *name, struct place at,
                         struct err *err); /* with the nearest right name */

/* What a row takes, in words: "a number from 0 to 1". Returns text. */
const char *keys_wants(const struct key *key, char *text, size_t bytes);

const struct key *keys_find(const struct key *keys, size_t count, const char *name); /* NULL: no such row */
bool keys_is_group(const struct key *keys, size_t count,
                   const char *name); /* "optimizer" of "optimizer.lr" */

/* keys_set, at a place. */
bool keys_set_at(const struct key *keys, size_t count, void *object, bool *key_is_set, const char *name,
                 const char *value, struct place at, struct err *err) MUST_USE;
