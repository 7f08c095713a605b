/* Order and loader: every sample exactly once, whatever the lanes; packing that knows no ranks; labels,
 * positions and padding; bounds that hold; cutoff, short batches and rows of two tokens. */
#include "loader.h"

#include "sample_data.h"
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define ROWS 23

static struct temp_folder folder;
static struct dataset data;
static int32_t lengths[ROWS], first[ROWS];

static struct order_options options_of(int64_t batch, bool drop_last, bool shuffled, uint64_t seed,
                                       int64_t cutoff)
{
    return (struct order_options){
        .cutoff = cutoff, .global_batch = batch, .drop_last = drop_last, .shuffled = shuffled, .seed = seed};
}

static void make_order(struct order *order, struct order_options options)
{
    struct err err = ERR_INIT;
    if (!order_init(order, &data, &options, &err))
        fail_msg("%s", err.what);
}

static void test_epochs(void **state)
{
    (void)state;
    static const struct {
        int64_t batch;
        bool drop_last;
        int64_t steps, samples;
    } cases[] = {
        {1, false, 23, 23}, {4, false, 6, 23}, {4, true, 5, 20}, {23, true, 1, 23}, {64, false, 1, 23}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (int shuffled = 0; shuffled < 2; shuffled++) {
            struct order order;
            struct data_cursor cursor = {0};
            int64_t rows[64], steps = 0;
            make_order(&order, options_of(cases[c].batch, cases[c].drop_last, shuffled, 5, -1));
            assert_int_equal(order.steps_per_epoch, cases[c].steps);
            for (int64_t epoch = 0; epoch < 3; epoch++) {
                int seen[ROWS] = {0};
                int64_t samples = 0;
                while (order_epoch(&order, cursor) == epoch) {
                    int64_t count = order_batch(&order, cursor, rows);
                    assert_in_range(count, 1, cases[c].batch);
                    for (int64_t i = 0; i < count; i++) {
                        assert_int_equal(seen[rows[i]]++, 0);
                        assert_true(shuffled || rows[i] == samples + i);
                    }
                    samples += count;
                    cursor.samples += count;
                    steps++;
                    assert_true(order_ended(&order, cursor, epoch + 1) == (samples == cases[c].samples));
                }
                assert_int_equal(samples, cases[c].samples);
            }
            assert_int_equal(steps, 3 * cases[c].steps);
            assert_false(order_ended(&order, cursor, -1));
            order_done(&order);
        }
}

static void test_shuffle(void **state)
{
    (void)state;
    struct order a, b, other;
    int64_t places[ROWS][ROWS] = {{0}}, same = 0, same_epoch = 0;
    make_order(&a, options_of(4, false, true, 5, -1));
    make_order(&b, options_of(1, false, true, 5, -1));
    make_order(&other, options_of(4, false, true, 6, -1));
    for (int64_t p = ROWS - 1; p >= 0; p--) { /* a pure function: any order of asking, any batch */
        assert_int_equal(order_row(&a, 1, p), order_row(&b, 1, p));
        same += order_row(&a, 0, p) == order_row(&other, 0, p);
        same_epoch += order_row(&a, 0, p) == order_row(&a, 1, p);
    }
    assert_in_range(same, 0, 6); /* one on average */
    assert_in_range(same_epoch, 0, 6);
    for (int64_t epoch = 0; epoch < 2300; epoch++)
        for (int64_t p = 0; p < ROWS; p++)
            places[order_row(&a, epoch, p)][p]++;
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < ROWS; p++) /* 100 on average, ten its deviation */
            assert_in_range(places[r][p], 45, 155);
    order_done(&a);
    order_done(&b);
    order_done(&other);
}

