#include "state_json.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* 64 unsigned bits do not fit JSON's integers. */
static json_t *json_u64(uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    return json_string(text);
}

static json_t *settings_make(const struct optimizer_settings *s)
{
    return json_pack("{sf sf sf sf sf sb sf}", "lr", s->lr, "beta1", s->beta1, "beta2", s->beta2, "eps",
                     s->eps, "weight_decay", s->weight_decay, "decay_all", s->decay_all, "clip", s->clip);
}

static json_t *schedule_make(const struct schedule *s)
{
    return json_pack("{ss sf sI sI sf sf sI sI}", "kind", schedule_kind_name(s->kind), "lr", s->lr, "steps",
                     (json_int_t)s->steps, "warmup", (json_int_t)s->warmup, "warmup_init", s->warmup_init,
                     "min_lr", s->min_lr, "decay_end", (json_int_t)s->decay_end, "wsd_decay",
                     (json_int_t)s->wsd_decay);
}

static json_t *alarm_make(const struct alarm *a)
{
    json_t *quality = json_array();
    for (int i = 0; i < ALARM_WINDOW; i++)
        json_array_append_new(quality, json_real(a->quality[i]));
    return json_pack("{so si si si}", "quality", quality, "counted", a->counted, "next", a->next, "level",
                     a->level);
}

static json_t *run_make(const struct engine *engine)
{
    const struct run *run = &engine->run;
    char *recipe = recipe_print(&run->recipe);
    json_t *still = json_array();
    for (int32_t i = 0; i < engine->body.model.params.count; i++)
        json_array_append_new(still, json_integer(run->still[i]));
    json_t *json =
        json_pack("{ss ss sI sI sI si sI sI so so so so ss}", "id", run->id, "recipe", recipe ? recipe : "",
                  "steps", (json_int_t)run->steps, "k", (json_int_t)run->k, "skipped",
                  (json_int_t)run->skipped, "skips_in_a_row", run->skips_in_a_row, "cursor",
                  (json_int_t)run->cursor.samples, "evaluated_at", (json_int_t)run->evaluated_at, "settings",
                  settings_make(&run->settings), "schedule", schedule_make(&run->schedule), "alarm",
                  alarm_make(&run->alarm), "still", still, "data", run->data_hash);
    free(recipe);
    return json;
}

json_t *state_json_make(const struct engine *engine)
{
    const struct optimizer *o = &engine->body.optimizer;
    return json_pack("{sI sI so so sI ss so}", "t", (json_int_t)o->t, "total_steps",
                     (json_int_t)o->total_steps, "seed", json_u64(o->seed), "settings",
                     settings_make(&engine->settings), "lanes", (json_int_t)engine->options.lanes, "device",
                     engine->device->description, "run", engine->has_run ? run_make(engine) : json_null());
}

/* jansson's unpack checks types; its sentence becomes the reason. */
static bool bad(struct err *err, const json_error_t *error)
{
    err_set(err, ERR_CORRUPT, "the checkpoint's training state is not what it should be");
    return err_why(err, "%s", error->text);
}

static bool settings_read(struct optimizer_settings *s, json_t *json, struct err *err)
{
    json_error_t error;
    int decay_all;
    if (json_unpack_ex(json, &error, 0, "{sF sF sF sF sF sb sF}", "lr", &s->lr, "beta1", &s->beta1, "beta2",
                       &s->beta2, "eps", &s->eps, "weight_decay", &s->weight_decay, "decay_all", &decay_all,
                       "clip", &s->clip) != 0)
        return bad(err, &error);
    s->decay_all = decay_all;
    return optimizer_settings_check(s, err);
}

static bool schedule_read(struct schedule *s, json_t *json, struct err *err)
{
    json_error_t error;
    const char *kind;
    json_int_t steps, warmup, decay_end, wsd_decay;
    if (json_unpack_ex(json, &error, 0, "{ss sF sI sI sF sF sI sI}", "kind", &kind, "lr", &s->lr, "steps",
                       &steps, "warmup", &warmup, "warmup_init", &s->warmup_init, "min_lr", &s->min_lr,
                       "decay_end", &decay_end, "wsd_decay", &wsd_decay) != 0)
        return bad(err, &error);
    s->steps = steps;
    s->warmup = warmup;
    s->decay_end = decay_end;
    s->wsd_decay = wsd_decay;
    if (!(s->lr > 0) || !(s->min_lr >= 0) || !(s->warmup_init >= 0 && s->warmup_init <= 1) || steps < 1 ||
        warmup < 0 || warmup > steps || decay_end < warmup || wsd_decay < 0 || wsd_decay > steps - warmup)
        return err_set(err, ERR_CORRUPT, "the checkpoint's schedule has numbers that cannot be");
    return schedule_kind_parse(&s->kind, kind, err);
}

