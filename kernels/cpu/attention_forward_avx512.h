/* Fast attention, forward. Keys and values of every (family, key/value head) are packed once; then each
 * (query head, block of queries) is one task: for every block of keys, scores transposed (queries in lanes,
 * so maxima and sums need no shuffles), exp2, then values times probabilities (Milakov & Gimelshein 2018; Dao
 * et al. 2022). A task's sums have one order that depends on its own segment only. Scores and sums are fp32;
 * bf16 tensors have their probabilities rounded to bf16 for the second product, before they are normalized.
 *
 * Keys and queries meet in groups of 16, so a segment's queries begin in the lane that their place among the
 * keys says (struct place): the lanes before are empty, and what they make is not stored. */
#pragma once

#include "attention_avx512.h"
#include "attention_segments.h"
#include "queue.h"

#include <omp.h>
#include <string.h>

enum { F_QUERIES = 64, F_KEYS = 64 }; /* a block; multiples of GROUP, F_QUERIES of F_KEYS */

/* A family's keys in the tensors, and where their packed rows start, in whole groups. */
struct family {
    int64_t segment, past; /* its segments */
    int64_t first, count;  /* keys */
    int64_t packed;
};

/* Families in order; returns how many. There are at most as many as segments. */
static int64_t families_list(struct family *families, const struct segments *segments)
{
    int64_t n = 0, packed = 0;
    for (int64_t s = 0, past; s < segments->count; s = past) {
        past = segment_family_end(segments, s);
        int64_t count = 0;
        for (int64_t i = s; i < past; i++)
            count = at_least(count, segment_keys(segments, i));
        families[n++] = (struct family){s, past, segment_first_key(segments, s), count, packed};
        packed += round_up(count, GROUP);
    }
    return n;
}

/* A segment's queries among its keys, both counted from its first key: query row i has place ahead + skew +
 * i, with ahead a multiple of GROUP. Blocks count queries from `ahead` on, the empty lanes among them. */
struct place {
    int64_t ahead, skew;
    int64_t queries; /* skew among them */
};

INLINE struct place place_of(const struct segments *segments, int64_t s)
{
    int64_t before = segment_before(segments, s), queries = segment_queries(segments, s);
    int64_t skew = queries > 0 ? before % GROUP : 0;
    return (struct place){before - skew, skew, queries + skew};
}

struct forward {
    const struct attention_shape *shape;
    struct segments segments;
    const void *qs, *ks, *vs;
    void *out;
    float *lse;
    enum dtype dtype;
    int64_t lanes, width, depth; /* head_dim in lanes; words of a packed row; words that hold data */
    int64_t packed_rows;
    /* In scratch: */
    uint32_t *keys;          /* rows  [kv_heads][packed_rows][width] */
    uint32_t *values;        /* pairs [kv_heads][packed_rows/WORD][lanes] */
    struct family *families; /* [sequences] */
    int32_t *block_segment;  /* [blocks] of queries, over all segments, in order */
    int32_t *block_family;   /* [blocks] */
    int32_t *block_first;    /* [blocks] first query within its segment, see struct place */
    int32_t *keys_family;    /* [key_blocks] of F_QUERIES keys, over all families, in order */
    int32_t *keys_first;     /* [key_blocks] first key within its family */
    int64_t blocks, key_blocks;
    uintptr_t rooms; /* one struct forward_room a thread */
    int64_t room_bytes;
};

/* What one thread works in. */
struct forward_room {
    uint32_t *query;       /* transposed [depth][F_QUERIES] */
    float *score;          /* [F_KEYS][F_QUERIES] */
    uint32_t *probability; /* pairs [F_KEYS/WORD][F_QUERIES] */
    float *sum;            /* [F_QUERIES][lanes], out before it is normalized */
    float *max, *total;    /* [F_QUERIES] running maximum of the raw scores; running sum of exp */
    float *before;         /* [F_QUERIES] the maximum before this block, then the factor for `sum` */
};

