/* compare: one recipe from one checkpoint under several policies, and the daemon left as it was.
 *
 * A loop over what the daemon offers to every client: save, then for each policy load (converting), train,
 * read the run's history; at the end load again, also after an interruption or a failure, and delete what it
 * saved. */
#pragma once

#include "client.h"

#include <jansson.h>
#include <signal.h>

struct compare {
    struct client *client;
    const char *recipe, *recipe_name; /* its text with absolute paths; what to call it in errors */
    const char *const *policies;
    int policy_count;
    const volatile sig_atomic_t *stopped; /* non-zero: the user wants out; NULL: never */
    FILE *progress;                       /* NULL: say nothing */
};

/* rows: an array as in contract section 6, the caller's; also after an error (ERR_RUN when stopped or when a
 * run ended short of its target) with the rows of the runs that were whole. The daemon is restored before it
 * returns, or err says that it could not be, and the name of the checkpoint to load by hand. */
bool compare_run(const struct compare *compare, json_t **rows, struct err *err) MUST_USE;

/* table.json, table.csv, table.png, table.svg in a folder, made where it is missing. */
bool compare_write(const json_t *rows, const char *folder, struct err *err) MUST_USE;
