/* Fast attention, backward: one pass over the blocks of (queries x keys) makes all three gradients (five
 * products; Dao et al. 2022, 2023). With p = exp(scale qk - lse) and mean = <dout, out>: dv = p' dout,  ds =
 * p (dout v' - mean),  dq = scale ds k,  dk = scale ds' q. p and ds are fp32, rounded to bf16 (bf16 tensors)
 * as operands.
 *
 * A pair is one (family of segments, key/value head); its keys and values are packed once, its dk and dv
 * summed in fp32. A turn is one block of queries of one query head against all of its keys; it owns its dq.
 * Turns of a pair add to dk and dv in one order: segments ascending, query blocks ascending, within them
 * query heads, within them key blocks. So the bits do not depend on who takes the turns:
 *  - where there are pairs enough, a thread takes all turns of a pair;
 *  - else threads share pairs: turns are handed out in order, and each adds to a key block after the turn
 * before it. */
#pragma once

#include "attention_avx512.h"
#include "attention_forward_avx512.h"

#include <sched.h>
#include <stdatomic.h>

enum { B_QUERIES = 128, B_KEYS = 64, B_PITCH = B_QUERIES / WORD };

struct backward {
    const struct attention_shape *shape;
    struct segments segments;
    void *dqs, *dks, *dvs;
    const void *dout, *out, *qs, *ks, *vs;
    const float *lse;
    enum dtype dtype;
    int64_t lanes, width, depth; /* as in struct forward */
    struct family *families;     /* in scratch, [sequences] */
    int64_t pairs, group;        /* group: query heads of a pair */
    int64_t turns;               /* of the pair with most */
    bool shared;                 /* threads share pairs */
    uintptr_t rooms, slots;      /* in scratch: a struct backward_room a thread; pairs under way */
    int64_t room_bytes, slot_bytes;
};

struct pair {
    const struct family *family;
    int64_t kv, turns; /* turn t: query block t / group of the family, head kv * group + t % group */
    bool whole; /* one sequence, whose turns go over its keys in order: the first to meet a key writes */
    struct rows k, v;                 /* in the tensors */
    uint32_t *keys, *values;          /* rows [longest][width] */
    uint32_t *key_pairs;              /* pairs [longest/WORD][lanes] */
    float *dk, *dv;                   /* [longest][lanes] */
    _Atomic int32_t *key_blocks_done; /* [turns] where threads share */
};

/* What one turn works in. */
struct backward_room {
    uint32_t *query, *dout;             /* transposed [depth][B_QUERIES] */
    uint32_t *query_pairs, *dout_pairs; /* pairs [B_QUERIES/WORD][lanes] */
    float *lse, *mean;                  /* [B_QUERIES], lse in powers of two */
    uint32_t *p, *ds;                   /* rows [B_KEYS][B_PITCH] */
    uint32_t *ds_pairs;                 /* pairs [B_KEYS/WORD][B_QUERIES] */
    float *dq;                          /* [B_QUERIES][lanes] */
};

INLINE int64_t blocks_of(int64_t n, int64_t block)
{
    return (n + block - 1) / block;
}

/* Query blocks of a family: never more than of all segments together, whose empty lanes may fill a block up.
 */
INLINE int64_t turns_max(const struct attention_shape *shape)
{
    return shape->tokens / B_QUERIES + 2 * shape->sequences;
}

static uintptr_t pair_slot(struct pair *pair, uintptr_t at, const struct backward *b)
{
    int64_t longest = round_up(b->shape->longest, GROUP), lanes = b->lanes;
    pair->keys = carve(&at, longest * b->width * 4);
    pair->values = carve(&at, longest * b->width * 4);
    pair->key_pairs = carve(&at, longest / WORD * lanes * 4);
    pair->dk = carve(&at, longest * lanes * 4);
    pair->dv = carve(&at, longest * lanes * 4);
    pair->key_blocks_done = carve(&at, turns_max(b->shape) * b->group * 4);
    return at;
}

static uintptr_t backward_room(struct backward_room *room, uintptr_t at, const struct backward *b)
{
    *room = (struct backward_room){
        .query = carve(&at, b->depth * B_QUERIES * 4),
        .dout = carve(&at, b->depth * B_QUERIES * 4),
        .query_pairs = carve(&at, B_PITCH * b->lanes * 4),
        .dout_pairs = carve(&at, B_PITCH * b->lanes * 4),
        .lse = carve(&at, B_QUERIES * 4),
        .mean = carve(&at, B_QUERIES * 4),
        .p = carve(&at, B_KEYS * B_PITCH * 4),
        .ds = carve(&at, B_KEYS * B_PITCH * 4),
        .ds_pairs = carve(&at, B_KEYS / WORD * B_QUERIES * 4),
        .dq = carve(&at, B_QUERIES * b->lanes * 4),
    };
    return at;
}

