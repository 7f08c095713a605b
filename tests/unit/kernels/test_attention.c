/* The attention rows, plain and fast, on packed sequences: lengths around the blocks' edges, padding rows,
 * group ratios, head sizes; same bits for 1 and more threads, and for a sequence alone or among others.
 * Segments whose keys have rows of their own: test_segments.c. */
#include "attention.h"

static void test_lengths(void **state)
{
    (void)state;
    static const int32_t lengths[] = {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 200, 300};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        check_packing(&(struct packing)PACKED(2, 1, 32, 0, 1, lengths[i]));
}

static void test_head_dims(void **state)
{
    (void)state;
    static const int32_t dims[] = {5, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        check_packing(&(struct packing)PACKED(2, 2, dims[i], 3, 2, 33, 150));
}

static void test_group_ratios(void **state)
{
    (void)state;
    for (int32_t ratio = 1; ratio <= 8; ratio *= 2)
        check_packing(&(struct packing)PACKED(2 * ratio, 2, 16, 1, 3, 129, 1, 40));
}

static void test_packed_sequences(void **state)
{
    (void)state;
    check_packing(&(struct packing)PACKED(4, 2, 32, 0, 8, 80, 1, 2, 31, 0, 33, 127, 129));
    check_packing(&(struct packing)PACKED(4, 2, 32, 17, 7, 3, 5, 7, 129, 0, 0, 16));
    check_packing(&(struct packing)PACKED(4, 2, 32, 5, 1, 0)); /* padding alone */
}

/* Scores far from zero, both signs: the running maximum moves, most probabilities vanish. */
static void test_large_scores(void **state)
{
    (void)state;
    struct set sets[3];
    int count = sets_here(sets);
    struct packing p = PACKED(2, 1, 64, 0, 1, 300);
    struct tensors t;
    tensors_init(&t, &p, DTYPE_F32);
    for (int64_t i = 0; i < t.count[DQ]; i++)
        t.qs[i] *= 20;
    for (int i = 0; i < count; i++) {
        run(&t, &sets[i], 1);
        double *want[RESULTS];
        wants_init(want, &t);
        naive(want, &t, false);
        for (int r = OUT; r <= LSE; r++)
            for (int64_t j = 0; j < t.count[r]; j++) /* a score of 200 is known to 2e-5 */
                check_close((double)t.result[r][j], want[r][j], 1e-5, 2e-4);
        wants_done(want);
    }
    tensors_done(&t);
}

static void test_threads(void **state)
{
    (void)state;
    check_threads(&(struct packing)PACKED(8, 4, 32, 2, 1, 300));
    check_threads(&(struct packing)PACKED(4, 2, 64, 0, 5, 80, 129, 1, 200, 66));
    check_threads(&(struct packing)PACKED(4, 1, 32, 0, 1, 700)); /* fewer pairs than threads: shared */
    check_threads(&(struct packing)PACKED(3, 1, 16, 0, 3, 400, 70, 500));
}

/* Sequence 2 of `many` alone has the same bits. */
static void check_alone(const struct set *set, enum dtype dtype)
{
    struct packing many = PACKED(4, 2, 32, 9, 5, 7, 129, 150, 33, 260), one = PACKED(4, 2, 32, 0, 1, 150);
    struct tensors t, alone;
    tensors_init(&t, &many, dtype);
    tensors_init(&alone, &one, dtype);
    int64_t first = t.starts[2], q = many.q_heads * many.head_dim, kv = many.kv_heads * many.head_dim;
    memcpy(alone.qs, t.qs + first * q, (size_t)alone.count[DQ] * sizeof(float));
    memcpy(alone.ks, t.ks + first * kv, (size_t)alone.count[DK] * sizeof(float));
    memcpy(alone.vs, t.vs + first * kv, (size_t)alone.count[DV] * sizeof(float));
    memcpy(alone.dout, t.dout + first * q, (size_t)alone.count[OUT] * sizeof(float));
    run(&t, set, 2);
    run(&alone, set, 2);
    const int64_t row[RESULTS] = {q, many.q_heads, q, kv, kv};
    const float *within[RESULTS];
    for (int r = 0; r < RESULTS; r++)
        within[r] = t.result[r] + first * row[r];
    check_same_bits(&alone, within, set->name);
    tensors_done(&t);
    tensors_done(&alone);
}

static void test_alone_or_packed(void **state)
{
    (void)state;
    struct set sets[3];
    int count = sets_here(sets);
    for (int i = 0; i < count; i++) {
        check_alone(&sets[i], DTYPE_F32);
        check_alone(&sets[i], DTYPE_BF16);
    }
}

int main(void)
{
    omp_set_num_threads(4); /* scratch is for so many */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),         cmocka_unit_test(test_head_dims),
        cmocka_unit_test(test_group_ratios),    cmocka_unit_test(test_packed_sequences),
        cmocka_unit_test(test_large_scores),    cmocka_unit_test(test_threads),
        cmocka_unit_test(test_alone_or_packed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
