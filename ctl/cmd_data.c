/* data prepare and data show: files to datasets and back to text, without a daemon. */
#include "commands.h"
#include "data_tools.h"
#include "follow.h"
#include "output.h"

#include <stdio.h>
#include <unistd.h>

static const struct column statistics[] = {
    {"folder", "folder", AS_TEXT, 0},
    {"tokenizer", "tokenizer", AS_TEXT, 0},
    {"vocabulary", "vocabulary", AS_INTEGER, 0},
    {"sort_key", "sort_key", AS_TEXT, 0},
    {"cutoff", "cutoff", AS_INTEGER, 0},
    {"rows", "rows", AS_INTEGER, 0},
    {"tokens", "tokens", AS_INTEGER, 0},
    {"labelled_tokens", "labelled_tokens", AS_INTEGER, 0},
    {"labelled_share", "labelled_share", AS_REAL, 0},
    {"cut", "cut", AS_INTEGER, 0},
    {"dropped", "dropped", AS_INTEGER, 0},
    {"longest", "longest", AS_INTEGER, 0},
    {"length_p5", "length_p5", AS_INTEGER, 0},
    {"length_p25", "length_p25", AS_INTEGER, 0},
    {"length_p50", "length_p50", AS_INTEGER, 0},
    {"length_p75", "length_p75", AS_INTEGER, 0},
    {"length_p95", "length_p95", AS_INTEGER, 0},
    {"hash", "hash", AS_TEXT, 0},
};

static void show(const struct call *call, const json_t *result)
{
    if (call->output == OUTPUT_TABLE)
        data_show_print(stdout, result, isatty(STDOUT_FILENO) == 1);
    else
        output_object(call, statistics, sizeof statistics / sizeof statistics[0], result);
}

int cmd_data_prepare(struct call *call)
{
    struct err err = ERR_INIT;
    struct data_prepare_options options = {.files = call->arguments,
                                           .file_count = (size_t)call->argument_count,
                                           .output = call_option(call, "o"),
                                           .sort_by = call_option(call, "sort-by"),
                                           .cutoff = -1,
                                           .overwrite = call_option(call, "overwrite") != NULL,
                                           .stop = follow_interrupt_flag()};
    json_t *result;
    if (!options.output) {
        err_set(&err, ERR_INVALID, "data prepare needs a folder to write: -o DIR");
        err_hint(&err, "usage: trainctl data prepare FILES… -o DIR; chat JSONL or any text");
        return call_fail(call, &err);
    }
    options.progress = !call->quiet && isatty(STDERR_FILENO) == 1 ? stderr : NULL;
    follow_catch_interrupt();
    if (!call_integer(call, "cutoff", 2, 1 << 20, &options.cutoff, &err) ||
        !data_prepare(&options, &result, &err)) {
        int code = call_fail(call, &err);
        return follow_interrupted() ? EXIT_INTERRUPTED : code;
    }
    show(call, result);
    json_decref(result);
    return EXIT_DONE;
}

int cmd_data_show(struct call *call)
{
    struct err err = ERR_INIT;
    struct data_show_options options = {.first = 0, .count = 3, .tokens = 512};
    json_t *result;
    if (call_option(call, "all-tokens"))
        options.tokens = -1;
    if (!call_integer(call, "first", 0, INT64_MAX, &options.first, &err) ||
        !call_integer(call, "count", 0, 100000, &options.count, &err) ||
        !data_show(call->arguments[0], &options, &result, &err))
        return call_fail(call, &err);
    show(call, result);
    json_decref(result);
    return EXIT_DONE;
}
