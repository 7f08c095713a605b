/* How long a step would take, from a roofline (Williams et al. 2009): every part of it is bound by products,
 * by memory or by a wire, and takes what it needs of that over the rate reached (machine.h).
 *
 * Assumed:
 * - A stage computes a micro-batch, forward, backward and what is recomputed, without a gap between kernels.
 * - Messages of tensor, context and pipeline parallelism are waited for. Weights and gradients travel beside
 *   the computation where the machine overlaps them, and are waited for as far as they take longer.
 * - An axis whose group spans hosts is as fast as the network; ranks fill hosts in the order of layout.h.
 * - One forward, one backward: m micro-batches through p stages take (m + p - 1) times the slowest stage's.
 * - The update reads and writes every stored byte once, and reads the gradient.
 * - Causal attention computes half of the square. All tokens have labels. */
#pragma once

#include "engine.h"
#include "machine.h"

/* A step of the whole job, on average. */
struct batch_load {
    double tokens, squared_lengths; /* the latter summed over sequences */
    int64_t micro_batches;          /* of a lane */
};

/* Seconds of a step, and what they come to. */
struct estimate {
    double products, attention, streaming; /* computing: the last is what memory bounds */
    double update;
    double exchange; /* waiting for tensor, context and pipeline messages */
    double exposed;  /* waiting for weights and gradients */
    double bubble;   /* waiting for other stages */
    double step;
    double tokens_per_second, utilization; /* of all ranks' peak, by the model's operations */
};

struct plan_traffic; /* plan.h */

/* As if all stages were as slow as this rank's. */
struct estimate estimate_stage(const struct machine *machine, const struct body *body,
                               const struct layout *layout, const struct batch_load *load,
                               const struct plan_traffic *traffic);
