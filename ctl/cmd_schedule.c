/* schedule and set-schedule: f(k) in absolute steps, before it runs or while it does. */
#include "commands.h"
#include "file.h"
#include "order.h"
#include "output.h"
#include "recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool recipe_count_steps(const struct recipe *recipe, int64_t *steps, struct err *err)
{
    struct dataset dataset = {0};
    struct order order = {0};
    struct order_options options = {
        .cutoff = recipe->cutoff, .global_batch = recipe->global_batch, .drop_last = recipe->drop_last};
    if (recipe->steps >= 0) {
        *steps = recipe->steps;
        return true;
    }
    if (recipe->epochs < 0 || !recipe->data[0]) {
        err_set(err, ERR_INVALID, "the number of steps is not known");
        return err_hint(err, "give --steps N, or --epochs E and --data DIR");
    }
    options.shuffled = recipe_is_shuffled(recipe, &options.seed);
    bool done = dataset_open(&dataset, recipe->data, err) && order_init(&order, &dataset, &options, err);
    if (done)
        *steps = recipe->epochs * order.steps_per_epoch;
    order_done(&order);
    dataset_close(&dataset);
    return done;
}

/* A recipe that need not be whole: a schedule can be looked at before there are data. */
static bool read_recipe(const struct call *call, struct recipe *recipe, struct err *err)
{
    size_t bytes = 0;
    char *text = NULL;
    const char *name = call->argument_count > 0 ? call->arguments[0] : "the flags";
    bool read = call->argument_count == 0 || file_slurp(name, RECIPE_TEXT_BYTES, &text, &bytes, err);
    read = read && recipe_parse_part(recipe, name, text, bytes, (const char *const *)call->settings,
                                     (size_t)call->setting_count, err);
    free(text);
    return read;
}

static bool schedule_of_recipe(const struct call *call, struct schedule *schedule, struct err *err)
{
    struct recipe recipe;
    int64_t steps = 0;
    return read_recipe(call, &recipe, err) && recipe_count_steps(&recipe, &steps, err) &&
           schedule_resolve(schedule, &recipe.schedule, recipe.optimizer.lr, steps, err);
}

static bool from_json(struct schedule *schedule, const json_t *said, struct err *err)
{
    *schedule = (struct schedule){.lr = json_number_value(json_object_get(said, "peak_lr")),
                                  .steps = json_integer_value(json_object_get(said, "steps")),
                                  .warmup = json_integer_value(json_object_get(said, "warmup_steps")),
                                  .warmup_init = json_number_value(json_object_get(said, "warmup_init")),
                                  .min_lr = json_number_value(json_object_get(said, "min_lr")),
                                  .decay_end = json_integer_value(json_object_get(said, "decay_steps")),
                                  .wsd_decay = json_integer_value(json_object_get(said, "wsd_decay"))};
    const char *kind = json_string_value(json_object_get(said, "kind"));
    return schedule_kind_parse(&schedule->kind, kind ? kind : "", err);
}

static json_t *to_json(const struct schedule *s)
{
    return json_pack("{ss, sI, sI, sI, sI, sf, sf, sf}", "kind", schedule_kind_name(s->kind), "steps",
                     (json_int_t)s->steps, "warmup_steps", (json_int_t)s->warmup, "decay_steps",
                     (json_int_t)s->decay_end, "wsd_decay", (json_int_t)s->wsd_decay, "warmup_init",
                     s->warmup_init, "peak_lr", s->lr, "min_lr", s->min_lr);
}

static json_t *rows_of(const struct schedule *schedule)
{
    json_t *rows = json_array();
    for (int64_t k = 0; rows && k < schedule->steps; k++)
        json_array_append_new(rows,
                              json_pack("{sI, sf, sf}", "step", (json_int_t)k, "f",
                                        schedule_multiplier(schedule, k), "lr", schedule_lr(schedule, k)));
    return rows;
}

