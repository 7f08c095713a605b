#include "plot_draw.h"

#include "file.h"

#include <errno.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Colours by Okabe and Ito, its yellow left out (too light on white); dashes and widths tell overlapping
 * curves apart. */
static const struct {
    const char *colour, *dash;
    double width;
} looks[] = {
    {"#0072B2", "1", 5.0},     {"#D55E00", "1", 2.2},     {"#009E73", "(8,6)", 2.5},  {"#000000", "1", 3.5},
    {"#CC79A7", "(8,6)", 2.5}, {"#E69F00", "(2,6)", 2.5}, {"#56B4E9", "(14,6)", 2.5},
};
#define LOOKS (sizeof looks / sizeof looks[0])

void plot_done(struct plot *plot)
{
    for (int p = 0; p < plot->panel_count; p++)
        for (int c = 0; c < plot->panels[p].curve_count; c++) {
            free(plot->panels[p].curves[c].x);
            free(plot->panels[p].curves[c].y);
        }
    *plot = (struct plot){0};
}

/* A number, or NaN for null, absent and anything else. */
static double field_value(const json_t *step, const char *field)
{
    const json_t *value = json_object_get(step, field);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

bool plot_panel_add(struct plot_panel *panel, const char *name, const json_t *steps, const char *field,
                    struct err *err)
{
    size_t count = json_array_size(steps);
    if (panel->curve_count == PLOT_CURVES)
        return err_set(err, ERR_INVALID, "a picture holds at most %d curves", PLOT_CURVES);
    if (count == 0) {
        err_set(err, ERR_NOT_FOUND, "%s has no steps to draw", name);
        return err_hint(err, "trainctl runs shows how far each run came");
    }
    struct plot_curve *curve = &panel->curves[panel->curve_count];
    double *x = calloc(count, sizeof *x), *y = calloc(count, sizeof *y);
    if (x == NULL || y == NULL) {
        free(x);
        free(y);
        return err_set(err, ERR_MEMORY, "no memory for %zu steps", count);
    }
    *curve = (struct plot_curve){.x = x, .y = y};
    snprintf(curve->name, sizeof curve->name, "%s", name);
    for (size_t i = 0; i < count; i++) {
        const json_t *step = json_array_get(steps, i);
        double at = field_value(step, "step");
        if (curve->count > 0 && at <= x[curve->count - 1])
            continue; /* a skipped attempt: nothing was updated */
        x[curve->count] = at;
        y[curve->count++] = field_value(step, field);
    }
    panel->curve_count++;
    return true;
}

void plot_mark_policies(struct plot *plot, const json_t *steps)
{
    const char *before = NULL;
    for (size_t i = 0; i < json_array_size(steps) && plot->mark_count < PLOT_MARKS; i++) {
        const json_t *step = json_array_get(steps, i);
        const char *policy = json_string_value(json_object_get(step, "policy"));
        if (policy == NULL)
            continue;
        if (before != NULL && strcmp(before, policy) != 0) {
            /* The event of step k tells of the update from k-1 to k: the swap came between k-1's and this
             * one. */
            plot->marks[plot->mark_count].x = field_value(step, "step") - 0.5;
            snprintf(plot->marks[plot->mark_count].text, LIMIT_NAME_BYTES, "%s", policy);
            plot->mark_count++;
        }
        before = policy;
    }
}

/* Inside gnuplot's double quotes nothing a user named may end the string, start a command or an enhanced-text
 * code. */
static void write_quoted(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text != '\0'; text++)
        if (*text >= ' ' && strchr("\"\\`$", *text) == NULL)
            fputc(*text, out);
    fputc('"', out);
}

