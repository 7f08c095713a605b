/* The guarded device does what the cpu device does, and catches the host at its memory. */
#include "check.h"
#include "device_main.h"
#include "kernels.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_kernels_run(void **state)
{
    (void)state;
    enum { N = 3000 };
    float a[N], b[N], sum[N];
    for (int i = 0; i < N; i++) {
        a[i] = (float)i;
        b[i] = 0.5f;
    }
    assert_false(device.host_access);
    float *da = device_allocate(&device, sizeof a), *db = device_allocate(&device, sizeof b);
    assert_non_null(da);
    assert_non_null(db);
    device_copy_in(&device, da, a, sizeof a);
    device_copy_in(&device, db, b, sizeof b);
    device.kernels->add(device.queue, db, da, db, N, DTYPE_F32);
    device_copy_out(&device, sum, db, sizeof sum);
    for (int i = 0; i < N; i++)
        assert_true(sum[i] == a[i] + 0.5f);
    device_release(&device, da, sizeof a);
    device_release(&device, db, sizeof b);
    assert_int_equal(device.allocated_bytes, 0);
}

static void test_memory_is_zero_and_reused(void **state)
{
    (void)state;
    enum { BYTES = 3 << 20 };
    static char host[BYTES];
    char *first = device_allocate(&device, BYTES), *other = device_allocate(&device, 100);
    assert_true((uintptr_t)first % (2 << 20) == 0);
    assert_true(other >= first + BYTES || other + 100 <= first);
    memset(host, 1, BYTES);
    device_copy_in(&device, first, host, BYTES);
    device_release(&device, first, BYTES);
    char *again = device_allocate(&device, BYTES);
    assert_ptr_equal(again, first);
    device_copy_out(&device, host, again, BYTES);
    for (int i = 0; i < BYTES; i++)
        assert_int_equal(host[i], 0);
    device_release(&device, again, BYTES);
    device_release(&device, other, 100);
}

static void host_reads(volatile char *memory)
{
    char seen = *memory;
    (void)seen;
}

static void host_writes(volatile char *memory)
{
    *memory = 1;
}

static void host_does_nothing(volatile char *memory)
{
    (void)memory;
}

/* What a child process says and how it ends when it does this to device memory. */
static int child(void (*touch)(volatile char *memory), bool released, char *said, size_t said_bytes)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGABRT,
               SIG_DFL); /* cmocka's own handlers, set since the device was opened, are for the parent */
        signal(SIGSEGV, SIG_DFL);
        char why[256];
        device_close(&device);
        if (device_open(&device, "guarded", 1, why, sizeof why) != 0)
            _exit(1);
        dup2(ends[1], STDERR_FILENO);
        char *memory = device_allocate(&device, 64);
        device_zero(&device, memory, 64); /* opens and closes again */
        if (released)
            device_release(&device, memory, 64);
        touch(memory);
        _exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    for (ssize_t got;
         length + 1 < said_bytes && (got = read(ends[0], said + length, said_bytes - 1 - length)) > 0;)
        length += (size_t)got;
    said[length] = '\0';
    close(ends[0]);
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void test_host_is_caught(void **state)
{
    (void)state;
    char said[512];
    int status = child(host_reads, false, said, sizeof said);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(said, "host code touched device memory"));
    status = child(host_writes, false, said, sizeof said);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(said, "host code touched device memory"));
    status = child(host_reads, true, said, sizeof said);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    status = child(host_does_nothing, false, said, sizeof said);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_string_equal(said, "");
}

/* A fault elsewhere is not dressed up as ours. */
static void host_is_lost(volatile char *memory)
{
    (void)memory;
    volatile char *nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *nowhere = 1;
}

static void test_other_faults_pass(void **state)
{
    (void)state;
    char said[512];
    int status = child(host_is_lost, false, said, sizeof said);
    assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_null(strstr(said, "device memory"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_run),
        cmocka_unit_test(test_memory_is_zero_and_reused),
        cmocka_unit_test(test_host_is_caught),
        cmocka_unit_test(test_other_faults_pass),
    };
    return test_device_run(tests, "guarded", 2);
}
