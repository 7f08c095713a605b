/* A shard of one layout, saved, comes back in the shards of another with every stored bit: on the CPU's own
 * device. */
#include "store_fixture.h"

#include "checkpoint_optimizer.h"

#include <jansson.h>

#define RANKS_MAX 8

static int64_t up(int64_t elements)
{
    return (elements + STATE_ALIGNMENT - 1) / STATE_ALIGNMENT * STATE_ALIGNMENT;
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
            segments[n++] = (struct optimizer_segment){.tensor = i,
                                                       .offset = from - first,
                                                       .elements = to - from,
                                                       .index = p->index0 + from - p->unit_offset};
            units[u].segment_count++;
        }
    }
    return (struct optimizer_plan){table->unit_count, table->count, units, NULL};
}

struct shards {
    struct device device;
    struct optimizer optimizers[RANKS_MAX];
    int ranks;
};

static void shards_make(struct shards *s, const struct fixture *f, const char *policy_text, int ranks)
{
    struct err err = ERR_INIT;
    char why[256];
    struct policy policy;
    struct optimizer_unit_plan units[16];
    struct optimizer_segment *segments = calloc((size_t)f->table.count * 4, sizeof *segments);
    *s = (struct shards){.ranks = ranks};
    assert_int_equal(device_open(&s->device, "cpu", 1, why, sizeof why), 0);
    check_ok(policy_parse(&policy, policy_text, NULL, &err), &err);
    for (int rank = 0; rank < ranks; rank++) {
        struct optimizer_plan plan = plan_make(&f->table, rank, ranks, units, segments);
        check_ok(optimizer_init(&s->optimizers[rank], &s->device, &policy, &plan, 1, &err), &err);
    }
    free(segments);
}

static void shards_done(struct shards *s)
{
    for (int rank = 0; rank < s->ranks; rank++)
        optimizer_done(&s->optimizers[rank]);
    assert_int_equal(s->device.allocated_bytes, 0);
    device_close(&s->device);
}

typedef void (*slice_fn)(struct device *device, const struct checkpoint_slice *slice, size_t width);

static void slice_fill(struct device *device, const struct checkpoint_slice *slice, size_t width)
{
    size_t bytes = (size_t)slice->count * width;
    unsigned char *host = malloc(bytes);
    value_fill(host, slice->tensor, slice->part, slice->start, slice->count, width, 0);
    device_copy_in(device, (void *)(uintptr_t)slice->memory, host, bytes);
    free(host);
}

static void slice_expect(struct device *device, const struct checkpoint_slice *slice, size_t width)
{
    size_t bytes = (size_t)slice->count * width;
    unsigned char *host = malloc(bytes), *want = malloc(bytes);
    value_fill(want, slice->tensor, slice->part, slice->start, slice->count, width, 0);
    device_copy_out(device, host, slice->memory, bytes);
    if (memcmp(host, want, bytes) != 0)
        fail_msg("%s of tensor %d, elements %lld on: other bytes", checkpoint_part_name(slice->part),
                 slice->tensor, (long long)slice->start);
    free(host);
    free(want);
}

static int64_t each_slice(struct shards *s, const struct fixture *f, slice_fn fn)
{
    int64_t bytes = 0;
    for (int rank = 0; rank < s->ranks; rank++) {
        struct err err = ERR_INIT;
        struct checkpoint_slice *slices;
        int64_t count;
        const struct checkpoint_formats formats = checkpoint_formats_of(&s->optimizers[rank].policy);
        check_ok(checkpoint_optimizer_slices(&s->optimizers[rank], &f->table, &slices, &count, &err), &err);
        for (int64_t i = 0; i < count; i++) {
            enum dtype dtype = DTYPE_COUNT;
            int64_t length;
            assert_true(checkpoint_part_shape(&formats, slices[i].part,
                                              f->table.params[slices[i].tensor].elements, &dtype, &length));
            fn(&s->device, &slices[i], dtype_bytes(dtype));
            bytes += slices[i].count * (int64_t)dtype_bytes(dtype);
        }
        bytes += optimizer_padding_bytes(&s->optimizers[rank]);
        free(slices);
    }
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
        check_ok(checkpoint_optimizer_slices(&s->optimizers[rank], &f->table, &slices, &count, &err), &err);
        check_ok(checkpoint_save_shard(f->folder.path, "c", rank, &f->table, &formats, slices, count,
                                       &s->device, &fragments[rank], &err),
                 &err);
        free(slices);
    }
    struct checkpoint_record record = {&about, &f->table, &formats, f->config_text, f->state};
    check_ok(checkpoint_save_commit(f->folder.path, &record, (const char *const *)fragments, s->ranks, true,
                                    NULL, &err),
             &err);
    for (int rank = 0; rank < s->ranks; rank++)
        free(fragments[rank]);
}

static void any_shard_from_any(void **unused)
{
    (void)unused;
    const char *const policies[] = {"fp32-master", "fp32-q8",   "fp24-q8",   "bf16-kahan",
                                    "bf16",        "fp32-lean", "fp32-split"};
    const int ranks[] = {1, 2, 3, 8};
    struct fixture f;
    fixture_make(&f, SMALL_CONFIG);
    for (size_t p = 0; p < sizeof policies / sizeof *policies; p++) {
        for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
            struct shards from;
            shards_make(&from, &f, policies[p], ranks[i]);
            int64_t bytes = 0;
            for (int rank = 0; rank < ranks[i]; rank++)
                bytes += optimizer_state_bytes(&from.optimizers[rank]);
            assert_int_equal(each_slice(&from, &f, slice_fill),
                             bytes); /* slices and padding are everything */
            shards_save(&from, &f);
            shards_done(&from);
            for (size_t j = 0; j < sizeof ranks / sizeof *ranks; j++) {
                struct err err = ERR_INIT;
                struct checkpoint c;
                struct shards to;
                check_ok(checkpoint_open(&c, f.folder.path, "c", &err), &err);
                check_ok(checkpoint_verify(&c, 0, 1, &err), &err);
                shards_make(&to, &f, c.about.policy, ranks[j]);
                for (int rank = 0; rank < ranks[j]; rank++)
                    check_ok(checkpoint_optimizer_read(&c, &to.optimizers[rank], &f.table, &err), &err);
                each_slice(&to, &f, slice_expect);
                shards_done(&to);
                checkpoint_close(&c);
            }
        }
    }
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
    shards_make(&from, &f, "fp32-master", 1);
    each_slice(&from, &f, slice_fill);
    shards_save(&from, &f);
    shards_make(&to, &g, "fp32-master", 1);
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
                                       cmocka_unit_test(another_model_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