static void write_data(FILE *out, const struct plot *plot)
{
    for (int p = 0; p < plot->panel_count; p++) {
        for (int c = 0; c < plot->panels[p].curve_count; c++) {
            const struct plot_curve *curve = &plot->panels[p].curves[c];
            fprintf(out, "$p%dc%d << END\n", p, c);
            for (int64_t i = 0; i < curve->count; i++) {
                bool gap = !isfinite(curve->y[i]) || (plot->panels[p].log_scale && curve->y[i] <= 0);
                if (gap)
                    fprintf(out, "\n"); /* an empty line breaks the curve */
                else
                    fprintf(out, "%.17g %.9g\n", curve->x[i], curve->y[i]);
            }
            fputs("END\n", out);
        }
    }
}

/* False where gnuplot would stop the whole script: a panel without one point to scale by. */
static bool panel_has_points(const struct plot_panel *panel)
{
    for (int c = 0; c < panel->curve_count; c++)
        for (int64_t i = 0; i < panel->curves[c].count; i++)
            if (isfinite(panel->curves[c].y[i]) && (!panel->log_scale || panel->curves[c].y[i] > 0))
                return true;
    return false;
}

/* Heights in SVG units; PNGs are half as large again. Above the panels: the title, then the key's rows. */
#define KEY_COLUMNS   2
#define TITLE_HEIGHT  46
#define KEY_HEIGHT    24
#define BELOW_HEIGHT  64
#define PANEL_HEIGHT  300
#define PICTURE_WIDTH 1200

static int key_height(const struct plot *plot)
{
    int curves = plot->panels[0].curve_count;
    return KEY_HEIGHT * ((curves + KEY_COLUMNS - 1) / KEY_COLUMNS) + KEY_HEIGHT / 2;
}

/* Of the panels that have something to show. */
static int picture_height(const struct plot *plot)
{
    int panels = 0;
    for (int p = 0; p < plot->panel_count; p++)
        panels += panel_has_points(&plot->panels[p]);
    return TITLE_HEIGHT + key_height(plot) + PANEL_HEIGHT * panels + BELOW_HEIGHT;
}

static double key_top(const struct plot *plot)
{
    return 1 - (double)TITLE_HEIGHT / picture_height(plot);
}

/* The last panel carries the name of the steps; the first the key and the names of the marks. */
static void write_panel(FILE *out, const struct plot *plot, int p, bool first, bool last)
{
    const struct plot_panel *panel = &plot->panels[p];
    fprintf(out, panel->log_scale ? "set logscale y\n" : "unset logscale y\n");
    fprintf(out, panel->unit_range ? "set yrange [-0.03:1.05]\n" : "set yrange [*:*]\n");
    fputs("set ylabel ", out);
    write_quoted(out, panel->title);
    fprintf(out, "\n%s\n", last ? "set xlabel \"step\"" : "unset xlabel");
    if (first)
        fprintf(out, "set key at screen 0.105,%.4f left top horizontal maxcols %d Left reverse noenhanced\n",
                key_top(plot), KEY_COLUMNS);
    else
        fputs("unset key\n", out);
    fputs("unset label\n", out);
    for (int m = 0; first && m < plot->mark_count; m++) {
        fprintf(out, "set label %d ", m + 1);
        write_quoted(out, plot->marks[m].text);
        fprintf(out, " at first %.9g, graph 0.96 offset 0.5,0 noenhanced\n", plot->marks[m].x);
    }
    fputs("plot ", out);
    for (int c = 0; c < panel->curve_count; c++) {
        size_t look = (size_t)c % LOOKS;
        fprintf(out, "%s$p%dc%d using 1:2 with lines lc rgb \"%s\" dt %s lw %.1f title ",
                c > 0 ? ", \\\n  " : "", p, c, looks[look].colour, looks[look].dash, looks[look].width);
        write_quoted(out, panel->curves[c].name);
    }
    fputs("\n", out);
}

