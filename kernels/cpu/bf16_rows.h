/* The bf16 rows of bf16_avx512.c, which bf16_overlay.c lays over the table. In fp32 they pass on to the plain
 * loops. */
#pragma once

#include "kernels.h"

#define BF16_ROWS(X)                                                                                         \
    X(rmsnorm_forward) X(rmsnorm_backward) X(add_rmsnorm_forward) X(rope) X(swiglu_forward) X(swiglu_backward)

/* Every row is declared; those in BF16_ROWS exist. */
#define X(name, parameters, arguments) void bf16_avx512_##name parameters;
KERNELS(X)
#undef X
