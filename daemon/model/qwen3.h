/* Qwen3's tensors, one row each: which row of a unit, its name on the hub, rows, columns (NONE: a vector),
 * whether it is a norm. C hidden, Q = Hq D, K = Hk D, D head_dim, F ffn, V vocabulary. Rows that are read by
 * one product after another (q k v, gate up) stand side by side. Private to this folder. */
#pragma once

#include "tape_ops.h"

// clang-format off
#define QWEN3_EMBEDDING_ROWS(X)                                                \
    X(EMBEDDING,       "model.embed_tokens.weight",           V, C,    false)

#define QWEN3_BLOCK_ROWS(X)                                                    \
    X(ATTENTION_NORM,  "input_layernorm.weight",              C, NONE, true)   \
    X(Q_PROJ,          "self_attn.q_proj.weight",             Q, C,    false)  \
    X(K_PROJ,          "self_attn.k_proj.weight",             K, C,    false)  \
    X(V_PROJ,          "self_attn.v_proj.weight",             K, C,    false)  \
    X(Q_NORM,          "self_attn.q_norm.weight",             D, NONE, true)   \
    X(K_NORM,          "self_attn.k_norm.weight",             D, NONE, true)   \
    X(O_PROJ,          "self_attn.o_proj.weight",             C, Q,    false)  \
    X(FFN_NORM,        "post_attention_layernorm.weight",     C, NONE, true)   \
    X(GATE_PROJ,       "mlp.gate_proj.weight",                F, C,    false)  \
    X(UP_PROJ,         "mlp.up_proj.weight",                  F, C,    false)  \
    X(DOWN_PROJ,       "mlp.down_proj.weight",                C, F,    false)

/* Without its last row where the embedding is tied: its weight is the embedding's. */
#define QWEN3_HEAD_ROWS(X)                                                     \
    X(FINAL_NORM,      "model.norm.weight",                   C, NONE, true)   \
    X(HEAD,            "lm_head.weight",                      V, C,    false)
// clang-format on

#define X(row, name, rows, columns, norm) row,
enum qwen3_embedding_row { QWEN3_EMBEDDING_ROWS(X) EMBEDDING_ROWS };
enum qwen3_block_row { QWEN3_BLOCK_ROWS(X) BLOCK_ROWS };
enum qwen3_head_row { QWEN3_HEAD_ROWS(X) HEAD_ROWS };
#undef X

struct value *qwen3_embed(struct tape *tape);
/* out is the stream after the block (the caller took it, below what the block keeps). */
void qwen3_block(struct tape *tape, int32_t unit, struct value *out, struct value *x);
void qwen3_head(struct tape *tape, int32_t unit, struct value *x);
