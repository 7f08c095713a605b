/* Qwen3, dense (Yang et al. 2025): pre-norm blocks of grouped-query attention with normalized queries and
 * keys (Henry et al. 2020) and a SwiGLU feed-forward. T tokens, R of them here, C hidden, D head_dim, F ffn;
 * Hq, Hk heads and F are this rank's (one rank alone: all of T, and all of them). */
#include "qwen3.h"

static const struct param *weight(const struct tape *tape, int32_t unit, int32_t row)
{
    const struct param_table *table = &tape->model->params;
    return &table->params[table->units[unit].first + row];
}

struct value *qwen3_embed(struct tape *tape)
{
    return op_embed(tape, weight(tape, 0, EMBEDDING)); /* [R][C] */
}

static struct value *attention(struct tape *tape, int32_t unit, struct value *h)
{
    struct value *q = op_linear(tape, h, weight(tape, unit, Q_PROJ), TAPE_KEPT); /* [T][Hq D] */
    struct value *k = op_linear(tape, h, weight(tape, unit, K_PROJ), TAPE_KEPT); /* [T][Hk D] */
    struct value *v = op_linear(tape, h, weight(tape, unit, V_PROJ), TAPE_KEPT); /* [T][Hk D] */
    int64_t D = tape->model->config.head_dim, Hq = q->columns / D, Hk = k->columns / D;
    q = op_rope(tape, op_rmsnorm(tape, q, Hq, weight(tape, unit, Q_NORM)), Hq);
    k = op_rope(tape, op_rmsnorm(tape, k, Hk, weight(tape, unit, K_NORM)), Hk);
    struct value *o = op_attention(tape, q, k, v);                       /* [T][Hq D] */
    return op_linear(tape, o, weight(tape, unit, O_PROJ), TAPE_PASSING); /* [R][C] */
}

/* x = x + attention(norm(x)); out = x + down(silu(gate(h)) up(h)), h = norm(x) */
void qwen3_block(struct tape *tape, int32_t unit, struct value *out, struct value *x)
{
    struct value *h = op_rmsnorm(tape, x, 1, weight(tape, unit, ATTENTION_NORM)); /* [R][C] */
    struct value *a = attention(tape, unit, h);
    h = op_add_rmsnorm(tape, &x, x, a, weight(tape, unit, FFN_NORM)); /* x = x + a, h [R][C] */
    struct value *gate = op_linear(tape, h, weight(tape, unit, GATE_PROJ), TAPE_KEPT);     /* [T][F] */
    struct value *up = op_linear(tape, h, weight(tape, unit, UP_PROJ), TAPE_KEPT);         /* [T][F] */
    op_linear_add(tape, out, x, op_swiglu(tape, gate, up), weight(tape, unit, DOWN_PROJ)); /* [R][C] */
}

void qwen3_head(struct tape *tape, int32_t unit, struct value *x)
{
    struct value *h = op_rmsnorm(tape, x, 1, weight(tape, unit, FINAL_NORM)); /* [R][C] */
    bool tied = tape->model->config.tied;
    op_head_loss(tape, h, tied ? weight(tape, 0, EMBEDDING) : weight(tape, unit, HEAD)); /* [T] */
}
