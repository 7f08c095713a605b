/* A layout says how the ranks share the work: data, tensor, pipeline, context. Missing letters are 1. */
#pragma once

#include "err.h"

#include <stdint.h>

struct layout {
    int32_t d, t, p, c;
};

/* The ZeRO stage where none is asked for: 3, but under a pipeline, where every micro-batch would gather each
 * unit twice, 1. */
static inline int32_t layout_zero(const struct layout *layout)
{
    return layout->p > 1 ? 1 : 3;
}

/* Where a rank stands, each from 0: ranks are numbered with t fastest, then c, d, p. */
struct layout_place {
    int32_t d, t, p, c;
};
struct layout_place layout_place(const struct layout *layout, int32_t rank);

/* "d4t2", letters in any order, each at most once; "" is d = ranks. The product must be `ranks`. */
bool layout_parse(struct layout *layout, const char *text, int32_t ranks, struct err *err) MUST_USE;
int32_t layout_product(const char *text); /* the ranks it asks for; 0: not a layout, or too many */
void layout_print(const struct layout *layout, char *text, size_t text_bytes); /* "d8t1p1c1" */
