/* What `compare` says about a run: one row a policy, out of the run's step events (contract section 6). Pure.
 */
#pragma once

#include "err.h"
#include "plot_draw.h"

#include <jansson.h>
#include <stdio.h>

/* The mean of so many last steps is final_loss: two batches in turn, five times. */
#define COMPARE_FINAL_STEPS 10
/* Updates whose lr is below this share of the run's peak are not counted in the means: there every format
 * loses. */
#define COMPARE_COUNTED_LR 0.01

/* A new row: policy, run, bytes_per_parameter, final_loss, last_loss, lost_update_share, stalled_v_share,
 * update_quality, losses[] and update_qualities[]; ratio is null until compare_rows_rank. Skipped attempts
 * (an unchanged step) are passed over. ERR_RUN: no step was made. */
bool compare_row(json_t **row, const char *policy, const char *run, double bytes_per_parameter,
                 const json_t *steps, struct err *err) MUST_USE;

/* Sets every row's ratio: its final_loss over the least of all. */
void compare_rows_rank(json_t *rows);

/* The rows without their lists: as aligned columns, or as CSV with a header. */
void compare_rows_print(FILE *out, const json_t *rows);
void compare_rows_csv(FILE *out, const json_t *rows);

/* Losses over a log scale, and the quality of the updates, of all rows. The caller calls plot_done. */
bool compare_rows_plot(struct plot *plot, const json_t *rows, struct err *err) MUST_USE;
