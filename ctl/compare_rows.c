#include "compare_rows.h"

#include <math.h>
#include <string.h>

/* The columns people see. */
static const struct {
    const char *field;
    int decimals;
} columns[] = {
    {"bytes_per_parameter", 3}, {"final_loss", 5},      {"last_loss", 5},      {"ratio", 2},
    {"lost_update_share", 3},   {"stalled_v_share", 3}, {"update_quality", 3},
};
#define COLUMNS (sizeof columns / sizeof columns[0])

static double number(const json_t *object, const char *field)
{
    const json_t *value = json_object_get(object, field);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

/* The finished updates of a run, in order: skipped attempts repeat a step and are left out. New reference. */
static json_t *finished(const json_t *steps)
{
    json_t *kept = json_array();
    double last = -1;
    for (size_t i = 0; i < json_array_size(steps); i++) {
        json_t *step = json_array_get(steps, i);
        if (number(step, "step") <= last)
            continue;
        last = number(step, "step");
        json_array_append(kept, step);
    }
    return kept;
}

/* The mean of a field over the counted updates; NaN where none has it. */
static double counted_mean(const json_t *steps, const char *field)
{
    double peak = 0, sum = 0;
    int64_t count = 0;
    for (size_t i = 0; i < json_array_size(steps); i++)
        peak = fmax(peak, number(json_array_get(steps, i), "lr"));
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const json_t *step = json_array_get(steps, i);
        double value = number(step, field), lr = number(step, "lr");
        if (!isfinite(value) || lr <= 0 || lr < COMPARE_COUNTED_LR * peak)
            continue;
        sum += value;
        count++;
    }
    return count > 0 ? sum / (double)count : (double)NAN;
}

/* NaN and infinity are null in JSON. */
static void set_real(json_t *row, const char *field, double value)
{
    json_object_set_new(row, field, isfinite(value) ? json_real(value) : json_null());
}

bool compare_row(json_t **row, const char *policy, const char *run, double bytes_per_parameter,
                 const json_t *steps, struct err *err)
{
    json_t *kept = finished(steps);
    size_t count = json_array_size(kept);
    double last_steps = 0;
    if (count == 0) {
        json_decref(kept);
        return err_set(err, ERR_RUN, "the run under %s made no step", policy);
    }
    json_t *losses = json_array(), *qualities = json_array();
    for (size_t i = 0; i < count; i++) {
        const json_t *step = json_array_get(kept, i);
        double loss = number(step, "loss"), quality = number(step, "update_quality");
        json_array_append_new(losses, isfinite(loss) ? json_real(loss) : json_null());
        json_array_append_new(qualities, isfinite(quality) ? json_real(quality) : json_null());
        if (i + COMPARE_FINAL_STEPS >= count)
            last_steps += loss;
    }
    json_t *made = json_object();
    json_object_set_new(made, "policy", json_string(policy));
    json_object_set_new(made, "run", json_string(run));
    set_real(made, "bytes_per_parameter", bytes_per_parameter);
    set_real(made, "final_loss",
             last_steps / (double)(count < COMPARE_FINAL_STEPS ? count : COMPARE_FINAL_STEPS));
    set_real(made, "last_loss", number(json_array_get(kept, count - 1), "loss"));
    json_object_set_new(made, "ratio", json_null());
    set_real(made, "lost_update_share", counted_mean(kept, "lost_update_share"));
    set_real(made, "stalled_v_share", counted_mean(kept, "stalled_v_share"));
    set_real(made, "update_quality", counted_mean(kept, "update_quality"));
    json_object_set_new(made, "losses", losses);
    json_object_set_new(made, "update_qualities", qualities);
    json_decref(kept);
    *row = made;
    return true;
}

void compare_rows_rank(json_t *rows)
{
    double best = HUGE_VAL;
    for (size_t i = 0; i < json_array_size(rows); i++)
        best = fmin(best, number(json_array_get(rows, i), "final_loss")); /* fmin passes over NaN */
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        set_real(row, "ratio", number(row, "final_loss") / best);
    }
}

static const char *text(const json_t *row, const char *field)
{
    const char *value = json_string_value(json_object_get(row, field));
    return value == NULL ? "" : value;
}

void compare_rows_print(FILE *out, const json_t *rows)
{
    size_t width = strlen("policy");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        size_t length = strlen(text(json_array_get(rows, i), "policy"));
        width = length > width ? length : width;
    }
    fprintf(out, "%-*s", (int)width, "policy");
    for (size_t c = 0; c < COLUMNS; c++)
        fprintf(out, "  %s", columns[c].field);
    fputc('\n', out);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        fprintf(out, "%-*s", (int)width, text(row, "policy"));
        for (size_t c = 0; c < COLUMNS; c++) {
            char cell[64];
            double value = number(row, columns[c].field);
            if (isfinite(value))
                snprintf(cell, sizeof cell, "%.*f", columns[c].decimals, value);
            else
                snprintf(cell, sizeof cell, "-");
            fprintf(out, "  %*s", (int)strlen(columns[c].field), cell);
        }
        fputc('\n', out);
    }
}

void compare_rows_csv(FILE *out, const json_t *rows)
{
    fputs("policy,run", out);
    for (size_t c = 0; c < COLUMNS; c++)
        fprintf(out, ",%s", columns[c].field);
    fputc('\n', out);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        fprintf(out, "%s,%s", text(row, "policy"), text(row, "run")); /* neither holds commas or quotes */
        for (size_t c = 0; c < COLUMNS; c++) {
            double value = number(row, columns[c].field);
            if (isfinite(value))
                fprintf(out, ",%.17g", value);
            else
                fputc(',', out);
        }
        fputc('\n', out);
    }
}

/* The list as step events, which is what curves are made from. */
static json_t *as_steps(const json_t *list)
{
    json_t *steps = json_array();
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *step = json_object();
        json_object_set_new(step, "step", json_integer((json_int_t)i + 1));
        json_object_set(step, "value", json_array_get(list, i));
        json_array_append_new(steps, step);
    }
    return steps;
}

bool compare_rows_plot(struct plot *plot, const json_t *rows, struct err *err)
{
    static const struct {
        const char *list, *title;
        bool log_scale, unit_range;
    } panels[] = {{"losses", "loss", true, false},
                  {"update_qualities", "quality of the updates", false, true}};
    *plot =
        (struct plot){.panel_count = 2, .title = "one recipe, one checkpoint, several precision policies"};
    for (int p = 0; p < 2; p++) {
        struct plot_panel *panel = &plot->panels[p];
        panel->title = panels[p].title;
        panel->log_scale = panels[p].log_scale;
        panel->unit_range = panels[p].unit_range;
        for (size_t i = 0; i < json_array_size(rows); i++) {
            const json_t *row = json_array_get(rows, i);
            json_t *steps = as_steps(json_object_get(row, panels[p].list));
            bool fine = plot_panel_add(panel, text(row, "policy"), steps, "value", err);
            json_decref(steps);
            if (!fine)
                return false;
        }
    }
    return true;
}
