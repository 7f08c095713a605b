/* The optimizer state of this rank's shard: weight, first and second moment of every unit, in the formats of
 * the policy in force, on a device. One update, the compute copy, values in and out, raw arrays for
 * checkpoints and audit, and the conversion to another policy in two phases.
 *
 * A unit is one flat range of elements (design, section 5): segments of tensors, each starting at a multiple
 * of STATE_ALIGNMENT of the flat range and of its tensor, zero padding between them. Every array of a unit is
 * indexed by the same flat element number (q8's scales by that number / Q8_GROUP). Padding stays zero in
 * every format.
 *
 * Owner: the engine's thread. All values and gradients are device memory; only measures and reports are host
 * memory. */
#pragma once

#include "device.h"
#include "err.h"
#include "index_map.h"
#include "kernels.h"
#include "optimizer_settings.h"
#include "policy.h"

#include <stdbool.h>
#include <stdint.h>

struct optimizer_segment {
    int32_t tensor;   /* its row in the parameter table; measures are reported by it */
    bool decays;      /* two or more dimensions; settings.decay_all decays the others too */
    bool copy;        /* another rank holds the same elements and speaks for them: not saved, not counted */
    int64_t offset;   /* of its first element in the shard's flat range; a multiple of STATE_ALIGNMENT */
    int64_t elements; /* of the tensor that lie here, without padding; may be 0 */
    int64_t index;    /* global element index of its first; a multiple of STATE_ALIGNMENT if run is 0 */
    /* Of a piece of a tensor's columns: `run` of `stride` lie here, and the segment begins at the piece's
     * column `column`. All 0 where whole rows do. See struct index_map. */
    int64_t column, run, stride;
};

/* Global indices of the segment's elements from `start` on. */
static inline struct index_map optimizer_segment_map(const struct optimizer_segment *segment, int64_t start)
{
    struct index_map map = {segment->index, segment->column, segment->run, segment->stride};
    return index_map_from(&map, start);
}

struct optimizer_unit_plan {
    int64_t
        elements; /* of the flat range, padding included: a multiple of STATE_ALIGNMENT, may be 0 on a rank */
    int32_t segment_count;
    const struct optimizer_segment *segments; /* ascending offsets; copied by optimizer_init */
};

/* What the model computes with, where it stays in memory: of each unit this rank's flat range, device memory,
 * or NULL. */
struct optimizer_copies {
    enum dtype dtype; /* fp32 or bf16 */
    void **units;     /* [unit_count] */
};

struct optimizer_plan {
    int32_t unit_count;
    int32_t tensor_count; /* rows of the parameter table */
    const struct optimizer_unit_plan *units;
    /* Or NULL. Under a policy whose stored w is the copy (policy_stores_copy) the optimizer keeps w there and
     * allocates none: the memory is lent, zeroed, until optimizer_done or a conversion to other copies; the
     * struct itself is not kept. */
    const struct optimizer_copies *copies;
};

/* Arrays of one unit: [part][0] the main array, [part][1] the extra one (NULL where the format has none). */
struct optimizer_unit {
    int64_t elements;
    int32_t segment_count;
    struct optimizer_segment *segments;
    void *arrays[STATE_PART_COUNT][2];
    void *lent; /* arrays[STATE_W][0] where it is the model's copy, and another's memory; else NULL */
};

struct optimizer {
    struct device *device;
    struct policy policy;
    uint64_t seed;
    int64_t t;           /* updates since the moments were zeroed: bias correction */
    int64_t total_steps; /* all updates ever applied: the random numbers' counter. Both are set by whoever
                            loads state */
    int32_t unit_count, tensor_count, segment_total;
    struct optimizer_unit *units;
    struct update_measures *measures;      /* device, [segment_total] */
    struct update_measures *host_measures; /* host, [segment_total] */
    void *scratch;                         /* device: the update kernel's */
    size_t scratch_bytes;
};

/* Bytes that the state of a plan takes under a policy: what optimizer_init allocates on the device, without
 * optimizer_scratch_bytes, and what it is lent. Pure. */
int64_t optimizer_plan_bytes(const struct optimizer_plan *plan, const struct policy *policy);

/* Allocates everything, zeroed (weights too: set them next). t and total_steps start at 0. ERR_MEMORY with
 * the bytes asked for, ERR_UNSUPPORTED where q8's groups would be cut by columns; nothing stays allocated
 * then. The device must outlive the optimizer. */
bool optimizer_init(struct optimizer *optimizer, struct device *device, const struct policy *policy,
                    const struct optimizer_plan *plan, uint64_t seed, struct err *err) MUST_USE;
void optimizer_done(struct optimizer *optimizer); /* takes zeroed and half-built ones */

/* One AdamW step over every unit (contract, section 1). Cannot fail. Advances t and total_steps first: the
 * first update has t = 1 and draws its random numbers at total step 1.
 *
 * settings: in force; settings->lr is not read, since lr is this update's, lr * f(k).
 *
 * gradient_factor: clip coefficient over normalizer, formed in double, rounded to fp32 here.
 *
 * gradients: [unit_count] device arrays of the units' flat ranges in policy.accumulate, NULL for empty units;
 * read only, padding is not read.
 *
 * copies: where it also writes what the model computes with (as optimizer_compute_copy, padding untouched),
 * or NULL.
 *
 * by_tensor: host, [tensor_count]: this rank's counts, zeros for tensors that do not lie here or are copies.
 */
