/* The groups that a layout makes of the ranks, numbered with t fastest, then c, d, p (design section 6). */
#pragma once

#include "comm.h"
#include "layout.h"

struct groups {
    struct layout layout;
    struct layout_place place; /* this rank's */
    struct comm shard;         /* d x c: who shares parameters, c fastest */
    struct comm tensor, context, pipeline;
};

/* Collective over all ranks; on success every rank has all four groups. */
bool groups_init(struct groups *groups, const struct comm *world, const struct layout *layout,
                 struct err *err) MUST_USE;
void groups_done(struct groups *groups); /* takes zeroed and half-made ones */
