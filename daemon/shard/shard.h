/* ZeRO storage (Rajbhandari et al. 2020) over a shard group: who owns which piece of every unit, gathering a
 * unit's weights before use, and summing its gradients onto the owner.
 *
 * - Stage 3 gathers a unit at every use.
 * - Stage 2 keeps all units gathered and renews them once an update: the update writes this rank's part, an
 *   all-gather brings the others'. A rank alone always does so (8 ms less in a step of 134 M parameters).
 * - Stage 1 keeps whole gradients too, adds micro-batches where they are made, and exchanges once a step.
 * Under lanes the tree over leaves asks for an exchange a micro-batch, as in stage 2.
 *
 * A unit's flat buffer (model/params.h) is padded to ranks * shard_elements; rank r owns elements
 * r*shard_elements on, a multiple of 256. Gathered weights are in the compute dtype; a gathered unit is kept
 * until its buffer is needed for another unit or the weights change, so that in stage 3 the last block of the
 * forward is there for the backward.
 *
 * Gradients: one micro-batch of all ranks at a time gives up to `ranks` leaves. They are exchanged all-to-all
 * and added on the owner in the order of a fixed binary tree over ranks; absent ranks are skipped, not added
 * as zero. The first sum of a step is made where it stays.
 *
 * Plain: the sums of successive micro-batches are accumulated in order (fp32 or bf16).
 *
 * Lanes: leaves are numbered round*L + lane and summed by one fixed binary tree over their numbers, so that
 * the bits depend on L and not on the ranks (design section 6). A binary counter holds 1 + log2(leaves/ranks)
 * partial sums.
 *
 * A tied head's gradient (slot 1 of unit 0) is reduced apart and added once at the end.
 *
 * Pipeline stages (model/stage.h): a unit that this stage does not hold has no elements here. A tied
 * embedding lies on both ends; each end makes one of its two sums, and they are exchanged before they are
 * added, so both ends have the same gradient and, with it, the same weights.
 *
 * A tensor group (params.h): every rank's shard is of its own pieces, cut alike. Gradients of pieces that
 * several ranks hold are parts of a sum, made once a step, here on the shard, in rank order; so the holders
 * keep the same bits, and one of them speaks for all.
 *
 * Owner: the engine's thread. Everything lives in device memory, taken in shard_init; nothing is allocated in
 * a step. */
#pragma once

#include "comm.h"
#include "optimizer.h"
#include "params.h"
#include "stage.h"

#define SHARD_RANKS_MAX  64 /* of the tree over ranks: its presence mask is one word */
#define SHARD_LEVELS_MAX 40

struct shard_options {
    struct stage stage;    /* what is held here */
    struct comm *tensor;   /* whose pieces the table has; outlives the shard */
    struct comm *pipeline; /* the stages that share this model; outlives the shard */
    enum dtype compute, accumulate, reduce;
    int32_t zero;   /* stage 1, 2 or 3 */
    bool lanes;     /* the reproducible reduction */
    int32_t levels; /* of its binary counter: 1 + ceil(log2(leaves/ranks)); 1 when plain */
};

/* Where units stay gathered, this rank's part of them can be the optimizer's stored w itself (struct
 * optimizer_plan): the shard allocates and frees it, the optimizer's rows count it. */
struct shard_buffer { /* gathered weights */
    void *memory;
    int64_t elements;
    int32_t holds; /* the unit whose present weights are in it, or -1 */
    bool own;      /* this rank's part is current, whatever it holds: the update wrote it */
};

struct shard_sum { /* one unit's, one use's gradient on this rank's shard; in stage 1 of the whole unit */
    void *levels[SHARD_LEVELS_MAX];
    uint64_t filled; /* bit i: levels[i] holds a partial sum */
};

struct shard_unit {
    int64_t shard_elements;
    int32_t buffer, leaf; /* which gathered buffer and which leaf buffer serve it */
    int32_t segment_first, segment_count;
    struct shard_sum sums[2];
    void *gradient; /* after shard_gradients_finish, or NULL */
};

