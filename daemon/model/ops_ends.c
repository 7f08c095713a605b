/* The two ends of the model: tokens in, log-probabilities out. */
#include "tape_ops.h"

static void embed_backward(struct tape *tape, const struct record *r)
{
    const struct batch *batch = tape->batch;
    size_t mark = arena_mark(tape->gradients);
    const void *dout = tape_gradient_whole(tape, r->out);
    tape->kernels->embed_backward(tape->queue, tape_weight_gradient(tape, r->weight), dout, batch->token_ids,
                                  batch->tokens, r->weight->first_row, r->weight->rows, r->weight->columns,
                                  tape->model->compute);
    arena_reset(tape->gradients, mark);
}

/* Every rank looks up what lies in its range of the vocabulary; the others' rows are zero, so the sum is
 * exact.
 */
struct value *op_embed(struct tape *tape, const struct param *table)
{
    const struct batch *batch = tape->batch;
    struct value *out = tape_block_output(tape);
    size_t mark;
    void *part = tape_part(tape, out->data, table->columns, &mark);
    tape->kernels->embed_forward(tape->queue, part, tape_weight(tape, table), batch->token_ids, batch->tokens,
                                 table->first_row, table->rows, table->columns, tape->model->compute);
    tape_part_sum(tape, out->data, part, table->columns, mark);
    tape_record(tape, (struct record){.backward = embed_backward, .out = out, .weight = table});
    return out;
}

/* ---- the head: logits never exist whole, so it goes by chunks of labelled tokens, R rows at most ---- */

#define LOGITS_BYTES (64ll << 20) /* of one chunk … */
enum {
    ROWS_MIN = 256, /* … but not fewer rows: every chunk reads and writes all of dw */
    ROWS_STEP =
        64 /* chunks are filled up with zero rows: products come in few shapes, whatever is labelled */
};

static int64_t padded(int64_t rows)
{
    return (rows + ROWS_STEP - 1) / ROWS_STEP * ROWS_STEP;
}

/* Of shapes only, so that the order of every sum is too; vocabulary: the largest piece, so that all ranks
 * have the same chunks. */
static int64_t chunk_rows(int64_t tokens, int64_t vocabulary)
{
    int64_t rows = LOGITS_BYTES / ((int64_t)sizeof(float) * vocabulary) / ROWS_STEP * ROWS_STEP;
    rows = rows < ROWS_MIN ? ROWS_MIN : rows;
    return rows < tokens ? rows : padded(tokens);
}

struct head {
    const void *x, *w;     /* [T][C], [V][C] */
    void *dx;              /* [T][C]; NULL: no gradient is made */
    float *dw;             /* [V][C] */
    int64_t V, C, R;       /* V: of this rank's piece of the vocabulary … */
    int64_t first;         /* … which begins at this token */
    int32_t pieces, piece; /* how many there are, and which this is */
    /* in scratch: */
    int32_t *list;                     /* [T] the labelled rows */
    void *x_rows;                      /* [R][C] */
    float *logits;                     /* [R][V]; in fp32 d logits take their place */
    void *dx_rows;                     /* [R][C] */
    void *dlogits;                     /* [R][V] */
    struct head_stats *stats, *merged; /* [pieces][R], [R]; only where there are several */
};

static void head_take(struct tape *tape, struct head *h)
{
    struct arena *arena = tape->gradients;
    size_t element = dtype_bytes(tape->model->compute), row_bytes = (size_t)h->C * element;
    h->list = arena_take(arena, (size_t)tape->batch->tokens * sizeof *h->list);
    h->x_rows = arena_take(arena, (size_t)h->R * row_bytes);
    h->logits = arena_take(arena, (size_t)(h->R * h->V) * sizeof *h->logits);
    h->stats = arena_take(arena, h->pieces > 1 ? (size_t)(h->pieces * h->R) * sizeof *h->stats : 0);
    h->merged = arena_take(arena, h->pieces > 1 ? (size_t)h->R * sizeof *h->merged : 0);
    if (!tape->training)
        return;
    h->dx_rows = arena_take(arena, (size_t)h->R * row_bytes);
    h->dlogits = tape->model->compute == DTYPE_F32 ? (void *)h->logits
                                                   : arena_take(arena, (size_t)(h->R * h->V) * element);
}

