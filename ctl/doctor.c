/* doctor: facts, then rates; the rates are kept in the state folder for model_flops_utilization. */
#include "doctor.h"

#include "commands.h"
#include "file.h"
#include "output.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool keep(const char *folder, const struct doctor_rates *rates, struct err *err)
{
    char path[LIMIT_PATH_BYTES + 32];
    json_t *json =
        json_pack("{sf, sf, si, ss}", "product_flops", rates->product_flops, "copy_bytes_per_second",
                  rates->copy_bytes_per_second, "threads", rates->threads, "device", rates->device);
    char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;
    json_decref(json);
    if (!text)
        return err_set(err, ERR_MEMORY, "no memory for doctor.json");
    bool kept = file_make_folder(folder, 0700, err) &&
                file_join(path, sizeof path, folder, "doctor.json", err) &&
                file_replace(path, text, strlen(text), err);
    free(text);
    return kept;
}

static bool find_folder(struct call *call, char folder[LIMIT_PATH_BYTES], struct err *err)
{
    const char *named = call_option(call, "state-dir");
    if (named)
        return call_absolute(folder, named, err);
    bool found = call_state_folder(call, folder, err);
    call->no_daemon = false;
    return found;
}

static void print_rates(const struct doctor_rates *rates, const char *folder)
{
    printf("\nlarge bf16 product  %.1f GFLOP/s with %d threads\n", rates->product_flops * 1e-9,
           rates->threads);
    printf("copy                %.2f GB/s, read plus written\n", rates->copy_bytes_per_second * 1e-9);
    printf("kept in             %s/doctor.json (a daemon started from now on shows its utilization)\n",
           folder);
}

/* Rates measured beside other work are not this machine's own. */
static void note_load(const struct call *call)
{
    double load = 0;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (getloadavg(&load, 1) == 1 && load > 0.5 * (double)cores)
        call_note(call, "the machine is busy (load %.1f on %ld cores): measure again when it is not", load,
                  cores);
}

int cmd_doctor(struct call *call)
{
    static const struct column columns[] = {{"check", "check", AS_TEXT, 0},
                                            {"state", "state", AS_TEXT, 0},
                                            {"found", "found", AS_TEXT, 0},
                                            {"do", "what to do", AS_TEXT, 0}};
    struct err err = ERR_INIT;
    char folder[LIMIT_PATH_BYTES];
    struct doctor_rates rates = {0};
    bool quick = call_option(call, "quick") != NULL;
    if (!find_folder(call, folder, &err))
        return call_fail(call, &err);
    if (!quick) {
        note_load(call);
        call_note(call, "measuring; this takes some seconds");
        if (!doctor_measure(&rates, &err) || !keep(folder, &rates, &err))
            return call_fail(call, &err);
    }
    json_t *checks = doctor_checks(folder);
    json_t *whole = json_pack("{sO, so, so}", "checks", checks, "product_flops",
                              quick ? json_null() : json_real(rates.product_flops), "copy_bytes_per_second",
                              quick ? json_null() : json_real(rates.copy_bytes_per_second));
    output_rows(call, columns, 4, checks, whole);
    if (!quick && call->output == OUTPUT_TABLE)
        print_rates(&rates, folder);
    json_decref(whole);
    json_decref(checks);
    return EXIT_DONE;
}
