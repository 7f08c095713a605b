/* From a global batch to micro-batches on the host: lanes, rounds, packing (design, section 6).
 *
 * Sample i of the global batch belongs to lane i mod L. Each lane packs its own samples, in order, into
 * micro-batches by rules that know only L and micro_batch (sequences) or max_tokens (a micro-batch closes
 * before the sample that would pass it), never the number of ranks. The n-th micro-batches of all lanes are
 * round n; lanes that have none left are absent in it. Rank r of d computes lanes r, r+d, … of each round.
 * Every rank plans the same whole batch.
 *
 * A sample is its row's first cutoff tokens. Row t of a sequence has as label its token t+1 where that one is
 * trained, else -1; the last row has none. Nothing here allocates after loader_init. */
#pragma once

#include "order.h"

#define BATCH_ROW_MULTIPLE 64 /* T, the rows of a micro-batch, is padded to a multiple */

struct loader_options {
    int64_t lanes;
    int64_t micro_batch; /* sequences; -1: by max_tokens */
    int64_t max_tokens;  /* tokens before padding; -1: by micro_batch */
};

/* Upper bounds over the whole run, reached or nearly so: what memory is planned for. */
struct batch_bounds {
    int64_t rounds;    /* of a global batch */
    int64_t rows;      /* T of a micro-batch, padding included */
    int64_t sequences; /* of a micro-batch */
    int64_t longest;   /* tokens of a sequence */
};

struct micro_plan {
    int64_t first, count; /* of the lane's own samples: global samples lane + L*first, lane + L*(first+1), …;
                             0: absent */
    int64_t tokens;       /* before padding */
    int64_t rows;         /* T */
    int64_t labelled;
};

struct batch_plan { /* owned by the loader, good until its next batch_plan_make */
    int64_t samples, lanes, rounds;
    int64_t tokens, labelled;       /* of the whole global batch; labelled is the loss's normalizer */
    const int64_t *dataset_rows;    /* [samples] */
    const struct micro_plan *micro; /* [rounds][lanes] */
};

static inline const struct micro_plan *batch_plan_micro(const struct batch_plan *plan, int64_t round,
                                                        int64_t lane)
{
    return &plan->micro[round * plan->lanes + lane];
}

struct loader {
    const struct dataset *dataset;
    struct order *order;
    struct loader_options options;
    struct batch_bounds bounds;
    int64_t *rows;            /* [global_batch] */
    struct micro_plan *micro; /* [bounds.rounds][lanes] */
    uint8_t *trained;         /* [bounds.longest], scratch of batch_fill */
};

/* dataset and order outlive the loader. A sample longer than max_tokens is refused here. */
bool loader_init(struct loader *loader, const struct dataset *dataset, struct order *order,
                 const struct loader_options *options, struct err *err) MUST_USE;
void loader_done(struct loader *loader); /* zeroed: fine */

/* Plans the global batch at the cursor. One without a labelled token is refused (order_init makes that
 * impossible). */
bool batch_plan_make(struct loader *loader, struct data_cursor cursor, struct batch_plan *plan,
                     struct err *err) MUST_USE;

struct micro_batch {    /* host arrays of the caller's, each with room for the bounds */
    int32_t *tokens;    /* [T]; 0 in padding */
    int32_t *labels;    /* [T]; -1: none */
    int32_t *positions; /* [T]; restart at 0 in each sequence; 0 in padding */
    int32_t *starts;    /* [sequences+1]; rows from starts[sequences] on are padding */
    int64_t rows;       /* T; 0 and sequences 0 where the lane is absent */
    int64_t sequences, longest, tokens_used, labelled;
};

void batch_fill(struct loader *loader, const struct batch_plan *plan, int64_t round, int64_t lane,
                struct micro_batch *batch);
