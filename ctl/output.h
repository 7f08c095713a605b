/* Tables, CSV and JSON, all from the same JSON values: a column says which field, its title, and how people
 * read it. CSV and JSON carry the plain value. Data go to stdout. */
#pragma once

#include "call.h"

enum column_kind {
    AS_TEXT,
    AS_INTEGER,
    AS_BYTES, /* 1.5 GB */
    AS_REAL,  /* 4 significant digits */
    AS_EXACT, /* 17 significant digits */
    AS_RATE,  /* 2 digits after the point where small: lr */
    AS_SECONDS
};

struct column {
    const char *field; /* dotted: "policy.name" */
    const char *title;
    enum column_kind kind;
    int width; /* at least; of rows that are printed as they come */
};

/* The whole value, one line. */
void output_json(const json_t *value);

/* Rows (an array of objects) as an aligned table or as CSV with a header; as JSON, `whole`. */
void output_rows(const struct call *call, const struct column *columns, int count, const json_t *rows,
                 const json_t *whole);
/* One object: a line a field, or CSV with one row; as JSON, the object. */
void output_object(const struct call *call, const struct column *columns, int count, const json_t *object);

/* Rows as they come: the header once, then each row at once; a JSON value a line. */
void output_stream_header(const struct call *call, const struct column *columns, int count);
void output_stream_row(const struct call *call, const struct column *columns, int count, const json_t *row);

/* The cell as people read it. Returns text. */
const char *output_cell(char *text, size_t text_bytes, const json_t *row, const struct column *column);
const char *output_bytes(char *text, size_t text_bytes, double bytes);
const char *output_duration(char *text, size_t text_bytes, double seconds);

/* cmd_optimizer.c: shared by the commands that name a policy. */
/* The policy's canonical text with --compute's type in it; "" stays "". compute NULL: not said. */
bool policy_with_compute(char text[LIMIT_NAME_BYTES], const char *policy, const char *compute,
                         struct err *err) MUST_USE;
void note_policy(const struct call *call, const char *policy,
                 double beta2); /* its warnings and notes, to stderr */
/* at_step 0: it was done already, or only looked at. */
void output_conversion(const struct call *call, const json_t *conversion, int64_t at_step);
