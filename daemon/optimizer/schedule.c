/* f(k) from absolute steps: see schedule.h for the formulas. */
#include "schedule.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define PI 3.14159265358979323846

static const char *const kind_names[] = {
#define X(kind, name) name,
    SCHEDULE_KINDS(X)
#undef X
};

const char *schedule_kind_name(enum schedule_kind kind)
{
    return kind_names[kind];
}

bool schedule_kind_parse(enum schedule_kind *kind, const char *name, struct err *err)
{
    for (int i = 0; i < SCHEDULE_KIND_COUNT; i++)
        if (strcmp(name, kind_names[i]) == 0) {
            *kind = (enum schedule_kind)i;
            return true;
        }
    err_set(err, ERR_INVALID, "there is no schedule '%.64s'", name);
    err_why(err, "schedules are cosine, linear, constant and wsd");
    const char *nearest = err_nearest(name, kind_names, SCHEDULE_KIND_COUNT);
    return nearest ? err_hint(err, "did you mean '%s'?", nearest) : false;
}

struct schedule_settings schedule_settings_default(void)
{
    return (struct schedule_settings){.kind = SCHEDULE_COSINE,
                                      .warmup_ratio = -1,
                                      .warmup_steps = -1,
                                      .warmup_init = -1,
                                      .min_lr = -1,
                                      .decay_steps = -1,
                                      .wsd_decay = -1};
}

static bool resolve_warmup(int64_t *warmup, const struct schedule_settings *s, int64_t steps, struct err *err)
{
    *warmup = s->warmup_steps > 0 ? s->warmup_steps : 0;
    if (!(s->warmup_ratio < 0)) {
        if (!(s->warmup_ratio <= 1)) {
            err_set(err, ERR_INVALID, "a warm-up ratio of %g is not possible", s->warmup_ratio);
            return err_why(err, "it is a share of the %" PRId64 " steps, 0 … 1", steps);
        }
        int64_t from_ratio = (int64_t)ceil(s->warmup_ratio * (double)steps);
        if (s->warmup_steps >= 0 && s->warmup_steps != from_ratio) {
            err_set(err, ERR_INVALID, "the warm-up is stated twice, and differently");
            err_why(err, "warmup_ratio gives %" PRId64 " steps, warmup_steps says %" PRId64, from_ratio,
                    s->warmup_steps);
            return err_hint(err, "say one of the two");
        }
        *warmup = from_ratio;
    }
    if (*warmup > steps) {
        err_set(err, ERR_INVALID, "the warm-up of %" PRId64 " steps is longer than the run", *warmup);
        err_why(err, "the run has %" PRId64 " steps, so its peak would never be reached", steps);
        return err_hint(err, "shorten the warm-up, or give the run more steps");
    }
    return true;
}

static bool resolve_decay(struct schedule *schedule, const struct schedule_settings *s, struct err *err)
{
    bool decays = s->kind == SCHEDULE_COSINE || s->kind == SCHEDULE_LINEAR, wsd = s->kind == SCHEDULE_WSD;
    const char *kind = kind_names[s->kind];
    if (s->decay_steps >= 0 && !decays) {
        err_set(err, ERR_INVALID, "decay_steps means nothing under a %s schedule", kind);
        err_why(err, "it is the absolute step at which cosine and linear reach min_lr");
        return wsd ? err_hint(err, "wsd_decay states the length of the last part") : false;
    }
    if (s->decay_steps >= 0 && (s->decay_steps < schedule->warmup || s->decay_steps == 0)) {
        err_set(err, ERR_INVALID, "decay_steps %" PRId64 " ends before the warm-up of %" PRId64 " steps does",
                s->decay_steps, schedule->warmup);
        err_why(
            err,
            "decay_steps is an absolute step, counted from the run's start, and at least the warm-up's end");
        return err_hint(err, "leave it out to decay until the last step, %" PRId64, schedule->steps);
    }
    if (s->decay_steps >= 0)
        schedule->decay_end = s->decay_steps;
    if (wsd != (s->wsd_decay >= 0)) {
        err_set(err, ERR_INVALID,
                wsd ? "a wsd schedule needs wsd_decay" : "wsd_decay means nothing under a %s schedule", kind);
        return err_why(err, "wsd is stable, then decays over the last wsd_decay steps");
    }
    if (!wsd)
        return true;
    schedule->wsd_decay = s->wsd_decay;
    if (s->wsd_decay > schedule->steps - schedule->warmup) {
        err_set(err, ERR_INVALID, "warm-up and decay overlap");
        return err_why(err, "%" PRId64 " + %" PRId64 " steps do not fit into %" PRId64, schedule->warmup,
                       s->wsd_decay, schedule->steps);
    }
    return true;
}

