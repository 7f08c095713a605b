/* Learning-rate schedules, stated in absolute steps (contract, section 2): the update made after k finished
 * ones uses lr * f(k), k = 0 … N-1. Nothing here is ever derived by subtracting the warm-up from something
 * else.
 *
 *   warm-up   f = init + (1-init) k/W                              for k < W
 *   cosine    f = min + (1-min) (1 + cos(pi (k-W)/(E-W)))/2        for W <= k < E, then min
 *   linear    f = min + (1-min) (E-k)/(E-W)                        for W <= k < E, then min
 *   wsd       f = 1 until N-D, then min + (1-min) (N-k)/D          for N-D <= k < N, then min
 *   constant  f = 1
 *
 * with min = min_lr/lr and E = decay_steps, N unless said otherwise. All in double. Pure: trainctl uses it as
 * it is. */
#pragma once

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In the order of the recipe's key (recipe.h). */
// clang-format off
#define SCHEDULE_KINDS(X)                                                                                    \
    X(SCHEDULE_CONSTANT, "constant")                                                                         \
    X(SCHEDULE_LINEAR, "linear")                                                                             \
    X(SCHEDULE_COSINE, "cosine")                                                                             \
    X(SCHEDULE_WSD, "wsd")
// clang-format on

enum schedule_kind {
#define X(kind, name) kind,
    SCHEDULE_KINDS(X)
#undef X
        SCHEDULE_KIND_COUNT
};

/* As stated by a recipe or a command; negative means "not given". */
struct schedule_settings {
    enum schedule_kind kind;
    double warmup_ratio;  /* W = ceil(ratio * N), the product in double, as transformers forms it */
    int64_t warmup_steps; /* or W itself; both, and different, is refused */
    double warmup_init;   /* f(0) of a warm-up; 0 when not given: the first update then has lr 0 */
    double min_lr;        /* absolute; 0 when not given */
    int64_t decay_steps;  /* cosine, linear: E, absolute, at least W; N when not given */
    int64_t wsd_decay;    /* wsd: D; needed there, refused elsewhere */
};

/* Resolved and checked: plain data, goes into checkpoints and events. */
struct schedule {
    enum schedule_kind kind;
    double lr;      /* the peak */
    int64_t steps;  /* N */
    int64_t warmup; /* W */
    double warmup_init;
    double min_lr;
    int64_t decay_end; /* E (cosine, linear); N for the others */
    int64_t wsd_decay; /* D (wsd); 0 for the others */
};

struct schedule_settings schedule_settings_default(void); /* cosine to 0, no warm-up */

/* lr > 0 is the peak, steps >= 1 is N. ERR_INVALID for what is impossible or ambiguous. */
bool schedule_resolve(struct schedule *schedule, const struct schedule_settings *settings, double lr,
                      int64_t steps, struct err *err) MUST_USE;

/* As a recipe would state it, in absolute steps: resolved again with the same lr and N it is the same. */
struct schedule_settings schedule_settings_of(const struct schedule *schedule);

double schedule_multiplier(const struct schedule *schedule, int64_t k); /* f(k), k >= 0; constant from N on */
double schedule_lr(const struct schedule *schedule, int64_t k);         /* lr * f(k) */

/* What a user should know before it runs (a first update at lr 0, a decay that ends early or late), or "". */
const char *schedule_note(const struct schedule *schedule, char *text, size_t text_bytes);

const char *schedule_kind_name(enum schedule_kind kind);
bool schedule_kind_parse(enum schedule_kind *kind, const char *name, struct err *err) MUST_USE;
