/* trainerd --dry-run: makes the plan of one layout, or of all that so many ranks can have, and prints it.
 * Exit 0, or 1 where nothing of it fits. */
#pragma once

#include "plan.h"

struct dry_run {
    const char *model;           /* a folder or its config.json */
    const struct recipe *recipe; /* or NULL: */
    int64_t sequence, global_batch;
    const char *machine; /* "": this host, where it is planned for the ranks that run; "cpu", "h100", … */
    int32_t ranks;       /* of the layouts to compare; 0: the one in engine_options */
    int32_t zero;        /* stage; 0: the layout's default */
    bool json;
};

bool dry_run(const struct dry_run *what, const struct engine_options *engine_options, struct comm *comm,
             struct device *device, struct err *err) MUST_USE;
