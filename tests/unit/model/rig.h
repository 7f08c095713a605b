/* A tape host that owns whole units in memory, and micro-batches made from lengths; for tests and benches.
 *
 * It is unkind on purpose: every gather gives the unit at another address and the released copy is spoiled, a
 * gradient leaf starts as NaN, and calls out of turn fail the test. */
#pragma once

#include "tape.h"

#define HOST_UNITS 64

struct test_host {
    struct device *device;
    const struct param_table *table;
    enum dtype compute;
    void *master[HOST_UNITS];        /* device: the weights that gathers copy from */
    void *gathered[HOST_UNITS];      /* device: NULL: not gathered */
    float *gradient[HOST_UNITS + 1]; /* device; [unit_count]: slot 1 of unit 0 */
    bool begun[HOST_UNITS + 1], reduced[HOST_UNITS + 1];
    int held, gathers;
    bool kind; /* benches: gathers hand out the master */
};

/* weights[i]: the elements of table->params[i], fp32, rounded to `compute` here. */
void test_host_init(struct test_host *host, struct device *device, const struct param_table *table,
                    enum dtype compute, float *const *weights);
void test_host_done(struct test_host *host);
struct tape_host test_host_tape(struct test_host *host);
/* params[param]'s gradient, host memory, both uses of a tied embedding added. */
void test_host_gradient(const struct test_host *host, int32_t param, float *values);
void test_host_forget(struct test_host *host); /* before the next run */

/* Sequences of these lengths side by side, padded with rows of token 0 to a multiple of 64 and to at least
 * `tokens`. Tokens and labels come from a counter; about one label in five is missing. Host copies beside the
 * device's. */
struct test_batch {
    struct batch batch;
    int32_t *token_ids, *labels, *positions, *starts;
    struct device *device;
};
void test_batch_init(struct test_batch *batch, struct device *device, const int64_t *lengths,
                     int64_t sequences, int64_t tokens, int64_t vocabulary, uint64_t seed);
void test_batch_done(struct test_batch *batch);

void test_batch_upload(struct test_batch *batch); /* after the host copies were changed */

/* One model with weights, device, host and batch, run in arenas planned for exactly that batch. */
struct rig {
    struct model_config config;
    struct device device;
    struct model model;
    struct test_host host;
    struct test_batch batch;
    float **weights; /* [table count], host memory, the rig's */
    struct arena activations, blocks, gradients;
    double *sum; /* device */
};

struct rig_want {
    enum dtype compute;
    bool recompute;
    int threads;
    const int64_t *lengths; /* ends with 0 */
    int64_t tokens;         /* at least so many rows */
    float **(*weights)(const struct param_table *table);
};

void rig_open(struct rig *rig, const struct model_config *config, const struct rig_want *want);
void rig_arenas(struct rig *rig, struct tape_plan plan);
struct tape_arenas rig_memory(struct rig *rig);
/* logprob[T] is malloc'ed. Returns the sum. Fails unless the arenas were used to the byte. */
double rig_run(struct rig *rig, bool training, float **logprob);
void rig_close(struct rig *rig);

/* Weights that keep activations near 1, so that no term hides. */
float **test_weights(const struct param_table *table);

uint64_t test_random(uint64_t *state); /* splitmix64 */
double test_normal(uint64_t *state);   /* roughly: the sum of twelve uniforms */
