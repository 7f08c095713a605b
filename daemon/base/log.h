/* One line a fact: time, level, rank, step, module, phrase, key=value. A warning says what happens next.
 *
 * Warnings and errors go to stderr (mpirun carries every rank's to the terminal), everything to the state
 * folder's log once log_open has been called. Safe from any thread: one line is one write. */
#pragma once

#include "err.h"

#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERROR };

void log_set_rank(int rank);
void log_set_step(int64_t step); /* the run's k: shown in every line until set again */
void log_set_stderr_level(enum log_level level);

/* Appends to path, rotating it to path.1 when it passes 16 MiB (the rank that was given `rotates`). */
bool log_open(const char *path, bool rotates, struct err *err) MUST_USE;
void log_close(void);

void log_line(enum log_level level, const char *module, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void log_err(const char *module, const struct err *err); /* the whole error at LOG_ERROR */

/* For signal handlers: one line, as it is to stderr, with the usual head to the log. Takes no lock. */
struct words;
void log_words(const struct words *words);
int log_descriptor(void); /* of the log file; -1: not open */

#define log_debug(...)   log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...)    log_line(LOG_INFO, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_error(...)   log_line(LOG_ERROR, __VA_ARGS__)
