/* init, load, export, evaluate: models and data in and out. */
#include "commands.h"
#include "output.h"

#include <stdio.h>
#include <string.h>

static const struct column model_columns[] = {
    {"parameters", "parameters", AS_INTEGER, 0},
    {"path", "from", AS_TEXT, 0},
    {"text", "", AS_TEXT, 0},
};

static int show(struct call *call, Trainerd__Request *request, const struct column *columns, int count)
{
    struct err err = ERR_INIT;
    json_t *result;
    if (!call_ask_json(call, request, &result, &err))
        return call_fail(call, &err);
    const char *text = json_string_value(json_object_get(result, "text"));
    output_object(call, columns, text && text[0] ? count : count - 1, result);
    json_decref(result);
    return EXIT_DONE;
}

int cmd_init(struct call *call)
{
    struct err err = ERR_INIT;
    char path[LIMIT_PATH_BYTES];
    Trainerd__Seed seed = TRAINERD__SEED__INIT;
    int64_t number = 0;
    REQUEST(request, INIT, InitRequest, init);
    if (!call_absolute(path, call->arguments[0], &err) ||
        !call_integer(call, "seed", 0, INT64_MAX, &number, &err))
        return call_fail(call, &err);
    seed.value = (uint64_t)number;
    request_body.path = path;
    request_body.seed = call_option(call, "seed") ? &seed : NULL;
    return show(call, &request, model_columns, 3);
}

int cmd_load(struct call *call)
{
    struct err err = ERR_INIT;
    char path[LIMIT_PATH_BYTES];
    REQUEST(request, LOAD, LoadRequest, load);
    if (!call_absolute(path, call->arguments[0], &err))
        return call_fail(call, &err);
    request_body.path = path;
    return show(call, &request, model_columns, 3);
}

int cmd_export(struct call *call)
{
    static const struct column columns[] = {
        {"path", "to", AS_TEXT, 0}, {"bytes", "bytes", AS_BYTES, 0}, {"text", "", AS_TEXT, 0}};
    struct err err = ERR_INIT;
    char path[LIMIT_PATH_BYTES];
    const char *dtype = call_option(call, "dtype");
    REQUEST(request, EXPORT, ExportRequest, export);
    if (dtype && strcmp(dtype, "bf16") != 0 && strcmp(dtype, "fp32") != 0) {
        err_set(&err, ERR_INVALID, "--dtype is \"%.40s\", which is not one of bf16, fp32", dtype);
        return call_fail(call, &err);
    }
    if (!call_absolute(path, call->arguments[0], &err))
        return call_fail(call, &err);
    request_body.path = path;
    request_body.dtype = (char *)(uintptr_t)(dtype ? dtype : "bf16");
    return show(call, &request, columns, 3);
}

int cmd_evaluate(struct call *call)
{
    static const struct column columns[] = {{"loss", "loss", AS_EXACT, 0},
                                            {"labelled_tokens", "labelled_tokens", AS_INTEGER, 0},
                                            {"text", "", AS_TEXT, 0}};
    struct err err = ERR_INIT;
    char path[LIMIT_PATH_BYTES];
    REQUEST(request, EVALUATE, EvaluateRequest, evaluate);
    if (!call_absolute(path, call->arguments[0], &err))
        return call_fail(call, &err);
    request_body.data = path;
    return show(call, &request, columns, 3);
}