/* Lays the scratch out from `at`; returns its end. Fewer threads never need more of it. */
static uintptr_t backward_layout(struct backward *b, uintptr_t at, int threads)
{
    b->lanes = round_up(b->shape->head_dim, GROUP);
    b->depth = round_up(b->shape->head_dim, WORD) / WORD;
    b->width = round_up(b->depth, 16);
    b->group = b->shape->q_heads / b->shape->kv_heads;
    struct backward_room room;
    struct pair pair;
    b->room_bytes = (int64_t)backward_room(&room, 0, b);
    b->slot_bytes = (int64_t)pair_slot(&pair, 0, b);
    at = (at + 63) / 64 * 64;
    b->families = carve(&at, b->shape->sequences * (int64_t)sizeof *b->families);
    b->rooms = at;
    b->slots = b->rooms + (uintptr_t)(threads * b->room_bytes);
    /* Any smaller shape may be shared: scratch only grows. */
    int64_t slots = at_most(b->shape->sequences * b->shape->kv_heads, 2 * threads - 1);
    return b->slots + (uintptr_t)((slots > threads ? slots : threads) * b->slot_bytes);
}

INLINE int64_t query_blocks(const struct backward *b, int64_t s)
{
    return blocks_of(place_of(&b->segments, s).queries, B_QUERIES);
}

static int64_t family_turns(const struct backward *b, const struct family *family)
{
    int64_t blocks = 0;
    for (int64_t s = family->segment; s < family->past; s++)
        blocks += query_blocks(b, s);
    return blocks * b->group;
}

static void backward_list_pairs(struct backward *b, int threads)
{
    int64_t families = families_list(b->families, &b->segments);
    b->pairs = families * b->shape->kv_heads;
    b->shared = b->pairs < 2 * threads && b->pairs % threads != 0;
    b->turns = 0;
    for (int64_t i = 0; i < families; i++)
        b->turns = at_least(b->turns, family_turns(b, &b->families[i]));
}

static struct pair backward_pair(const struct backward *b, int64_t index, int64_t slot)
{
    const struct family *family = &b->families[index / b->shape->kv_heads];
    struct pair pair = {.family = family, .kv = index % b->shape->kv_heads};
    pair.k = key_rows(b->ks, b->shape, family, pair.kv, b->dtype);
    pair.v = key_rows(b->vs, b->shape, family, pair.kv, b->dtype);
    pair.turns = family_turns(b, family);
    pair.whole = family->past == family->segment + 1 && segment_before(&b->segments, family->segment) == 0;
    pair_slot(&pair, b->slots + (uintptr_t)(slot * b->slot_bytes), b);
    return pair;
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

/* One block of keys against the room's block of queries. */
struct block {
    int64_t query0, vectors; /* queries at places query0 …, 16 * vectors of them */
    int64_t key0, n;
    bool fresh; /* dk and dv of these keys start here */
};

/* p, ds, and what they add to dq. */
static void backward_scores(const struct backward *b, const struct pair *pair,
                            const struct backward_room *room, const struct block *block)
{
    int64_t ahead = (block->query0 - block->key0) / GROUP, groups = block->n / GROUP;
    struct tiles tiles = {b, room, pair->keys + block->key0 * b->width,
                          pair->values + block->key0 * b->width};
    gradient_block(&tiles, groups, block->vectors, ahead);
    struct span by_query[B_QUERIES / GROUP];
    for (int64_t v = 0; v < block->vectors; v++)
        by_query[v] = (struct span){0, at_least(at_most(groups, v + ahead + 1), 0) * GROUP / WORD};
    sum_run(&(struct sum){
        .c = room->dq,
        .c_row = b->lanes,
        .a = room->ds_pairs,
        .a_row = 1,
        .a_step = B_QUERIES,
        .b = pair->key_pairs + block->key0 / WORD * b->lanes,
        .b_step = b->lanes,
        .groups = block->vectors,
        .vectors = b->lanes / 16,
        .spans = by_query,
        .fresh = block->key0 == 0,
    });
}

/* What p and ds add to dk and dv. */
static void backward_keys(const struct backward *b, const struct pair *pair, const struct backward_room *room,
                          const struct block *block)
{
    int64_t ahead = (block->query0 - block->key0) / GROUP, groups = block->n / GROUP;
    struct span by_key[B_KEYS / GROUP];
    for (int64_t g = 0; g < groups; g++)
        by_key[g] = (struct span){at_least(g - ahead, 0) * GROUP / WORD, block->vectors * GROUP / WORD};
    struct sum sum = {
        .c = pair->dv + block->key0 * b->lanes,
        .c_row = b->lanes,
        .a = room->p,
        .a_row = B_PITCH,
        .a_step = 1,
        .b = room->dout_pairs,
        .b_step = b->lanes,
        .groups = groups,
        .vectors = b->lanes / 16,
        .spans = by_key,
        .fresh = block->fresh,
    };
    sum_run(&sum);
    sum.c = pair->dk + block->key0 * b->lanes;
    sum.a = room->ds;
    sum.b = room->query_pairs;
    sum_run(&sum);
}

/* lse and mean of the queries first …; lanes without one, up to a whole group, get probability zero. lse is
 * of the head's first query. */
static void backward_pack_scalars(const struct backward *b, const struct backward_room *room,
                                  const struct rows *dout, const struct rows *out, const float *lse,
                                  int64_t first, int64_t padded)
{
    int64_t filled = at_most(dout->count - first, padded), begin = at_least(dout->begin - first, 0);
    for (int64_t i = begin; i < filled; i++) {
        const char *x = row_at(dout, first + i), *y = row_at(out, first + i);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t e = 0; e < b->lanes; e += 16) {
            __mmask16 mask = (__mmask16)lanes_mask(dout->n, e, 16);
            sum = _mm512_fmadd_ps(load_values(x, e, mask, b->dtype), load_values(y, e, mask, b->dtype), sum);
        }
        room->mean[i] = _mm512_reduce_add_ps(sum);
        room->lse[i] = lse[(first + i - dout->begin) * b->shape->q_heads] * LOG2_E;
    }
    for (int64_t i = 0; i < begin; i++)
        room->mean[i] = 0, room->lse[i] = -MASKED;
    for (int64_t i = filled; i < padded; i++)
        room->mean[i] = 0, room->lse[i] = -MASKED;
}

