/* Pictures of runs: curves over steps, drawn by gnuplot into PNG and SVG.
 *
 * A picture is a column of panels, all over the same steps, with the same curves in the same colours. Curves
 * often lie on top of each other (that is the finding), so each has a colour that colour-blind readers can
 * tell apart, a dash pattern, and a width that lets what is below shine through. */
#pragma once

#include "bounds.h"
#include "err.h"

#include <jansson.h>
#include <stdint.h>

#define PLOT_CURVES 16 /* of a panel */
#define PLOT_PANELS 4
#define PLOT_MARKS  8

struct plot_curve {
    char name[LIMIT_NAME_BYTES];
    double *x, *y; /* count of each; malloc'ed; NaN leaves a gap */
    int64_t count;
};

struct plot_panel {
    const char *title; /* of the y axis */
    bool log_scale;    /* values <= 0 leave a gap */
    bool unit_range;   /* a share or a quality: 0 to 1, and a little above */
    struct plot_curve curves[PLOT_CURVES];
    int curve_count;
};

struct plot {
    char title[LIMIT_NAME_BYTES];
    struct plot_panel panels[PLOT_PANELS];
    int panel_count;
    struct { /* a vertical line in every panel, named in the first */
        double x;
        char text[LIMIT_NAME_BYTES];
    } marks[PLOT_MARKS];
    int mark_count;
};

void plot_done(struct plot *plot); /* zeroed: fine */

/* Adds one curve from step events (contract section 6), an array of objects: field over step. Skipped
 * attempts (an unchanged step) are passed over; an absent or null field is a gap. ERR_INVALID: too many
 * curves, or no such events. */
bool plot_panel_add(struct plot_panel *panel, const char *name, const json_t *steps, const char *field,
                    struct err *err) MUST_USE;

/* A mark where the policy changes from one step to the next. */
void plot_mark_policies(struct plot *plot, const json_t *steps);

/* The text that makes gnuplot write every path; by its ending a path is .png or .svg. malloc'ed. */
bool plot_script(const struct plot *plot, const char *const *paths, int path_count, char **script,
                 struct err *err) MUST_USE;

/* Runs gnuplot on it; the paths appear whole or not at all. ERR_NOT_FOUND with the package's name where
 * gnuplot is missing. */
bool plot_write(const struct plot *plot, const char *const *paths, int path_count, struct err *err) MUST_USE;

/* The step events in a run's events.jsonl, an array; lines of other kinds and a torn last line are passed
 * over. */
bool plot_read_events(const char *path, json_t **steps, struct err *err) MUST_USE;
