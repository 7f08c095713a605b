/* The attention rows, plain and fast, on segments whose keys have rows of their own, as a context group cuts
 * them: any place of the queries among the keys, shared keys, one query, none; same bits for 1 and more
 * threads; keys that lie in the queries' rows after all; a sequence cut in zigzag chunks over ranks against
 * the whole. */
#include "attention.h"

/* Segments with more keys than queries, at every place within a group of 16; one query, none; keys that
 * nobody sees; neighbours that share keys, the one with more of them first or last. */
static void test_segments(void **state)
{
    (void)state;
    for (int32_t before = 0; before <= 130; before += before < 34 ? 1 : 13)
        check_packing(&(struct packing){2, 1, 16, 1, 1, {70}, before + 75, {{3, before + 70}}});
    check_packing(&(struct packing){4, 2, 32, 0, 3, {1, 1, 1}, 400, {{0, 1}, {1, 300}, {333, 33}}});
    check_packing(
        &(struct packing){4, 2, 32, 5, 4, {50, 0, 129, 0}, 700, {{0, 77}, {100, 60}, {200, 400}, {650, 0}}});
    check_packing(&(struct packing){4, 2, 32, 0, 2, {100, 100}, 400, {{0, 100}, {0, 400}}});
    check_packing(&(struct packing){4, 2, 32, 3, 2, {100, 150}, 400, {{0, 400}, {0, 201}}});
    check_packing(&(struct packing){6,
                                    2,
                                    24,
                                    0,
                                    6,
                                    {37, 37, 1, 1, 260, 11},
                                    640,
                                    {{2, 41}, {2, 148}, {160, 1}, {160, 2}, {170, 270}, {170, 457}}});
}

static int32_t random_below(int32_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((random_state >> 33) % (uint64_t)limit);
}

/* Families of one to three segments, keys between them that nobody sees. */
static struct packing random_packing(void)
{
    struct packing p = {4, 2, 16, random_below(4), 2 + random_below(SEQUENCES_MAX - 1), {0}, 0, {{0, 0}}};
    int32_t first = random_below(20), most = 0, family = 0;
    for (int32_t s = 0; s < p.sequences; s++, family--) {
        if (family == 0) {
            family = 1 + random_below(3);
            first += most + 1 + random_below(20);
            most = 0;
        }
        p.lengths[s] = random_below(4) == 0 ? random_below(3) : random_below(150);
        p.keys[s] = (struct attention_keys){first, p.lengths[s] + random_below(2) * random_below(200)};
        most = p.keys[s].count > most ? p.keys[s].count : most;
    }
    p.key_rows = first + most + random_below(10);
    return p;
}

static void test_random_segments(void **state)
{
    (void)state;
    for (int i = 0; i < (CHECK_SLOW ? 5 : 40); i++) {
        struct packing p = random_packing();
        check_packing(&p);
    }
}

/* Neighbours of a family with more keys and with fewer, in turns that threads share. In the last, a short
 * turn lies between two long ones: the third must not overtake the first, which five runs show. */
static void test_threads(void **state)
{
    (void)state;
    check_threads(&(struct packing){4, 1, 32, 0, 2, {350, 300}, 1400, {{0, 1400}, {0, 330}}});
    check_threads(&(struct packing){4, 1, 32, 2, 2, {300, 350}, 1400, {{0, 330}, {0, 1400}}});
    check_threads(
        &(struct packing){2, 1, 16, 0, 4, {70, 300, 1, 200}, 900, {{0, 71}, {0, 600}, {0, 17}, {650, 220}}});
    for (int i = 0; i < 5; i++)
        check_threads(&(struct packing){1,
                                        1,
                                        16,
                                        0,
                                        5,
                                        {128, 1, 128, 1, 128},
                                        6000,
                                        {{0, 6000}, {0, 17}, {0, 6000}, {0, 17}, {0, 6000}}});
}

/* Keys that are said to lie in the queries' rows: the bits of keys that do. */
static void test_keys_in_queries_rows(void **state)
{
    (void)state;
    struct set sets[3];
    int count = sets_here(sets);
    for (int c = 0; c < 2 * count; c++) {
        struct packing p = PACKED(4, 2, 32, 9, 5, 7, 129, 0, 33, 260);
        struct tensors t;
        tensors_init(&t, &p, c % 2 ? DTYPE_BF16 : DTYPE_F32);
        float *before[RESULTS];
        run(&t, &sets[c / 2], 2);
        keep_results(before, &t);
        t.keys = t.own_keys;
        run(&t, &sets[c / 2], 2);
        check_same_bits(&t, (const float *const *)before, sets[c / 2].name);
        for (int r = 0; r < RESULTS; r++)
            free(before[r]);
        tensors_done(&t);
    }
}

