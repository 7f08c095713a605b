/* Inside store: the check that slices, as a manifest lists them, are a whole checkpoint. The commit runs it
 * on what it is about to write and the reader on what it has read, so the two cannot differ. */
#pragma once

#include "checkpoint.h"

/* Sorts places by tensor, part, start, then checks bounds, overlaps in files, and that each part of each
 * tensor is covered exactly once. origin names the manifest in errors. */
bool checkpoint_index_check(const struct param_table *table, const struct checkpoint_formats *formats,
                            const struct checkpoint_file *files, int64_t file_count,
                            struct checkpoint_place *places, int64_t place_count, const char *origin,
                            struct err *err) MUST_USE;

/* The first place of (tensor, part) whose end is past start, by bisection of sorted places. */
int64_t checkpoint_index_find(const struct checkpoint_place *places, int64_t place_count, int32_t tensor,
                              int part, int64_t start);

/* "files" and "slices" of a manifest, each field by itself; both arrays are malloc'ed. */
bool checkpoint_index_parse(const struct manifest *manifest, const struct param_table *table,
                            const struct checkpoint_formats *formats, struct checkpoint_file **files,
                            int64_t *file_count, struct checkpoint_place **places, int64_t *place_count,
                            struct err *err) MUST_USE;
