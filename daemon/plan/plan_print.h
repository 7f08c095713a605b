/* Plans for people and for programs. */
#pragma once

#include "plan.h"

void plan_print(const struct plan *plan, const struct engine_options *options, const struct machine *machine);
/* In the order given: as a table of one line each. */
void plan_print_table(const struct plan *plans, int32_t count, const struct engine_options *options,
                      const struct machine *machine);
/* One object; or, for a comparison, {"machine", "model", "policy", "plans": […]}. */
bool plan_print_json(const struct plan *plans, int32_t count, bool comparison,
                     const struct engine_options *options, const struct machine *machine,
                     struct err *err) MUST_USE;