static uintptr_t forward_room(struct forward_room *room, uintptr_t at, int64_t lanes, int64_t depth)
{
    *room = (struct forward_room){
        .query = carve(&at, depth * F_QUERIES * 4),
        .score = carve(&at, F_KEYS * F_QUERIES * 4),
        .probability = carve(&at, F_KEYS / WORD * F_QUERIES * 4),
        .sum = carve(&at, F_QUERIES * lanes * 4),
        .max = carve(&at, F_QUERIES * 4),
        .total = carve(&at, F_QUERIES * 4),
        .before = carve(&at, F_QUERIES * 4),
    };
    return at;
}

/* Lays the scratch out from `at`; returns its end. */
static uintptr_t forward_layout(struct forward *f, uintptr_t at, int threads)
{
    const struct attention_shape *s = f->shape;
    f->lanes = round_up(s->head_dim, GROUP);
    f->depth = round_up(s->head_dim, WORD) / WORD;
    f->width = round_up(f->depth, 16);
    f->packed_rows = round_up(s->key_rows + (GROUP - 1) * s->sequences, GROUP);
    int64_t blocks_max = s->tokens / F_QUERIES + 2 * s->sequences; /* 2: empty lanes may fill a block up */
    int64_t key_blocks_max = s->key_rows / F_QUERIES + s->sequences;
    at = (at + 63) / 64 * 64;
    f->keys = carve(&at, s->kv_heads * f->packed_rows * f->width * 4);
    f->values = carve(&at, s->kv_heads * f->packed_rows / WORD * f->lanes * 4);
    f->families = carve(&at, s->sequences * (int64_t)sizeof *f->families);
    f->block_segment = carve(&at, blocks_max * 4);
    f->block_family = carve(&at, blocks_max * 4);
    f->block_first = carve(&at, blocks_max * 4);
    f->keys_family = carve(&at, key_blocks_max * 4);
    f->keys_first = carve(&at, key_blocks_max * 4);
    struct forward_room room;
    f->rooms = at;
    f->room_bytes = (int64_t)forward_room(&room, 0, f->lanes, f->depth);
    return at + (uintptr_t)(threads * f->room_bytes);
}

static void forward_list_blocks(struct forward *f)
{
    int64_t families = families_list(f->families, &f->segments);
    f->blocks = f->key_blocks = 0;
    for (int32_t i = 0; i < families; i++) {
        const struct family *family = &f->families[i];
        for (int64_t s = family->segment; s < family->past; s++) {
            int64_t queries = place_of(&f->segments, s).queries;
            for (int32_t first = 0; first < queries; first += F_QUERIES) {
                f->block_segment[f->blocks] = (int32_t)s;
                f->block_family[f->blocks] = i;
                f->block_first[f->blocks++] = first;
            }
        }
        for (int32_t first = 0; first < family->count; first += F_QUERIES) {
            f->keys_family[f->key_blocks] = i;
            f->keys_first[f->key_blocks++] = first;
        }
    }
}

/* Head `head` of rows first … first+count-1 of a tensor [rows][heads][head_dim], as rows skew … */
static struct rows head_rows(const void *tensor, const struct attention_shape *shape, int64_t first,
                             int64_t count, int64_t skew, int64_t head, int64_t heads, enum dtype dtype)
{
    int64_t element = (int64_t)dtype_bytes(dtype);
    return (struct rows){
        .at = (const char *)tensor + (first * heads + head) * shape->head_dim * element,
        .stride_bytes = heads * shape->head_dim * element,
        .begin = skew,
        .count = skew + count,
        .n = shape->head_dim,
        .dtype = dtype,
    };
}

/* A segment's rows of a tensor of queries. */
static struct rows query_rows(const void *tensor, const struct attention_shape *shape,
                              const struct segments *segments, int64_t s, int64_t head, enum dtype dtype)
{
    return head_rows(tensor, shape, segments->starts[s], segment_queries(segments, s),
                     place_of(segments, s).skew, head, shape->q_heads, dtype);
}

