/* From any layout to any other, by ranks that exist only here: every stored value arrives where it belongs,
 * once, and nothing travels that the receiver had. Values are stamps that say which element and which array
 * they are. */
#include "check.h"

#include "flow.h"
#include "layout.h"
#include "params.h"

#include <stdlib.h>

enum { RANKS = 8 };

/* One rank's arrays of one piece. */
struct stored {
    int64_t *values[FLOW_ARRAYS];
};

struct side {
    struct pieces pieces;
    struct stored *stored; /* [pieces] */
};

/* Groups of 32 in every column piece of t = 4; an odd vocabulary, and units that 8 ranks do not divide. */
static struct model_config config_of(bool tied)
{
    struct model_config config = {.hidden = 96,
                                  .layers = 3,
                                  .q_heads = 4,
                                  .kv_heads = 2,
                                  .head_dim = 32,
                                  .ffn = 128,
                                  .vocabulary = 97,
                                  .positions = 64,
                                  .tied = tied};
    snprintf(config.architecture, sizeof config.architecture, "Qwen3ForCausalLM");
    return config;
}

/* Stages hold ranges of blocks; the last one the head, and a tied embedding as well. */
static bool is_held(const struct model_config *config, const struct layout *layout, int32_t stage,
                    int32_t unit)
{
    int64_t last = config->layers + 1;
    if (unit == 0)
        return stage == 0 || (config->tied && stage == layout->p - 1);
    if (unit == last)
        return stage == layout->p - 1;
    return (unit - 1) * layout->p / config->layers == stage;
}

/* What one rank holds: its share over d x c of each of its units. */
static int64_t cut(const struct model_config *config, const struct layout *layout, int32_t rank,
                   struct piece *pieces)
{
    struct param_table table;
    struct err err = ERR_INIT;
    struct layout_place at = layout_place(layout, rank);
    int64_t count = 0, ranks = layout->d * layout->c, share = at.c + layout->c * at.d;
    check_ok(param_table_init_piece(&table, config, (struct tensor_place){layout->t, at.t}, &err), &err);
    for (int32_t u = 0; u < table.unit_count; u++) {
        int64_t blocks = (table.units[u].elements + 255) / 256, each = (blocks + ranks - 1) / ranks * 256;
        int64_t first = each * share, past = first + each;
        for (int32_t i = 0; i < table.units[u].count && is_held(config, layout, at.p, u); i++) {
            const struct param *p = &table.params[table.units[u].first + i];
            struct param_map map = param_map(p);
            struct index_map whole = {p->index0 + map.first, 0, map.run, map.stride};
            int64_t from = p->unit_offset > first ? p->unit_offset : first;
            int64_t to = p->unit_offset + p->elements < past ? p->unit_offset + p->elements : past;
            if (from < to)
                pieces[count++] = (struct piece){.map = index_map_from(&whole, from - p->unit_offset),
                                                 .elements = to - from,
                                                 .tensor = table.units[u].first + i,
                                                 .unit = u,
                                                 .segment = i,
                                                 .copy = p->holder > 0 || (u == 0 && at.p > 0)};
        }
    }
    param_table_done(&table);
    return count;
}

static int64_t value_count(const struct piece *piece, struct flow_array array)
{
    return array.bytes ? (piece->elements + array.group - 1) / array.group : 0;
}

static int64_t stamp(const struct piece *piece, struct flow_array array, int which, int64_t at)
{
    return (int64_t)index_map_at(&piece->map, at * array.group) / array.group * FLOW_ARRAYS + which;
}

/* filled: with the right stamps; else with -1. */
static struct side side_make(const struct model_config *config, const struct layout *layout,
                             const struct flow_array *arrays, bool filled)
{
    struct side side = {.pieces = {.ranks = RANKS}};
    struct piece *pieces = side.pieces.all = calloc(RANKS * 64, sizeof *side.pieces.all);
    side.pieces.first = calloc(RANKS + 1, sizeof *side.pieces.first);
    side.stored = calloc(RANKS * 64, sizeof *side.stored);
    for (int32_t r = 0; r < RANKS; r++)
        side.pieces.first[r + 1] =
            side.pieces.first[r] + cut(config, layout, r, pieces + side.pieces.first[r]);
    for (int64_t i = 0; i < side.pieces.first[RANKS]; i++)
        for (int a = 0; a < FLOW_ARRAYS; a++) {
            int64_t count = value_count(&pieces[i], arrays[a]);
            side.stored[i].values[a] = malloc((size_t)(count + 1) * sizeof(int64_t));
            for (int64_t at = 0; at < count; at++)
                side.stored[i].values[a][at] = filled ? stamp(&pieces[i], arrays[a], a, at) : -1;
        }
    return side;
}

