#include "zigzag.h"

#include "err.h"
#include "inject.h"

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

struct zigzag_bounds zigzag_bounds(const struct batch_bounds *whole, int32_t c)
{
    /* Every sequence is padded by less than 2c tokens. */
    int64_t keys = whole->rows + whole->sequences * (2 * c - 1);
    int64_t rows = divide_up(divide_up(keys, c), BATCH_ROW_MULTIPLE) * BATCH_ROW_MULTIPLE;
    return (struct zigzag_bounds){.rows = rows, .keys = keys, .segments = 2 * whole->sequences};
}

/* One chunk's rows into mine from row `at` on: tokens first … first+count-1 of the sequence that begins at
 * `start` and has `length`; what lies behind its end is padding. */
static void take_chunk(struct micro_batch *mine, int64_t at, const struct micro_batch *whole, int64_t start,
                       int64_t length, int64_t first, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t t = first + i;
        bool there = t < length;
        mine->tokens[at + i] = there ? whole->tokens[start + t] : 0;
        mine->labels[at + i] = there ? whole->labels[start + t] : -1;
        mine->positions[at + i] = there ? whole->positions[start + t] : 0;
        if (inject("labels-shifted-after-the-cut") && i + 1 == count)
            mine->labels[at + i] = -1;
        if (inject("local-positions"))
            mine->positions[at + i] = (int32_t)i;
        mine->labelled += mine->labels[at + i] >= 0;
        mine->tokens_used += there;
    }
}

static void add_segment(struct micro_batch *mine, struct zigzag *zigzag, int64_t queries, int64_t key_first,
                        int64_t key_count)
{
    int64_t s = mine->sequences++;
    mine->starts[s + 1] = mine->starts[s] + (int32_t)queries;
    mine->longest = key_count > mine->longest ? key_count : mine->longest;
    zigzag->seen[s][0] = (int32_t)key_first;
    zigzag->seen[s][1] = (int32_t)key_count;
}

/* Where the gathered rows of one sequence's chunks belong: chunk j is the first of rank j's two, or the
 * second of rank 2c-1-j's; both lie at row `at` of their rank. */
static void place_keys(struct zigzag *zigzag, int64_t at, int64_t chunk, int64_t rows, int32_t c)
{
    for (int32_t j = 0; j < 2 * c; j++) {
        int64_t owner = j < c ? j : 2 * c - 1 - j;
        int64_t gathered = owner * rows + at + (j < c ? 0 : chunk);
        for (int64_t i = 0; i < chunk; i++) {
            zigzag->from[zigzag->keys] = (int32_t)(gathered + i);
            zigzag->to[gathered + i] = (int32_t)zigzag->keys++;
        }
    }
}

void zigzag_cut(struct micro_batch *mine, struct zigzag *zigzag, const struct micro_batch *whole, int32_t c,
                int32_t rank)
{
    int64_t rows = 0, at = 0;
    for (int64_t s = 0; s < whole->sequences; s++)
        rows += 2 * divide_up(whole->starts[s + 1] - whole->starts[s], 2 * c);
    rows = divide_up(rows, BATCH_ROW_MULTIPLE) * BATCH_ROW_MULTIPLE;
    mine->rows = rows;
    mine->sequences = mine->longest = mine->labelled = mine->tokens_used = 0;
    zigzag->keys = 0;
    mine->starts[0] = 0;
    for (int64_t i = 0; i < c * rows; i++)
        zigzag->to[i] = -1;
    for (int64_t s = 0; s < whole->sequences; s++) {
        int64_t start = whole->starts[s], length = whole->starts[s + 1] - start;
        int64_t chunk = divide_up(length, 2 * c), other = 2 * c - 1 - rank, key_first = zigzag->keys;
        if (inject("chunks-in-order"))
            other = c + rank;
        take_chunk(mine, at, whole, start, length, rank * chunk, chunk);
        take_chunk(mine, at + chunk, whole, start, length, other * chunk, chunk);
        add_segment(mine, zigzag, chunk, key_first, (rank + 1) * chunk);
        add_segment(mine, zigzag, chunk, key_first, (other + 1) * chunk);
        place_keys(zigzag, at, chunk, rows, c);
        at += 2 * chunk;
    }
    INVARIANT(at <= rows);
    for (; at < rows; at++) {
        mine->tokens[at] = 0;
        mine->labels[at] = -1;
        mine->positions[at] = 0;
    }
}
