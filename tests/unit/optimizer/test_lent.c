/* A w that lies in the model's resident copy: what is allocated, that an update writes the copy in place, and
 * that conversions into, out of, within and between lent memory give the bits of an optimizer that owns all
 * of its arrays. */
#include "device_main.h"
#include "state_arrays.h"

#include <stdio.h>

static const struct optimizer_segment first[] = {
    {.tensor = 0, .offset = 0, .elements = 300, .index = 0},
    {.tensor = 1, .offset = 512, .elements = 1000, .index = 512, .decays = true}};
static const struct optimizer_segment second[] = {
    {.tensor = 2, .offset = 256, .elements = 70000, .index = 1ll << 33, .decays = true}};
static const struct optimizer_unit_plan units[] = {{1536, 2, first}, {70656, 1, second}, {0, 0, NULL}};
enum { UNITS = 3, TENSORS = 4, ELEMENTS = 1536 + 70656, LARGEST = 70656 };

/* Where the model would keep its copies, a guard behind each. */
struct copies {
    struct optimizer_copies copies;
    void *units[UNITS];
};
enum { GUARD_BYTES = 4096 };

static void copies_init(struct copies *c, enum dtype dtype)
{
    *c = (struct copies){.copies = {dtype, NULL}};
    c->copies.units = c->units;
    for (int u = 0; u < UNITS; u++)
        if (units[u].elements > 0)
            c->units[u] =
                device_allocate(&device, (size_t)units[u].elements * dtype_bytes(dtype) + GUARD_BYTES);
}

static void copies_done(struct copies *c)
{
    for (int u = 0; u < UNITS; u++) {
        size_t bytes = (size_t)units[u].elements * dtype_bytes(c->copies.dtype);
        for (int i = 0; c->units[u] && i < GUARD_BYTES; i++)
            assert_int_equal(((const char *)c->units[u])[bytes + (size_t)i], 0);
        device_release(&device, c->units[u], bytes + GUARD_BYTES);
    }
}

static struct optimizer_plan plan_of(struct copies *copies)
{
    return (struct optimizer_plan){UNITS, TENSORS, units, copies ? &copies->copies : NULL};
}

static struct policy policy_of(enum weight_format w, enum moment_format m, enum dtype compute)
{
    struct policy p = policy_default();
    p.weight = w;
    p.m = p.v = m;
    p.compute = compute;
    policy_rename(&p);
    return p;
}

static void make(struct optimizer *o, const struct policy *policy, struct copies *copies)
{
    struct err err = ERR_INIT;
    struct optimizer_plan plan = plan_of(copies);
    check_ok(optimizer_init(o, &device, policy, &plan, 5, &err), &err);
    o->t = 6;
    o->total_steps = 40;
    float *values = malloc(LARGEST * sizeof(float));
    struct test_random r = {3};
    for (int u = 0; u < UNITS; u++)
        for (int32_t s = 0; s < o->units[u].segment_count; s++)
            for (int part = 0; part < STATE_PART_COUNT; part++) {
                int64_t n = o->units[u].segments[s].elements;
                for (int64_t i = 0; i < n; i++)
                    values[i] = (float)(0.04 * test_random_uniform(&r) - 0.02);
                for (int64_t i = 0; part == STATE_V && i < n; i++)
                    values[i] *= values[i];
                optimizer_set(o, u, s, (enum state_part)part, 0, n, values);
            }
    free(values);
}

/* An update with the same gradients for whoever is at the same t. */
static void step(struct optimizer *o, struct copies *copies)
{
    struct optimizer_settings settings = optimizer_settings_default();
    struct update_measures by_tensor[TENSORS];
    struct test_random r = {90 + (uint64_t)o->t};
    float *gradients[UNITS] = {malloc(1536 * sizeof(float)), malloc(LARGEST * sizeof(float)), NULL};
    for (int u = 0; u < 2; u++)
        for (int64_t i = 0; i < units[u].elements; i++)
            gradients[u][i] = (float)(test_random_uniform(&r) - 0.5);
    optimizer_update(o, &settings, 1e-3, 0.25, (const void *const *)gradients,
                     copies ? &copies->copies : NULL, by_tensor);
    free(gradients[0]);
    free(gradients[1]);
}

