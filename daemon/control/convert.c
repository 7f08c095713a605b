/* Protobuf to command.h and back: the one place where both are seen. What a request says is checked here as
 * far as the last snapshot lets one check it, so that most mistakes are answered at once; the engine checks
 * again. */
#include "server.h"

#include "keys.h"
#include "log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* protobuf-c wants char *, and packs without writing. */
static char *text_of(const char *text)
{
    return (char *)(uintptr_t)text;
}

void convert_error(Trainerd__Error *to, const struct err *err)
{
    to->code = text_of(err_code_name(err->code));
    to->what = text_of(err->what);
    to->why = text_of(err->why);
    to->hint = text_of(err->hint);
    to->rank = err->rank;
    to->retryable = error_is_retryable(err->code);
}

static void fill_conversion(Trainerd__Conversion *to, const struct command_result *result)
{
    trainerd__conversion__init(to);
    to->bytes_per_parameter_before = result->bytes_per_parameter_before;
    to->bytes_per_parameter_after = result->bytes_per_parameter_after;
    to->bytes_before = result->bytes_before;
    to->bytes_after = result->bytes_after;
    to->bytes_peak = result->bytes_peak;
    to->exact = result->exact;
    to->largest_relative_change = result->largest_relative_change;
    to->changed_share = result->changed_share;
    to->text = text_of(result->text);
    to->converts = result->converts;
    to->bytes_more = result->bytes_more;
}

static Trainerd__Conversion *conversion_if_any(struct reply_parts *parts, const struct command_result *result)
{
    if (!(result->bytes_per_parameter_after > 0))
        return NULL;
    fill_conversion(&parts->conversion, result);
    return &parts->conversion;
}

static void fill_model_done(Trainerd__Reply *to, struct reply_parts *parts,
                            const struct command_result *result)
{
    trainerd__model_done__init(&parts->model_done);
    parts->model_done.parameters = result->parameters;
    parts->model_done.path = text_of(result->path);
    parts->model_done.text = text_of(result->text);
    to->result_case = TRAINERD__REPLY__RESULT_MODEL_DONE;
    to->model_done = &parts->model_done;
}

static void fill_files_done(Trainerd__Reply *to, struct reply_parts *parts,
                            const struct command_result *result)
{
    trainerd__files_done__init(&parts->files_done);
    parts->files_done.path = text_of(result->path);
    parts->files_done.bytes = result->bytes;
    parts->files_done.text = text_of(result->text);
    parts->files_done.conversion = conversion_if_any(parts, result);
    to->result_case = TRAINERD__REPLY__RESULT_FILES_DONE;
    to->files_done = &parts->files_done;
}

static void fill_trained(Trainerd__Reply *to, struct reply_parts *parts, const struct command_result *result)
{
    trainerd__trained__init(&parts->trained);
    parts->trained.run = text_of(result->run);
    parts->trained.steps = result->steps;
    parts->trained.text = text_of(result->text);
    parts->trained.conversion = conversion_if_any(parts, result);
    parts->conversion.text = text_of(""); /* it is in trained.text */
    to->result_case = TRAINERD__REPLY__RESULT_TRAINED;
    to->trained = &parts->trained;
}

static void fill_evaluated(Trainerd__Reply *to, struct reply_parts *parts,
                           const struct command_result *result)
{
    trainerd__evaluated__init(&parts->evaluated);
    parts->evaluated.loss = result->loss;
    parts->evaluated.labelled_tokens = result->labelled_tokens;
    to->result_case = TRAINERD__REPLY__RESULT_EVALUATED;
    to->evaluated = &parts->evaluated;
}

static void fill_converted(Trainerd__Reply *to, struct reply_parts *parts,
                           const struct command_result *result)
{
    fill_conversion(&parts->conversion, result);
    fill_settings(&parts->settings_before, &result->settings_before);
    fill_settings(&parts->settings_after, &result->settings_after);
    parts->conversion.settings_before = &parts->settings_before;
    parts->conversion.settings_after = &parts->settings_after;
    to->result_case = TRAINERD__REPLY__RESULT_CONVERSION;
    to->conversion = &parts->conversion;
}