static bool alarm_read(struct alarm *a, json_t *json, struct err *err)
{
    json_error_t error;
    json_t *quality;
    if (json_unpack_ex(json, &error, 0, "{so si si si}", "quality", &quality, "counted", &a->counted, "next",
                       &a->next, "level", &a->level) != 0)
        return bad(err, &error);
    if (json_array_size(quality) != ALARM_WINDOW || a->counted < 0 || a->counted > ALARM_WINDOW ||
        a->next < 0 || a->next >= ALARM_WINDOW || a->level < ALARM_NONE || a->level > ALARM_CRITICAL_LEVEL)
        return err_set(err, ERR_CORRUPT, "the checkpoint's alarm state is out of its range");
    for (size_t i = 0; i < ALARM_WINDOW; i++)
        a->quality[i] = json_number_value(json_array_get(quality, i));
    return true;
}

static bool run_read(struct run *run, json_t *json, int32_t tensors, struct err *err)
{
    json_error_t error;
    const char *id, *recipe, *data;
    json_int_t steps, k, skipped, cursor, evaluated_at;
    json_t *settings, *schedule, *alarm, *still;
    if (json_unpack_ex(json, &error, 0, "{ss ss ss sI sI sI si sI sI so so so so}", "id", &id, "data", &data,
                       "recipe", &recipe, "steps", &steps, "k", &k, "skipped", &skipped, "skips_in_a_row",
                       &run->skips_in_a_row, "cursor", &cursor, "evaluated_at", &evaluated_at, "settings",
                       &settings, "schedule", &schedule, "alarm", &alarm, "still", &still) != 0)
        return bad(err, &error);
    if (k < 0 || k > steps || steps < 1 || evaluated_at > steps || run->skips_in_a_row < 0 || skipped < 0 ||
        cursor < 0 || strlen(id) >= sizeof run->id || id[0] == '\0' || strchr(id, '/') ||
        json_array_size(still) != (size_t)tensors)
        return err_set(err, ERR_CORRUPT, "the checkpoint's run has counters that cannot be");
    snprintf(run->id, sizeof run->id, "%s", id);
    snprintf(run->data_hash, sizeof run->data_hash, "%s", data);
    run->steps = steps;
    run->k = k;
    run->skipped = skipped;
    run->cursor.samples = cursor;
    run->evaluated_at = evaluated_at;
    if (!recipe_parse(&run->recipe, "the checkpoint's recipe", recipe, strlen(recipe), NULL, 0, err) ||
        !settings_read(&run->settings, settings, err) || !schedule_read(&run->schedule, schedule, err) ||
        !alarm_read(&run->alarm, alarm, err))
        return false;
    run->still = calloc((size_t)tensors, 1);
    INVARIANT(run->still != NULL);
    for (size_t i = 0; i < (size_t)tensors; i++)
        run->still[i] = (uint8_t)json_integer_value(json_array_get(still, i));
    return true;
}

bool state_json_read(struct state_read *read, const json_t *json, int32_t tensors, struct err *err)
{
    json_error_t error;
    const char *seed, *device;
    json_int_t t, total_steps, lanes;
    json_t *settings, *run;
    *read = (struct state_read){0};
    if (json_unpack_ex((json_t *)(uintptr_t)json, &error, 0, "{sI sI ss ss sI so so}", "t", &t, "total_steps",
                       &total_steps, "seed", &seed, "device", &device, "lanes", &lanes, "settings", &settings,
                       "run", &run) != 0)
        return bad(err, &error);
    if (t < 0 || total_steps < t)
        return err_set(err, ERR_CORRUPT, "the checkpoint's counters cannot be: t %lld, total_steps %lld",
                       (long long)t, (long long)total_steps);
    read->t = t;
    read->total_steps = total_steps;
    read->seed = strtoull(seed, NULL, 10);
    read->lanes = lanes;
    snprintf(read->device, sizeof read->device, "%s", device);
    return settings_read(&read->settings, settings, err) &&
           (json_is_null(run) || run_read(&read->run, run, tensors, err));
}
