/* The registry, the memory of the cpu device and its count, copies, and the planning table. */
#include "check.h"
#include "device.h"
#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>

static void open_cpu(struct device *device)
{
    char why[256] = "";
    if (device_open(device, "cpu", 2, why, sizeof why) != 0)
        fail_msg("%s", why);
}

static void test_open(void **state)
{
    (void)state;
    struct device device;
    open_cpu(&device);
    assert_string_equal(device.name, "cpu");
    assert_true(device.host_access);
    assert_int_equal(device.threads, 2);
    assert_non_null(strstr(device.description, "oneDNN"));
    assert_true(strlen(device.products) > 0);
    assert_int_equal(device.allocated_bytes, 0);
    device_close(&device);
    device_close(&device); /* what is closed may be closed again */
}

static void test_open_refuses(void **state)
{
    (void)state;
    struct device device;
    char why[256] = "";
    assert_int_equal(device_open(&device, "tpu", 0, why, sizeof why), -1);
    assert_non_null(strstr(why, "tpu"));
    assert_int_equal(device_open(&device, "cuda", 0, why, sizeof why), -1);
    assert_non_null(strstr(why, "CUDA"));
    assert_int_equal(device_open(&device, "cpu", -3, why, sizeof why), -1);
    assert_int_equal(device_open(&device, "auto", 0, why, sizeof why), 0);
    assert_string_equal(device.name, "cpu");
    assert_true(device.threads >= 1);
    device_close(&device);
}

static void test_memory(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 4096, 5000, (2 << 20) - 1, 2 << 20, (5 << 20) + 3};
    enum { SIZES = sizeof sizes / sizeof sizes[0] };
    struct device device;
    open_cpu(&device);
    unsigned char *memory[SIZES];
    int64_t bytes = 0;
    for (int i = 0; i < SIZES; i++) {
        memory[i] = device_allocate(&device, sizes[i]);
        assert_non_null(memory[i]);
        assert_true((uintptr_t)memory[i] % (sizes[i] >= 2 << 20 ? 2 << 20 : 4096) == 0);
        for (size_t b = 0; b < sizes[i]; b++)
            assert_int_equal(memory[i][b], 0);
        memset(memory[i], 0xff, sizes[i]);
        bytes += (int64_t)sizes[i];
        assert_int_equal(device.allocated_bytes, bytes);
    }
    for (int i = 0; i < SIZES; i++)
        device_release(&device, memory[i], sizes[i]);
    device_release(&device, NULL, 77);
    assert_int_equal(device.allocated_bytes, 0);
    assert_null(device_allocate(&device, SIZE_MAX - 5));
    assert_null(device_allocate(&device, (size_t)1 << 60));
    assert_int_equal(device.allocated_bytes, 0);
    device_close(&device);
}

static void test_copies(void **state)
{
    (void)state;
    struct device device;
    open_cpu(&device);
    char host[100], back[100], *a = device_allocate(&device, 100), *b = device_allocate(&device, 100);
    for (int i = 0; i < 100; i++)
        host[i] = (char)i;
    device_copy_in(&device, a, host, 100);
    device_copy(&device, b, a, 100);
    device_zero(&device, a, 100);
    struct event *event = device.backend->event_record(device.queue);
    device.backend->event_wait(device.queue, event);
    device.backend->synchronize(device.queue);
    device_copy_out(&device, back, b, 100);
    assert_memory_equal(back, host, 100);
    device_copy_out(&device, back, a, 100);
    for (int i = 0; i < 100; i++)
        assert_int_equal(back[i], 0);
    device_release(&device, a, 100);
    device_release(&device, b, 100);
    device_close(&device);
}

/* Playing on the planning table touches nothing: all pointers are NULL. */
static void test_planning(void **state)
{
    (void)state;
    struct device device;
    open_cpu(&device);
    struct kernels planning = kernels_planning(device.kernels);
    planning.add(NULL, NULL, NULL, NULL, 1000, DTYPE_BF16);
    planning.matmul(NULL, NULL, NULL, NULL, 10, 10, 10, DTYPE_F32, DTYPE_F32, 0, NULL);
    assert_true(planning.rmsnorm_backward_scratch == device.kernels->rmsnorm_backward_scratch);
    assert_true(planning.update_scratch == device.kernels->update_scratch);
    /* Every row is there in every table. */
    const struct kernels *tables[] = {&planning, device.kernels, &kernels_reference};
    for (int t = 0; t < 3; t++) {
#define X(name, parameters, arguments) assert_non_null((void *)(uintptr_t)tables[t]->name);
        KERNELS(X)
#undef X
#define X(name, parameters) assert_non_null((void *)(uintptr_t)tables[t]->name);
        KERNEL_SCRATCHES(X)
#undef X
    }
    device_close(&device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),   cmocka_unit_test(test_open_refuses), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_copies), cmocka_unit_test(test_planning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