static void fill_relayout(Trainerd__Reply *to, struct reply_parts *parts, const struct command_result *result)
{
    Trainerd__Relayout *relayout = &parts->relayout;
    trainerd__relayout__init(relayout);
    relayout->layout_before = text_of(result->layout_before);
    relayout->layout_after = text_of(result->layout_after);
    relayout->zero_before = result->zero_before;
    relayout->zero_after = result->zero_after;
    relayout->bytes_moved = result->bytes_moved;
    relayout->seconds = result->seconds;
    relayout->bytes_before = result->bytes_before;
    relayout->bytes_after = result->bytes_after;
    relayout->bytes_peak = result->bytes_peak;
    relayout->text = text_of(result->text);
    to->result_case = TRAINERD__REPLY__RESULT_RELAYOUT;
    to->relayout = relayout;
}

static void fill_done(Trainerd__Reply *to, struct reply_parts *parts, const struct command_result *result)
{
    trainerd__done__init(&parts->done);
    parts->done.text = text_of(result->text);
    to->result_case = TRAINERD__REPLY__RESULT_DONE;
    to->done = &parts->done;
}

typedef void fill_function(Trainerd__Reply *to, struct reply_parts *parts,
                           const struct command_result *result);

static fill_function *const fill_by_kind[COMMAND_COUNT] = {
    [COMMAND_INIT] = fill_model_done,
    [COMMAND_LOAD] = fill_model_done,
    [COMMAND_EXPORT] = fill_files_done,
    [COMMAND_TRAIN] = fill_trained,
    [COMMAND_EVALUATE] = fill_evaluated,
    [COMMAND_SET_OPTIMIZER] = fill_converted,
    [COMMAND_SET_LAYOUT] = fill_relayout,
    [COMMAND_CHECKPOINT_SAVE] = fill_files_done,
    [COMMAND_CHECKPOINT_LOAD] = fill_files_done,
    [COMMAND_CHECKPOINT_VERIFY] = fill_files_done,
    [COMMAND_CHECKPOINT_DELETE] = fill_files_done,
};

void convert_reply(Trainerd__Reply *to, struct reply_parts *parts, const struct reply *reply)
{
    trainerd__error__init(&parts->status);
    convert_error(&parts->status, &reply->err);
    to->status = &parts->status;
    if (reply->err.code != ERR_OK)
        return;
    fill_function *fill = (unsigned)reply->kind < COMMAND_COUNT ? fill_by_kind[reply->kind] : NULL;
    fill ? fill(to, parts, &reply->result) : fill_done(to, parts, &reply->result);
}

static void fill_step(Trainerd__Step *to, Trainerd__Seconds *seconds, const struct step_event *from)
{
#define TEXT(name)    to->name = text_of(from->name);
#define INT(name)     to->name = from->name;
#define REAL(name)    to->name = from->name;
#define SECONDS(name) seconds->name = from->seconds_##name;
    STEP_FIELDS(TEXT, INT, REAL, SECONDS)
#undef TEXT
#undef INT
#undef REAL
#undef SECONDS
    to->seconds = seconds;
}

struct out *convert_event(const struct event *event, const struct snapshot *snapshot)
{
    Trainerd__Event to = TRAINERD__EVENT__INIT;
    Trainerd__Step step = TRAINERD__STEP__INIT;
    Trainerd__Seconds seconds = TRAINERD__SECONDS__INIT;
    Trainerd__StateEvent state = TRAINERD__STATE_EVENT__INIT;
    Trainerd__WarningEvent warning = TRAINERD__WARNING_EVENT__INIT;
    Trainerd__EvaluationEvent evaluation = TRAINERD__EVALUATION_EVENT__INIT;
    const char *run = event->step.run[0] || !snapshot ? event->step.run : snapshot->run;
    int64_t k = event->step.run[0] || !snapshot ? event->step.step : snapshot->step;

    switch (event->kind) {
    case EVENT_STEP:
        fill_step(&step, &seconds, &event->step);
        to.body_case = TRAINERD__EVENT__BODY_STEP;
        to.step = &step;
        break;
    case EVENT_STATE:
        state.state = text_of(engine_state_name(event->state));
        state.text = text_of(event->text);
        state.run = text_of(run);
        state.step = k;
        to.body_case = TRAINERD__EVENT__BODY_STATE;
        to.state = &state;
        break;
    case EVENT_WARNING:
        warning.text = text_of(event->text);
        warning.run = text_of(run);
        warning.step = k;
        to.body_case = TRAINERD__EVENT__BODY_WARNING;
        to.warning = &warning;
        break;
    case EVENT_EVALUATION:
        evaluation.run = text_of(run);
        evaluation.step = event->step.step;
        evaluation.loss = event->step.loss;
        evaluation.labelled_tokens = event->step.labelled_tokens;
        to.body_case = TRAINERD__EVENT__BODY_EVALUATION;
        to.evaluation = &evaluation;
        break;
    }
    return out_from_event(&to);
}