static void check_same(const struct optimizer *got, const struct optimizer *want, const char *what)
{
    assert_true(policy_equal(&got->policy, &want->policy));
    for (int u = 0; u < UNITS; u++)
        for (int part = 0; part < STATE_PART_COUNT; part++)
            for (int extra = 0; extra < 2; extra++) {
                const void *a = got->units[u].arrays[part][extra], *b = want->units[u].arrays[part][extra];
                size_t bytes = state_array_bytes(part * 2 + extra, want->policy.weight, want->policy.m,
                                                 want->units[u].elements);
                if (!a != !b || (a && memcmp(a, b, bytes) != 0))
                    fail_msg("%s: unit %d, part %d, array %d differs", what, u, part, extra);
            }
}

/* What the optimizer allocated is what it counts but what it is lent. */
static void check_bytes(const struct optimizer *o, int64_t before)
{
    int64_t lent = 0;
    for (int u = 0; u < UNITS; u++)
        if (o->units[u].lent) {
            assert_ptr_equal(o->units[u].lent, o->units[u].arrays[STATE_W][0]);
            lent += 2 * o->units[u].elements;
        }
    assert_int_equal(device.allocated_bytes - before,
                     optimizer_state_bytes(o) + optimizer_scratch_bytes(o) - lent);
}

/* ---- tests ---- */

static void test_the_copy_is_w(void **state)
{
    (void)state;
    for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++)
        for (int wide = 0; wide < 2; wide++) {
            struct policy p = policy_of((enum weight_format)w, MOMENT_FP32, wide ? DTYPE_F32 : DTYPE_BF16);
            struct copies lent, beside;
            struct optimizer borrower, owner;
            copies_init(&lent, p.compute);
            copies_init(&beside, p.compute);
            int64_t before = device.allocated_bytes;
            make(&borrower, &p, &lent);
            bool lends = w != WEIGHT_FP32 && !wide;
            assert_int_equal(policy_stores_copy(&p), lends);
            for (int u = 0; u < UNITS; u++)
                assert_ptr_equal(borrower.units[u].lent, lends ? lent.units[u] : NULL);
            check_bytes(&borrower, before);
            make(&owner, &p, NULL);
            for (int i = 0; i < 3; i++) {
                step(&borrower, &lent);
                step(&owner, &beside);
                check_same(&borrower, &owner, p.name);
                for (int u = 0; u < 2; u++)
                    assert_memory_equal(lent.units[u], beside.units[u],
                                        (size_t)units[u].elements * dtype_bytes(p.compute));
            }
            for (int u = 0; u < 2; u++) { /* asked for again, it is there already */
                optimizer_compute_copy(&borrower, u, lent.units[u], p.compute);
                optimizer_compute_copy(&owner, u, beside.units[u], p.compute);
                assert_memory_equal(lent.units[u], beside.units[u],
                                    (size_t)units[u].elements * dtype_bytes(p.compute));
            }
            optimizer_done(&owner);
            optimizer_done(&borrower);
            assert_int_equal(device.allocated_bytes, before);
            copies_done(&lent);
            copies_done(&beside);
        }
}

static void convert(struct optimizer *o, const struct policy *to, struct copies *copies,
                    struct optimizer_loss losses[STATE_PART_COUNT])
{
    struct optimizer_conversion c;
    struct err err = ERR_INIT;
    int64_t before = device.allocated_bytes;
    int64_t more = optimizer_convert_bytes(o, to, copies && policy_stores_copy(to));
    check_ok(optimizer_convert_reserve(o, to, copies ? &copies->copies : NULL, &c, &err), &err);
    assert_int_equal(device.allocated_bytes - before, more);
    optimizer_convert_commit(o, &c, losses);
}

/* From every weight format to every one, lent or not, to the same copies (as when only the policy changes),
 * to others (as when the shard is made anew), and to fp32 compute, which lends nothing; and a step on. */