/* One output file: the terminal by the path's ending. */
static bool write_output(FILE *out, const struct plot *plot, const char *path, struct err *err)
{
    const char *ending = strrchr(path, '.');
    bool png = ending != NULL && strcmp(ending, ".png") == 0,
         svg = ending != NULL && strcmp(ending, ".svg") == 0;
    int shown = 0, total = 0;
    if (!png && !svg)
        return err_set(err, ERR_INVALID, "%s: a picture's name ends in .png or .svg", path);
    if (strpbrk(path, "\"\\`$\n") != NULL)
        return err_set(err, ERR_INVALID, "%s: a picture's path has no quotes, backslashes or dollars", path);
    for (int p = 0; p < plot->panel_count; p++)
        total += panel_has_points(&plot->panels[p]);
    if (total == 0)
        return err_set(err, ERR_INVALID, "there is nothing to draw");
    int height = picture_height(plot);
    double top = key_top(plot) - (double)key_height(plot) / height;
    if (png)
        fprintf(
            out,
            "set terminal pngcairo size %d,%d font \"DejaVu Sans,18\" linewidth 1.6 background \"white\"\n",
            PICTURE_WIDTH * 3 / 2, height * 3 / 2);
    else
        fprintf(out, "set terminal svg size %d,%d font \"DejaVu Sans,14\" background \"white\"\n",
                PICTURE_WIDTH, height);
    fprintf(out,
            "set output \"%s\"\nset multiplot layout %d,1 margins 0.105,0.97,%.4f,%.4f spacing %.4f title ",
            path, total, (double)BELOW_HEIGHT / height, top, 45.0 / height);
    write_quoted(out, plot->title);
    fputs(" noenhanced\n", out);
    for (int p = 0; p < plot->panel_count; p++)
        if (panel_has_points(&plot->panels[p])) {
            shown++;
            write_panel(out, plot, p, shown == 1, shown == total);
        }
    fputs("unset multiplot\nunset output\n", out);
    return true;
}

bool plot_script(const struct plot *plot, const char *const *paths, int path_count, char **script,
                 struct err *err)
{
    char *text = NULL;
    size_t bytes = 0;
    double least = HUGE_VAL, most = -HUGE_VAL;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL)
        return err_errno(err, "cannot write gnuplot's script");
    bool fine = true;
    write_data(out, plot);
    for (int p = 0; p < plot->panel_count; p++)
        for (int c = 0; c < plot->panels[p].curve_count; c++) {
            const struct plot_curve *curve = &plot->panels[p].curves[c];
            least = fmin(least, curve->count > 0 ? curve->x[0] : HUGE_VAL);
            most = fmax(most, curve->count > 0 ? curve->x[curve->count - 1] : -HUGE_VAL);
        }
    if (least < most)
        fprintf(out, "set xrange [%.17g:%.17g]\n", least, most);
    fputs("set grid lc rgb \"#dddddd\" lt 1 lw 0.5\nset border 3 lc rgb \"#444444\"\nset tics nomirror\n"
          "set format y \"%g\"\n",
          out);
    for (int m = 0; m < plot->mark_count; m++)
        fprintf(out,
                "set arrow %d from first %.9g, graph 0 to first %.9g, graph 1 nohead lc rgb \"#777777\" dt "
                "(4,4)\n",
                m + 1, plot->marks[m].x, plot->marks[m].x);
    for (int i = 0; fine && i < path_count; i++)
        fine = write_output(out, plot, paths[i], err);
    if (fclose(out) != 0 && fine)
        fine = err_errno(err, "cannot write gnuplot's script");
    if (!fine) {
        free(text);
        return false;
    }
    *script = text;
    return true;
}

