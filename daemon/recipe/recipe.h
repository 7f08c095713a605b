/* A recipe: what `trainctl train` and `trainerd --run` are told about a run (contract section 5).
 *
 * Plain data without pointers, so that it travels in a command as it is. Everything comes from one key table,
 * which gives parsing, overrides, help and printing. A recipe that parsed has been checked. */
#pragma once

#include "bounds.h"
#include "err.h"
#include "keys.h"
#include "optimizer_settings.h"
#include "schedule.h"

#include <stdint.h>
#include <stdio.h>

#define RECIPE_TEXT_BYTES (1 << 20) /* of a recipe file */

enum recipe_decay { RECIPE_DECAY_MATRICES, RECIPE_DECAY_ALL }; /* matrices|all */
enum recipe_loss { RECIPE_LOSS_CROSS_ENTROPY };                /* cross_entropy */

struct recipe_optimizer {
    char policy[LIMIT_NAME_BYTES]; /* "": the daemon's current one */
    double lr;
    double betas[2];
    double eps;
    double weight_decay;
    int32_t decay; /* enum recipe_decay */
    double clip;   /* 0: off */
};

struct recipe {
    char data[LIMIT_PATH_BYTES];
    char order[LIMIT_NAME_BYTES]; /* as written: "sorted", "shuffled", "shuffled(7)" */
    int64_t epochs;               /* -1: not said; exactly one of epochs and steps is >= 0 */
    int64_t steps;                /* -1: not said */
    int64_t global_batch;         /* sequences an update */
    int64_t micro_batch;          /* sequences; -1: max_tokens packs */
    int64_t max_tokens;           /* tokens a micro-batch; -1: micro_batch counts */
    int64_t cutoff;               /* tokens a sequence; -1: the dataset's */
    bool drop_last;
    struct recipe_optimizer optimizer;
    struct schedule_settings schedule; /* negative: not said, as there */
    int32_t loss;                      /* enum recipe_loss */
    struct {
        int64_t every, keep; /* updates (0: only at the end); checkpoints kept */
    } checkpoint;
    struct {
        char data[LIMIT_PATH_BYTES]; /* "": none */
        int64_t every;               /* updates; 0: only at the end */
    } evaluate;
};

void recipe_init(struct recipe *recipe); /* the defaults, which recipe_help prints */

/* YAML text (NULL: none), then overrides "key=value" on top. An override of epochs replaces the text's steps,
 * and so on for the other pairs of which one may be said. origin names the text in errors ("recipe.yaml"),
 * which say the line, the key and the nearest right name. */
bool recipe_parse(struct recipe *recipe, const char *origin, const char *text, size_t bytes,
                  const char *const *overrides, size_t override_count, struct err *err) MUST_USE;
/* The same, but data, epochs and steps may be missing: a schedule can be looked at before there are data. */
bool recipe_parse_part(struct recipe *recipe, const char *origin, const char *text, size_t bytes,
                       const char *const *overrides, size_t override_count, struct err *err) MUST_USE;

/* Contradictions and impossible values, with the sentence. recipe_parse has called it; recipes from a socket
 * have not been parsed here and must be checked by the receiver. Terminates every string. */
bool recipe_check(struct recipe *recipe, struct err *err) MUST_USE;

/* What `order` says. recipe_check accepted it. */
bool recipe_is_shuffled(const struct recipe *recipe, uint64_t *seed);

/* The optimizer's part as the engine takes it. */
struct optimizer_settings recipe_optimizer_settings(const struct recipe *recipe);

/* data and evaluate.data made absolute: those that are not are taken from folder. */
bool recipe_paths_absolute(struct recipe *recipe, const char *folder, struct err *err) MUST_USE;

char *recipe_print(
    const struct recipe *recipe); /* YAML that parses to the same recipe; malloc'ed; NULL: no memory */
void recipe_help(FILE *out);      /* the keys, their meanings and defaults */

const struct key *recipe_keys(size_t *count); /* for flags and completion */
