/* Inside store: the check that slices, as a manifest lists them, are a whole checkpoint. The commit runs it
 * on what it is about to write and the reader on what it has read, so the two cannot differ. */
#pragma once

#include "checkpoint.h"

/* Sorts places by tensor, part, band, start, then checks bounds, overlaps in files, and that each part of
 * each tensor is covered exactly once: its bands lie side by side, and the ranges of each one after another.
 * origin names the manifest in errors. */
bool checkpoint_index_check(const struct param_table *table, const struct checkpoint_formats *formats,
                            const struct checkpoint_file *files, int64_t file_count,
                            struct checkpoint_place *places, int64_t place_count, const char *origin,
                            struct err *err) MUST_USE;

/* The first place of (tensor, part) whose band is the range's or begins at a later column, and whose end is
 * past the range's start; by bisection. place_count: there is none. */
int64_t checkpoint_index_find(const struct checkpoint *checkpoint, int32_t tensor, int part,
                              const struct band_range *range);

/* "files" and "slices" of a manifest, each field by itself; both arrays are malloc'ed. */
bool checkpoint_index_parse(const struct manifest *manifest, const struct param_table *table,
                            const struct checkpoint_formats *formats, struct checkpoint_file **files,
                            int64_t *file_count, struct checkpoint_place **places, int64_t *place_count,
                            struct err *err) MUST_USE;
