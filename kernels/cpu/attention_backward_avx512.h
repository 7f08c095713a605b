/* Fast attention, backward: one pass over the blocks of (queries x keys) makes all three gradients (five
 * products; Dao et al. 2022, 2023). A task is one (sequence, key/value head) with all query heads that read
 * it, so every sum has one owner and one order: query blocks ascending, within them query heads, then key
 * blocks. Its keys, values and the fp32 sums dk and dv stay in the thread's room; queries are packed a block
 * at a time. Probabilities p and ds are fp32, rounded to bf16 (bf16 tensors) as operands. With p = exp(scale
 * qk - lse), mean = <dout, out>: dv = p' dout,  ds = p (dout v' - mean),  dq = scale ds k,  dk = scale ds' q.
 */
#pragma once

#include "attention_avx512.h"
#include "attention_forward_avx512.h"

enum { B_QUERIES = 128, B_KEYS = 64, B_PITCH = B_QUERIES / WORD };

struct backward {
    const struct attention_shape *shape;
    const int32_t *starts;
    void *dqs, *dks, *dvs;
    const void *dout, *out, *qs, *ks, *vs;
    const float *lse;
    enum dtype dtype;
    int64_t lanes, width, depth; /* as in struct forward */
    uintptr_t rooms;             /* in scratch: one struct backward_room a thread */
    int64_t room_bytes;
};

struct backward_room {
    uint32_t *keys, *values;            /* rows [longest][width] */
    uint32_t *key_pairs;                /* pairs [longest/WORD][lanes] */
    float *dk, *dv;                     /* [longest][lanes] */
    uint32_t *query, *dout;             /* transposed [depth][B_QUERIES] */
    uint32_t *query_pairs, *dout_pairs; /* pairs [B_QUERIES/WORD][lanes] */
    float *lse, *mean;                  /* [B_QUERIES], lse in powers of two */
    uint32_t *p, *ds;                   /* rows [B_KEYS][B_PITCH] */
    uint32_t *ds_pairs;                 /* pairs [B_KEYS/WORD][B_QUERIES] */
    float *dq;                          /* [B_QUERIES][lanes] */
};

static uintptr_t backward_room(struct backward_room *room, uintptr_t at, const struct backward *b)
{
    int64_t longest = round_up(b->shape->longest, GROUP), lanes = b->lanes;
    *room = (struct backward_room){
        .keys = carve(&at, longest * b->width * 4),
        .values = carve(&at, longest * b->width * 4),
        .key_pairs = carve(&at, longest / WORD * lanes * 4),
        .dk = carve(&at, longest * lanes * 4),
        .dv = carve(&at, longest * lanes * 4),
        .query = carve(&at, b->depth * B_QUERIES * 4),
        .dout = carve(&at, b->depth * B_QUERIES * 4),
        .query_pairs = carve(&at, B_PITCH * lanes * 4),
        .dout_pairs = carve(&at, B_PITCH * lanes * 4),
        .lse = carve(&at, B_QUERIES * 4),
        .mean = carve(&at, B_QUERIES * 4),
        .p = carve(&at, B_KEYS * B_PITCH * 4),
        .ds = carve(&at, B_KEYS * B_PITCH * 4),
        .ds_pairs = carve(&at, B_KEYS / WORD * B_QUERIES * 4),
        .dq = carve(&at, B_QUERIES * lanes * 4),
    };
    return at;
}

static int backward_threads(const struct attention_shape *shape, int threads)
{
    return (int)at_least(at_most(threads, shape->sequences * shape->kv_heads), 1);
}

static uintptr_t backward_layout(struct backward *b, uintptr_t at, int threads)
{
    b->lanes = round_up(b->shape->head_dim, GROUP);
    b->depth = round_up(b->shape->head_dim, WORD) / WORD;
    b->width = round_up(b->depth, 16);
    b->rooms = (at + 63) / 64 * 64;
    struct backward_room room;
    b->room_bytes = (int64_t)backward_room(&room, 0, b);
    return b->rooms + (uintptr_t)(threads * b->room_bytes);
}

