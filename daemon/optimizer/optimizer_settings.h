/* The hyperparameters of AdamW, as a recipe or a command states them: plain data, in double. They are rounded
 * to fp32 once a step, when the update's scalars are formed (optimizer.c), and never stored in anything
 * narrower. */
#pragma once

#include "err.h"
#include "keys.h"

#include <stdbool.h>
#include <stddef.h>

struct optimizer_settings {
    double lr;           /* the peak; an update uses lr * f(k), see schedule.h */
    double beta1, beta2; /* in [0, 1) */
    double eps;          /* > 0, added after sqrt(v)/sqrt(bc2) */
    double weight_decay; /* decoupled; W is multiplied by 1 - lr*f(k)*weight_decay */
    bool decay_all; /* decay every tensor; else only those of two or more dimensions (`decay: matrices`) */
    double clip;    /* the largest gradient norm; 0 turns clipping off, the norm is reported all the same */
};

/* lr 1e-4, betas .9 .999, eps 1e-8, decay .01 of matrices, clip 1: the seed's. */
struct optimizer_settings optimizer_settings_default(void);

/* Refuses what is impossible (ERR_INVALID), naming the field and its range. */
bool optimizer_settings_check(const struct optimizer_settings *settings, struct err *err) MUST_USE;

/* min(1, clip / (norm + 1e-6)), or 1 when clip is 0. norm is of the normalized gradient. */
double optimizer_clip_coefficient(const struct optimizer_settings *settings, double norm);

/* The settings as a key table over struct optimizer_settings, for the flags of set-optimizer: lr, beta1,
 * beta2, eps, weight_decay, decay_all, clip. This order numbers the bits of command.h's settings_set. */
const struct key *optimizer_keys(size_t *count);
