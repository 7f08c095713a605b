/* The forward pass is written once, as calls of ops on values; each op records what its backward needs, and
 * the backward pass plays the tape from the end. Recompute drops a block's records and replays the block.
 *
 * Weights come and go by unit: `tape_unit_begin` asks the host of the tape (the engine, over shard/) to
 * gather a unit, `tape_unit_end` lets it go; in the backward the same marks, met in reverse, gather it again,
 * and hand its finished weight gradients over to be reduced. The tape knows nothing of ranks.
 *
 * Memory: activations lie on one stack arena, freed as the tape is played back; where blocks are recomputed,
 * what a block computes lies on a second, which all micro-batches in flight share; gradients of activations,
 * scratch and what the forward needs only for a moment on a second, reset at every block's boundary, with the
 * residual stream's one gradient at its bottom. Played over planning arenas with the planning kernels, the
 * same calls say how large they must be (design law 7). Owner: the engine's thread. */
#pragma once

#include "arena.h"
#include "device.h"
#include "err.h"
#include "kernels.h"
#include "model_config.h"
#include "params.h"
#include "stage.h"
#include "tensor.h"

#define TAPE_ROWS_MULTIPLE 64 /* of the rows of a micro-batch, which t ranks share */

/* One packed micro-batch on the device. All pointers device memory, tokens (rows) T including padding. */
struct batch {
    int64_t tokens; /* T, a multiple of 64 */
    int64_t sequences, longest;
    int64_t used_tokens;      /* without the padding */
    int64_t labelled;         /* rows with a label */
    const int32_t *token_ids; /* [T] */
    const int32_t *labels;    /* [T], -1: not trained */
    const int32_t *positions; /* [T] */
    const int32_t *starts;    /* [sequences + 1] */
    /* Under context parallelism the rows are this rank's part, and keys come from all c ranks
     * (ops_context.c). */
    int64_t keys;
    const struct attention_keys
        *seen;               /* [sequences], which are this rank's chunks: the keys that each sees */
    const int32_t *key_from; /* [keys]: which row of the gathered [c][T] it is */
    const int32_t *key_to;   /* [c * T]: which key a gathered row is; -1: none */
};

/* The ranks that work on the same micro-batch along one axis of the layout, and which this one is. */
enum tape_axis { TAPE_CONTEXT, TAPE_TENSOR };
struct tape_place {
    int32_t ranks, rank;
};

/* What the tape asks of whoever owns the parameters. Unit weights are whole (gathered), in the compute dtype;
 * gradient buffers are whole units in fp32, every element written (0 between tensors) before unit_reduce.
 * slot 0, or 1 for a tied head's use of the embedding (whose gradient is reduced apart).
 *
 * Order of calls of a training run, L layers: gather 0, release 0; for each block gather, release; then
 * gather L+1 (tied: gather 0 too), the head forward and backward, reduce (L+1, 0) (tied: reduce (0, 1),
 * release 0), release L+1; for each block from the last gather, reduce, release; reduce (0, 0). At most two
 * units are held at a time. Without training: the gathers and releases of the first half. A pipeline stage
 * makes those of the units it holds; its forward and its backward are apart, several forwards may come
 * before a backward, and every forward makes a leaf of the head only where the backward follows at once. */
struct tape_host {
    void *context;
    void *(*unit_gather)(void *context, int32_t unit); /* its flat buffer, valid until released */
    void (*unit_release)(void *context, int32_t unit);
    float *(*unit_gradient)(void *context, int32_t unit,
                            int32_t slot); /* where this micro-batch's leaf is written */
    void (*unit_reduce)(void *context, int32_t unit, int32_t slot); /* the leaf is complete */
    /* Among the ranks of an axis, device memory; not called where there is one. In place: rank r's part lies
     * at r * each. And all-to-all: part r of `from` goes to rank r, part r of `to` comes from it. */
    void (*all_gather)(void *context, enum tape_axis axis, void *all, size_t each);
    void (*exchange)(void *context, enum tape_axis axis, void *to, const void *from, size_t each);
};