/* The softmax of a row needs three numbers of every other piece. */
static void softmax_over_pieces(struct tape *tape, const struct head *h, const int32_t *list, int64_t count,
                                int64_t rows)
{
    const struct kernels *k = tape->kernels;
    const int32_t *labels = tape->batch->labels;
    struct head_stats *own = h->stats + h->piece * count;
    k->head_stats(tape->queue, own, h->logits, labels, list, count, h->first, h->V);
    tape->host->all_gather(tape->host->context, TAPE_TENSOR, h->stats, (size_t)count * sizeof *own);
    k->head_merge(tape->queue, h->merged, h->stats, h->pieces, count);
    k->head_dlogits(tape->queue, tape->logprob, h->dlogits, h->logits, own, h->merged, labels, list, count,
                    rows, h->first, h->V, tape->model->compute);
}

/* The labelled rows first … first+count-1. */
static void head_chunk(struct tape *tape, const struct head *h, int64_t first, int64_t count)
{
    const struct kernels *k = tape->kernels;
    enum dtype dtype = tape->model->compute;
    const int32_t *list = h->list + first;
    int64_t rows = padded(count), V = h->V, C = h->C;
    k->rows_gather(tape->queue, h->x_rows, h->x, list, count, rows, C, dtype);
    tape_product(tape, h->logits, h->x_rows, h->w, rows, V, C, DTYPE_F32, MATMUL_B_TRANSPOSED);
    if (h->pieces > 1)
        softmax_over_pieces(tape, h, list, count, rows);
    else
        k->head_softmax(tape->queue, tape->logprob, h->dlogits, h->logits, tape->batch->labels, list, count,
                        rows, V, dtype);
    if (!tape->training)
        return;
    tape_product(tape, h->dx_rows, h->dlogits, h->w, rows, C, V, dtype, 0);
    tape_product(tape, h->dw, h->dlogits, h->x_rows, V, C, rows, DTYPE_F32,
                 MATMUL_A_TRANSPOSED | (first > 0 ? MATMUL_ADD : 0));
    k->rows_scatter(tape->queue, h->dx, h->dx_rows, list, count, C, dtype);
}

/* Here the run turns: the backward is done chunk by chunk with the forward. */
void op_head_loss(struct tape *tape, struct value *x, const struct param *w)
{
    int64_t T = tape->batch->tokens, labelled = tape->batch->labelled;
    const struct tensor_place *place = &tape->model->tensor;
    struct head h = {.x = tape_whole(tape, x),
                     .w = tape_weight(tape, w),
                     .V = w->rows,
                     .C = w->columns,
                     .R = chunk_rows(T, (w->whole_rows + place->ranks - 1) / place->ranks),
                     .first = w->first_row,
                     .pieces = place->ranks,
                     .piece = place->rank};
    bool add = false;
    if (tape->training) {
        h.dx = tape_whole_gradient(tape, x, &add);
        h.dw = tape_weight_gradient(tape, w);
    }
    INVARIANT(!add && labelled >= 0 && labelled <= T);
    size_t mark = arena_mark(tape->gradients);
    head_take(tape, &h);
    tape->kernels->head_list(tape->queue, h.list, tape->logprob, h.dx, tape->batch->labels, T, h.C,
                             tape->model->compute);
    if (tape->training && labelled == 0)
        device_zero(tape->model->device, h.dw, (size_t)(h.V * h.C) * sizeof(float));
    for (int64_t first = 0; first < labelled; first += h.R)
        head_chunk(tape, &h, first, labelled - first < h.R ? labelled - first : h.R);
    arena_reset(tape->gradients, mark);
}
