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

static void print_conversion(const json_t *c, int64_t at_step)
{
    char before[32], after[32], peak[32];
    double per_before = json_number_value(json_object_get(c, "bytes_per_parameter_before"));
    double per_after = json_number_value(json_object_get(c, "bytes_per_parameter_after"));
    output_bytes(before, sizeof before, json_number_value(json_object_get(c, "bytes_before")));
    output_bytes(after, sizeof after, json_number_value(json_object_get(c, "bytes_after")));
    output_bytes(peak, sizeof peak, json_number_value(json_object_get(c, "bytes_peak")));
    printf("before    %g bytes a parameter, %s on the fullest rank\n", per_before, before);
    printf("after     %g bytes a parameter, %s\n", per_after, after);
    printf("peak      %s while both are there\n", peak);
    if (json_is_true(json_object_get(c, "exact")))
        printf("loses     nothing: no stored value changes\n");
    else if (at_step > 0)
        printf("applies   at step %lld\n", (long long)at_step);
    else if (!json_is_true(json_object_get(c, "dry_run")))
        printf("loses     %.3g %% of the stored values change, by %.3g %% of themselves at most\n",
               100 * json_number_value(json_object_get(c, "changed_share")),
               100 * json_number_value(json_object_get(c, "largest_relative_change")));
    const char *text = json_string_value(json_object_get(c, "text"));
    if (text && text[0])
        printf("%s\n", text);
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
    if (call->argument_count == 0 && call->setting_count == 0) {
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
    output_conversion(call, conversion, request_body.dry_run ? 0 : at_step);
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
