/* set-layout: who holds what, changed between two steps. */
#include "commands.h"
#include "output.h"

#include <stdio.h>

static double number_at(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static void print_relayout(const json_t *r, bool dry_run)
{
    char moved[32], before[32], after[32], peak[32];
    const char *text = json_string_value(json_object_get(r, "text"));
    bool same = json_equal(json_object_get(r, "layout_before"), json_object_get(r, "layout_after")) &&
                json_equal(json_object_get(r, "zero_before"), json_object_get(r, "zero_after"));
    if (same) {
        printf("%s\n", text);
        return;
    }
    output_bytes(moved, sizeof moved, number_at(r, "bytes_moved"));
    output_bytes(before, sizeof before, number_at(r, "bytes_before"));
    output_bytes(after, sizeof after, number_at(r, "bytes_after"));
    output_bytes(peak, sizeof peak, number_at(r, "bytes_peak"));
    printf("layout    %s, ZeRO %g → %s, ZeRO %g\n", json_string_value(json_object_get(r, "layout_before")),
           number_at(r, "zero_before"), json_string_value(json_object_get(r, "layout_after")),
           number_at(r, "zero_after"));
    if (dry_run)
        printf("moves     %s between ranks\n", moved);
    else
        printf("moved     %s between ranks in %.3g s, no bit of them changed\n", moved,
               number_at(r, "seconds"));
    printf("memory    %s before, %s after, %s while both are there, on the fullest rank\n", before, after,
           peak);
    if (text[0])
        printf("%s\n", text);
}

int cmd_set_layout(struct call *call)
{
    static const struct column columns[] = {
        {"layout_before", "", AS_TEXT, 0},   {"layout_after", "", AS_TEXT, 0},
        {"zero_before", "", AS_INTEGER, 0},  {"zero_after", "", AS_INTEGER, 0},
        {"bytes_moved", "", AS_INTEGER, 0},  {"seconds", "", AS_REAL, 0},
        {"bytes_before", "", AS_INTEGER, 0}, {"bytes_after", "", AS_INTEGER, 0},
        {"bytes_peak", "", AS_INTEGER, 0},   {"dry_run", "", AS_TEXT, 0},
    };
    struct err err = ERR_INIT;
    int64_t zero = 0;
    json_t *relayout;
    REQUEST(request, SET_LAYOUT, SetLayoutRequest, set_layout);
    if (!call_integer(call, "zero", 1, 3, &zero, &err))
        return call_fail(call, &err);
    request_body.layout = (char *)(uintptr_t)call->arguments[0];
    request_body.zero = (int32_t)zero;
    request_body.dry_run = call_option(call, "dry-run") != NULL;
    if (!call_ask_json(call, &request, &relayout, &err))
        return call_fail(call, &err);
    json_object_set_new(relayout, "dry_run", json_boolean(request_body.dry_run));
    if (call->output == OUTPUT_TABLE)
        print_relayout(relayout, request_body.dry_run);
    else
        output_object(call, columns, sizeof columns / sizeof columns[0], relayout);
    if (call->output == OUTPUT_TABLE && request_body.dry_run)
        call_note(call, "nothing was changed: this was a dry run");
    json_decref(relayout);
    return EXIT_DONE;
}
