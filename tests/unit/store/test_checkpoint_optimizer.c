/* A shard of one layout, saved, comes back in the shards of another with every stored bit, also where ranks
 * hold pieces of tensors: on the CPU's own device. */
#include "store_fixture.h"

#include "checkpoint_optimizer.h"

#include <jansson.h>

#define RANKS_MAX 16

static int64_t up(int64_t elements)
{
    return (elements + STATE_ALIGNMENT - 1) / STATE_ALIGNMENT * STATE_ALIGNMENT;
}

/* A segment of the piece: its elements from..to, which lie at `offset` of the shard. */
static struct optimizer_segment segment_make(const struct param *p, int32_t tensor, int64_t from, int64_t to,
                                             int64_t offset)
{
    struct param_map map = param_map(p);
    bool whole = p->elements == param_whole_elements(p);
    return (struct optimizer_segment){.tensor = tensor,
                                      .copy = p->holder > 0,
                                      .offset = offset,
                                      .elements = to - from,
                                      .index = p->index0 + map.first + from / map.run * map.stride +
                                               from % map.run,
                                      .column = whole ? 0 : from % map.run,
                                      .run = whole ? 0 : map.run,
                                      .stride = whole ? 0 : map.stride};
}

/* Rank's part of every unit: a run of whole 256s, as shard/ cuts them. segments[] has room for 4 a tensor. */
static struct optimizer_plan plan_make(const struct param_table *table, int rank, int ranks,
                                       struct optimizer_unit_plan *units, struct optimizer_segment *segments)
{
    int32_t n = 0;
    for (int32_t u = 0; u < table->unit_count; u++) {
        const struct param_unit *unit = &table->units[u];
        int64_t shard = up((unit->elements + ranks - 1) / ranks), first = shard * rank, end = first + shard;
        units[u] = (struct optimizer_unit_plan){.elements = shard, .segments = &segments[n]};
        for (int32_t i = unit->first; i < unit->first + unit->count; i++) {
            const struct param *p = &table->params[i];
            int64_t from = p->unit_offset > first ? p->unit_offset : first;
            int64_t to = p->unit_offset + p->elements < end ? p->unit_offset + p->elements : end;
            if (to <= from)
                continue;
            segments[n++] = segment_make(p, i, from - p->unit_offset, to - p->unit_offset, from - first);
            units[u].segment_count++;
        }
    }
    return (struct optimizer_plan){table->unit_count, table->count, units, NULL};
}

/* A layout's ranks: t of them hold the pieces of the model, each piece cut into d shards. */
struct shards {
    struct device device;
    struct optimizer optimizers[RANKS_MAX]; /* t fastest */
    struct param_table tables[RANKS_MAX];   /* [t] */
    int ranks, t;
};

static void shards_make(struct shards *s, const struct fixture *f, const char *policy_text, int d, int t)
{
    struct err err = ERR_INIT;
    char why[256];
    struct policy policy;
    struct optimizer_unit_plan units[16];
    struct optimizer_segment *segments = calloc((size_t)f->table.count * 4, sizeof *segments);
    *s = (struct shards){.ranks = d * t, .t = t};
    assert_int_equal(device_open(&s->device, "cpu", 1, why, sizeof why), 0);
    check_ok(policy_parse(&policy, policy_text, NULL, &err), &err);
    for (int rank = 0; rank < t; rank++)
        check_ok(param_table_init_piece(&s->tables[rank], &f->config, (struct tensor_place){t, rank}, &err),
                 &err);
    for (int rank = 0; rank < d * t; rank++) {
        struct optimizer_plan plan = plan_make(&s->tables[rank % t], rank / t, d, units, segments);
        check_ok(optimizer_init(&s->optimizers[rank], &s->device, &policy, &plan, 1, &err), &err);
    }
    free(segments);
}

static void shards_done(struct shards *s)
{
    for (int rank = 0; rank < s->ranks; rank++)
        optimizer_done(&s->optimizers[rank]);
    for (int rank = 0; rank < s->t; rank++)
        param_table_done(&s->tables[rank]);
    assert_int_equal(s->device.allocated_bytes, 0);
    device_close(&s->device);
}