struct shard {
    struct comm *comm;
    struct device *device;
    const struct param_table *params;
    struct shard_options options;
    bool tied;
    int32_t unit_count, buffer_count;
    struct shard_unit *units;
    struct optimizer_segment *segments; /* of all units */
    struct shard_buffer *buffers;
    struct shard_buffer leaves[3]; /* whole units in fp32, where a micro-batch's gradient is written */
    char *received;                /* parts of the exchange, then the sum of this rank's part */
    size_t received_bytes, parts_bytes;
    float *shared; /* of all t ranks: a unit's gradients of pieces that several hold */
    size_t shared_bytes;
    double *squares_device, *squares_host;
    size_t squares_bytes;           /* of squares_device; the host's holds all ranks' */
    const void **gradients;         /* [unit_count], as the optimizer takes them */
    struct optimizer_copies copies; /* of units that stay gathered: the update renews them by itself */
    uint64_t present;               /* of the leaves being computed: bit r, rank r has one */
    uint64_t ever_present;          /* in any of this step */
    int64_t group;                  /* their number: leaf / ranks */
};

/* How this rank's shard is cut: fills units[].shard_elements and the segments without taking device memory.
 */
bool shard_init(struct shard *shard, struct comm *comm, struct device *device,
                const struct param_table *params, bool tied, const struct shard_options *options,
                struct err *err) MUST_USE;
void shard_done(struct shard *shard); /* takes zeroed and half-built ones */
int64_t shard_bytes(const struct param_table *params, bool tied, const struct shard_options *options,
                    int32_t ranks);

/* Units stay gathered: stages 1 and 2, or a rank alone. */
bool shard_keeps_gathered(const struct shard_options *options, int32_t ranks);
/* Of shard_bytes, what is lent to an optimizer whose policy stores the copy: none in stage 3. */
int64_t shard_lent_bytes(const struct param_table *params, bool tied, const struct shard_options *options,
                         int32_t ranks);

/* Takes a binary counter deeper, or gives back the levels from `levels` on: no gradient may be pending. On
 * failure the shard is as it was. */
bool shard_deepen(struct shard *shard, int32_t levels, struct err *err) MUST_USE;
void shard_flatten(struct shard *shard, int32_t levels);

/* How many ranks' parts a gradient's sum holds here: one, or in stage 1 all. */
static inline int32_t shard_sum_parts(const struct shard_options *options, int32_t ranks)
{
    return options->zero == 1 && !options->lanes ? ranks : 1;
}

/* The optimizer's plan of this rank's shard: units is the caller's, [unit_count]; segments and copies stay
 * the shard's, which must outlive what it lends. */
struct optimizer_plan shard_optimizer_plan(const struct shard *shard, struct optimizer_unit_plan *units);

/* The whole unit in the compute dtype, until the buffer is needed for another. */
void *shard_gather(struct shard *shard, struct optimizer *optimizer, int32_t unit);
void shard_weights_updated(struct shard *shard); /* by an update that was given shard->copies */
void shard_weights_changed(struct shard *shard); /* by anything else */

void shard_gradients_begin(struct shard *shard); /* a new global batch */
void shard_leaves_begin(struct shard *shard, int64_t group, uint64_t present);
/* Where this rank writes the leaf of a unit's use, padding untouched; the same until it is reduced. */
float *shard_leaf(struct shard *shard, int32_t unit, int32_t slot);
void shard_reduce(struct shard *shard, int32_t unit, int32_t slot);
void shard_leaves_absent(struct shard *shard);    /* instead of all shard_reduce, where no rank has a leaf */
void shard_gradients_finish(struct shard *shard); /* fills gradients[] */

/* The sum of squares of the gradient of all pieces that this rank of the tensor group speaks for: each
 * element once, in double, sums over fixed blocks of 256 added in table order; equal bits on every rank of
 * the shard group, for every number of them and of stages: each stage in turn goes on from what the one
 * before has
 * (`sum` in and out). bad_rank (of the shard group), bad_tensor: where a block is not finite (the first in
 * table order), or -1. */
struct shard_squares {
    double sum;
    int32_t bad_rank, bad_tensor;
};
void shard_gradient_squares(struct shard *shard, struct shard_squares *squares);
/* What it sends at the end of a step: the parts of sums over the tensor group. */
int64_t shard_shared_sent(const struct shard *shard);

/* Every allocation of the shard but what it lends to the optimizer, for audit. */
typedef void (*shard_row_fn)(void *context, const char *name, const char *kind, enum dtype dtype,
                             int64_t elements, int64_t bytes);
void shard_rows(const struct shard *shard, const struct optimizer *optimizer, shard_row_fn row,
                void *context);