/* A family's rows of a tensor of keys. */
static struct rows key_rows(const void *tensor, const struct attention_shape *shape,
                            const struct family *family, int64_t kv, enum dtype dtype)
{
    return head_rows(tensor, shape, family->first, family->count, 0, kv, shape->kv_heads, dtype);
}

/* Task i of all (query block, head) pairs: segment by segment, in it head by head (whose keys then stay in
 * cache), the blocks with most keys first. */
struct task {
    int64_t block, head;
};

static struct task forward_task_of(const struct forward *f, int64_t i)
{
    int64_t heads = f->shape->q_heads, block = i / heads, s = f->block_segment[block];
    int64_t first = block - f->block_first[block] / F_QUERIES, rest = i - first * heads;
    int64_t blocks = (place_of(&f->segments, s).queries + F_QUERIES - 1) / F_QUERIES;
    return (struct task){first + blocks - 1 - rest % blocks, rest / blocks};
}

/* Packs one block of a family's keys and values, for one key/value head. */
static void forward_pack(const struct forward *f, int64_t block, int64_t kv)
{
    const struct family *family = &f->families[f->keys_family[block]];
    int64_t first = f->keys_first[block];
    struct rows k = key_rows(f->ks, f->shape, family, kv, f->dtype);
    struct rows v = key_rows(f->vs, f->shape, family, kv, f->dtype);
    int64_t n = at_most(round_up(k.count, GROUP) - first, F_QUERIES);
    int64_t to = kv * f->packed_rows + family->packed + first;
    pack_rows(f->keys + to * f->width, f->width, &k, first, n);
    pack_pairs(f->values + to / WORD * f->lanes, f->lanes, &v, first, n);
}

/* One register tile of scores: keys key … of the block against queries 16v …. If diagonal, the first vector's
 * queries and the keys are of the same 16 positions, and a query's later keys are masked. */
INLINE void score_tile(const struct forward *f, const struct forward_room *room, const uint32_t *keys,
                       int64_t key, int64_t v0, bool diagonal, const int rows, const int vectors)
{
    __m512 acc[TILE_SUMS];
    UNROLL for (int i = 0; i < rows * vectors; i++) acc[i] = _mm512_setzero_ps();
    product(acc, rows, vectors, keys + key * f->width, f->width, 1, room->query + 16 * v0, F_QUERIES,
            f->depth);
    if (diagonal)
        UNROLL for (int r = 0; r < rows; r++)
        {
            __mmask16 seen = (__mmask16)(0xFFFFU << (key % GROUP + r));
            acc[r * vectors] = _mm512_mask_mov_ps(_mm512_set1_ps(MASKED), seen, acc[r * vectors]);
        }
    UNROLL for (int v = 0; v < vectors; v++)
    {
        __m512 max = _mm512_loadu_ps(room->max + 16 * (v0 + v));
        UNROLL for (int r = 0; r < rows; r++)
        {
            max = _mm512_max_ps(max, acc[r * vectors + v]);
            _mm512_storeu_ps(room->score + (key + r) * F_QUERIES + 16 * (v0 + v), acc[r * vectors + v]);
        }
        _mm512_storeu_ps(room->max + 16 * (v0 + v), max);
    }
}

#define X(vectors, rows)                                                                                     \
    static void score_group_##vectors(const struct forward *f, const struct forward_room *room,              \
                                      const uint32_t *keys, int64_t group, int64_t v0, bool diagonal)        \
    {                                                                                                        \
        for (int64_t r = 0; r < GROUP; r += rows)                                                            \
            score_tile(f, room, keys, GROUP *group + r, v0, diagonal, rows, vectors);                        \
    }
TILES(X)
#undef X

/* Scores of a block: groups of keys against vectors of queries; `ahead` is how many groups the first query
 * lies past the first key. What no query sees is not computed. */