bool schedule_resolve(struct schedule *schedule, const struct schedule_settings *settings, double lr,
                      int64_t steps, struct err *err)
{
    struct schedule s = {.kind = settings->kind,
                         .lr = lr,
                         .steps = steps,
                         .warmup_init = settings->warmup_init < 0 ? 0 : settings->warmup_init,
                         .min_lr = settings->min_lr < 0 ? 0 : settings->min_lr,
                         .decay_end = steps};
    if ((unsigned)settings->kind >= SCHEDULE_KIND_COUNT)
        return err_set(err, ERR_INVALID, "there is no schedule with number %d", (int)settings->kind);
    if (!(lr > 0) || !isfinite(lr))
        return err_set(err, ERR_INVALID, "a peak learning rate of %g is not possible", lr);
    if (steps < 1)
        return err_set(err, ERR_INVALID, "a schedule over %" PRId64 " steps is not possible", steps);
    if (!resolve_warmup(&s.warmup, settings, steps, err) || !resolve_decay(&s, settings, err))
        return false;
    if (!(s.warmup_init <= 1)) {
        err_set(err, ERR_INVALID, "a warm-up from %g is not possible", s.warmup_init);
        return err_why(err, "it is the first factor of the peak, 0 … 1");
    }
    if (!(s.min_lr <= lr)) {
        err_set(err, ERR_INVALID, "min_lr %g is above the peak %g", s.min_lr, lr);
        return err_why(err, "min_lr is absolute, not a factor");
    }
    if (s.kind == SCHEDULE_CONSTANT && s.min_lr > 0) {
        err_set(err, ERR_INVALID, "min_lr means nothing under a constant schedule");
        return err_hint(err, "choose cosine, linear or wsd to go down to it");
    }
    *schedule = s;
    return true;
}

struct schedule_settings schedule_settings_of(const struct schedule *s)
{
    struct schedule_settings said = schedule_settings_default();
    bool decays = s->kind == SCHEDULE_COSINE || s->kind == SCHEDULE_LINEAR;
    said.kind = s->kind;
    said.warmup_steps = s->warmup;
    said.warmup_init = s->warmup_init;
    said.min_lr = s->min_lr;
    said.decay_steps = decays && s->decay_end != s->steps ? s->decay_end : -1;
    said.wsd_decay = s->kind == SCHEDULE_WSD ? s->wsd_decay : -1;
    return said;
}

double schedule_multiplier(const struct schedule *s, int64_t k)
{
    double low = s->min_lr / s->lr, end = (double)s->decay_end, warmup = (double)s->warmup, at = (double)k;
    if (k < s->warmup)
        return s->warmup_init + (1 - s->warmup_init) * (at / warmup);
    switch (s->kind) {
    case SCHEDULE_COSINE:
        return k >= s->decay_end ? low
                                 : low + (1 - low) * (0.5 * (1 + cos(PI * ((at - warmup) / (end - warmup)))));
    case SCHEDULE_LINEAR:
        return k >= s->decay_end ? low : low + (1 - low) * ((end - at) / (end - warmup));
    case SCHEDULE_WSD:
        if (k >= s->steps)
            return low;
        return k < s->steps - s->wsd_decay
                   ? 1
                   : low + (1 - low) * (((double)s->steps - at) / (double)s->wsd_decay);
    case SCHEDULE_CONSTANT:
    case SCHEDULE_KIND_COUNT:
        break;
    }
    return 1;
}

double schedule_lr(const struct schedule *schedule, int64_t k)
{
    return schedule->lr * schedule_multiplier(schedule, k);
}

const char *schedule_note(const struct schedule *s, char *text, size_t text_bytes)
{
    int length = 0;
    text[0] = '\0';
    if (schedule_multiplier(s, 0) == 0)
        length =
            snprintf(text, text_bytes, "the first update has learning rate 0: it only fills the moments");
    if (length < 0 || (size_t)length >= text_bytes || s->kind == SCHEDULE_CONSTANT || s->kind == SCHEDULE_WSD)
        return text;
    const char *separator = length > 0 ? "; " : "";
    if (s->decay_end < s->steps)
        snprintf(text + length, text_bytes - (size_t)length,
                 "%sthe decay ends at step %" PRId64 ", the run at %" PRId64 ": the last steps train at %g",
                 separator, s->decay_end, s->steps, s->min_lr);
    else if (s->decay_end > s->steps)
        snprintf(text + length, text_bytes - (size_t)length,
                 "%sthe run ends at step %" PRId64 ", before the decay does at %" PRId64, separator, s->steps,
                 s->decay_end);
    return text;
}
