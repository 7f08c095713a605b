/* A micro-batch cut over c ranks: every token is somewhere exactly once with its label and position, and
 * every query sees exactly the tokens of its own sequence up to itself, in their order. */
#include "zigzag.h"

#include "check.h"

#include <stdlib.h>

#define SEQUENCES_MAX 6
#define TOKENS_MAX    512
#define RANKS_MAX     5
#define ROOM          (TOKENS_MAX + 4096)

struct room {
    int32_t ints[4][ROOM];
    struct micro_batch batch;
};

static void room_open(struct room *room)
{
    room->batch = (struct micro_batch){.tokens = room->ints[0],
                                       .labels = room->ints[1],
                                       .positions = room->ints[2],
                                       .starts = room->ints[3]};
}

struct cut {
    struct room room;
    int32_t from[ROOM], to[ROOM], seen[2 * SEQUENCES_MAX][2];
    struct zigzag zigzag;
};

static struct room whole;
static struct cut cuts[RANKS_MAX];

/* Token numbers are unlike each other, so that a row says where it came from. */
static void make_whole(unsigned *seed)
{
    struct micro_batch *b = &whole.batch;
    room_open(&whole);
    b->sequences = rand_r(seed) % (SEQUENCES_MAX + 1);
    for (int64_t s = 0; s < b->sequences; s++) {
        int32_t length = 1 + rand_r(seed) % (TOKENS_MAX / SEQUENCES_MAX);
        for (int32_t t = 0; t < length; t++) {
            int32_t at = b->starts[s] + t;
            b->tokens[at] = 1000 + at;
            b->labels[at] = rand_r(seed) % 3 ? 5000 + at : -1;
            b->positions[at] = t;
            b->labelled += b->labels[at] >= 0;
        }
        b->starts[s + 1] = b->starts[s] + length;
        b->longest = length > b->longest ? length : b->longest;
    }
    b->tokens_used = b->starts[b->sequences];
    b->rows = (b->tokens_used + BATCH_ROW_MULTIPLE - 1) / BATCH_ROW_MULTIPLE * BATCH_ROW_MULTIPLE;
}

static void cut_all(int32_t c)
{
    for (int32_t rank = 0; rank < c; rank++) {
        struct cut *cut = &cuts[rank];
        room_open(&cut->room);
        cut->zigzag = (struct zigzag){.from = cut->from, .to = cut->to, .seen = cut->seen};
        zigzag_cut(&cut->room.batch, &cut->zigzag, &whole.batch, c, rank);
    }
}

static const struct micro_batch *gathered(int32_t row, int32_t c, int64_t *local)
{
    int64_t rows = cuts[0].room.batch.rows;
    assert_in_range(row, 0, c * rows - 1);
    *local = row % rows;
    return &cuts[row / rows].room.batch;
}

static void check_tokens(int32_t c)
{
    int seen[TOKENS_MAX] = {0};
    int64_t labelled = 0, used = 0;
    for (int32_t rank = 0; rank < c; rank++) {
        const struct micro_batch *b = &cuts[rank].room.batch;
        assert_int_equal(b->rows, cuts[0].room.batch.rows);
        for (int64_t r = 0; r < b->rows; r++) {
            int32_t at = b->tokens[r] - 1000;
            if (b->tokens[r] == 0) {
                assert_int_equal(b->labels[r], -1);
                continue;
            }
            assert_int_equal(seen[at]++, 0);
            assert_int_equal(b->labels[r], whole.batch.labels[at]);
            assert_int_equal(b->positions[r], whole.batch.positions[at]);
        }
        labelled += b->labelled;
        used += b->tokens_used;
    }
    assert_int_equal(labelled, whole.batch.labelled);
    assert_int_equal(used, whole.batch.tokens_used);
}

/* Query `row` of its rank, seeing `count` keys from key `first` on. */
static void check_sight(const struct cut *cut, int32_t c, int32_t row, int32_t first, int32_t count)
{
    const struct micro_batch *mine = &cut->room.batch;
    if (mine->tokens[row] == 0)
        return;
    int32_t position = mine->positions[row];
    assert_int_equal(count, position + 1);
    for (int32_t k = 0; k < count; k++) {
        int64_t local;
        const struct micro_batch *there = gathered(cut->zigzag.from[first + k], c, &local);
        assert_int_equal(there->tokens[local], mine->tokens[row] - position + k);
    }
}

static void check_segments(int32_t c)
{
    for (int32_t rank = 0; rank < c; rank++) {
        const struct cut *cut = &cuts[rank];
        const struct zigzag *z = &cut->zigzag;
        const int32_t *starts = cut->room.batch.starts;
        int32_t covered = 0;
        for (int64_t s = 0; s < cut->room.batch.sequences; s++) {
            int32_t queries = starts[s + 1] - starts[s];
            for (int32_t i = 0; i < queries; i++)
                check_sight(cut, c, starts[s] + i, z->seen[s][0], z->seen[s][1] - queries + i + 1);
            assert_true(z->seen[s][1] <= cut->room.batch.longest);
            covered += queries;
        }
        for (int64_t r = covered; r < cut->room.batch.rows; r++)
            assert_int_equal(cut->room.batch.tokens[r], 0);
        for (int64_t k = 0; k < z->keys; k++)
            assert_int_equal(z->to[z->from[k]], k);
        int64_t placed = 0;
        for (int64_t r = 0; r < c * cut->room.batch.rows; r++)
            placed += z->to[r] >= 0;
        assert_int_equal(placed, z->keys);
    }
}

static void check_bounds(int32_t c)
{
    const struct batch_bounds bounds = {.rows = whole.batch.rows, .sequences = whole.batch.sequences};
    struct zigzag_bounds most = zigzag_bounds(&bounds, c);
    assert_true(cuts[0].room.batch.rows <= most.rows);
    assert_true(cuts[0].zigzag.keys <= most.keys);
    assert_true(cuts[0].room.batch.sequences <= most.segments);
}

static void test_cuts(void **state)
{
    (void)state;
    unsigned seed = 11;
    for (int round = 0; round < 200; round++) {
        make_whole(&seed);
        for (int32_t c = 1; c <= RANKS_MAX; c++) {
            cut_all(c);
            check_tokens(c);
            check_segments(c);
            check_bounds(c);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cuts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