/* Waits until the turn before has added to key block `index`. Turns are begun in order, so one that runs
 * waits only for ones that run. */
static void turn_wait(const struct pair *pair, int64_t turn, int64_t index)
{
    enum { SPINS = 1000 };
    if (turn == 0)
        return;
    for (int spin = 0; atomic_load_explicit(pair->key_blocks_done + turn - 1, memory_order_acquire) <= index;
         spin++)
        if (spin < SPINS)
            _mm_pause();
        else
            sched_yield(); /* that thread may have lost its core */
}

/* The segment that turn's query block is of; *first becomes the block's first query in it. */
static int64_t turn_segment(const struct backward *b, const struct pair *pair, int64_t turn, int64_t *first)
{
    int64_t block = turn / b->group, s = pair->family->segment;
    for (; block >= query_blocks(b, s); s++)
        block -= query_blocks(b, s);
    *first = block * B_QUERIES;
    return s;
}

/* All key blocks of a packed block of queries. */
static void backward_blocks(const struct backward *b, const struct pair *pair,
                            const struct backward_room *room, int64_t turn, int64_t query0, int64_t padded)
{
    struct block block = {.query0 = query0, .vectors = padded / GROUP};
    for (; block.key0 < query0 + padded; block.key0 += B_KEYS) {
        block.n = at_most(query0 + padded - block.key0, B_KEYS);
        block.fresh = pair->whole && turn % b->group == 0 && block.key0 >= query0;
        backward_scores(b, pair, room, &block);
        if (b->shared)
            turn_wait(pair, turn, block.key0 / B_KEYS);
        backward_keys(b, pair, room, &block);
        if (b->shared)
            atomic_store_explicit(pair->key_blocks_done + turn, (int32_t)(block.key0 / B_KEYS) + 1,
                                  memory_order_release);
    }
    if (!b->shared)
        return;
    if (!pair->whole) /* the turn before may have had more keys, and then the next waits for both */
        turn_wait(pair, turn, INT32_MAX - 1);
    atomic_store_explicit(pair->key_blocks_done + turn, INT32_MAX, memory_order_release);
}