static void test_cutoff(void **state)
{
    (void)state;
    struct order order;
    struct err err = ERR_INIT;
    int64_t kept = 0, labelled = 0;
    const int64_t cutoff = 7;
    for (int r = 0; r < ROWS; r++) {
        int64_t labels = 0;
        for (int t = 1; t < lengths[r] && t < cutoff; t++)
            labels += t >= first[r];
        kept += labels > 0;
        labelled += labels;
    }
    make_order(&order, options_of(4, false, false, 0, cutoff));
    assert_true(kept < ROWS);
    assert_int_equal(order.rows, kept);
    assert_int_equal(order.dropped, ROWS - kept);
    assert_int_equal(order.labelled, labelled);
    assert_int_equal(order.longest, cutoff);
    assert_int_equal(order.steps_per_epoch, (kept + 3) / 4);
    order_done(&order);
    make_order(&order, options_of(4, false, false, 0, 1 << 20)); /* a cutoff only shortens */
    assert_int_equal(order.rows, ROWS);
    assert_int_equal(order.labelled, data.statistics.labelled);
    order_done(&order);
    struct order_options options = options_of(4, false, false, 0, 1);
    assert_false(order_init(&order, &data, &options, &err));
    assert_non_null(strstr(err.what, "no row"));
    options = options_of(24, true, false, 0, -1);
    err = (struct err)ERR_INIT;
    assert_false(order_init(&order, &data, &options, &err));
    assert_non_null(strstr(err.what, "no whole batch"));
}

struct arrays {
    int32_t tokens[4096], labels[4096], positions[4096], starts[128];
};

/* One micro-batch against the rows it should hold. Adds its samples to seen. */
static void check_micro(struct loader *loader, const struct batch_plan *plan, int64_t round, int64_t lane,
                        int *seen)
{
    static struct arrays arrays;
    struct micro_batch b = {.tokens = arrays.tokens,
                            .labels = arrays.labels,
                            .positions = arrays.positions,
                            .starts = arrays.starts};
    memset(&arrays, 0x55, sizeof arrays);
    batch_fill(loader, plan, round, lane, &b);
    const struct micro_plan *micro = batch_plan_micro(plan, round, lane);
    int64_t at = 0, labelled = 0, longest = 0;
    assert_int_equal(b.sequences, micro->count);
    assert_int_equal(b.rows % BATCH_ROW_MULTIPLE, 0);
    assert_true(b.rows - BATCH_ROW_MULTIPLE < b.tokens_used && b.tokens_used <= b.rows);
    assert_true(b.rows <= loader->bounds.rows && b.sequences <= loader->bounds.sequences);
    for (int64_t s = 0; s < b.sequences; s++) {
        int64_t sample = lane + (micro->first + s) * plan->lanes;
        int64_t row = plan->dataset_rows[sample];
        int64_t length = lengths[row] < loader->order->cutoff ? lengths[row] : loader->order->cutoff;
        seen[sample]++;
        assert_int_equal(b.starts[s], at);
        for (int64_t t = 0; t < length; t++, at++) {
            int32_t label = t + 1 < length && t + 1 >= first[row] ? (int32_t)((row + t + 1) % 250) : -1;
            assert_int_equal(b.tokens[at], (row + t) % 250);
            assert_int_equal(b.labels[at], label);
            assert_int_equal(b.positions[at], t);
            labelled += label >= 0;
        }
        longest = length > longest ? length : longest;
    }
    assert_int_equal(b.starts[b.sequences], at);
    assert_int_equal(b.tokens_used, at);
    assert_int_equal(b.labelled, labelled);
    assert_int_equal(b.longest, longest);
    assert_int_equal(micro->labelled, labelled);
    assert_true(longest <= loader->bounds.longest);
    for (; at < b.rows; at++)
        assert_true(b.tokens[at] == 0 && b.labels[at] == -1 && b.positions[at] == 0);
    if (loader->options.max_tokens > 0)
        assert_true(b.tokens_used <= loader->options.max_tokens);
    else
        assert_true(b.sequences <= loader->options.micro_batch);
}

