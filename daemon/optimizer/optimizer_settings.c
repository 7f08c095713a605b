/* Defaults and checks of AdamW's hyperparameters. */
#include "optimizer_settings.h"

#include <math.h>

/* Keeps clip's quotient finite at a norm of 0, as torch and Megatron do. */
#define CLIP_EPSILON 1e-6

static const struct key keys[] = {
#define ROW(field, key_kind, low, high, text)                                                                \
    {                                                                                                        \
        .name = #field, .type = key_kind, .offset = offsetof(struct optimizer_settings, field),              \
        .size = sizeof((struct optimizer_settings *)0)->field, .min = low, .max = high, .help = text         \
    }
    ROW(lr, KEY_DOUBLE, 0, 1e6, "peak learning rate (1e-4)"),
    ROW(beta1, KEY_DOUBLE, 0, 1 - 0x1p-24, "decay of the first moment (0.9)"),
    ROW(beta2, KEY_DOUBLE, 0, 1 - 0x1p-24, "decay of the second moment (0.999)"),
    ROW(eps, KEY_DOUBLE, 1e-38, 1, "added to the root of the second moment (1e-8)"),
    ROW(weight_decay, KEY_DOUBLE, 0, 1e6, "decoupled weight decay (0.01)"),
    ROW(decay_all, KEY_BOOL, 0, 1, "decay every tensor, not only those of two or more dimensions (no)"),
    ROW(clip, KEY_DOUBLE, 0, 1e30, "largest gradient norm; 0 turns clipping off (1)"),
#undef ROW
};

const struct key *optimizer_keys(size_t *count)
{
    *count = sizeof keys / sizeof *keys;
    return keys;
}

struct optimizer_settings optimizer_settings_default(void)
{
    return (struct optimizer_settings){.lr = 1e-4,
                                       .beta1 = 0.9,
                                       .beta2 = 0.999,
                                       .eps = 1e-8,
                                       .weight_decay = 0.01,
                                       .decay_all = false,
                                       .clip = 1.0};
}

bool optimizer_settings_check(const struct optimizer_settings *settings, struct err *err)
{
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (keys[i].type != KEY_DOUBLE)
            continue;
        double value = *(const double *)(const void *)((const char *)settings + keys[i].offset);
        if (value >= keys[i].min && value <= keys[i].max) /* false for a NaN */
            continue;
        err_set(err, ERR_INVALID, "%s = %g is not possible", keys[i].name, value);
        err_why(err, "it must lie in %.9g … %.9g", keys[i].min, keys[i].max);
        return err_hint(err, "%s", keys[i].help);
    }
    return true;
}

double optimizer_clip_coefficient(const struct optimizer_settings *settings, double norm)
{
    if (settings->clip == 0)
        return 1.0;
    return fmin(1.0, settings->clip / (norm + CLIP_EPSILON));
}