/* p and ds of one register tile: keys key … against queries 16v …; diagonal as in score_tile. Rows come in
 * twos. */
INLINE void store_rows(uint32_t *to, uint32_t *to_pairs, int64_t key, int64_t v, __m512 x0, __m512 x1)
{
    uint32_t *row = to + key * B_PITCH + v * GROUP / WORD;
#if ATTENTION_BF16
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(x1, x0);
    _mm256_storeu_si256((__m256i *)row, _mm512_castsi512_si256(both));
    _mm256_storeu_si256((__m256i *)(row + B_PITCH), _mm512_extracti64x4_epi64(both, 1));
    if (to_pairs)
        _mm512_storeu_si512(to_pairs + key / 2 * B_QUERIES + v * GROUP, interleave_pair(both));
#else
    _mm512_storeu_ps((float *)row, x0);
    _mm512_storeu_ps((float *)(row + B_PITCH), x1);
    if (to_pairs) {
        _mm512_storeu_ps((float *)to_pairs + key * B_QUERIES + v * GROUP, x0);
        _mm512_storeu_ps((float *)to_pairs + (key + 1) * B_QUERIES + v * GROUP, x1);
    }
#endif
}

struct tiles {
    const struct backward *b;
    const struct backward_room *room;
    const uint32_t *keys, *values; /* of this block */
};

INLINE void gradient_tile(const struct tiles *t, int64_t key, int64_t v0, bool diagonal, const int rows,
                          const int vectors)
{
    const struct backward_room *room = t->room;
    const struct backward *b = t->b;
    __m512 acc[TILE_SUMS], p[TILE_SUMS];
    __m512 factor = _mm512_set1_ps(b->shape->scale * LOG2_E);
    UNROLL for (int i = 0; i < rows * vectors; i++) acc[i] = _mm512_setzero_ps();
    product(acc, rows, vectors, t->keys + key * b->width, b->width, 1, room->query + 16 * v0, B_QUERIES,
            b->depth);
    UNROLL for (int v = 0; v < vectors; v++)
    {
        __m512 lse = _mm512_loadu_ps(room->lse + 16 * (v0 + v));
        UNROLL for (int r = 0; r < rows; r++) p[r * vectors + v] =
            exp2_vector(_mm512_fmsub_ps(factor, acc[r * vectors + v], lse));
    }
    if (diagonal)
        UNROLL for (int r = 0; r < rows; r++) p[r * vectors] =
            _mm512_maskz_mov_ps((__mmask16)(0xFFFFU << (key % GROUP + r)), p[r * vectors]);
    UNROLL for (int i = 0; i < rows * vectors; i++) acc[i] = _mm512_setzero_ps();
    product(acc, rows, vectors, t->values + key * b->width, b->width, 1, room->dout + 16 * v0, B_QUERIES,
            b->depth);
    UNROLL for (int v = 0; v < vectors; v++)
    {
        __m512 mean = _mm512_loadu_ps(room->mean + 16 * (v0 + v));
        UNROLL for (int r = 0; r < rows; r += 2)
        {
            int i = r * vectors + v, j = i + vectors;
            store_rows(room->p, NULL, key + r, v0 + v, p[i], p[j]);
            store_rows(room->ds, room->ds_pairs, key + r, v0 + v,
                       _mm512_mul_ps(p[i], _mm512_sub_ps(acc[i], mean)),
                       _mm512_mul_ps(p[j], _mm512_sub_ps(acc[j], mean)));
        }
    }
}

#define X(vectors, rows)                                                                                     \
    static void gradient_group_##vectors(const struct tiles *t, int64_t group, int64_t v0, bool diagonal)    \
    {                                                                                                        \
        for (int64_t r = 0; r < GROUP; r += rows)                                                            \
            gradient_tile(t, GROUP *group + r, v0, diagonal, rows, vectors);                                 \
    }
TILES(X)
#undef X