/* Whether copies count as anything else: all of them are filled and looked at. */
static void shards_speak(struct shards *s, bool all)
{
    for (int rank = 0; rank < s->ranks; rank++)
        for (int32_t u = 0; u < s->optimizers[rank].unit_count; u++)
            for (int32_t i = 0; i < s->optimizers[rank].units[u].segment_count; i++) {
                struct optimizer_segment *segment = &s->optimizers[rank].units[u].segments[i];
                segment->copy = !all && s->tables[rank % s->t].params[segment->tensor].holder > 0;
            }
}

typedef void (*slice_fn)(struct device *device, const struct checkpoint_slice *slice, size_t width);

static void slice_fill(struct device *device, const struct checkpoint_slice *slice, size_t width)
{
    size_t bytes = (size_t)slice->range.count * width;
    unsigned char *host = malloc(bytes);
    value_fill_range(host, slice->tensor, slice->part, &slice->range, width, 0);
    device_copy_in(device, slice->memory, host, bytes);
    free(host);
}

static void slice_expect(struct device *device, const struct checkpoint_slice *slice, size_t width)
{
    size_t bytes = (size_t)slice->range.count * width;
    unsigned char *host = malloc(bytes), *want = malloc(bytes);
    value_fill_range(want, slice->tensor, slice->part, &slice->range, width, 0);
    device_copy_out(device, host, slice->memory, bytes);
    if (memcmp(host, want, bytes) != 0)
        fail_msg("%s of tensor %d, elements %lld on: other bytes", checkpoint_part_name(slice->part),
                 slice->tensor, (long long)slice->range.start);
    free(host);
    free(want);
}

static int64_t each_slice(struct shards *s, const struct fixture *f, slice_fn fn)
{
    int64_t bytes = 0;
    shards_speak(s, true);
    for (int rank = 0; rank < s->ranks; rank++) {
        struct err err = ERR_INIT;
        struct checkpoint_slice *slices;
        int64_t count;
        const struct checkpoint_formats formats = checkpoint_formats_of(&s->optimizers[rank].policy);
        check_ok(
            checkpoint_optimizer_slices(&s->optimizers[rank], &s->tables[rank % s->t], &slices, &count, &err),
            &err);
        for (int64_t i = 0; i < count; i++) {
            enum dtype dtype = DTYPE_COUNT;
            int64_t length;
            assert_true(checkpoint_part_shape(&formats, slices[i].part,
                                              f->table.params[slices[i].tensor].elements, &dtype, &length));
            fn(&s->device, &slices[i], dtype_bytes(dtype));
            bytes += slices[i].range.count * (int64_t)dtype_bytes(dtype);
        }
        bytes += optimizer_padding_bytes(&s->optimizers[rank]);
        free(slices);
    }
    shards_speak(s, false);
    return bytes;
}

static void shards_save(struct shards *s, const struct fixture *f)
{
    struct err err = ERR_INIT;
    char *fragments[RANKS_MAX] = {0};
    struct checkpoint_formats formats = checkpoint_formats_of(&s->optimizers[0].policy);
    struct checkpoint_about about = {.name = "c"};
    snprintf(about.policy, sizeof about.policy, "%s", s->optimizers[0].policy.name);
    check_ok(checkpoint_save_begin(f->folder.path, "c", true, &err), &err);
    for (int rank = 0; rank < s->ranks; rank++) {
        struct checkpoint_slice *slices;
        int64_t count;
        check_ok(
            checkpoint_optimizer_slices(&s->optimizers[rank], &s->tables[rank % s->t], &slices, &count, &err),
            &err);
        check_ok(checkpoint_save_shard(f->folder.path, "c", rank, &s->tables[rank % s->t], &formats, slices,
                                       count, &s->device, &fragments[rank], &err),
                 &err);
        free(slices);
    }
    struct checkpoint_record record = {&about, &s->tables[0], &formats, f->config_text, f->state};
    check_ok(checkpoint_save_commit(f->folder.path, &record, (const char *const *)fragments, s->ranks, true,
                                    NULL, &err),
             &err);
    for (int rank = 0; rank < s->ranks; rank++)
        free(fragments[rank]);
}