static void score_block(const struct forward *f, const struct forward_room *room, const uint32_t *keys,
                        int64_t groups, int64_t vectors, int64_t ahead)
{
    static void (*const group_of[])(const struct forward *, const struct forward_room *, const uint32_t *,
                                    int64_t, int64_t, bool) = {NULL,
#define X(vectors, rows) score_group_##vectors,
                                                               TILES(X)
#undef X
    };
    for (int64_t v = 0; v < vectors; v += TILE_VECTORS) {
        int64_t end = at_most(v + TILE_VECTORS, vectors);
        for (int64_t g = 0; g < groups; g++) {
            int64_t first = at_least(g - ahead, v);
            if (first < end)
                group_of[end - first](f, room, keys, g, first, first == g - ahead);
        }
    }
}

/* Probabilities of 16 queries over n keys, against the new maximum; rescales the running sums. */
static void softmax_vector(const struct forward_room *room, int64_t v, int64_t n, float scale)
{
    __m512 factor = _mm512_set1_ps(scale * LOG2_E);
    __m512 max = _mm512_mul_ps(factor, _mm512_loadu_ps(room->max + 16 * v));
    __m512 shrink = exp2_vector(_mm512_fmsub_ps(factor, _mm512_loadu_ps(room->before + 16 * v), max));
    __m512 sum0 = _mm512_mul_ps(shrink, _mm512_loadu_ps(room->total + 16 * v)), sum1 = _mm512_setzero_ps();
    const float *score = room->score + 16 * v;
    uint32_t *probability = room->probability + 16 * v;
    for (int64_t key = 0; key < n; key += 2) {
        __m512 p0 = exp2_vector(_mm512_fmsub_ps(factor, _mm512_loadu_ps(score + key * F_QUERIES), max));
        __m512 p1 = exp2_vector(_mm512_fmsub_ps(factor, _mm512_loadu_ps(score + (key + 1) * F_QUERIES), max));
        sum0 = _mm512_add_ps(sum0, p0);
        sum1 = _mm512_add_ps(sum1, p1);
#if ATTENTION_BF16
        __m512i words = interleave_pair((__m512i)_mm512_cvtne2ps_pbh(p1, p0));
        _mm512_storeu_si512(probability + key / 2 * F_QUERIES, words);
#else
        _mm512_storeu_ps((float *)probability + key * F_QUERIES, p0);
        _mm512_storeu_ps((float *)probability + (key + 1) * F_QUERIES, p1);
#endif
    }
    _mm512_storeu_ps(room->total + 16 * v, _mm512_add_ps(sum0, sum1));
    _mm512_storeu_ps(room->before + 16 * v, shrink);
}

/* One block of keys (from key0 on, n of them) for one block of queries (from place query0 on, in `vectors`).
 */
static void forward_keys(const struct forward *f, const struct forward_room *room, const uint32_t *keys,
                         const uint32_t *values, int64_t query0, int64_t vectors, int64_t key0, int64_t n)
{
    int64_t ahead = (query0 - key0) / GROUP, groups = n / GROUP;
    memcpy(room->before, room->max, sizeof(float) * GROUP * (size_t)vectors);
    score_block(f, room, keys, groups, vectors, ahead);
    struct span spans[F_QUERIES / GROUP];
    for (int64_t v = 0; v < vectors; v++) {
        int64_t seen = GROUP * at_least(at_most(groups, v + ahead + 1), 0);
        softmax_vector(room, v, seen, f->shape->scale);
        spans[v] = (struct span){0, seen / WORD};
    }
    sum_run(&(struct sum){
        .c = room->sum,
        .c_row = f->lanes,
        .a = room->probability,
        .a_row = 1,
        .a_step = F_QUERIES,
        .b = values,
        .b_step = f->lanes,
        .groups = vectors,
        .vectors = f->lanes / 16,
        .factor = room->before,
        .spans = spans,
        .fresh = key0 == 0,
    });
}