/* gnuplot with the script in a file; its complaints go to our stderr. */
static bool run_gnuplot(const char *script_path, struct err *err)
{
    extern char **environ;
    char *arguments[] = {(char[]){"gnuplot"}, NULL, NULL};
    char path[LIMIT_PATH_BYTES];
    pid_t child = 0;
    int status = 0;
    snprintf(path, sizeof path, "%s", script_path);
    arguments[1] = path;
    int failed = posix_spawnp(&child, "gnuplot", NULL, NULL, arguments, environ);
    if (failed != 0) {
        err_set(err, ERR_NOT_FOUND, "gnuplot cannot be started");
        err_why(err, "%s", strerror(failed));
        return err_hint(err, "install it: apt-get install gnuplot-nox");
    }
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return err_errno(err, "cannot wait for gnuplot");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return err_set(err, ERR_IO, "gnuplot failed (status %d)", status);
    return true;
}

/* What gnuplot would say of a path less kindly, and with the name of the drawing instead. */
static bool check_path(const char *path, struct err *err)
{
    char folder[LIMIT_PATH_BYTES];
    const char *ending = strrchr(path, '.'), *slash = strrchr(path, '/');
    if (ending == NULL || (strcmp(ending, ".png") != 0 && strcmp(ending, ".svg") != 0))
        return err_set(err, ERR_INVALID, "%s: a picture's name ends in .png or .svg", path);
    snprintf(folder, sizeof folder, "%.*s", slash == NULL ? 1 : (int)(slash - path) + 1,
             slash == NULL ? "." : path);
    return access(folder, W_OK) == 0 || err_errno(err, "cannot write %s", path);
}

/* The name beside the final one under which gnuplot writes: "DIR/.drawing-PID-I.png". */
static bool drawing_path(char *path, size_t bytes, const char *final, int i, struct err *err)
{
    const char *slash = strrchr(final, '/'), *ending = strrchr(final, '.');
    int folder = slash == NULL ? 0 : (int)(slash - final) + 1;
    int length = snprintf(path, bytes, "%.*s.drawing-%ld-%d%s", folder, final, (long)getpid(), i,
                          ending == NULL ? "" : ending);
    if (length < 0 || (size_t)length >= bytes)
        return err_set(err, ERR_INVALID, "%s: the path is too long", final);
    return true;
}

bool plot_write(const struct plot *plot, const char *const *paths, int path_count, struct err *err)
{
    char drawing[4][LIMIT_PATH_BYTES], script_path[] = "/tmp/trainctl-plot-XXXXXX";
    const char *drawings[4];
    char *script = NULL;
    if (path_count > 4)
        return err_set(err, ERR_INVALID, "at most 4 pictures at a time");
    for (int i = 0; i < path_count; i++) {
        if (!check_path(paths[i], err) || !drawing_path(drawing[i], sizeof drawing[i], paths[i], i, err))
            return false;
        drawings[i] = drawing[i];
    }
    if (!plot_script(plot, drawings, path_count, &script, err))
        return false;
    int fd = mkstemp(script_path);
    bool fine = fd >= 0 || err_errno(err, "cannot write gnuplot's script to /tmp");
    fine = fine && file_write_all(fd, script, strlen(script), -1, err) && run_gnuplot(script_path, err);
    for (int i = 0; i < path_count; i++) {
        if (fine && rename(drawings[i], paths[i]) != 0)
            fine = err_errno(err, "cannot write %s", paths[i]);
        if (!fine)
            unlink(drawings[i]);
    }
    if (fd >= 0) {
        close(fd);
        unlink(script_path);
    }
    free(script);
    return fine;
}

bool plot_read_events(const char *path, json_t **steps, struct err *err)
{
    json_t *array = json_array();
    char *line = NULL;
    size_t capacity = 0;
    FILE *in = fopen(path, "re");
    if (in == NULL) {
        json_decref(array);
        return err_errno(err, "cannot read %s", path);
    }
    while (getline(&line, &capacity, in) > 0) {
        json_t *event = json_loads(line, 0, NULL); /* NULL, which has no members, for a torn line */
        if (json_is_integer(json_object_get(event, "step")) && json_object_get(event, "grad_norm") != NULL)
            json_array_append(array, event);
        json_decref(event);
    }
    free(line);
    fclose(in);
    *steps = array;
    return true;
}
