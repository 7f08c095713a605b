/* Context parallelism: one micro-batch cut across the c ranks of a context group (design, section 6).
 *
 * Each sequence of n tokens is padded to 2c chunks of ceil(n / 2c) tokens, and rank i takes chunks i and
 * 2c-1-i, so that every rank has the same number of rows and, attention being causal, nearly the same work.
 * Labels were shifted before the cut and positions are those of the whole sequence.
 *
 * Queries are a rank's own rows. Keys are the rows of all c ranks, one after another as an all-gather leaves
 * them, and `from` puts them back into the sequences' order. A chunk's queries see the keys of its sequence
 * up to their own position: one attention segment a chunk. */
#pragma once

#include "loader.h"

struct zigzag {         /* host arrays of the caller's, with room for zigzag_bounds */
    int32_t *from;      /* [keys]: which row of the gathered c * rows holds key r */
    int32_t *to;        /* [c * rows]: which key a gathered row is; -1: padding at the end of a rank's rows */
    int32_t (*seen)[2]; /* [segments]: the first key, and the count of those that the last query sees */
    int64_t keys;
};

struct zigzag_bounds {
    int64_t rows; /* of one rank, T: a multiple of BATCH_ROW_MULTIPLE */
    int64_t keys; /* of all ranks together, without the padding at the end of each */
    int64_t segments;
};

/* No micro-batch within `whole` needs more on c ranks. */
struct zigzag_bounds zigzag_bounds(const struct batch_bounds *whole, int32_t c);

/* mine: the rows that `rank` of c takes of whole. mine->starts (room for segments + 1) and sequences are of
 * its chunks, longest is the most keys of one, labelled and tokens_used count its own. c = 1 is allowed. An
 * absent whole gives an absent part. */
void zigzag_cut(struct micro_batch *mine, struct zigzag *zigzag, const struct micro_batch *whole, int32_t c,
                int32_t rank);
