/* The optimizer's rows. Placeholder until they land: calling one ends the process with a sentence. */
#include "rows.h"

#include <stdio.h>
#include <stdlib.h>

#pragma GCC diagnostic ignored "-Wunused-parameter"

static _Noreturn void not_here(const char *row)
{
    fprintf(stderr, "kernels: row %s is not built yet\n", row);
    abort();
}

size_t ROW(update_scratch)(int64_t n)
{
    not_here("update");
}

void ROW(update)(struct queue *q, struct update_measures *measures, const struct state_view *state,
                 const void *gradient, enum dtype gradient_dtype, int64_t n, int64_t index0,
                 const struct update_scalars *scalars, void *scratch)
{
    not_here("update");
}

void ROW(state_read)(struct queue *q, float *values, const struct state_view *state, enum state_part part,
                     int64_t n)
{
    not_here("state_read");
}

void ROW(state_write)(struct queue *q, const struct state_view *state, enum state_part part,
                      const float *values, int64_t n, int64_t index0, uint64_t seed, uint64_t total_step)
{
    not_here("state_write");
}

void ROW(weight_compute_copy)(struct queue *q, void *to, const struct state_view *state, int64_t n,
                              enum dtype to_dtype)
{
    not_here("weight_compute_copy");
}

void ROW(init_normal)(struct queue *q, float *values, int64_t n, int64_t index0, uint64_t seed,
                      double deviation)
{
    not_here("init_normal");
}
