/* Inside the engine: a change of policy in two phases. */
#pragma once

#include "engine.h"

struct swap {
    struct policy policy;
    bool converts, reshards, replans; /* formats change; shard buffers change; the run's activations change */
    int64_t bytes_more;               /* beside what is allocated, at the peak */
    struct optimizer_conversion conversion;
    struct shard shard;
    struct workspace workspace, evaluation_workspace;
};

/* Collective. groups: leaves of one rank in a global batch, for the reproducible reduction's counter. */
bool swap_reserve(struct engine *engine, struct swap *swap, const struct policy *policy, int64_t groups,
                  struct err *err) MUST_USE;
void swap_commit(struct engine *engine, struct swap *swap, struct optimizer_loss losses[STATE_PART_COUNT]);
void swap_apply(struct engine *engine, struct swap *swap,
                struct command_result *result); /* commits, and says what was lost */
void swap_cancel(struct engine *engine, struct swap *swap);
