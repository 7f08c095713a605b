/* In which order a run takes its samples: epochs over the kept rows, as stored or shuffled anew each epoch.
 *
 * A pure function of (dataset, cutoff, batch, drop_last, seed) and of how many samples the run has taken: no
 * rank, no thread, no history. The cursor is therefore one number, and is all of the loader's state in a
 * checkpoint. Rows that have no label within the cutoff are left out, and counted, before anything is
 * numbered. */
#pragma once

#include "dataset.h"

struct order_options {
    int64_t cutoff;       /* tokens; -1: the dataset's. Only shortens */
    int64_t global_batch; /* samples an update */
    bool drop_last;       /* leave out the short last batch of each epoch */
    bool shuffled;
    uint64_t seed;
};

struct data_cursor {
    int64_t samples; /* taken by the run so far, dropped last batches not counted */
};

struct order {
    struct order_options options;
    int64_t cutoff;            /* effective: min(options.cutoff, longest row) */
    int64_t rows;              /* kept */
    int64_t dropped;           /* rows without a label within the cutoff */
    int64_t labelled;          /* labels of all kept rows */
    int64_t longest;           /* tokens of the longest kept row, cut */
    int64_t samples_per_epoch; /* rows, less the short last batch under drop_last */
    int64_t steps_per_epoch;
    uint32_t *kept;         /* [rows]: dataset rows, ascending */
    uint32_t *permutation;  /* [rows]: of permuted_epoch; NULL unless shuffled */
    int64_t permuted_epoch; /* -1: none */
};

bool order_init(struct order *order, const struct dataset *dataset, const struct order_options *options,
                struct err *err) MUST_USE; /* no step in an epoch: refused */
void order_done(struct order *order);      /* zeroed: fine */

/* The dataset row of the position-th sample (0 … samples_per_epoch-1) of an epoch. */
int64_t order_row(struct order *order, int64_t epoch, int64_t position);

/* The next global batch at the cursor: rows[options.global_batch] are dataset rows. Returns how many:
 * global_batch, or fewer at the end of an epoch; batches never span epochs. The caller advances the cursor by
 * that number. */
int64_t order_batch(struct order *order, struct data_cursor cursor, int64_t *rows);

int64_t order_epoch(const struct order *order, struct data_cursor cursor); /* 0-based */
bool order_ended(const struct order *order, struct data_cursor cursor,
                 int64_t epochs); /* epochs < 0: never */