struct tape; /* tape_ops.h has the inside, for ops and models */

/* activations: one micro-batch's own. blocks and gradients are shared by all in flight; blocks is used only
 * where they are recomputed. */
struct tape_arenas {
    struct arena *activations, *blocks, *gradients;
};

/* What one micro-batch costs on them. */
struct tape_plan {
    size_t activation_bytes, block_bytes, gradient_bytes;
};

struct model {
    struct model_config config;
    struct param_table params;
    enum dtype compute;         /* DTYPE_F32 or DTYPE_BF16 */
    bool recompute;             /* by block */
    struct tape_place context;  /* one rank alone, unless set after model_init */
    struct tensor_place tensor; /* of whose pieces params speaks */
    struct stage stage;         /* the whole model, unless set after model_init */
    float *rope_cosines,
        *rope_sines; /* device, [positions planned][head_dim/2] fp32, formed as transformers forms them */
    int64_t rope_positions;
    struct device *device;
    struct tape *tape; /* host memory: the records of the run under way, reused by every run */
};

bool model_init(struct model *model, const struct model_config *config, enum dtype compute, bool recompute,
                struct device *device, struct err *err) MUST_USE;
/* One rank's pieces of a tensor group's model; ERR_INVALID where they do not fit (params.h). */
bool model_init_piece(struct model *model, const struct model_config *config, struct tensor_place place,
                      enum dtype compute, bool recompute, struct device *device, struct err *err) MUST_USE;
/* Takes the RoPE tables for sequences of up to `positions` tokens. */
bool model_reserve_positions(struct model *model, int64_t positions, struct err *err) MUST_USE;
void model_done(struct model *model);

/* What micro-batches of up to these sizes need; training = false: evaluation, forward only. A plan for more
 * tokens, sequences or longer ones is never smaller. It uses the model's records as a run does: same thread,
 * between runs. */
struct tape_plan model_plan(const struct model *model, int64_t tokens, int64_t sequences, int64_t longest,
                            bool training);

/* Forward over the batch; logprob[T] (device, on the activation arena until the next call) gets each labelled
 * token's log-probability, 0 where there is no label, and *logprob_sum (device double) their sum: minus the
 * loss. The arenas are reset to empty first. training: also the backward, which hands every unit's
 * gradient of the summed loss to the host. Seconds are wall-clock, forward includes the head's products. Of a
 * model that is all on this rank. */
struct model_pass {
    double forward_s, backward_s;
    const float *logprob;
};
void model_run(const struct model *model, const struct batch *batch, const struct tape_host *host,
               struct tape_arenas arenas, double *logprob_sum, bool training, struct model_pass *pass);

/* The same in halves, for pipeline stages with several micro-batches in flight. Each has a tape and an
 * activation arena of its own; the others are shared by all, and nothing on them outlives a half but
 * what is said here. batch and host stay valid until the last call.
 *
 *  begin     returns where the stream of the stage before is to be received, or NULL on the first stage
 *  forward   computes; the last stage also does the head's backward. Returns the stream to hand on, valid
 *            until another half is computed or received for, or NULL on the last stage
 *  turn      training: returns where the gradient of that stream is to be received, or NULL on the last
 *            stage, where nothing may come between forward and turn
 *  backward  returns the gradient to hand back, valid as above, or NULL on the first stage
 *
 * Each of these is model_stream_bytes long; begin and turn only name memory, they write nothing. */
bool model_tape_init(struct tape **tape, const struct model *model, struct err *err) MUST_USE;
void model_tape_done(struct tape *tape); /* NULL: fine */
void *model_begin(const struct model *model, struct tape *tape, const struct batch *batch,
                  const struct tape_host *host, struct tape_arenas arenas, bool training);
void *model_forward(struct tape *tape, double *logprob_sum); /* not the last stage: not used */
void *model_turn(struct tape *tape);
void *model_backward(struct tape *tape);
size_t model_stream_bytes(const struct tape *tape);
