/* set-optimizer and audit: what is stored, in which precision, in how many bytes. */
#include "commands.h"
#include "optimizer_settings.h"
#include "output.h"
#include "policy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool policy_with_compute(char text[LIMIT_NAME_BYTES], const char *policy, const char *compute,
                         struct err *err)
{
    struct policy parsed;
    if (!policy[0] && compute) {
        err_set(err, ERR_INVALID, "--compute %s changes a policy, and none is named", compute);
        return err_hint(err, "name it, for example fp32-master --compute %s", compute);
    }
    text[0] = '\0';
    if (!policy[0])
        return true;
    if (!policy_parse(&parsed, policy, compute, err))
        return false;
    snprintf(text, LIMIT_NAME_BYTES, "%s", parsed.name);
    return true;
}

static double number_at(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static void print_bytes(const json_t *c)
{
    char before[32], after[32], peak[32];
    output_bytes(before, sizeof before, number_at(c, "bytes_before"));
    output_bytes(after, sizeof after, number_at(c, "bytes_after"));
    output_bytes(peak, sizeof peak, number_at(c, "bytes_peak"));
    if (!json_is_true(json_object_get(c, "converts"))) {
        printf("stays     the stored state: %g bytes a parameter, %s on the fullest rank\n",
               number_at(c, "bytes_per_parameter_after"), after);
    } else {
        printf("before    %g bytes a parameter, %s on the fullest rank\n",
               number_at(c, "bytes_per_parameter_before"), before);
        printf("after     %g bytes a parameter, %s\n", number_at(c, "bytes_per_parameter_after"), after);
    }
    if (number_at(c, "bytes_more") > 0)
        printf("peak      %s while %s\n", peak,
               json_is_true(json_object_get(c, "converts")) ? "both are there"
                                                            : "the gathered weights are there in both types");
}

static void print_conversion(const json_t *c, int64_t at_step)
{
    bool converts = json_is_true(json_object_get(c, "converts"));
    print_bytes(c);
    if (converts && json_is_true(json_object_get(c, "exact")))
        printf("loses     nothing: no stored value changes\n");
    else if (converts && at_step == 0 && !json_is_true(json_object_get(c, "dry_run")))
        printf("loses     %.3g %% of the stored values change, by %.3g %% of themselves at most\n",
               100 * number_at(c, "changed_share"), 100 * number_at(c, "largest_relative_change"));
    const char *text = json_string_value(json_object_get(c, "text"));
    if (text && text[0] && (converts || number_at(c, "bytes_more") > 0))
        printf("%s\n", text);
}

/* "0.0001" */
static void setting_text(char text[32], const json_t *value)
{
    if (json_is_string(value))
        snprintf(text, 32, "%s", json_string_value(value));
    else
        snprintf(text, 32, "%.12g", json_number_value(value));
}

/* Old and new of every hyperparameter that was named. */
static void print_settings(const struct call *call, const json_t *c)
{
    const json_t *after = json_object_get(c, "settings_after");
    for (int i = 0; json_is_object(after) && i < call->setting_count; i++) {
        char name[LIMIT_NAME_BYTES], was[32], is[32];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(call->settings[i], "="), call->settings[i]);
        if (strcmp(name, "decay_all") == 0)
            snprintf(name, sizeof name, "decay");
        setting_text(was, json_object_get(json_object_get(c, "settings_before"), name));
        setting_text(is, json_object_get(after, name));
        if (strcmp(was, is) == 0)
            printf("%-9s %s, as it was\n", name, is);
        else
            printf("%-9s %s → %s\n", name, was, is);
    }
}

static const struct column conversion_columns[] = {
    {"bytes_per_parameter_before", "", AS_REAL, 0},
    {"bytes_per_parameter_after", "", AS_REAL, 0},
    {"bytes_before", "", AS_INTEGER, 0},
    {"bytes_after", "", AS_INTEGER, 0},
    {"bytes_peak", "", AS_INTEGER, 0},
    {"exact", "", AS_TEXT, 0},
    {"largest_relative_change", "", AS_REAL, 0},
    {"changed_share", "", AS_REAL, 0},
};

void output_conversion(const struct call *call, const json_t *conversion, int64_t at_step)
{
    if (call->output == OUTPUT_TABLE)
        print_conversion(conversion, at_step);
    else
        output_object(call, conversion_columns, sizeof conversion_columns / sizeof conversion_columns[0],
                      conversion);
}

