#include "host.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Turns that an OpenMP thread waits awake before it sleeps. libgomp's own many make a step ten times as long
 * where another program wants one of the cores (measured, two threads: 0.10 s with 300, 0.17 with 3,000, 1.2
 * with 30,000). */
#define HOST_SPINS "1000"

#define HOST_STARTED_OVER "TRAINERD_STARTED_OVER" /* set in the environment across the one execv */

static int from_environment(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text && atoi(text) >= 0 ? atoi(text) : otherwise;
}

/* The cores of usable that are this rank's: a contiguous share, or all where ranks outnumber cores. */
static cpu_set_t share_of(const cpu_set_t *usable, int local_rank, int local_ranks)
{
    int cores = CPU_COUNT(usable);
    if (local_ranks > cores)
        return *usable; /* let the scheduler move them */
    int first = cores * local_rank / local_ranks, past = cores * (local_rank + 1) / local_ranks;
    cpu_set_t share;
    CPU_ZERO(&share);
    int i = 0;
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, usable))
            continue;
        if (i >= first && i < past)
            CPU_SET(cpu, &share);
        i++;
    }
    return share;
}

int host_take_cores(bool keep, char **argv)
{
    cpu_set_t bound, usable;
    sched_getaffinity(0, sizeof bound, &bound);
    if (keep)
        return CPU_COUNT(&bound);
    int local_rank = from_environment("OMPI_COMM_WORLD_LOCAL_RANK", 0);
    int local_ranks = from_environment("OMPI_COMM_WORLD_LOCAL_SIZE", 1);
    memset(&usable, 0xff, sizeof usable);
    sched_setaffinity(0, sizeof usable, &usable); /* the kernel intersects it with what the cgroup allows */
    sched_getaffinity(0, sizeof usable, &usable);
    cpu_set_t share = share_of(&usable, local_rank, local_ranks > 0 ? local_ranks : 1);
    sched_setaffinity(0, sizeof share, &share);
    bool told = getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY");
    if ((!told || !CPU_EQUAL(&share, &bound)) && !getenv(HOST_STARTED_OVER)) {
        setenv("GOMP_SPINCOUNT", HOST_SPINS, 0);
        setenv(HOST_STARTED_OVER, "1", 1);
        char path[PATH_MAX];
        ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
        path[length > 0 ? length : 0] = '\0'; /* the file's own name: what ps and top then show */
        execv(path, argv);                    /* if it fails, OpenMP is slower, nothing else */
    }
    unsetenv(HOST_STARTED_OVER);
    return local_ranks > CPU_COUNT(&usable) ? 1 : CPU_COUNT(&share);
}

/* The number after `key` in a file of "key value" lines, or the first number where key is "". -1: none. */
static int64_t read_number(const char *path, const char *key)
{
    char line[256];
    int64_t number = -1;
    FILE *file = fopen(path, "re");
    if (!file)
        return -1;
    while (number < 0 && fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), "%" SCNd64, &number) != 1)
            number = -1;
    fclose(file);
    return number;
}

int64_t host_memory_available(int local_ranks)
{
    int64_t available = read_number("/proc/meminfo", "MemAvailable:");
    available = available < 0 ? INT64_MAX : available * 1024;
    static const char *const groups[][3] = {
        {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
         "/sys/fs/cgroup/memory/memory.stat"}};
    for (int i = 0; i < 2; i++) {
        int64_t most = read_number(groups[i][0], ""), used = read_number(groups[i][1], "");
        int64_t cache = read_number(groups[i][2], "inactive_file "); /* given back when asked for */
        if (most > 0 && used >= 0 && most - used + (cache > 0 ? cache : 0) < available)
            available = most - used + (cache > 0 ? cache : 0);
    }
    return available / 20 * 19 / local_ranks;
}

static bool promises_all;
void host_memory_promise_all(bool promise)
{
    promises_all = promise;
}

bool host_memory_fits(int64_t bytes, int local_ranks, const char *what, struct err *err)
{
    int64_t available = host_memory_available(local_ranks);
    if (bytes <= available || promises_all)
        return true;
    err_set(err, ERR_MEMORY, "%s needs %.2f GiB on this rank, and %.2f GiB are there", what,
            (double)bytes / (1 << 30), (double)available / (1 << 30));
    return err_hint(
        err,
        "use more ranks or hosts, a policy with fewer bytes, a smaller micro-batch, or --recompute block");
}

int64_t host_out_of_memory_kills(void)
{
    char text[16384];
    ssize_t used = 0, got = 0;
    int fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    while (used < (ssize_t)sizeof text - 1 &&
           (got = read(fd, text + used, sizeof text - 1 - (size_t)used)) > 0)
        used += got;
    close(fd);
    text[used] = '\0';
    const char *at = strstr(text, "\noom_kill ");
    return at ? atoll(at + sizeof "\noom_kill " - 1) : 0;
}

int64_t host_resident_bytes(void)
{
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file)
        return 0;
    if (fscanf(file, "%ld %ld", &pages, &resident) != 2)
        resident = 0;
    fclose(file);
    return (int64_t)resident * sysconf(_SC_PAGESIZE);
}
