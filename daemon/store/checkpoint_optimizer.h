/* Between an optimizer's shard and a checkpoint: the slices of one, read from the other. Bits only: a
 * checkpoint is read under its own formats, and converting is the caller's business afterwards. */
#pragma once

#include "checkpoint.h"
#include "optimizer.h"

struct checkpoint_formats checkpoint_formats_of(const struct policy *policy);

/* Every stored array of this rank's shard, for checkpoint_save_shard; malloc'ed. An empty shard gives none,
 * and a segment that is a copy of another rank's neither: what several ranks hold is written by one, and read
 * by all. table: this rank's, of its pieces under tensor parallelism. */
bool checkpoint_optimizer_slices(const struct optimizer *optimizer, const struct param_table *table,
                                 struct checkpoint_slice **slices, int64_t *count, struct err *err) MUST_USE;

/* Fills the shard from a checkpoint of the same model (equal tables) and formats; t and total_steps are the
 * engine's to set. Padding is not touched: it is zero from the start. */
bool checkpoint_optimizer_read(struct checkpoint *checkpoint, struct optimizer *optimizer,
                               const struct param_table *table, struct err *err) MUST_USE;
