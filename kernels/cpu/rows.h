/* The plain loops are compiled three times from the same sources: for any x86-64 (LEVEL reference: the
 * oracle), for x86-64-v3 (AVX2) and for x86-64-v4 (AVX-512); the device takes the best that the processor
 * runs. All three give the same bits: contraction is off and every sum has its order written out in the
 * source.
 *
 * ROW(name) is this level's function for the kernel table's row `name`. Every row has one, in one
 * reference_*.c. */
#pragma once

#include "kernels.h"
#include "queue.h"

#ifndef LEVEL
#define LEVEL reference /* for editors; the build always says which */
#endif
#define ROW_PASTE(level, name) level##_##name
#define ROW_OF(level, name)    ROW_PASTE(level, name)
#define ROW(name)              ROW_OF(LEVEL, name)

#define X(name, parameters, arguments) void ROW(name) parameters;
KERNELS(X)
#undef X
#define X(name, parameters) size_t ROW(name) parameters;
KERNEL_SCRATCHES(X)
#undef X
