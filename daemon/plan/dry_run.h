/* trainerd --dry-run: makes the plan (engine/plan.h) and prints it. Exit 0, or 1 where this host has less. */
#pragma once

#include "options.h"

bool dry_run(const struct options *options, const struct engine_options *engine_options, struct comm *comm,
             struct device *device, const struct recipe *recipe, struct err *err) MUST_USE;