static bool copy_text(char *to, size_t to_bytes, const char *from, const char *field, struct err *err)
{
    if (strlen(from) >= to_bytes)
        return err_set(err, ERR_INVALID, "%s is longer than %zu bytes", field, to_bytes - 1);
    memcpy(to, from, strlen(from) + 1);
    return true;
}

/* The daemon's working folder is nobody's business: clients make paths absolute. */
static bool copy_path(char to[LIMIT_PATH_BYTES], const char *from, const char *field, struct err *err)
{
    if (from[0] != '/') {
        err_set(err, ERR_INVALID, "%s \"%.200s\" is not an absolute path", field, from);
        return err_hint(err, "clients resolve paths before they send them");
    }
    return copy_text(to, LIMIT_PATH_BYTES, from, field, err);
}

static bool split_setting(const char *setting, char name[LIMIT_NAME_BYTES], const char **value,
                          struct err *err)
{
    const char *equals = strchr(setting, '=');
    if (!equals || equals == setting || equals - setting >= LIMIT_NAME_BYTES)
        return err_set(err, ERR_INVALID, "\"%.100s\" is not KEY=VALUE", setting);
    memcpy(name, setting, (size_t)(equals - setting));
    name[equals - setting] = '\0';
    *value = equals + 1;
    return true;
}

static bool from_init(struct command *to, const Trainerd__Request *request, struct err *err)
{
    to->kind = COMMAND_INIT;
    to->u.model.has_seed = request->init->seed != NULL;
    to->u.model.seed = request->init->seed ? request->init->seed->value : 0;
    return copy_path(to->u.model.path, request->init->path, "the config's path", err);
}

static bool from_load(struct command *to, const Trainerd__Request *request, struct err *err)
{
    to->kind = COMMAND_LOAD;
    return copy_path(to->u.model.path, request->load->path, "the model's path", err);
}

static bool from_export(struct command *to, const Trainerd__Request *request, struct err *err)
{
    const char *dtype = request->export->dtype;
    to->kind = COMMAND_EXPORT;
    if (!dtype[0] || strcmp(dtype, "bf16") == 0)
        to->u.model.dtype = DTYPE_BF16;
    else if (strcmp(dtype, "fp32") == 0)
        to->u.model.dtype = DTYPE_F32;
    else
        return err_set(err, ERR_INVALID, "cannot export as \"%.40s\"; bf16 and fp32 are possible", dtype);
    return copy_path(to->u.model.path, request->export->path, "the export's path", err);
}

static bool from_train(struct command *to, const Trainerd__Request *request, struct err *err)
{
    const Trainerd__TrainRequest *train = request->train;
    to->kind = COMMAND_TRAIN;
    to->yes = train->yes;
    to->u.train.keep_moments = train->keep_moments;
    struct recipe *recipe = &to->u.train.recipe;
    const char *name = train->recipe_name[0] ? train->recipe_name : "the recipe";
    if (!recipe_parse(recipe, name, train->recipe[0] ? train->recipe : NULL, strlen(train->recipe),
                      (const char *const *)train->overrides, train->n_overrides, err))
        return false;
    if (recipe->data[0] != '/' || (recipe->evaluate.data[0] && recipe->evaluate.data[0] != '/')) {
        err_set(err, ERR_INVALID, "the recipe's data are not given by an absolute path");
        return err_hint(err, "clients resolve paths before they send them: data=/…");
    }
    return true;
}

static bool from_evaluate(struct command *to, const Trainerd__Request *request, struct err *err)
{
    to->kind = COMMAND_EVALUATE;
    return copy_path(to->u.evaluate.data, request->evaluate->data, "the data's path", err);
}

static bool set_setting(struct command *to, const char *setting, struct err *err)
{
    size_t count;
    const struct key *keys = optimizer_keys(&count);
    char name[LIMIT_NAME_BYTES];
    const char *value = NULL;
    bool given[32] = {false};
    INVARIANT(count <= 32);
    if (!split_setting(setting, name, &value, err) ||
        !keys_set(keys, count, &to->u.set_optimizer.settings, given, name, value, 0, err))
        return false;
    for (size_t i = 0; i < count; i++)
        to->u.set_optimizer.settings_set |= given[i] ? 1u << i : 0;
    return true;
}

