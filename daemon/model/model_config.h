/* A hub-shaped config.json as plain data. Every field that changes the arithmetic is honoured; a value that
 * is not implemented is refused by name rather than computed wrongly. */
#pragma once

#include "bounds.h"
#include "err.h"

#include <stdbool.h>
#include <stdint.h>

struct model_config {
    char architecture[LIMIT_NAME_BYTES]; /* "Qwen3ForCausalLM" */
    int64_t hidden;                      /* C */
    int64_t layers;
    int64_t q_heads;    /* Hq */
    int64_t kv_heads;   /* Hk */
    int64_t head_dim;   /* D: read, not hidden / heads */
    int64_t ffn;        /* F: intermediate_size */
    int64_t vocabulary; /* V */
    int64_t positions;  /* max_position_embeddings: the longest sequence */
    double rms_eps, rope_theta, initializer_range;
    bool tied;         /* the head's weight is the embedding */
    int64_t eos_token; /* -1: none */
};

/* path: a folder with config.json, or the file itself. */
bool model_config_load(struct model_config *config, const char *path, struct err *err) MUST_USE;
bool model_config_parse(struct model_config *config, const char *origin, const char *json, size_t bytes,
                        struct err *err) MUST_USE;
/* The config as the hub writes it, with torch_dtype; malloc'ed. */
char *model_config_print(const struct model_config *config, const char *torch_dtype);

int64_t model_config_parameters(const struct model_config *config); /* tied once */
/* Model FLOPs of a packed micro-batch: 6 x parameters x tokens plus the causal half of attention (forward +
 * backward), sum over sequences of 6 * layers * q_heads * head_dim * length^2. */
double model_config_flops(const struct model_config *config, int64_t tokens, double squared_lengths);