/* p and ds of a block, cut at the causal triangle; arguments as in score_block. */
static void gradient_block(const struct tiles *t, int64_t groups, int64_t vectors, int64_t ahead)
{
    static void (*const group_of[])(const struct tiles *, int64_t, int64_t, bool) = {NULL,
#define X(vectors, rows) gradient_group_##vectors,
                                                                                     TILES(X)
#undef X
    };
    for (int64_t v = 0; v < vectors; v += TILE_VECTORS) {
        int64_t end = at_most(v + TILE_VECTORS, vectors);
        for (int64_t g = 0; g < groups; g++) {
            int64_t first = at_least(g - ahead, v);
            if (first < end)
                group_of[end - first](t, g, first, first == g - ahead);
        }
    }
}

/* One block of keys (key0, n) against the room's block of queries (query0, in `vectors`). fresh: dk, dv start
 * here. */
static void backward_keys(const struct backward *b, const struct backward_room *room, int64_t query0,
                          int64_t vectors, int64_t key0, int64_t n, bool fresh)
{
    int64_t ahead = (query0 - key0) / GROUP, groups = n / GROUP;
    struct tiles tiles = {b, room, room->keys + key0 * b->width, room->values + key0 * b->width};
    gradient_block(&tiles, groups, vectors, ahead);

    struct span by_key[B_KEYS / GROUP], by_query[B_QUERIES / GROUP];
    for (int64_t g = 0; g < groups; g++)
        by_key[g] = (struct span){at_least(g - ahead, 0) * GROUP / WORD, vectors * GROUP / WORD};
    for (int64_t v = 0; v < vectors; v++)
        by_query[v] = (struct span){0, at_most(groups, v + ahead + 1) * GROUP / WORD};
    struct sum sum = {
        .c = room->dv + key0 * b->lanes,
        .c_row = b->lanes,
        .a = room->p,
        .a_row = B_PITCH,
        .a_step = 1,
        .b = room->dout_pairs,
        .b_step = b->lanes,
        .groups = groups,
        .vectors = b->lanes / 16,
        .spans = by_key,
        .fresh = fresh,
    };
    sum_run(&sum);
    sum.c = room->dk + key0 * b->lanes;
    sum.a = room->ds;
    sum.b = room->query_pairs;
    sum_run(&sum);
    sum.c = room->dq;
    sum.a = room->ds_pairs;
    sum.a_row = 1;
    sum.a_step = B_QUERIES;
    sum.b = room->key_pairs + key0 / WORD * b->lanes;
    sum.groups = vectors;
    sum.spans = by_query;
    sum.fresh = key0 == 0;
    sum_run(&sum);
}

/* lse and mean of n queries; the rest, up to a whole group, gets probability zero. */
static void backward_pack_scalars(const struct backward *b, const struct backward_room *room,
                                  const struct rows *dout, const struct rows *out, const float *lse,
                                  int64_t query0, int64_t padded)
{
    int64_t filled = at_most(dout->count - query0, padded);
    for (int64_t i = 0; i < filled; i++) {
        const char *x = row_at(dout, query0 + i), *y = row_at(out, query0 + i);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t e = 0; e < b->lanes; e += 16) {
            __mmask16 mask = (__mmask16)lanes_mask(dout->n, e, 16);
            sum = _mm512_fmadd_ps(load_values(x, e, mask, b->dtype), load_values(y, e, mask, b->dtype), sum);
        }
        room->mean[i] = _mm512_reduce_add_ps(sum);
        room->lse[i] = lse[(query0 + i) * b->shape->q_heads] * LOG2_E;
    }
    for (int64_t i = filled; i < padded; i++)
        room->mean[i] = 0, room->lse[i] = -MASKED;
}