/* f(k) over k in text; the picture for files is trainctl plot's. */
static void draw(const struct schedule *schedule)
{
    enum { WIDE = 72, HIGH = 16 };
    char canvas[HIGH][WIDE + 1];
    memset(canvas, ' ', sizeof canvas);
    for (int x = 0; x < WIDE; x++) {
        int64_t k = schedule->steps > 1 ? x * (schedule->steps - 1) / (WIDE - 1) : 0;
        double f = schedule_multiplier(schedule, k);
        int y = (int)(f * (HIGH - 1) + 0.5);
        canvas[HIGH - 1 - (y < 0 ? 0 : y > HIGH - 1 ? HIGH - 1 : y)][x] = '*';
    }
    for (int y = 0; y < HIGH; y++) {
        canvas[y][WIDE] = '\0';
        printf("%10.3g |%s\n", schedule->lr * (HIGH - 1 - y) / (HIGH - 1), canvas[y]);
    }
    printf("%10s +", "lr");
    for (int x = 0; x < WIDE; x++)
        putchar('-');
    printf("\n%12s0%*lld\n", "", WIDE - 1, (long long)schedule->steps - 1);
}

static void describe(const struct call *call, const struct schedule *s)
{
    char note[512];
    call_note(call,
              "%s: N = %lld steps, W = %lld warm-up steps, decay ends at %lld, peak lr %.6g, min_lr %.6g",
              schedule_kind_name(s->kind), (long long)s->steps, (long long)s->warmup, (long long)s->decay_end,
              s->lr, s->min_lr);
    schedule_note(s, note, sizeof note);
    if (note[0])
        call_note(call, "note: %s", note);
}

static void show(const struct call *call, const struct schedule *schedule, json_t *whole)
{
    static const struct column columns[] = {
        {"step", "step", AS_INTEGER, 0}, {"f", "f", AS_EXACT, 0}, {"lr", "lr", AS_EXACT, 0}};
    json_t *rows = rows_of(schedule);
    json_object_set(whole, "rows", rows);
    describe(call, schedule);
    if (call_option(call, "plot") && call->output == OUTPUT_TABLE)
        draw(schedule);
    else
        output_rows(call, columns, 3, rows, whole);
    json_decref(rows);
}

int cmd_schedule(struct call *call)
{
    struct err err = ERR_INIT;
    struct schedule schedule;
    json_t *whole = NULL;
    if (call->argument_count > 0 || call->setting_count > 0) {
        if (!schedule_of_recipe(call, &schedule, &err))
            return call_fail(call, &err);
        whole = to_json(&schedule);
    } else {
        REQUEST(request, SCHEDULE, ScheduleRequest, schedule);
        if (!call_ask_json(call, &request, &whole, &err) || !from_json(&schedule, whole, &err))
            return call_fail(call, &err);
    }
    show(call, &schedule, whole);
    json_decref(whole);
    return EXIT_DONE;
}

int cmd_set_schedule(struct call *call)
{
    struct err err = ERR_INIT;
    struct schedule schedule;
    json_t *result;
    REQUEST(request, SET_SCHEDULE, SetScheduleRequest, set_schedule);
    REQUEST(look, SCHEDULE, ScheduleRequest, schedule);
    int64_t steps = 0;
    if (!call_integer(call, "steps", 1, 1000000000000, &steps, &err))
        return call_fail(call, &err);
    if (steps > 0 && !call_add_setting(call, "steps", call_option(call, "steps"), &err))
        return call_fail(call, &err);
    if (call->setting_count == 0) {
        err_set(&err, ERR_INVALID, "set-schedule was told nothing to set");
        err_hint(&err, "name at least one setting: --steps 500, --kind linear, --min-lr 1e-6, …");
        return call_fail(call, &err);
    }
    request_body.settings = call->settings;
    request_body.n_settings = (size_t)call->setting_count;
    request_body.dry_run = call_option(call, "dry-run") != NULL;
    if (!call_ask_json(call, &request, &result, &err))
        return call_fail(call, &err);
    if (!request_body.dry_run) {
        const char *text = json_string_value(json_object_get(result, "text"));
        if (text && text[0])
            call_note(call, "note: %s", text);
        json_decref(result);
        if (!call_ask_json(call, &look, &result, &err))
            return call_fail(call, &err);
    }
    if (!from_json(&schedule, result, &err)) {
        json_decref(result);
        return call_fail(call, &err);
    }
    describe(call, &schedule);
    if (call->output == OUTPUT_JSON)
        output_json(result);
    json_decref(result);
    return EXIT_DONE;
}
