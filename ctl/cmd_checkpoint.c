/* checkpoint save, load, list, verify, delete. */
#include "commands.h"
#include "output.h"

#include <stdio.h>
#include <string.h>

static const char *name_of(const struct call *call)
{
    return call->argument_count > 0 ? call->arguments[0] : "";
}

/* The daemon knows no checkpoint of that name: which is near? */
static void propose(struct call *call, struct err *err)
{
    enum { NAMES = 256 }; /* the newest so many */
    const char *names[NAMES], *asked = name_of(call);
    struct err none = ERR_INIT;
    json_t *list = NULL;
    REQUEST(request, CHECKPOINT_LIST, CheckpointListRequest, checkpoint_list);
    if (err->code != ERR_NOT_FOUND || !asked[0] || !call->connected ||
        !call_ask_json(call, &request, &list, &none))
        return;
    const json_t *rows = json_object_get(list, "checkpoints");
    size_t count = json_array_size(rows) < NAMES ? json_array_size(rows) : NAMES;
    for (size_t i = 0; i < count; i++)
        names[i] = json_string_value(json_object_get(json_array_get(rows, i), "name"));
    const char *near = err_nearest(asked, names, count);
    if (near) /* instead of the daemon's hint */
        snprintf(err->hint, sizeof err->hint,
                 "did you mean \"%s\"? `trainctl checkpoint list` shows the checkpoints there are", near);
    json_decref(list);
    call->client.refused = true; /* it was the command that was refused, not the question after it */
}

/* The answer with what was done to which one: {"verified": true, "name": …}, and no bytes where none were
 * counted. */
static json_t *complete(const char *done, const char *asked, json_t *answer)
{
    const char *path = json_string_value(json_object_get(answer, "path"));
    const char *slash = path ? strrchr(path, '/') : NULL;
    json_t *whole = json_pack("{s:b, s:s}", done, 1, "name", asked[0] || !slash ? asked : slash + 1);
    if (json_integer_value(json_object_get(answer, "bytes")) == 0)
        json_object_del(answer, "bytes");
    INVARIANT(whole != NULL && json_object_update(whole, answer) == 0);
    json_decref(answer);
    return whole;
}

/* done: "verified"; more: what follows it for people. */
static int show(struct call *call, Trainerd__Request *request, const char *done, const char *more)
{
    const struct column columns[] = {{"name", "name", AS_TEXT, 0},
                                     {done, done, AS_TEXT, 0},
                                     {"path", "path", AS_TEXT, 0},
                                     {"bytes", "bytes", AS_INTEGER, 0}};
    struct err err = ERR_INIT;
    json_t *result;
    char bytes[32];
    if (!call_ask_json(call, request, &result, &err)) {
        propose(call, &err);
        return call_fail(call, &err);
    }
    result = complete(done, name_of(call), result);
    const char *text = json_string_value(json_object_get(result, "text"));
    const char *path = json_string_value(json_object_get(result, "path"));
    double count = json_number_value(json_object_get(result, "bytes"));
    if (call->output != OUTPUT_TABLE) {
        output_object(call, columns, sizeof columns / sizeof columns[0], result);
    } else {
        printf("%s\n", path ? path : "");
        call_note(call, "%s%s%s%s", done, more, count > 0 ? ", " : "",
                  count > 0 ? output_bytes(bytes, sizeof bytes, count) : "");
        if (json_is_object(json_object_get(result, "conversion")))
            output_conversion(call, json_object_get(result, "conversion"), 0); /* which says the text too */
        else if (text && text[0])
            call_note(call, "%s", text);
    }
    json_decref(result);
    return EXIT_DONE;
}

int cmd_checkpoint_save(struct call *call)
{
    REQUEST(request, CHECKPOINT_SAVE, CheckpointSaveRequest, checkpoint_save);
    request_body.name = (char *)(uintptr_t)name_of(call);
    return show(call, &request, "saved", "");
}

int cmd_checkpoint_load(struct call *call)
{
    struct err err = ERR_INIT;
    char policy[LIMIT_NAME_BYTES];
    const char *named = call_option(call, "policy");
    REQUEST(request, CHECKPOINT_LOAD, CheckpointLoadRequest, checkpoint_load);
    if (!policy_with_compute(policy, named ? named : "", call_option(call, "compute"), &err))
        return call_fail(call, &err);
    request_body.name = (char *)(uintptr_t)name_of(call);
    request_body.policy = policy;
    request_body.yes = call_option(call, "yes") != NULL;
    return show(call, &request, "loaded", "");
}

int cmd_checkpoint_verify(struct call *call)
{
    REQUEST(request, CHECKPOINT_VERIFY, CheckpointVerifyRequest, checkpoint_verify);
    request_body.name = (char *)(uintptr_t)name_of(call);
    return show(call, &request, "verified", ": every byte is as it was written");
}

int cmd_checkpoint_delete(struct call *call)
{
    REQUEST(request, CHECKPOINT_DELETE, CheckpointDeleteRequest, checkpoint_delete);
    request_body.name = (char *)(uintptr_t)name_of(call);
    return show(call, &request, "deleted", "");
}

/* Of a manifest that cannot be read nothing is known: no number rather than -1. */
static void forget_unknown(json_t *list)
{
    static const char *const numbers[] = {"step", "total_steps", "bytes"};
    for (size_t i = 0; i < json_array_size(list); i++)
        for (size_t n = 0; n < sizeof numbers / sizeof numbers[0]; n++)
            if (json_integer_value(json_object_get(json_array_get(list, i), numbers[n])) < 0)
                json_object_set_new(json_array_get(list, i), numbers[n], json_null());
}

int cmd_checkpoint_list(struct call *call)
{
    static const struct column columns[] = {
        {"name", "name", AS_TEXT, 0},       {"step", "step", AS_INTEGER, 0},
        {"run", "run", AS_TEXT, 0},         {"policy", "policy", AS_TEXT, 0},
        {"bytes", "bytes", AS_BYTES, 0},    {"health", "health", AS_TEXT, 0},
        {"saved", "saved", AS_TEXT, 0},     {"total_steps", "total_steps", AS_INTEGER, 0},
        {"damaged", "damaged", AS_TEXT, 0},
    };
    struct err err = ERR_INIT;
    json_t *list;
    REQUEST(request, CHECKPOINT_LIST, CheckpointListRequest, checkpoint_list);
    if (!call_ask_json(call, &request, &list, &err))
        return call_fail(call, &err);
    forget_unknown(json_object_get(list, "checkpoints"));
    output_rows(call, columns, sizeof columns / sizeof columns[0], json_object_get(list, "checkpoints"),
                list);
    if (json_array_size(json_object_get(list, "checkpoints")) == 0)
        call_note(call, "There are none yet in %s.",
                  json_string_value(json_object_get(list, "checkpoint_dir")));
    json_decref(list);
    return EXIT_DONE;
}