void note_policy(const struct call *call, const char *text, double beta2)
{
    struct policy policy;
    struct err err = ERR_INIT;
    struct policy_note notes[POLICY_NOTES_MAX];
    if (!text[0] || !policy_parse(&policy, text, NULL, &err))
        return;
    int count = policy_notes(&policy, beta2, notes);
    for (int i = 0; i < count; i++)
        call_note(call, "%s: %s", notes[i].warning ? "warning" : "note", notes[i].text);
}

static bool check_settings(const struct call *call, struct optimizer_settings *settings, struct err *err)
{
    size_t count;
    const struct key *keys = optimizer_keys(&count);
    *settings = optimizer_settings_default();
    for (int i = 0; i < call->setting_count; i++) {
        char name[LIMIT_NAME_BYTES];
        const char *equals = strchr(call->settings[i], '=');
        snprintf(name, sizeof name, "%.*s", (int)(equals - call->settings[i]), call->settings[i]);
        if (!keys_set(keys, count, settings, NULL, name, equals + 1, 0, err))
            return false;
    }
    return optimizer_settings_check(settings, err);
}

int cmd_set_optimizer(struct call *call)
{
    struct err err = ERR_INIT;
    char policy[LIMIT_NAME_BYTES];
    int64_t at_step = 0;
    struct optimizer_settings settings;
    json_t *conversion;
    REQUEST(request, SET_OPTIMIZER, SetOptimizerRequest, set_optimizer);
    const char *named = call->argument_count > 0 ? call->arguments[0] : "";
    if (call->argument_count == 0 && call->setting_count == 0 && !call_option(call, "compute")) {
        err_set(&err, ERR_INVALID, "set-optimizer was told nothing to set");
        err_hint(&err, "name a policy (fp32-master, bf16-kahan, …) or a setting (--lr 1e-4)");
        return call_fail(call, &err);
    }
    if (!policy_with_compute(policy, named, call_option(call, "compute"), &err) ||
        !call_integer(call, "at-step", 1, INT64_MAX, &at_step, &err) ||
        !check_settings(call, &settings, &err))
        return call_fail(call, &err);
    request_body.policy = policy;
    request_body.settings = call->settings;
    request_body.n_settings = (size_t)call->setting_count;
    request_body.at_step = at_step;
    request_body.dry_run = call_option(call, "dry-run") != NULL;
    request_body.yes = call_option(call, "yes") != NULL;
    note_policy(call, policy, settings.beta2);
    if (!call_ask_json(call, &request, &conversion, &err))
        return call_fail(call, &err);
    json_object_set_new(conversion, "dry_run", json_boolean(request_body.dry_run));
    if (policy[0] || call->output != OUTPUT_TABLE)
        output_conversion(call, conversion, at_step);
    if (call->output == OUTPUT_TABLE) {
        print_settings(call, conversion);
        const char *text = json_string_value(json_object_get(conversion, "text"));
        if (!policy[0] && text && text[0])
            call_note(call, "%s", text);
        if (request_body.dry_run)
            call_note(call, "nothing was changed: this was a dry run");
        else if (at_step > 0)
            printf("applies   when the run has finished step %lld\n", (long long)at_step);
    }
    json_decref(conversion);
    return EXIT_DONE;
}

int cmd_audit(struct call *call)
{
    static const struct column columns[] = {
        {"rank", "rank", AS_INTEGER, 0},
        {"tensor", "tensor", AS_TEXT, 0},
        {"kind", "kind", AS_TEXT, 0},
        {"dtype", "dtype", AS_TEXT, 0},
        {"elements", "elements", AS_INTEGER, 0},
        {"bytes", "bytes", AS_INTEGER, 0},
    };
    struct err err = ERR_INIT;
    REQUEST(request, AUDIT, AuditRequest, audit);
    json_t *audit;
    if (!call_ask_json(call, &request, &audit, &err))
        return call_fail(call, &err);
    output_rows(call, columns, 6, json_object_get(audit, "rows"), audit);
    if (call->output == OUTPUT_TABLE) {
        char total[32];
        long long bytes = json_integer_value(json_object_get(audit, "bytes_total"));
        printf("sum of the rows %lld bytes (%s); allocated %lld bytes\n", bytes,
               output_bytes(total, sizeof total, (double)bytes),
               (long long)json_integer_value(json_object_get(audit, "bytes_allocated")));
    }
    json_decref(audit);
    return EXIT_DONE;
}
