/* The tables of the rotary embedding. Private to this folder and its tests. */
#pragma once

#include <stdint.h>

float rope_inverse_frequency(double theta, int64_t i, int64_t head_dim);
/* One position's row: [head_dim/2] each, host memory. */
void rope_row(float *cosines, float *sines, double theta, int64_t head_dim, int64_t position);
