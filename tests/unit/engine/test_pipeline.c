/* The schedule of pipeline stages, played: every stage's turns against its neighbours', with messages that
 * wait for their receivers. And which units a stage holds. */
#include "check.h"

#include "pipeline.h"

/* Each micro-batch goes forward once, then back once, in order; never more in flight than planned. */
static void turns_are_whole(void **state)
{
    (void)state;
    for (int32_t p = 1; p <= 9; p++)
        for (int32_t stage = 0; stage < p; stage++)
            for (int64_t n = 1; n <= 20; n++) {
                int64_t forwards = 0, backwards = 0, most = 0;
                for (int64_t i = 0; i < 2 * n; i++) {
                    struct pipeline_turn turn = pipeline_turn(p, stage, n, i);
                    assert_int_equal(turn.micro_batch, turn.back ? backwards : forwards);
                    *(turn.back ? &backwards : &forwards) += 1;
                    assert_true(backwards <= forwards);
                    most = forwards - backwards > most ? forwards - backwards : most;
                }
                assert_int_equal(forwards, n);
                assert_int_equal(backwards, n);
                assert_int_equal(most, pipeline_flights(p, stage, n));
            }
}

/* One stage: a backward follows its forward at once, which the last stage's head needs. */
static void the_last_stage_turns_back(void **state)
{
    (void)state;
    for (int32_t p = 1; p <= 5; p++)
        for (int64_t i = 0; i < 14; i++) {
            struct pipeline_turn turn = pipeline_turn(p, p - 1, 7, i);
            assert_int_equal(turn.back, i % 2);
            assert_int_equal(turn.micro_batch, i / 2);
        }
}

/* A stage before turn `at`: it sends what turn at - 1 made and receives what turn `at` needs, both at once.
 */
struct player {
    int64_t at;
    bool sent, received;
};

static int64_t made_for(int32_t p, int32_t stage, int64_t n, int64_t at, int32_t *to)
{
    if (at < 1)
        return -1;
    struct pipeline_turn turn = pipeline_turn(p, stage, n, at - 1);
    *to = stage + (turn.back ? -1 : 1);
    return *to >= 0 && *to < p ? turn.micro_batch : -1;
}

static int64_t needed_from(int32_t p, int32_t stage, int64_t n, int64_t at, int32_t *from)
{
    if (at >= 2 * n)
        return -1;
    struct pipeline_turn turn = pipeline_turn(p, stage, n, at);
    *from = stage + (turn.back ? 1 : -1);
    return *from >= 0 && *from < p ? turn.micro_batch : -1;
}

static bool play(struct player *players, int32_t p, int64_t n)
{
    bool moved = false;
    for (int32_t s = 0; s < p; s++) {
        struct player *me = &players[s];
        int32_t to = 0, from = 0;
        int64_t out = made_for(p, s, n, me->at, &to), need = needed_from(p, s, n, me->at, &from);
        me->sent |= out < 0;
        me->received |= need < 0;
        if (!me->sent) {
            int32_t its = 0;
            int64_t wanted = needed_from(p, to, n, players[to].at, &its);
            if (!players[to].received && wanted >= 0 && its == s) {
                assert_int_equal(wanted, out);
                me->sent = players[to].received = moved = true;
            }
        }
        if (me->sent && me->received && me->at <= 2 * n) {
            *me = (struct player){.at = me->at + 1};
            moved = true;
        }
    }
    return moved;
}

static void no_stage_waits_in_vain(void **state)
{
    (void)state;
    for (int32_t p = 1; p <= 9; p++)
        for (int64_t n = 1; n <= 20; n++) {
            struct player players[9] = {0};
            while (play(players, p, n))
                ;
            for (int32_t s = 0; s < p; s++)
                assert_int_equal(players[s].at, 2 * n + 1);
        }
}

/* Every block on one stage, in order, the ends where they belong; uneven counts at most one apart but for the
 * last stage, which has the fewest. */
static void stages_hold_every_block(void **state)
{
    (void)state;
    struct model_config config = {.vocabulary = 97,
                                  .ffn = 40,
                                  .q_heads = 4,
                                  .kv_heads = 2,
                                  .head_dim = 16}; /* a head of a third of a block */
    for (config.layers = 1; config.layers <= 20; config.layers++)
        for (int32_t p = 1; p <= 8 && p <= config.layers; p++) {
            int64_t next = 0, least = config.layers, most = 0, last = 0;
            for (int32_t r = 0; r < p; r++) {
                struct stage stage = stage_of(&config, p, r);
                int64_t held = stage.past - stage.first;
                assert_int_equal(stage.first, next);
                next = stage.past;
                least = held < least ? held : least;
                most = held > most ? held : most;
                last = held;
                for (int32_t unit = 0; unit < config.layers + 2; unit++) {
                    bool block = unit >= 1 && unit <= config.layers;
                    bool want = block       ? unit - 1 >= stage.first && unit - 1 < stage.past
                                : unit == 0 ? r == 0
                                            : r == p - 1;
                    assert_int_equal(stage_holds(&stage, unit, false), want);
                    assert_int_equal(stage_counts(&stage, unit, true), want);
                    assert_int_equal(stage_holds(&stage, unit, true), want || (unit == 0 && r == p - 1));
                }
            }
            assert_int_equal(next, config.layers);
            assert_true(last == least && least >= 1 && most <= (config.layers + p - 1) / p);
        }
}

static void check_blocks(const struct model_config *config, int32_t p, const int64_t *want)
{
    for (int32_t r = 0; r < p; r++) {
        struct stage stage = stage_of(config, p, r);
        assert_int_equal(stage.past - stage.first, want[r]);
    }
}

/* A head that is work for many blocks leaves the last stage few. */
static void the_head_is_work(void **state)
{
    (void)state;
    const struct model_config small = {
        .layers = 28, .vocabulary = 151936, .ffn = 3072, .q_heads = 16, .kv_heads = 8, .head_dim = 128};
    const struct model_config large = {
        .layers = 36, .vocabulary = 151936, .ffn = 12288, .q_heads = 32, .kv_heads = 8, .head_dim = 128};
    const struct model_config bench = {
        .layers = 8, .vocabulary = 8192, .ffn = 3072, .q_heads = 16, .kv_heads = 8, .head_dim = 128};
    check_blocks(&small, 2, (int64_t[]){19, 9});
    check_blocks(&small, 4, (int64_t[]){9, 9, 9, 1});
    check_blocks(&large, 2, (int64_t[]){20, 16});
    check_blocks(&large, 4, (int64_t[]){10, 10, 10, 6});
    check_blocks(&bench, 2, (int64_t[]){4, 4});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns_are_whole), cmocka_unit_test(the_last_stage_turns_back),
        cmocka_unit_test(no_stage_waits_in_vain), cmocka_unit_test(stages_hold_every_block),
        cmocka_unit_test(the_head_is_work)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
