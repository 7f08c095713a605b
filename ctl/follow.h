/* A run as it happens: a bar on stderr for people, a JSON value or CSV row a step on stdout for programs. */
#pragma once

#include "output.h"

#include <signal.h>

/* Until the run ends: EXIT_DONE when it reached its target, EXIT_SHORT when not. Ctrl-C leaves the run going,
 * says so, and is EXIT_INTERRUPTED. bar: draw one (train --follow); else every step is a row on stdout
 * (metrics
 * --follow). */
int follow_run(struct call *call, const char *run, int64_t since, bool bar);

/* The columns of a step, for people and whole. */
extern const struct column step_columns[], step_columns_whole[];
extern const int step_column_count, step_column_whole_count;

/* true once Ctrl-C was pressed; follow_catch_interrupt begins to count them instead of dying, of
 * follow_catch_one_interrupt a second one is deadly, as for programs that nothing depends on. */
void follow_catch_interrupt(void);
void follow_catch_one_interrupt(void);
bool follow_interrupted(void);
/* What Ctrl-C leaves behind, in a sentence: the run ("": none), the daemon. EXIT_INTERRUPTED. */
int follow_left(const struct call *call, const char *run);
const volatile sig_atomic_t *follow_interrupt_flag(void);