static void test_conversions(void **state)
{
    (void)state;
    enum { SAME, OTHER, WIDE, KINDS };
    for (int i = 0; i < WEIGHT_FORMAT_COUNT * WEIGHT_FORMAT_COUNT * KINDS * 2; i++) {
        int from = i % WEIGHT_FORMAT_COUNT, to = i / WEIGHT_FORMAT_COUNT % WEIGHT_FORMAT_COUNT;
        int kind = i / WEIGHT_FORMAT_COUNT / WEIGHT_FORMAT_COUNT % KINDS;
        bool starts_wide = i >= WEIGHT_FORMAT_COUNT * WEIGHT_FORMAT_COUNT * KINDS;
        if (starts_wide && kind == SAME)
            continue; /* fp32 copies cannot be the bf16 ones */
        struct policy a =
            policy_of((enum weight_format)from, MOMENT_Q8, starts_wide ? DTYPE_F32 : DTYPE_BF16);
        struct policy b = policy_of((enum weight_format)to, MOMENT_Q8, kind == WIDE ? DTYPE_F32 : DTYPE_BF16);
        char what[2 * LIMIT_NAME_BYTES + 32];
        snprintf(what, sizeof what, "%s to %s, kind %d", a.name, b.name, kind);
        struct copies now, next;
        copies_init(&now, a.compute);
        copies_init(&next, b.compute);
        int64_t before = device.allocated_bytes;
        struct optimizer borrower, owner;
        struct optimizer_loss losses[STATE_PART_COUNT], want[STATE_PART_COUNT];
        struct copies *after = kind == SAME ? &now : &next;
        make(&borrower, &a, &now);
        convert(&borrower, &b, after, losses);
        check_bytes(&borrower, before);
        for (int u = 0; u < UNITS; u++)
            assert_ptr_equal(borrower.units[u].lent, policy_stores_copy(&b) ? after->units[u] : NULL);
        make(&owner, &a, NULL);
        convert(&owner, &b, NULL, want);
        assert_memory_equal(losses, want, sizeof losses);
        check_same(&borrower, &owner, what);
        if (kind != SAME)
            for (int u = 0; u < 2; u++) /* the old copies are free to go */
                memset(now.units[u], 0xFF, (size_t)units[u].elements * dtype_bytes(a.compute));
        step(&borrower, after);
        step(&owner, NULL);
        check_same(&borrower, &owner, what);
        optimizer_done(&borrower);
        optimizer_done(&owner);
        assert_int_equal(device.allocated_bytes, before);
        copies_done(&now);
        copies_done(&next);
    }
}

/* Reserved and given back: the state is as it was, what is lent included; also when an allocation fails. */
static int allocations_left;
static const struct device_backend *real_backend;

static void *failing_allocate(struct device *d, size_t bytes)
{
    return allocations_left-- <= 0 ? NULL : real_backend->allocate(d, bytes);
}

static void test_cancelled_conversions(void **state)
{
    (void)state;
    struct policy split = policy_of(WEIGHT_SPLIT, MOMENT_FP32, DTYPE_BF16);
    struct policy kahan = policy_of(WEIGHT_KAHAN, MOMENT_Q8, DTYPE_BF16);
    struct copies lent, beside;
    struct optimizer borrower, owner;
    copies_init(&lent, DTYPE_BF16);
    copies_init(&beside, DTYPE_BF16);
    int64_t before = device.allocated_bytes;
    make(&borrower, &split, &lent);
    int64_t held = device.allocated_bytes;
    real_backend = device.backend;
    struct device_backend failing = *real_backend;
    failing.allocate = failing_allocate;
    device.backend = &failing;
    for (int other = 0; other < 2; other++)
        for (int n = 0;; n++) {
            struct optimizer_conversion c;
            struct err err = ERR_INIT;
            allocations_left = n;
            bool reserved =
                optimizer_convert_reserve(&borrower, &kahan, other ? &beside.copies : &lent.copies, &c, &err);
            if (reserved)
                optimizer_convert_cancel(&borrower, &c);
            else
                assert_int_equal(err.code, ERR_MEMORY);
            assert_int_equal(device.allocated_bytes, held);
            if (reserved) {
                assert_true(n > 8);
                break;
            }
        }
    device.backend = real_backend;
    make(&owner, &split, NULL);
    check_same(&borrower, &owner, "cancelled");
    optimizer_done(&owner);
    optimizer_done(&borrower);
    assert_int_equal(device.allocated_bytes, before);
    copies_done(&lent);
    copies_done(&beside);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_copy_is_w),
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_cancelled_conversions),
    };
    return test_device_run(tests, "cpu", 2);
}
