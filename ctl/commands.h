/* The functions behind the rows of commands.c, by file. Each returns an exit code. */
#pragma once

#include "err.h"

#include <stdint.h>

struct call;

/* cmd_state.c */
int cmd_status(struct call *call);
int cmd_wait(struct call *call);
int cmd_pause(struct call *call);
int cmd_resume(struct call *call);
int cmd_stop(struct call *call);
int cmd_shutdown(struct call *call);

/* cmd_model.c */
int cmd_init(struct call *call);
int cmd_load(struct call *call);
int cmd_export(struct call *call);
int cmd_evaluate(struct call *call);

/* cmd_data.c */
int cmd_data_prepare(struct call *call);
int cmd_data_show(struct call *call);

/* cmd_schedule.c: N of a recipe, said, or counted from its data as the engine will. */
struct recipe;
bool recipe_count_steps(const struct recipe *recipe, int64_t *steps, struct err *err) MUST_USE;

/* cmd_train.c */
int cmd_train(struct call *call);

/* cmd_optimizer.c */
int cmd_set_optimizer(struct call *call);
int cmd_audit(struct call *call);

/* cmd_schedule.c */
int cmd_set_schedule(struct call *call);
int cmd_schedule(struct call *call);

/* cmd_layout.c */
int cmd_set_layout(struct call *call);

/* cmd_plan.c */
int cmd_plan(struct call *call);

/* cmd_runs.c */
int cmd_runs(struct call *call);
int cmd_metrics(struct call *call);

/* cmd_checkpoint.c */
int cmd_checkpoint_save(struct call *call);
int cmd_checkpoint_load(struct call *call);
int cmd_checkpoint_list(struct call *call);
int cmd_checkpoint_verify(struct call *call);
int cmd_checkpoint_delete(struct call *call);

/* cmd_plot.c, cmd_compare.c */
int cmd_plot(struct call *call);
int cmd_compare(struct call *call);

/* cmd_state.c: of trainctl itself */
int cmd_completion(struct call *call);

/* doctor.c */
int cmd_doctor(struct call *call);