static bool from_set_optimizer(struct command *to, const Trainerd__Request *request,
                               const struct snapshot *snapshot, struct err *err)
{
    const Trainerd__SetOptimizerRequest *wanted = request->set_optimizer;
    struct policy policy;
    to->kind = COMMAND_SET_OPTIMIZER;
    to->yes = wanted->yes;
    to->dry_run = wanted->dry_run;
    to->u.set_optimizer.at_step = wanted->at_step > 0 ? wanted->at_step : -1;
    to->u.set_optimizer.settings = snapshot->settings;
    if (!wanted->policy[0] && wanted->n_settings == 0) {
        err_set(err, ERR_INVALID, "set-optimizer was told nothing to set");
        return err_hint(err, "name a policy (fp32-master, bf16-kahan, …) or a setting (--lr 1e-4)");
    }
    if (wanted->policy[0] && !policy_parse(&policy, wanted->policy, NULL, err))
        return false;
    for (size_t i = 0; i < wanted->n_settings; i++)
        if (!set_setting(to, wanted->settings[i], err))
            return false;
    return optimizer_settings_check(&to->u.set_optimizer.settings, err) &&
           copy_text(to->u.set_optimizer.policy, sizeof to->u.set_optimizer.policy, wanted->policy,
                     "the policy", err);
}

/* What is named replaces, and takes with it what it contradicts: a ratio the warm-up's steps, a kind the
 * other kinds' lengths. A decay that ended with the run ends with it again when `steps` moves the end. */
static bool merge_schedule(struct recipe *recipe, char *const *settings, size_t count, struct err *err)
{
    size_t key_count;
    const struct key *keys = recipe_keys(&key_count);
    enum schedule_kind before = recipe->schedule.kind;
    bool said_steps = false, said_decay = false, said_wsd = false, said_ratio = false;
    for (size_t i = 0; i < count; i++) {
        char name[LIMIT_NAME_BYTES], full[LIMIT_NAME_BYTES + 16];
        const char *value = NULL;
        if (!split_setting(settings[i], name, &value, err))
            return false;
        snprintf(full, sizeof full, "%s%s", strcmp(name, "steps") == 0 ? "" : "schedule.", name);
        if (!keys_set(keys, key_count, recipe, NULL, full, value, 0, err))
            return false;
        said_ratio |= strcmp(name, "warmup_ratio") == 0;
        said_steps |= strcmp(name, "warmup_steps") == 0;
        said_decay |= strcmp(name, "decay_steps") == 0;
        said_wsd |= strcmp(name, "wsd_decay") == 0;
    }
    if (said_ratio && !said_steps)
        recipe->schedule.warmup_steps = -1;
    if (recipe->schedule.kind != before) {
        if (!said_decay)
            recipe->schedule.decay_steps = -1;
        if (!said_wsd)
            recipe->schedule.wsd_decay = -1;
    }
    return true;
}

static bool from_set_schedule(struct command *to, const Trainerd__Request *request,
                              const struct snapshot *snapshot, struct err *err)
{
    const Trainerd__SetScheduleRequest *wanted = request->set_schedule;
    to->kind = COMMAND_SET_SCHEDULE;
    to->dry_run = wanted->dry_run;
    bool saves = snapshot->state == STATE_BUSY && snapshot->schedule.steps > 0; /* then its turn comes */
    if (!saves && !command_legal(COMMAND_SET_SCHEDULE, snapshot->state, err))
        return false;
    if (wanted->n_settings == 0) {
        err_set(err, ERR_INVALID, "set-schedule was told nothing to set");
        return err_hint(err, "name at least one setting: --kind linear, --min-lr 1e-6, …");
    }
    struct recipe recipe;
    recipe_init(&recipe);
    recipe.schedule = schedule_settings_of(&snapshot->schedule);
    recipe.steps = snapshot->schedule.steps;
    if (!merge_schedule(&recipe, wanted->settings, wanted->n_settings, err))
        return false;
    if (recipe.steps <= snapshot->step) {
        err_set(err, ERR_INVALID, "steps %lld is not beyond what the run has finished, %lld steps",
                (long long)recipe.steps, (long long)snapshot->step);
        return err_hint(err, "steps are absolute, counted from the run's start; trainctl stop ends it here");
    }
    return schedule_resolve(&to->u.set_schedule.schedule, &recipe.schedule, snapshot->schedule.lr,
                            recipe.steps, err);
}