static void backward_queries(const struct backward *b, const struct backward_room *room, int64_t s,
                             int64_t head, int64_t query0, bool first_head)
{
    int64_t heads = b->shape->q_heads, token = b->starts[s];
    struct rows q = head_rows(b->qs, b->shape, b->starts, s, head, heads, b->dtype);
    struct rows dout = head_rows(b->dout, b->shape, b->starts, s, head, heads, b->dtype);
    struct rows out = head_rows(b->out, b->shape, b->starts, s, head, heads, b->dtype);
    int64_t n = at_most(q.count - query0, B_QUERIES), padded = round_up(n, GROUP);
    pack_transposed(room->query, B_QUERIES, &q, query0, padded, b->depth);
    pack_transposed(room->dout, B_QUERIES, &dout, query0, padded, b->depth);
    pack_pairs(room->query_pairs, b->lanes, &q, query0, padded);
    pack_pairs(room->dout_pairs, b->lanes, &dout, query0, padded);
    struct rows dq = head_rows(b->dqs, b->shape, b->starts, s, head, heads, b->dtype);
    prefetch_rows(&dq, query0, B_QUERIES, true);
    backward_pack_scalars(b, room, &dout, &out, b->lse + token * heads + head, query0, padded);
    for (int64_t key0 = 0; key0 < query0 + padded; key0 += B_KEYS)
        backward_keys(b, room, query0, padded / GROUP, key0, at_most(query0 + padded - key0, B_KEYS),
                      first_head && key0 >= query0);
    int64_t row_bytes = b->shape->head_dim * (int64_t)dtype_bytes(b->dtype);
    for (int64_t i = 0; i < n; i++)
        store_row((char *)b->dqs + ((token + query0 + i) * heads + head) * row_bytes, room->dq + i * b->lanes,
                  b->shape->scale, b->shape->head_dim, b->dtype);
}

static void backward_task(const struct backward *b, const struct backward_room *room, int64_t s, int64_t kv)
{
    int64_t kv_heads = b->shape->kv_heads, group = b->shape->q_heads / kv_heads;
    struct rows k = head_rows(b->ks, b->shape, b->starts, s, kv, kv_heads, b->dtype);
    struct rows v = head_rows(b->vs, b->shape, b->starts, s, kv, kv_heads, b->dtype);
    int64_t padded = round_up(k.count, GROUP);
    pack_rows(room->keys, b->width, &k, 0, padded);
    pack_rows(room->values, b->width, &v, 0, padded);
    pack_pairs(room->key_pairs, b->lanes, &k, 0, padded);
    for (int64_t query0 = 0; query0 < k.count; query0 += B_QUERIES)
        for (int64_t h = 0; h < group; h++)
            backward_queries(b, room, s, kv * group + h, query0, h == 0);
    int64_t row_bytes = b->shape->head_dim * (int64_t)dtype_bytes(b->dtype);
    for (int64_t i = 0; i < k.count; i++) {
        int64_t to = ((b->starts[s] + i) * kv_heads + kv) * row_bytes;
        store_row((char *)b->dks + to, room->dk + i * b->lanes, b->shape->scale, b->shape->head_dim,
                  b->dtype);
        store_row((char *)b->dvs + to, room->dv + i * b->lanes, 1, b->shape->head_dim, b->dtype);
    }
}

static void backward_run(struct backward *b, void *scratch, int threads)
{
    const struct attention_shape *s = b->shape;
    backward_layout(b, (uintptr_t)scratch, threads);
    int64_t kv_heads = s->kv_heads, pairs = s->sequences * kv_heads;
#pragma omp parallel num_threads(threads)
    {
        struct backward_room room;
        backward_room(&room, b->rooms + (uintptr_t)(omp_get_thread_num() * b->room_bytes), b);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < pairs; i++)
            backward_task(b, &room, i / kv_heads, i % kv_heads);
    }
    int64_t row_bytes = s->head_dim * (int64_t)dtype_bytes(b->dtype);
    zero_padding(b->dqs, s, b->starts, s->q_heads * row_bytes);
    zero_padding(b->dks, s, b->starts, kv_heads * row_bytes);
    zero_padding(b->dvs, s, b->starts, kv_heads * row_bytes);
}