static void check_run(const struct order_options *order_options, const struct loader_options *options)
{
    struct order order;
    struct loader loader;
    struct batch_plan plan;
    struct err err = ERR_INIT;
    struct data_cursor cursor = {0};
    int64_t labelled = 0;
    make_order(&order, *order_options);
    if (!loader_init(&loader, &data, &order, options, &err))
        fail_msg("%s", err.what);
    while (!order_ended(&order, cursor, 2)) {
        int seen[64] = {0};
        int64_t tokens = 0, labels = 0;
        assert_true(batch_plan_make(&loader, cursor, &plan, &err));
        assert_true(plan.rounds >= 1 && plan.rounds <= loader.bounds.rounds);
        for (int64_t round = 0; round < plan.rounds; round++) {
            int64_t present = 0;
            for (int64_t lane = 0; lane < plan.lanes; lane++) {
                const struct micro_plan *micro = batch_plan_micro(&plan, round, lane);
                check_micro(&loader, &plan, round, lane, seen);
                present += micro->count > 0;
                tokens += micro->tokens;
                labels += micro->labelled;
                if (micro->count > 0 && round > 0) /* no gap: a lane is present until it has none left */
                    assert_true(batch_plan_micro(&plan, round - 1, lane)->count > 0);
            }
            assert_true(present > 0);
        }
        for (int64_t i = 0; i < plan.samples; i++)
            assert_int_equal(seen[i], 1);
        assert_int_equal(tokens, plan.tokens);
        assert_int_equal(labels, plan.labelled);
        labelled += labels;
        cursor.samples += plan.samples;
    }
    if (!order_options->drop_last)
        assert_int_equal(labelled, 2 * order.labelled);
    loader_done(&loader);
    loader_done(&loader);
    order_done(&order);
    order_done(&order);
}

static void test_partition(void **state)
{
    (void)state;
    static const int64_t lanes[] = {1, 2, 3, 4, 8, 32}, batches[] = {1, 2, 5, 8, 16, 23, 40};
    static const struct loader_options packing[] = {{0, 1, -1},  {0, 2, -1},   {0, 64, -1},
                                                    {0, -1, 40}, {0, -1, 100}, {0, -1, 2000}};
    for (size_t l = 0; l < sizeof lanes / sizeof lanes[0]; l++)
        for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++)
            for (size_t p = 0; p < sizeof packing / sizeof packing[0]; p++)
                for (int how = 0; how < 4; how++) {
                    struct loader_options options = packing[p];
                    options.lanes = lanes[l];
                    struct order_options order = options_of(batches[b], how == 1 && batches[b] <= ROWS,
                                                            how >= 2, 3, how == 3 ? 7 : -1);
                    check_run(&order, &options);
                }
}

/* The design's example: four lanes, six samples. */
static void test_rounds(void **state)
{
    (void)state;
    struct order order;
    struct loader loader;
    struct batch_plan plan;
    struct err err = ERR_INIT;
    struct loader_options options = {4, 1, -1};
    make_order(&order, options_of(6, false, false, 0, -1));
    assert_true(loader_init(&loader, &data, &order, &options, &err));
    assert_true(batch_plan_make(&loader, (struct data_cursor){0}, &plan, &err));
    assert_int_equal(plan.rounds, 2);
    for (int64_t lane = 0; lane < 4; lane++) {
        assert_int_equal(batch_plan_micro(&plan, 0, lane)->first, 0);
        assert_int_equal(batch_plan_micro(&plan, 0, lane)->count, 1);
        assert_int_equal(batch_plan_micro(&plan, 1, lane)->count, lane < 2);
    }
    loader_done(&loader);
    order_done(&order);
}

static void test_too_long(void **state)
{
    (void)state;
    struct order order;
    struct loader loader;
    struct err err = ERR_INIT;
    struct loader_options options = {1, -1, 39};
    make_order(&order, options_of(6, false, false, 0, -1));
    assert_int_equal(order.longest, 40);
    assert_false(loader_init(&loader, &data, &order, &options, &err));
    assert_non_null(strstr(err.what, "more than max_tokens"));
    order_done(&order);
}

static int setup(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    temp_folder_make(&folder);
    for (int r = 0; r < ROWS; r++) {
        lengths[r] = r == 7 ? 40 : 2 + (r * 7) % 19;
        first[r] = r % 3 == 0 ? 0 : 1 + (r * 5) % (lengths[r] - 1);
    }
    const char *path = temp_path(&folder, "data");
    if (!sample_data_make(path, lengths, first, ROWS, 64, &err) || !dataset_open(&data, path, &err)) {
        fprintf(stderr, "%s: %s\n", err.what, err.why);
        return 1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    dataset_close(&data);
    temp_folder_remove(&folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_epochs),    cmocka_unit_test(test_shuffle), cmocka_unit_test(test_cutoff),
        cmocka_unit_test(test_partition), cmocka_unit_test(test_rounds),  cmocka_unit_test(test_too_long),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
