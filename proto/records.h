/* What a run leaves on disk, as messages of the protocol: control answers with them, and trainctl reads them
 * itself when the daemon is gone. Written by the engine:
 *
 * - STATE_DIR/runs/RUN/run.json: one object with the fields of Run
 * - STATE_DIR/runs/RUN/events.jsonl: one object a line; a step has the fields of Step and no key "event" (or
 *   "step")
 * - STATE_DIR/runs/RUN/tensors.jsonl: one object a line, with "step" and "tensor"
 * - STATE_DIR/runs/RUN/recipe.yaml */
#pragma once

#include "err.h"
#include "trainerd.pb-c.h"

#include <stdio.h>

#define RECORDS_RUNS_MAX   4096
#define RECORDS_LINE_BYTES (1 << 20) /* of a JSONL line */

/* Every run of the state folder, oldest first; folders without a readable run.json are left out. Free with
 * trainerd__runs__free_unpacked(runs, NULL). A folder that does not exist holds no runs. */
bool records_runs(Trainerd__Runs **runs, const char *state_dir, struct err *err) MUST_USE;

/* STATE_DIR/runs/RUN/FILE. A run's name with a slash or a leading dot is ERR_INVALID. */
bool records_path(char *path, size_t path_bytes, const char *state_dir, const char *run, const char *file,
                  struct err *err) MUST_USE;

/* The step that a line tells of; NULL: another kind of event, or no JSON (the last line of a run that was
 * killed). */
Trainerd__Step *records_step(const char *line, size_t bytes);
