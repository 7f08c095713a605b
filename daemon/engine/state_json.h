/* The training state of a checkpoint as JSON: everything beside the tensors that decides the next step
 * (design law 4). Written by rank 0, read by every rank alike. */
#pragma once

#include "engine.h"

struct json_t;

struct json_t *state_json_make(const struct engine *engine); /* a new reference; NULL: no memory */

/* What a checkpoint said. run.id is "" when none was under way; run's data and memory are not opened here. */
struct state_read {
    int64_t t, total_steps;
    uint64_t seed;
    int64_t lanes;    /* of the daemon that saved it, and … */
    char device[128]; /* … its device's description: another one means other bits */
    struct optimizer_settings settings;
    struct run run;
};
/* tensors: rows of the checkpoint's parameter table. On success read->run.still is malloc'ed where there is a
 * run. */
bool state_json_read(struct state_read *read, const struct json_t *json, int32_t tensors,
                     struct err *err) MUST_USE;
