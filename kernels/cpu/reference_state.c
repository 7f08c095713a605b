/* The optimizer's rows as plain loops: the per-element functions of common/update.h, in groups and blocks.
 * Threads take whole blocks; the measures of a block go to scratch and are added in order, so neither bits
 * nor measures depend on how many threads there are. */
#include "rows.h"
#include "update.h"

#define PI 3.14159265358979323846

static int64_t blocks_of(int64_t n)
{
    return (n + UPDATE_BLOCK - 1) / UPDATE_BLOCK;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

size_t ROW(update_scratch)(int64_t n)
{
    return (size_t)blocks_of(n) * sizeof(struct update_measures);
}

static void update_block(struct update_measures *measures, const struct state_view *state,
                         const void *gradient, enum dtype gradient_dtype, int64_t begin, int64_t end,
                         const struct index_map *map, const struct update_scalars *scalars)
{
    struct update_lanes lanes = {0};
    for (int64_t i = begin; i < end; i += Q8_GROUP)
        update_group(&lanes, state, gradient, gradient_dtype, i, (int)smaller(Q8_GROUP, end - i), map,
                     scalars);
    *measures = update_block_measures(&lanes);
}

void ROW(update)(struct queue *q, struct update_measures *measures, const struct state_view *state,
                 const void *gradient, enum dtype gradient_dtype, int64_t n, const struct index_map *map,
                 const struct update_scalars *scalars, void *scratch)
{
    int64_t blocks = blocks_of(n);
    struct update_measures *parts = scratch;
#pragma omp parallel for schedule(static) num_threads(q->threads) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++)
        update_block(&parts[b], state, gradient, gradient_dtype, b * UPDATE_BLOCK,
                     smaller(n, (b + 1) * UPDATE_BLOCK), map, scalars);
    struct update_measures total = {0};
    for (int64_t b = 0; b < blocks; b++)
        update_add_measures(&total, &parts[b]);
    *measures = total;
}

void ROW(state_read)(struct queue *q, float *values, const struct state_view *state, enum state_part part,
                     int64_t n)
{
#pragma omp parallel for schedule(static) num_threads(q->threads) if (n > UPDATE_BLOCK)
    for (int64_t i = 0; i < n; i++)
        values[i] = part == STATE_W   ? weight_read(state->w_format, state->w, state->w_extra, i)
                    : part == STATE_M ? moment_read(state->m_format, false, state->m, state->m_extra, i)
                                      : moment_read(state->v_format, true, state->v, state->v_extra, i);
}

static void write_weight_group(const struct state_view *state, const float *values, int64_t i, int64_t count,
                               const struct index_map *map, uint64_t seed, uint64_t total_step)
{
    for (int64_t j = 0; j < count; j++) {
        uint32_t random16 = 0;
        if (state->w_format == WEIGHT_BF16S)
            random16 = philox_halfword(seed, index_map_at(map, i + j), total_step, PHILOX_STREAM_W);
        weight_write(state->w_format, state->w, state->w_extra, i + j, values[i + j], random16);
    }
}

void ROW(state_write)(struct queue *q, const struct state_view *state, enum state_part part,
                      const float *values, int64_t n, const struct index_map *map, uint64_t seed,
                      uint64_t total_step)
{
#pragma omp parallel for schedule(static) num_threads(q->threads) if (n > UPDATE_BLOCK)
    for (int64_t i = 0; i < n; i += Q8_GROUP) {
        int count = (int)smaller(Q8_GROUP, n - i);
        if (part == STATE_W)
            write_weight_group(state, values, i, count, map, seed, total_step);
        else if (part == STATE_M)
            moment_write_group(state->m_format, false, state->m, state->m_extra, i, count, values + i, map,
                               seed, total_step);
        else
            moment_write_group(state->v_format, true, state->v, state->v_extra, i, count, values + i, map,
                               seed, total_step);
    }
}

void ROW(weight_compute_copy)(struct queue *q, void *to, const struct state_view *state, int64_t n,
                              enum dtype to_dtype)
{
    if (to_dtype == DTYPE_F32) {
        ROW(state_read)(q, to, state, STATE_W, n);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(q->threads) if (n > UPDATE_BLOCK)
    for (int64_t i = 0; i < n; i++)
        ((uint16_t *)to)[i] = weight_bf16_copy(state->w_format, state->w, i);
}

/* Box & Muller 1958, in double: words a b c d of the block (stream 3, total step 0) of the pair of elements
 * 2k, 2k+1 give u1 = ((a:b >> 11) + 1) / 2^53 in (0, 1] and u2 = (c:d >> 11) / 2^53 in [0, 1), a:b being a in
 * the upper half; r = deviation * sqrt(-2 ln u1); element 2k gets r cos(2 pi u2), element 2k+1 r sin(2 pi
 * u2), rounded to fp32 once. */
static float normal_value(uint64_t seed, uint64_t index, double deviation)
{
    struct philox_block block = philox_stream_block(seed, index >> 1, 0, PHILOX_STREAM_INIT);
    uint64_t high = (uint64_t)block.word[0] << 32 | block.word[1];
    uint64_t low = (uint64_t)block.word[2] << 32 | block.word[3];
    double u1 = (double)((high >> 11) + 1) * 0x1p-53, u2 = (double)(low >> 11) * 0x1p-53;
    double r = deviation * sqrt(-2.0 * log(u1)), angle = 2.0 * PI * u2;
    return (float)(r * (index & 1 ? sin(angle) : cos(angle)));
}

void ROW(init_normal)(struct queue *q, float *values, int64_t n, const struct index_map *map, uint64_t seed,
                      double deviation)
{
#pragma omp parallel for schedule(static) num_threads(q->threads) if (n > UPDATE_BLOCK)
    for (int64_t i = 0; i < n; i++)
        values[i] = normal_value(seed, index_map_at(map, i), deviation);
}