static void side_done(struct side *side)
{
    for (int64_t i = 0; i < side->pieces.first[RANKS]; i++)
        for (int a = 0; a < FLOW_ARRAYS; a++)
            free(side->stored[i].values[a]);
    free(side->stored);
    pieces_done(&side->pieces);
}

/* Whether a rank holds a tensor's element. */
static bool holds(const struct side *side, int32_t rank, int32_t tensor, int64_t index)
{
    const struct piece *pieces;
    int64_t count = pieces_of_tensor(&side->pieces, rank, tensor, &pieces);
    for (int64_t i = 0; i < count; i++)
        for (int64_t e = 0; e < pieces[i].elements; e++)
            if ((int64_t)index_map_at(&pieces[i].map, e) == index)
                return true;
    return false;
}

/* In messages of at most `room` bytes. */
static void pass(const struct side *before, int32_t sender, struct side *after, int32_t receiver,
                 const struct flow_array *arrays, int64_t room)
{
    struct flow flow;
    struct span span;
    flow_init(&flow, &before->pieces, sender, &after->pieces, receiver, arrays);
    int64_t wanted = flow_bytes(&flow), bytes = 0, used = 0;
    bool looked = false;
    while (!flow.ended) {
        if (!flow_next(&flow, room - used, &span)) {
            used = 0;
            continue;
        }
        used += span.bytes;
        bytes += span.bytes;
        assert_true(used <= room && span.values > 0);
        int64_t *from = before->stored[span.from - before->pieces.all].values[span.array] + span.from_at;
        int64_t *to = after->stored[span.to - after->pieces.all].values[span.array] + span.to_at;
        for (int64_t i = 0; i < span.values; i++) {
            assert_int_equal(to[i], -1); /* written once */
            to[i] = from[i];
        }
        if (sender != receiver && arrays[span.array].group == 1 && !looked) /* one a message will do */
            assert_false(holds(before, receiver, span.from->tensor,
                               (int64_t)index_map_at(&span.from->map, span.from_at)));
        looked = true;
    }
    assert_int_equal(bytes, wanted);
}

static void go(const struct model_config *config, const char *from, const char *to, const char *policy_text,
               int64_t room)
{
    struct layout layouts[2];
    struct policy policy;
    struct flow_array arrays[FLOW_ARRAYS];
    struct err err = ERR_INIT;
    const char *texts[2] = {from, to};
    for (int i = 0; i < 2; i++)
        assert_int_equal(
            sscanf(texts[i], "d%dt%dp%dc%d", &layouts[i].d, &layouts[i].t, &layouts[i].p, &layouts[i].c), 4);
    check_ok(policy_parse(&policy, policy_text, NULL, &err), &err);
    flow_arrays(&policy, arrays);
    struct side before = side_make(config, &layouts[0], arrays, true);
    struct side after = side_make(config, &layouts[1], arrays, false);
    for (int32_t sender = 0; sender < RANKS; sender++)
        for (int32_t receiver = 0; receiver < RANKS; receiver++)
            pass(&before, sender, &after, receiver, arrays, room);
    for (int64_t i = 0; i < after.pieces.first[RANKS]; i++)
        for (int a = 0; a < FLOW_ARRAYS; a++)
            for (int64_t at = 0; at < value_count(&after.pieces.all[i], arrays[a]); at++)
                if (after.stored[i].values[a][at] != stamp(&after.pieces.all[i], arrays[a], a, at))
                    fail_msg("%s to %s, %s: tensor %d, array %d, value %lld is %lld", from, to, policy_text,
                             after.pieces.all[i].tensor, a, (long long)at,
                             (long long)after.stored[i].values[a][at]);
    side_done(&before);
    side_done(&after);
}

static void from_any_layout_to_any(void **state)
{
    (void)state;
    static const char *const layouts[] = {"d8t1p1c1", "d4t2p1c1", "d2t4p1c1", "d1t4p2c1", "d2t2p2c1",
                                          "d1t1p2c4", "d2t1p4c1", "d1t2p4c1", "d2t2p1c2"};
    int count = sizeof layouts / sizeof layouts[0], turn = 0;
    for (int from = 0; from < count; from++)
        for (int to = 0; to < count; to++) {
            struct model_config config = config_of(turn++ % 2 == 0);
            config.layers = 4;
            go(&config, layouts[from], layouts[to], turn % 3 ? "fp24-q8" : "fp32-master",
               turn % 4 ? 100000 : 24);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(from_any_layout_to_any)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