/* Lanes lane … past-1 to out and lse, from row `token` on. */
static void forward_store(const struct forward *f, const struct forward_room *room, int64_t token,
                          int64_t head, int64_t lane, int64_t past)
{
    const struct attention_shape *s = f->shape;
    int64_t row_bytes = s->head_dim * (int64_t)dtype_bytes(f->dtype);
    for (int64_t i = 0; i < past; i += 16) {
        __m512 log_total = log2_vector(_mm512_loadu_ps(room->total + i));
        __m512 max = _mm512_mul_ps(_mm512_set1_ps(s->scale), _mm512_loadu_ps(room->max + i));
        _mm512_storeu_ps(room->before + i, _mm512_fmadd_ps(log_total, _mm512_set1_ps(LN_2), max));
    }
    for (int64_t i = lane; i < past; i++) {
        int64_t row = (token + i - lane) * s->q_heads + head;
        store_row((char *)f->out + row * row_bytes, room->sum + i * f->lanes, 1.0F / room->total[i],
                  s->head_dim, f->dtype);
        f->lse[row] = room->before[i];
    }
}

static void forward_task(const struct forward *f, const struct forward_room *room, struct task task)
{
    int64_t s = f->block_segment[task.block], first = f->block_first[task.block], head = task.head;
    struct place place = place_of(&f->segments, s);
    struct rows q = query_rows(f->qs, f->shape, &f->segments, s, head, f->dtype);
    int64_t n = at_most(q.count - first, F_QUERIES), padded = round_up(n, GROUP);
    pack_transposed(room->query, F_QUERIES, &q, first, padded, f->depth);
    for (int64_t i = 0; i < padded; i++)
        room->max[i] = MASKED, room->total[i] = 0;
    struct rows out = query_rows(f->out, f->shape, &f->segments, s, head, f->dtype);
    prefetch_rows(&out, first, n, true);
    prefetch_rows(&q, first - F_QUERIES, F_QUERIES, false); /* most likely this thread's next */
    int64_t kv = head / (f->shape->q_heads / f->shape->kv_heads), query0 = place.ahead + first;
    int64_t from = kv * f->packed_rows + f->families[f->block_family[task.block]].packed;
    for (int64_t key0 = 0; key0 < query0 + padded; key0 += F_KEYS)
        forward_keys(f, room, f->keys + (from + key0) * f->width, f->values + (from + key0) / WORD * f->lanes,
                     query0, padded / GROUP, key0, at_most(query0 + padded - key0, F_KEYS));
    int64_t lane = at_least(place.skew - first, 0);
    forward_store(f, room, f->segments.starts[s] + first + lane - place.skew, head, lane, n);
}

/* Rows past the last segment. */
static void zero_padding(void *tensor, const struct attention_shape *shape, const int32_t *starts,
                         int64_t row_bytes)
{
    int64_t end = starts[shape->sequences];
    memset((char *)tensor + end * row_bytes, 0, (size_t)((shape->tokens - end) * row_bytes));
}

/* Threads take tasks as they come free. */
static void forward_run(struct forward *f, void *scratch, int threads)
{
    forward_layout(f, (uintptr_t)scratch, threads);
    forward_list_blocks(f);
    int64_t heads = f->shape->q_heads, kv_heads = f->shape->kv_heads;
#pragma omp parallel num_threads(threads)
    {
        struct forward_room room;
        forward_room(&room, f->rooms + (uintptr_t)(omp_get_thread_num() * f->room_bytes), f->lanes, f->depth);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < f->key_blocks * kv_heads; i++)
            forward_pack(f, i % f->key_blocks, i / f->key_blocks);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < f->blocks * heads; i++)
            forward_task(f, &room, forward_task_of(f, i));
    }
    int64_t element = (int64_t)dtype_bytes(f->dtype);
    zero_padding(f->out, f->shape, f->segments.starts, heads * f->shape->head_dim * element);
    zero_padding(f->lse, f->shape, f->segments.starts, heads * (int64_t)sizeof(float));
}
