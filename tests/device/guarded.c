/* The guarded device: the CPU's kernels on memory that host code cannot touch, so that a pointer into the
 * device, dereferenced on the host, ends the process with a sentence here and not only on the first GPU.
 *
 * All device memory lies in one reserved range without access. Every kernel and copy opens the range on entry
 * and closes it on return (a counter, so that a kernel may call a kernel); the wrappers come from the kernel
 * table's rows. A fault inside the range is named and aborts; any other goes its old way. Slow (two mprotects
 * a kernel): for tests only. */
#include "backends.h"
#include "kernels.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RANGE_BYTES     (64ul << 30) /* address space, not memory */
#define PAGE_BYTES      4096ul
#define HUGE_PAGE_BYTES (2ul << 20)

enum { BLOCKS = 65536 };

struct block {
    size_t at, bytes; /* in the range, whole pages */
};

static struct {
    char *base;
    size_t open_to; /* how much of the range has ever been handed out: what opens and closes */
    int depth;      /* kernels and copies under way, one within the other */
    int devices;
    struct block blocks[BLOCKS]; /* live, by rising address */
    int count;
    struct kernels real, wrapped;
    struct sigaction before;
} guard;

static void range_protect(int protection)
{
    if (guard.open_to > 0 && mprotect(guard.base, guard.open_to, protection) != 0) {
        perror("guarded device: mprotect");
        abort();
    }
}

static void guard_enter(void)
{
    if (guard.depth++ == 0)
        range_protect(PROT_READ | PROT_WRITE);
}

static void guard_leave(void)
{
    if (--guard.depth == 0)
        range_protect(PROT_NONE);
}

/* Async-signal-safe: writes and aborts. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    static const char sentence[] =
        "guarded device: host code touched device memory outside a kernel or copy\n";
    const char *at = info->si_addr;
    if (at >= guard.base && at < guard.base + RANGE_BYTES) {
        ssize_t written = write(STDERR_FILENO, sentence, sizeof sentence - 1);
        (void)written;
        abort();
    }
    sigaction(SIGSEGV, &guard.before, NULL); /* not ours: the instruction faults again, the old way */
}

#define X(name, parameters, arguments)                                                                       \
    static void guarded_##name parameters                                                                    \
    {                                                                                                        \
        guard_enter();                                                                                       \
        guard.real.name arguments;                                                                           \
        guard_leave();                                                                                       \
    }
KERNELS(X)
#undef X

static struct kernels wrap(const struct kernels *real)
{
    return (struct kernels){
#define X(name, parameters, arguments) .name = guarded_##name,
        KERNELS(X)
#undef X
#define X(name, parameters) .name = real->name,
            KERNEL_SCRATCHES(X)
#undef X
    };
}

static int guarded_open(struct device *device, int threads, char *why, size_t why_bytes)
{
    if (!guard.base) {
        void *base = mmap(NULL, RANGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) {
            snprintf(why, why_bytes, "the guarded device could not reserve its address range");
            return -1;
        }
        guard.base = base;
    }
    if (device_backend_cpu.open(device, threads, why, why_bytes) != 0)
        return -1;
    guard.real = *device->kernels;
    guard.wrapped = wrap(&guard.real);
    device->kernels = &guard.wrapped;
    device->host_access = false;
    if (guard.devices++ == 0) {
        struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
        sigaction(SIGSEGV, &action, &guard.before);
    }
    return 0;
}

static void guarded_close(struct device *device)
{
    if (--guard.devices == 0)
        sigaction(SIGSEGV, &guard.before, NULL);
    device_backend_cpu.close(device);
}

static size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* First fit, with a page between blocks. */
static void *guarded_allocate(struct device *device, size_t bytes)
{
    (void)device;
    if (bytes > RANGE_BYTES / 2 || guard.count == BLOCKS)
        return NULL;
    size_t unit = bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : PAGE_BYTES;
    size_t size = round_up(bytes > 0 ? bytes : 1, PAGE_BYTES), at = 0;
    int place = 0;
    for (; place < guard.count; place++) {
        if (at + size + PAGE_BYTES <= guard.blocks[place].at)
            break;
        at = round_up(guard.blocks[place].at + guard.blocks[place].bytes + PAGE_BYTES, unit);
    }
    if (at + size + PAGE_BYTES > RANGE_BYTES)
        return NULL;
    memmove(&guard.blocks[place + 1], &guard.blocks[place],
            (size_t)(guard.count - place) * sizeof guard.blocks[0]);
    guard.blocks[place] = (struct block){at, size};
    guard.count++;
    if (at + size > guard.open_to)
        guard.open_to = at + size;
    return guard.base + at;
}

static void guarded_release(struct device *device, void *memory, size_t bytes)
{
    (void)device, (void)bytes;
    size_t at = (size_t)((char *)memory - guard.base);
    for (int i = 0; i < guard.count; i++) {
        if (guard.blocks[i].at != at)
            continue;
        madvise(memory, guard.blocks[i].bytes, MADV_DONTNEED); /* reads zero when handed out again */
        guard.count--;
        memmove(&guard.blocks[i], &guard.blocks[i + 1], (size_t)(guard.count - i) * sizeof guard.blocks[0]);
        return;
    }
    fprintf(stderr, "guarded device: memory was released that it did not allocate\n");
    abort();
}

static void guarded_copy(struct queue *queue, void *to, const void *from, size_t bytes)
{
    guard_enter();
    device_backend_cpu.copy(queue, to, from, bytes);
    guard_leave();
}

static void guarded_zero(struct queue *queue, void *to, size_t bytes)
{
    guard_enter();
    device_backend_cpu.zero(queue, to, bytes);
    guard_leave();
}

static char done; /* the one event: work is done when it is put */

static struct event *guarded_event_record(struct queue *queue)
{
    (void)queue;
    return (struct event *)&done;
}

static void guarded_event_wait(struct queue *queue, struct event *event)
{
    (void)queue, (void)event;
}

static void guarded_synchronize(struct queue *queue)
{
    (void)queue;
}

const struct device_backend device_backend_guarded = {
    .name = "guarded",
    .open = guarded_open,
    .close = guarded_close,
    .allocate = guarded_allocate,
    .release = guarded_release,
    .copy_in = guarded_copy,
    .copy_out = guarded_copy,
    .copy = guarded_copy,
    .zero = guarded_zero,
    .event_record = guarded_event_record,
    .event_wait = guarded_event_wait,
    .synchronize = guarded_synchronize,
};