/* Rows of chunk `chunk` of 2 * ranks of a sequence of `length`: the last chunks may be shorter, or empty. */
static int32_t chunk_start(int32_t length, int32_t ranks, int32_t chunk)
{
    int32_t size = (length + 2 * ranks - 1) / (2 * ranks), start = chunk * size;
    return start < length ? start : length;
}

/* The rank's part of the packed `whole`: of every sequence chunks rank and 2 ranks - 1 - rank as queries, all
 * of it as keys. rows[i]: the row of `whole` that query row i is. */
static void zigzag_part(struct tensors *part, int32_t *rows, const struct tensors *whole,
                        const struct packing *p, int32_t ranks, int32_t rank)
{
    struct packing cut = {
        p->q_heads, p->kv_heads, p->head_dim, 0, 2 * p->sequences, {0}, (int32_t)whole->shape.tokens,
        {{0, 0}}};
    int32_t n = 0;
    for (int32_t i = 0; i < cut.sequences; i++) {
        int32_t s = i / 2, chunk = i % 2 ? 2 * ranks - 1 - rank : rank;
        int32_t first = chunk_start(p->lengths[s], ranks, chunk),
                past = chunk_start(p->lengths[s], ranks, chunk + 1);
        cut.lengths[i] = past - first;
        cut.keys[i] = (struct attention_keys){whole->starts[s], past};
        for (int32_t t = first; t < past; t++)
            rows[n++] = whole->starts[s] + t;
    }
    tensors_init(part, &cut, whole->dtype);
    size_t row = (size_t)(p->q_heads * p->head_dim);
    for (int32_t i = 0; i < n; i++) {
        memcpy(part->qs + (size_t)i * row, whole->qs + (size_t)rows[i] * row, row * sizeof(float));
        memcpy(part->dout + (size_t)i * row, whole->dout + (size_t)rows[i] * row, row * sizeof(float));
    }
    memcpy(part->ks, whole->ks, (size_t)whole->count[DK] * sizeof(float));
    memcpy(part->vs, whole->vs, (size_t)whole->count[DV] * sizeof(float));
}

static void check_near(const double *got, const float *want, int64_t n, double tolerance, const char *set,
                       const char *what)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs((double)want[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(got[i] - (double)want[i]) <= tolerance * largest))
            fail_msg("%s: %s[%ld] is %.9g in zigzag, %.9g whole, largest %.9g", set, what, (long)i, got[i],
                     (double)want[i], largest);
}

/* The gradient of a key is a sum over as many as 1000 queries, here in another order. */
static void check_zigzag(const struct set *set, const struct packing *p, int32_t ranks)
{
    struct tensors whole;
    double *together[RESULTS];
    tensors_init(&whole, p, DTYPE_F32);
    run(&whole, set, 2);
    wants_init(together, &whole);
    int32_t *rows = calloc((size_t)whole.shape.tokens, sizeof *rows);
    for (int32_t rank = 0; rank < ranks; rank++) {
        struct tensors part;
        zigzag_part(&part, rows, &whole, p, ranks, rank);
        run(&part, set, 2);
        for (int r = 0; r < RESULTS; r++) {
            int64_t row =
                r == DK || r == DV || part.shape.tokens == 0 ? 0 : part.count[r] / part.shape.tokens;
            for (int64_t i = 0; i < part.count[r]; i++)
                together[r][row > 0 ? rows[i / row] * row + i % row : i] += (double)part.result[r][i];
        }
        tensors_done(&part);
    }
    for (int r = 0; r < RESULTS; r++)
        check_near(together[r], whole.result[r], whole.count[r], r == DK || r == DV ? 2e-6 : 1e-6, set->name,
                   result_name[r]);
    free(rows);
    wants_done(together);
    tensors_done(&whole);
}

static void test_zigzag(void **state)
{
    (void)state;
    struct set sets[3];
    int count = sets_here(sets);
    for (int i = 0; i < count; i++)
        for (int32_t ranks = 1; ranks <= 4; ranks *= 2) {
            check_zigzag(&sets[i], &(struct packing)PACKED(4, 2, 32, 0, 1, 512), ranks);
            check_zigzag(&sets[i], &(struct packing)PACKED(4, 2, 32, 0, 4, 129, 3, 250, 80), ranks);
        }
}

int main(void)
{
    omp_set_num_threads(4); /* scratch is for so many */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_segments), cmocka_unit_test(test_random_segments),
        cmocka_unit_test(test_threads),  cmocka_unit_test(test_keys_in_queries_rows),
        cmocka_unit_test(test_zigzag),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
