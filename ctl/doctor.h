/* What doctor finds: one row a fact. */
#pragma once

#include "err.h"

#include <jansson.h>

/* Facts of the machine, of what is installed and of what is allowed here: [{check, state, found, do}], with
 * state "ok", "missing" (something cannot work) or "note". */
json_t *doctor_checks(const char *state_folder);

struct doctor_rates {
    double
        product_flops; /* a large bf16 product through the kernels, as training makes it; best of several */
    double copy_bytes_per_second; /* read plus written, streaming stores, all threads; best of several */
    int threads;
    char device[256];
};
/* Takes some seconds and 400 MB. */
bool doctor_measure(struct doctor_rates *rates, struct err *err) MUST_USE;