/* Whether it fits the ranks and the model only the engine knows. */
static bool from_set_layout(struct command *to, const Trainerd__Request *request, struct err *err)
{
    const Trainerd__SetLayoutRequest *wanted = request->set_layout;
    to->kind = COMMAND_SET_LAYOUT;
    to->dry_run = wanted->dry_run;
    to->u.set_layout.zero = wanted->zero;
    if (!wanted->layout[0]) {
        err_set(err, ERR_INVALID, "set-layout was told no layout");
        return err_hint(err, "name one, such as d2t2; trainctl status shows the present one");
    }
    if (wanted->zero < 0 || wanted->zero > 3) {
        err_set(err, ERR_INVALID, "ZeRO has stages 1, 2 and 3, and no %d", wanted->zero);
        return err_hint(err, "leave it out to keep the one asked for before");
    }
    return copy_text(to->u.set_layout.layout, sizeof to->u.set_layout.layout, wanted->layout, "the layout",
                     err);
}

/* A checkpoint is a name in the checkpoint folder; "" lets the engine choose. */
static bool from_checkpoint(struct command *to, enum command_kind kind, const char *name, bool named,
                            struct err *err)
{
    to->kind = kind;
    if (named && !name[0])
        return err_set(err, ERR_INVALID, "%s needs a checkpoint's name", command_name(kind));
    return copy_text(to->u.model.path, LIMIT_NAME_BYTES, name, "the checkpoint's name", err);
}

static bool from_checkpoint_load(struct command *to, const Trainerd__Request *request, struct err *err)
{
    const Trainerd__CheckpointLoadRequest *wanted = request->checkpoint_load;
    struct policy policy;
    to->yes = wanted->yes;
    if (wanted->policy[0] && !policy_parse(&policy, wanted->policy, NULL, err))
        return false;
    return from_checkpoint(to, COMMAND_CHECKPOINT_LOAD, wanted->name, false, err) &&
           copy_text(to->u.model.policy, sizeof to->u.model.policy, wanted->policy, "the policy", err);
}

bool convert_command(struct command *to, const Trainerd__Request *request, const struct snapshot *snapshot,
                     struct err *err)
{
    bool wants_snapshot = request->command_case == TRAINERD__REQUEST__COMMAND_SET_OPTIMIZER ||
                          request->command_case == TRAINERD__REQUEST__COMMAND_SET_SCHEDULE;
    if (wants_snapshot && !snapshot) {
        err_set(err, ERR_BUSY, "the daemon is starting");
        return err_hint(err, "try again in a moment; trainctl wait does");
    }
    switch ((int)request->command_case) {
    case TRAINERD__REQUEST__COMMAND_INIT:
        return from_init(to, request, err);
    case TRAINERD__REQUEST__COMMAND_LOAD:
        return from_load(to, request, err);
    case TRAINERD__REQUEST__COMMAND_EXPORT:
        return from_export(to, request, err);
    case TRAINERD__REQUEST__COMMAND_TRAIN:
        return from_train(to, request, err);
    case TRAINERD__REQUEST__COMMAND_EVALUATE:
        return from_evaluate(to, request, err);
    case TRAINERD__REQUEST__COMMAND_PAUSE:
        to->kind = COMMAND_PAUSE;
        return true;
    case TRAINERD__REQUEST__COMMAND_RESUME:
        to->kind = COMMAND_RESUME;
        return true;
    case TRAINERD__REQUEST__COMMAND_STOP:
        to->kind = COMMAND_STOP;
        return true;
    case TRAINERD__REQUEST__COMMAND_SET_OPTIMIZER:
        return from_set_optimizer(to, request, snapshot, err);
    case TRAINERD__REQUEST__COMMAND_SET_SCHEDULE:
        return from_set_schedule(to, request, snapshot, err);
    case TRAINERD__REQUEST__COMMAND_SET_LAYOUT:
        return from_set_layout(to, request, err);
    case TRAINERD__REQUEST__COMMAND_CHECKPOINT_SAVE:
        return from_checkpoint(to, COMMAND_CHECKPOINT_SAVE, request->checkpoint_save->name, false, err);
    case TRAINERD__REQUEST__COMMAND_CHECKPOINT_LOAD:
        return from_checkpoint_load(to, request, err);
    case TRAINERD__REQUEST__COMMAND_CHECKPOINT_VERIFY:
        return from_checkpoint(to, COMMAND_CHECKPOINT_VERIFY, request->checkpoint_verify->name, true, err);
    case TRAINERD__REQUEST__COMMAND_CHECKPOINT_DELETE:
        return from_checkpoint(to, COMMAND_CHECKPOINT_DELETE, request->checkpoint_delete->name, true, err);
    case TRAINERD__REQUEST__COMMAND_SHUTDOWN:
        to->kind = COMMAND_SHUTDOWN;
        return true;
    default:
        return err_set(err, ERR_UNSUPPORTED, "this daemon does not know that command");
    }
}