static void backward_turn(const struct backward *b, const struct pair *pair, const struct backward_room *room,
                          int64_t turn)
{
    int64_t first, s = turn_segment(b, pair, turn, &first), heads = b->shape->q_heads;
    int64_t head = pair->kv * b->group + turn % b->group;
    struct rows q = query_rows(b->qs, b->shape, &b->segments, s, head, b->dtype);
    struct rows dout = query_rows(b->dout, b->shape, &b->segments, s, head, b->dtype);
    struct rows out = query_rows(b->out, b->shape, &b->segments, s, head, b->dtype);
    struct rows dq = query_rows(b->dqs, b->shape, &b->segments, s, head, b->dtype);
    int64_t n = at_most(q.count - first, B_QUERIES), padded = round_up(n, GROUP);
    pack_transposed(room->query, B_QUERIES, &q, first, padded, b->depth);
    pack_transposed(room->dout, B_QUERIES, &dout, first, padded, b->depth);
    pack_pairs(room->query_pairs, b->lanes, &q, first, padded);
    pack_pairs(room->dout_pairs, b->lanes, &dout, first, padded);
    prefetch_rows(&dq, first, n, true);
    backward_pack_scalars(b, room, &dout, &out, b->lse + b->segments.starts[s] * heads + head, first, padded);
    backward_blocks(b, pair, room, turn, place_of(&b->segments, s).ahead + first, padded);
    for (int64_t i = at_least(dq.begin - first, 0); i < n; i++)
        store_row((char *)row_at(&dq, first + i), room->dq + i * b->lanes, b->shape->scale, dq.n, b->dtype);
}

/* The pair's packed operands, and its counters. */
static void pair_begin(const struct backward *b, const struct pair *pair)
{
    int64_t padded = round_up(pair->k.count, GROUP);
    pack_rows(pair->keys, b->width, &pair->k, 0, padded);
    pack_rows(pair->values, b->width, &pair->v, 0, padded);
    pack_pairs(pair->key_pairs, b->lanes, &pair->k, 0, padded);
    if (!pair->whole) {
        memset(pair->dk, 0, (size_t)(padded * b->lanes) * sizeof(float));
        memset(pair->dv, 0, (size_t)(padded * b->lanes) * sizeof(float));
    }
    for (int64_t turn = 0; b->shared && turn < pair->turns; turn++)
        atomic_init(pair->key_blocks_done + turn, 0);
}

static void pair_end(const struct backward *b, const struct pair *pair)
{
    struct rows dk = key_rows(b->dks, b->shape, pair->family, pair->kv, b->dtype);
    struct rows dv = key_rows(b->dvs, b->shape, pair->family, pair->kv, b->dtype);
    for (int64_t i = 0; i < dk.count; i++) {
        store_row((char *)row_at(&dk, i), pair->dk + i * b->lanes, b->shape->scale, dk.n, b->dtype);
        store_row((char *)row_at(&dv, i), pair->dv + i * b->lanes, 1, dv.n, b->dtype);
    }
}

static void backward_run_owned(const struct backward *b, const struct backward_room *room)
{
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < b->pairs; i++) {
        struct pair pair = backward_pair(b, i, omp_get_thread_num());
        pair_begin(b, &pair);
        for (int64_t turn = 0; turn < pair.turns; turn++)
            backward_turn(b, &pair, room, turn);
        pair_end(b, &pair);
    }
}

/* Turns are handed out over all pairs in step, so that threads meet on one as little as may be. */
static void backward_run_shared(const struct backward *b, const struct backward_room *room)
{
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < b->pairs; i++) {
        struct pair pair = backward_pair(b, i, i);
        pair_begin(b, &pair);
    }
#pragma omp for schedule(monotonic : dynamic)
    for (int64_t i = 0; i < b->turns * b->pairs; i++) {
        struct pair pair = backward_pair(b, i % b->pairs, i % b->pairs);
        if (i / b->pairs < pair.turns)
            backward_turn(b, &pair, room, i / b->pairs);
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < b->pairs; i++) {
        struct pair pair = backward_pair(b, i, i);
        pair_end(b, &pair);
    }
}

/* Keys that nobody sees: after the last sequence, or, where keys have rows of their own, anywhere. */
static void backward_zero_keys(const struct backward *b, void *rows, int64_t row_bytes)
{
    if (b->segments.keys)
        memset(rows, 0, (size_t)(b->shape->key_rows * row_bytes));
    else
        zero_padding(rows, b->shape, b->segments.starts, row_bytes);
}

static void backward_run(struct backward *b, void *scratch, int threads)
{
    const struct attention_shape *s = b->shape;
    int64_t row_bytes = s->head_dim * (int64_t)dtype_bytes(b->dtype);
    backward_layout(b, (uintptr_t)scratch, threads);
    backward_list_pairs(b, threads);
    zero_padding(b->dqs, s, b->segments.starts, s->q_heads * row_bytes);
    backward_zero_keys(b, b->dks, s->kv_heads * row_bytes);
    backward_zero_keys(b, b->dvs, s->kv_heads * row_bytes);
#pragma omp parallel num_threads(threads)
    {
        struct backward_room room;
        backward_room(&room, b->rooms + (uintptr_t)(omp_get_thread_num() * b->room_bytes), b);
        if (b->shared)
            backward_run_shared(b, &room);
        else
            backward_run_owned(b, &room);
    }
}