void optimizer_update(struct optimizer *optimizer, const struct optimizer_settings *settings, double lr,
                      double gradient_factor, const void *const *gradients,
                      const struct optimizer_copies *copies, struct update_measures *by_tensor);

/* The scalars of an update: in double, each rounded to fp32 once. For tests and other drivers of the kernel.
 */
struct update_scalars optimizer_scalars(const struct optimizer_settings *settings, double lr,
                                        double gradient_factor, int64_t t, int64_t total_step, uint64_t seed,
                                        bool decays);

/* to[elements] (dtype fp32 or bf16) = what the model computes with, for the whole flat range, padding as
 * zeros. Nothing to do where `to` is lent: w is there. */
void optimizer_compute_copy(struct optimizer *optimizer, int32_t unit, void *to, enum dtype dtype);

/* Values in fp32 of elements start … start+count-1 of a segment; start is a multiple of STATE_ALIGNMENT.
 * values is device memory [count]. Writing rounds by the part's format; stochastic formats draw stream 0, 1,
 * 2 at total_steps. */
void optimizer_get(const struct optimizer *optimizer, int32_t unit, int32_t segment, enum state_part part,
                   int64_t start, int64_t count, float *values);
void optimizer_set(struct optimizer *optimizer, int32_t unit, int32_t segment, enum state_part part,
                   int64_t start, int64_t count, const float *values);
void optimizer_zero_moments(struct optimizer *optimizer); /* m, v and t: a run starts fresh */

/* The stored bytes of elements start … start+count-1 of a segment in one array, as they are: for checkpoints
 * (copying a slice out and into the same format restores the bits) and audit. extra: the format's second
 * array. False where the format has none. start is a multiple of STATE_ALIGNMENT, or start = count = 0; count
 * < 0 means to the end. */
struct optimizer_slice {
    const char *kind; /* "weight", "weight.extra", "m", "m.scale", "v", "v.scale" */
    enum dtype dtype;
    void *memory;     /* device */
    int64_t elements; /* of dtype; scales count ceil(count/32) */
    int64_t bytes;
};
bool optimizer_slice(const struct optimizer *optimizer, int32_t unit, int32_t segment, enum state_part part,
                     bool extra, int64_t start, int64_t count, struct optimizer_slice *slice);

/* Audit adds up: the slices of all segments, the padding of all units (all arrays) and the scratch row are
 * together exactly what the optimizer has allocated and is lent. */
int64_t optimizer_padding_bytes(const struct optimizer *optimizer);
int64_t optimizer_scratch_bytes(const struct optimizer *optimizer);
int64_t optimizer_state_bytes(const struct optimizer *optimizer); /* slices and padding */

/* A conversion, between two steps. Reserve allocates the new arrays of every part whose storage changes,
 * beside the old ones, and two small buffers; commit converts through fp32 (state_read, state_write), swaps
 * and frees, and cannot fail. Ranks agree between the two; whoever does not commit cancels. The optimizer
 * must not be updated in between.
 *
 * copies: the model's, as they will be: they lend w its memory as a plan's do. A w that keeps its format and
 * comes to lie elsewhere is copied as it is; one that is lent the same memory before and after is converted
 * in place. */
struct optimizer_conversion {
    struct policy policy;
    bool changes[STATE_PART_COUNT];       /* the part's storage format changes */
    bool moves;                           /* or w's does not, and it lies elsewhere */
    void *(*arrays)[STATE_PART_COUNT][2]; /* [unit_count] */
    void **lent;                          /* [unit_count]: as in struct optimizer_unit */
    float *before, *after;                /* device, [chunk] */
    float *host_before, *host_after;      /* host, [chunk] */
};

/* What one part lost, measured by comparing every value read before and after. Merge over ranks: sums and
 * maxima. */
struct optimizer_loss {
    int64_t elements; /* compared, padding not counted; 0 where the format stayed */
    int64_t changed;  /* values read that differ */
    double
        largest_relative; /* max |after - before| / |before| over changed values; 1 where a value became 0 */
    int32_t bits_dropped; /* of 24: how many low bits of a significand the largest change reaches into */
    int32_t reserved;
};

/* What reserve allocates, at the peak on top of what there is. lends: whether w will be lent its memory. */
int64_t optimizer_convert_bytes(const struct optimizer *optimizer, const struct policy *policy, bool lends);
bool optimizer_convert_reserve(struct optimizer *optimizer, const struct policy *policy,
                               const struct optimizer_copies *copies, struct optimizer_conversion *conversion,
                               struct err *err) MUST_USE;
void optimizer_convert_commit(struct optimizer *optimizer, struct optimizer_conversion *conversion,
                              struct optimizer_loss losses[STATE_PART_COUNT]);
void optimizer_convert_cancel(struct optimizer *optimizer, struct optimizer_conversion *conversion);
void optimizer_loss_merge(struct optimizer_loss losses[STATE_PART_COUNT],
                          const struct optimizer_loss other[STATE_PART_COUNT]);
/* "nothing was lost" or what was: one sentence a part. Returns text. */
const char *optimizer_loss_text(const struct optimizer_loss losses[STATE_PART_COUNT], char *text,
                                size_t text_bytes);
