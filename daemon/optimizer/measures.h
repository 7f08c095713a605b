/* Precision loss, measured while it happens: what the update kernel counted, turned into the three figures of
 * the contract (section 1), and the alarm on update_quality. Plain data and pure functions; the alarm goes
 * into checkpoints. */
#pragma once

#include "state.h"

#include <stdbool.h>
#include <stdint.h>

/* Adds from to into. Merge in a fixed order (tensors in table order, ranks in rank order): the sums are in
 * double. */
void measures_merge(struct update_measures *into, const struct update_measures *from);

/* With nothing to count the shares are 0 and the quality is 1. A quality that is no finite number counts as
 * 0. */
double measures_lost_update_share(const struct update_measures *measures);
double measures_stalled_v_share(const struct update_measures *measures);
double measures_update_quality(const struct update_measures *measures);

/* The update wanted to change something in this tensor, and no value read changed. */
bool measures_frozen(const struct update_measures *measures);

enum { ALARM_WINDOW = 10 }; /* counted updates */
#define ALARM_LR_SHARE 0.01 /* an update counts when its lr is at least this share of the run's peak */
#define ALARM_WARNING  0.95 /* the mean quality of the window under which there is a warning … */
#define ALARM_CRITICAL 0.5  /* … and under which it is critical */

enum alarm_level { ALARM_NONE, ALARM_WARNING_LEVEL, ALARM_CRITICAL_LEVEL };

struct alarm {
    double quality[ALARM_WINDOW]; /* a ring of the last counted updates */
    int32_t counted;              /* how many of them are filled */
    int32_t next;                 /* where the next one goes */
    int32_t level;                /* enum alarm_level */
    int32_t reserved;             /* zero: the struct has no padding, so equal states are equal bytes */
};

void alarm_reset(struct alarm *alarm); /* at the start of a run */

/* After every applied update. lr is this update's, peak_lr the run's. Returns true when the level changed.
 * No level is raised before ten updates have been counted. */
bool alarm_observe(struct alarm *alarm, double update_quality, double lr, double peak_lr);
double alarm_mean(const struct alarm *alarm);         /* of the window; 1 when it is empty */
const char *alarm_level_name(enum alarm_level level); /* "none", "warning", "critical" */

/* Which tensors stand still: still[i] counts, up to ALARM_WINDOW, the counted updates in a row in which
 * tensor i was frozen. Call it when alarm_counts says that the update counts, with the measures merged over
 * all ranks. */
bool alarm_counts(double lr, double peak_lr);
void alarm_observe_tensors(uint8_t *still, const struct update_measures *tensors, int32_t tensor_count);
static inline bool alarm_names_tensor(uint8_t still)
{
    return still >= ALARM_WINDOW;
}