/* Every layout's shards from those of every other. */
static void any_from_any(const struct fixture *f, const char *policy, const int (*layouts)[2], size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct shards from;
        shards_make(&from, f, policy, layouts[i][0], layouts[i][1]);
        int64_t bytes = 0;
        for (int rank = 0; rank < from.ranks; rank++)
            bytes += optimizer_state_bytes(&from.optimizers[rank]);
        assert_int_equal(each_slice(&from, f, slice_fill), bytes); /* slices and padding are everything */
        shards_save(&from, f);
        shards_done(&from);
        for (size_t j = 0; j < count; j++) {
            struct err err = ERR_INIT;
            struct checkpoint c;
            struct shards to;
            check_ok(checkpoint_open(&c, f->folder.path, "c", &err), &err);
            check_ok(checkpoint_verify(&c, 0, 1, &err), &err);
            shards_make(&to, f, c.about.policy, layouts[j][0], layouts[j][1]);
            for (int rank = 0; rank < to.ranks; rank++)
                check_ok(checkpoint_optimizer_read(&c, &to.optimizers[rank], &to.tables[rank % to.t], &err),
                         &err);
            each_slice(&to, f, slice_expect);
            shards_done(&to);
            checkpoint_close(&c);
        }
    }
}

/* Segments that begin inside a row of their columns. */
static int begin_inside(const struct fixture *f, int d, int t)
{
    struct shards s;
    int count = 0;
    shards_make(&s, f, "bf16", d, t);
    for (int rank = 0; rank < s.ranks; rank++)
        for (int32_t u = 0; u < s.optimizers[rank].unit_count; u++)
            for (int32_t i = 0; i < s.optimizers[rank].units[u].segment_count; i++) {
                const struct optimizer_segment *segment = &s.optimizers[rank].units[u].segments[i];
                count += segment->run < segment->stride && segment->column > 0;
            }
    shards_done(&s);
    return count;
}

static const char *const policies[] = {"fp32-master", "fp32-q8",   "fp24-q8",   "bf16-kahan",
                                       "bf16",        "fp32-lean", "fp32-split"};

static void any_shard_from_any(void **unused)
{
    (void)unused;
    static const int layouts[][2] = {{1, 1}, {2, 1}, {3, 1}, {8, 1}};
    struct fixture f;
    fixture_make(&f, SMALL_CONFIG);
    for (size_t p = 0; p < sizeof policies / sizeof *policies; p++)
        any_from_any(&f, policies[p], layouts, 4);
    fixture_done(&f);
}

/* t4: two ranks hold each key-value head, and all hold the norms. */
static void any_piece_from_any(void **unused)
{
    (void)unused;
    static const int layouts[][2] = {{1, 1}, {3, 1}, {1, 2}, {4, 2}, {1, 4}, {4, 4}};
    struct fixture f;
    fixture_make(&f, WIDE_CONFIG);
    assert_true(begin_inside(&f, 4, 2) > 0);
    for (size_t p = 0; p < sizeof policies / sizeof *policies; p++)
        any_from_any(&f, policies[p], layouts, 6);
    fixture_done(&f);
}

static void another_model_is_refused(void **unused)
{
    (void)unused;
    struct fixture f, g;
    struct err err = ERR_INIT, refused = ERR_INIT;
    struct shards from, to;
    struct checkpoint c;
    fixture_make(&f, SMALL_CONFIG);
    fixture_make(&g, TINY_CONFIG);
    shards_make(&from, &f, "fp32-master", 1, 1);
    each_slice(&from, &f, slice_fill);
    shards_save(&from, &f);
    shards_make(&to, &g, "fp32-master", 1, 1);
    check_ok(checkpoint_open(&c, f.folder.path, "c", &err), &err);
    check_refused(checkpoint_optimizer_read(&c, &to.optimizers[0], &g.table, &refused), &refused,
                  ERR_INVALID);
    checkpoint_close(&c);
    shards_done(&from);
    shards_done(&to);
    fixture_done(&f);
    fixture_done(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_shard_from_any),
                                       cmocka_unit_test(any_piece_from_any),
                                       cmocka_unit_test(another_model_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
