/* train: a recipe, flags, or both, made whole and checked here, sent as text, checked again there. */
#include "commands.h"
#include "file.h"
#include "follow.h"
#include "recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* With epochs N is known once the data are read: what does not fit into it is refused here already, where the
 * line is known on which it was said. Data that cannot be read are the daemon's to refuse. */
static bool check_length(const struct call *call, const struct recipe *recipe, const char *name,
                         const char *text, size_t bytes, struct err *err)
{
    struct err unread = ERR_INIT;
    struct recipe scratch;
    const char *overrides[CALL_SETTINGS + 1];
    char steps[40];
    int64_t count;
    if (recipe->epochs < 0 || !recipe_count_steps(recipe, &count, &unread))
        return true;
    for (int i = 0; i < call->setting_count; i++)
        overrides[i] = strncmp(call->settings[i], "epochs=", 7) == 0 ? steps : call->settings[i];
    snprintf(steps, sizeof steps, "steps=%lld", (long long)count);
    overrides[call->setting_count] = steps;
    return recipe_parse_part(&scratch, name, text, bytes, overrides, (size_t)call->setting_count + 1, err);
}

/* The daemon is elsewhere: paths become absolute, --compute a part of the policy. */
static bool settle(struct call *call, struct recipe *recipe, struct err *err)
{
    char here[LIMIT_PATH_BYTES], policy[LIMIT_NAME_BYTES];
    const char *compute = call_option(call, "compute");
    if (!getcwd(here, sizeof here))
        return err_errno(err, "cannot tell the present folder");
    if (!recipe_paths_absolute(recipe, here, err) || !call_add_setting(call, "data", recipe->data, err))
        return false;
    if (recipe->evaluate.data[0] && !call_add_setting(call, "evaluate.data", recipe->evaluate.data, err))
        return false;
    if (!policy_with_compute(policy, recipe->optimizer.policy, compute, err))
        return false;
    return !compute || call_add_setting(call, "optimizer.policy", policy, err);
}

/* said: what the daemon said already. */
static void note_schedule(const struct call *call, const struct recipe *recipe, int64_t steps,
                          const char *said)
{
    struct schedule schedule;
    struct err err = ERR_INIT;
    char note[512];
    if (!schedule_resolve(&schedule, &recipe->schedule, recipe->optimizer.lr, steps, &err))
        return;
    schedule_note(&schedule, note, sizeof note);
    if (note[0] && !(said && strstr(said, note)))
        call_note(call, "note: %s", note);
}

static int began(struct call *call, const struct recipe *recipe, const json_t *trained, bool follow)
{
    const char *run = json_string_value(json_object_get(trained, "run"));
    const char *text = json_string_value(json_object_get(trained, "text"));
    const json_t *conversion = json_object_get(trained, "conversion");
    int64_t steps = json_integer_value(json_object_get(trained, "steps"));
    if (call->output == OUTPUT_JSON && !follow)
        output_json(trained);
    else if (!follow)
        printf("%s\n", run);
    call_note(call, "%s: %lld steps%s%s", run, (long long)steps, text && text[0] ? "; " : "",
              text ? text : "");
    if (json_is_object(conversion))
        call_note(call, "the policy takes %g bytes a parameter, it was %g",
                  json_number_value(json_object_get(conversion, "bytes_per_parameter_after")),
                  json_number_value(json_object_get(conversion, "bytes_per_parameter_before")));
    note_schedule(call, recipe, steps, text);
    return follow ? follow_run(call, run, 0, true) : EXIT_DONE;
}

int cmd_train(struct call *call)
{
    struct err err = ERR_INIT;
    struct recipe recipe;
    char *text = NULL;
    size_t bytes = 0;
    json_t *trained = NULL;
    int code;
    const char *name = call->argument_count > 0 ? call->arguments[0] : "the flags";
    REQUEST(request, TRAIN, TrainRequest, train);
    if (call->argument_count == 0 && call->setting_count == 0) {
        err_set(&err, ERR_INVALID, "train needs a recipe or flags");
        err_hint(&err, "trainctl train RECIPE.yaml, or trainctl train --data DIR --steps 100 --lr 1e-4");
        return call_fail(call, &err);
    }
    bool good = (call->argument_count == 0 || file_slurp(name, RECIPE_TEXT_BYTES, &text, &bytes, &err)) &&
                recipe_parse(&recipe, name, text, bytes, (const char *const *)call->settings,
                             (size_t)call->setting_count, &err) &&
                check_length(call, &recipe, name, text, bytes, &err) && settle(call, &recipe, &err);
    if (good) {
        request_body.recipe = text ? text : (char *)"";
        request_body.recipe_name = (char *)(uintptr_t)name;
        request_body.overrides = call->settings;
        request_body.n_overrides = (size_t)call->setting_count;
        request_body.keep_moments = call_option(call, "keep-moments") != NULL;
        request_body.yes = call_option(call, "yes") != NULL;
        note_policy(call, recipe.optimizer.policy, recipe.optimizer.betas[1]);
        if (call_option(call, "follow"))
            follow_catch_one_interrupt(); /* from here on Ctrl-C leaves a run behind */
        good = call_ask_json(call, &request, &trained, &err);
    }
    free(text);
    code = good ? began(call, &recipe, trained, call_option(call, "follow") != NULL) : call_fail(call, &err);
    json_decref(trained);
    return code;
}
