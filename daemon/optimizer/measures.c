/* Shares, quality and the alarm: see measures.h. */
#include "measures.h"

#include <math.h>
#include <string.h>

void measures_merge(struct update_measures *into, const struct update_measures *from)
{
    into->changing += from->changing;
    into->lost += from->lost;
    into->v_changing += from->v_changing;
    into->v_stalled += from->v_stalled;
    into->stored_exact += from->stored_exact;
    into->exact_exact += from->exact_exact;
}

double measures_lost_update_share(const struct update_measures *measures)
{
    return measures->changing == 0 ? 0.0 : (double)measures->lost / (double)measures->changing;
}

double measures_stalled_v_share(const struct update_measures *measures)
{
    return measures->v_changing == 0 ? 0.0 : (double)measures->v_stalled / (double)measures->v_changing;
}

double measures_update_quality(const struct update_measures *measures)
{
    if (measures->changing == 0)
        return 1.0;
    double quality = measures->stored_exact / measures->exact_exact;
    return isfinite(quality) ? quality : 0.0;
}

bool measures_frozen(const struct update_measures *measures)
{
    return measures->changing > 0 && measures->lost == measures->changing;
}

void alarm_reset(struct alarm *alarm)
{
    memset(alarm, 0, sizeof *alarm);
}

bool alarm_counts(double lr, double peak_lr)
{
    return lr > 0 &&
           lr >= ALARM_LR_SHARE * peak_lr * (1 - 1e-12); /* exactly 1 % counts, however it was formed */
}

/* Oldest first, so that the sum does not depend on where the ring stands. */
double alarm_mean(const struct alarm *alarm)
{
    if (alarm->counted == 0)
        return 1.0;
    double sum = 0;
    for (int32_t i = 0; i < alarm->counted; i++)
        sum += alarm->quality[(alarm->next - alarm->counted + i + ALARM_WINDOW) % ALARM_WINDOW];
    return sum / alarm->counted;
}

bool alarm_observe(struct alarm *alarm, double update_quality, double lr, double peak_lr)
{
    if (!alarm_counts(lr, peak_lr))
        return false;
    alarm->quality[alarm->next] = isfinite(update_quality) ? update_quality : 0.0;
    alarm->next = (alarm->next + 1) % ALARM_WINDOW;
    if (alarm->counted < ALARM_WINDOW)
        alarm->counted++;
    if (alarm->counted < ALARM_WINDOW)
        return false;
    double mean = alarm_mean(alarm);
    int32_t level = mean < ALARM_CRITICAL  ? ALARM_CRITICAL_LEVEL
                    : mean < ALARM_WARNING ? ALARM_WARNING_LEVEL
                                           : ALARM_NONE;
    bool changed = level != alarm->level;
    alarm->level = level;
    return changed;
}

const char *alarm_level_name(enum alarm_level level)
{
    static const char *const names[] = {"none", "warning", "critical"};
    return names[level];
}

void alarm_observe_tensors(uint8_t *still, const struct update_measures *tensors, int32_t tensor_count)
{
    for (int32_t i = 0; i < tensor_count; i++) {
        if (!measures_frozen(&tensors[i]))
            still[i] = 0;
        else if (still[i] < ALARM_WINDOW)
            still[i]++;
    }
}
