/* What `trainctl data prepare` and `trainctl data show` do, without a daemon. Results are JSON objects of the
 * caller's (json_decref); the command layer prints them, or data_show_print does for people.
 *
 * Inputs, told apart by their names:
 * - *.jsonl, *.ndjson, *.json: one JSON object a line. {"messages": [{"role": …, "content": …}, …]} is a
 * chat, one row; {"text": …} is a document. Other fields may be there; --sort-by names one of them.
 * - anything else: a text file, one document.
 *
 * A document is trained on whole, ends in <|endoftext|>, and is cut into rows of `cutoff` tokens. A chat is
 * trained on what the assistant says; one longer than the cutoff loses its end, one with nothing trained
 * within it is left out. */
#pragma once

#include "err.h"

#include <signal.h>
#include <stdint.h>
#include <stdio.h>

struct json_t; /* jansson's */

#define DATA_PREPARE_CUTOFF_CHAT 32768 /* tokens: when there is a chat among the files */
#define DATA_PREPARE_CUTOFF_TEXT 1024  /* tokens: when there are only documents */

struct data_prepare_options {
    const char *const *files; /* read in this order, streaming */
    size_t file_count;
    const char *output;  /* the folder; it appears whole or not at all */
    const char *sort_by; /* a field of every JSON line, a text or a number; NULL: the order they come in */
    int64_t cutoff;      /* tokens a row; -1: one of the above */
    bool overwrite;      /* replace a dataset that has the folder's name */
    FILE *progress;      /* one line, redrawn and removed at the end; NULL: none (not a terminal, -q) */
    const volatile sig_atomic_t *stop; /* becomes non-zero: give up, leaving nothing; may be NULL */
};

/* The dataset's statistics (the fields of data_show's, without samples). Bad lines are refused with
 * file:line. */
bool data_prepare(const struct data_prepare_options *options, struct json_t **result,
                  struct err *err) MUST_USE;

struct data_show_options {
    int64_t first;  /* row */
    int64_t count;  /* rows; fewer at the end */
    int64_t tokens; /* of a row shown at most; -1: all */
};

/* {folder, tokenizer, vocabulary, sort_key, cutoff, rows, tokens, labelled_tokens, labelled_share, cut,
 * dropped, longest, length_p5 … length_p95, hash, samples: [{row, tokens, labelled_tokens, shown, pieces:
 * [{text, trained}]}]} */
bool data_show(const char *folder, const struct data_show_options *options, struct json_t **result,
               struct err *err) MUST_USE;

/* data_show's or data_prepare's result for people: trained parts in colour, or between ⟦ and ⟧. */
void data_show_print(FILE *out, const struct json_t *result, bool colour);
