/* The CPU as a device: memory from mmap, one queue that runs everything at once, the best table for the
 * processor. */
#include "backends.h"
#include "queue.h"
#include "tables.h"

#include <ctype.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_BYTES      4096ul
#define HUGE_PAGE_BYTES (2ul << 20)

struct level {
    const char *name; /* what status shows */
    const struct kernels *table;
};

static struct level level_choose(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return (struct level){"AVX-512", &kernels_v4};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        return (struct level){"AVX2", &kernels_v3};
    return (struct level){"SSE2", &kernels_reference};
}

/* The processor's own name, blanks squeezed; "x86-64" where it has none. */
static void processor_name(char *name, size_t bytes)
{
    snprintf(name, bytes, "x86-64");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file)
        return;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        const char *from = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;
        if (!from)
            continue;
        size_t length = 0;
        for (from++; *from && length + 1 < bytes; from++)
            if (!isspace((unsigned char)*from) || (length > 0 && name[length - 1] != ' '))
                name[length++] = isspace((unsigned char)*from) ? ' ' : *from;
        while (length > 0 && name[length - 1] == ' ')
            length--;
        name[length] = '\0';
        break;
    }
    fclose(file);
}

static int usable_cores(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : omp_get_num_procs();
    return count > 0 ? count : 1;
}

static int cpu_open(struct device *device, int threads, char *why, size_t why_bytes)
{
    struct queue *queue = calloc(1, sizeof *queue);
    if (!queue) {
        snprintf(why, why_bytes, "no memory for the queue of the cpu device");
        return -1;
    }
    struct level level = level_choose();
    queue->threads = threads > 0 ? threads : usable_cores();
    omp_set_num_threads(
        queue->threads); /* libgomp counted the cores of the launcher's mask, before it was widened */
    queue->table = *level.table;
    overlay_dnnl(&queue->table, queue->threads);
    overlay_update_avx512(&queue->table);
    overlay_attention_avx512(&queue->table);
    overlay_bf16_avx512(&queue->table);

    device->host_access = true;
    device->threads = queue->threads;
    device->queue = queue;
    device->kernels = &queue->table;
    char name[64];
    processor_name(name, sizeof name);
    snprintf(device->description, sizeof device->description, "%s, %s, oneDNN %s", name, level.name,
             dnnl_release());
    snprintf(device->products, sizeof device->products, "%s", dnnl_products());
    return 0;
}

static void cpu_close(struct device *device)
{
    free(device->queue);
}

/* Small pages at the end of large ones: a block's weights are often a power of two and a little more. */
static size_t mapped_bytes(size_t bytes)
{
    return bytes == 0 ? PAGE_BYTES : (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* Maps `size` bytes aligned to `unit` by mapping one unit more and giving back both ends. */
static char *map_aligned(size_t size, size_t unit)
{
    size_t whole = size + unit;
    char *map = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    size_t head = (unit - (uintptr_t)map % unit) % unit;
    if (head > 0)
        munmap(map, head);
    munmap(map + head + size, whole - head - size);
    return map + head;
}

static void *cpu_allocate(struct device *device, size_t bytes)
{
    (void)device;
    if (bytes > SIZE_MAX / 2)
        return NULL;
    size_t size = mapped_bytes(bytes);
    char *memory = map_aligned(size, size >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : PAGE_BYTES);
    if (!memory)
        return NULL;
    if (size >= HUGE_PAGE_BYTES)
        madvise(memory, size,
                MADV_HUGEPAGE); /* advice: products read rows far apart, and small pages cost misses */
    /* Touched now, so that memory is taken here (design, law 7) and not in the middle of a step. */
    for (size_t i = 0; i < size; i += PAGE_BYTES)
        *(volatile char *)(memory + i) = 0;
    return memory;
}

static void cpu_release(struct device *device, void *memory, size_t bytes)
{
    (void)device;
    munmap(memory, mapped_bytes(bytes));
}

static void cpu_copy(struct queue *queue, void *to, const void *from, size_t bytes)
{
    (void)queue;
    if (bytes > 0)
        memcpy(to, from, bytes);
}

static void cpu_zero(struct queue *queue, void *to, size_t bytes)
{
    (void)queue;
    if (bytes > 0)
        memset(to, 0, bytes);
}

/* Everything queued is done already, so one event serves all. */
static char done;

static struct event *cpu_event_record(struct queue *queue)
{
    (void)queue;
    return (struct event *)&done;
}

static void cpu_event_wait(struct queue *queue, struct event *event)
{
    (void)queue, (void)event;
}

static void cpu_synchronize(struct queue *queue)
{
    (void)queue;
}

const struct device_backend device_backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .allocate = cpu_allocate,
    .release = cpu_release,
    .copy_in = cpu_copy,
    .copy_out = cpu_copy,
    .copy = cpu_copy,
    .zero = cpu_zero,
    .event_record = cpu_event_record,
    .event_wait = cpu_event_wait,
    .synchronize = cpu_synchronize,
};
