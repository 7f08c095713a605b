/* The watchdog: a thread without MPI that ends the process when a collective makes no progress.
 *
 * The engine's thread says what it enters and leaves; long kernels and file work tick. When an operation has
 * been under way for stuck_after seconds without a tick, one line names rank, host, operation, sequence
 * number and place, and the process ends with _exit(3): mpirun then ends every other rank. */
#pragma once

#include "err.h"

#include <stdint.h>

bool watch_start(int rank, double stuck_after_s, struct err *err) MUST_USE;
void watch_stop(void);

void watch_enter(const char *operation, const char *axis,
                 int64_t count); /* static strings; numbers the operation */
void watch_leave(void);
void watch_tick(void);
int64_t watch_sequence(void);
