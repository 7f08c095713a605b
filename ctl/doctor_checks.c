/* What is here, what is missing, and the command that mends it. */
#include "doctor.h"

#include "device.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void add(json_t *checks, const char *check, const char *state, const char *hint, const char *format,
                ...) __attribute__((format(printf, 5, 6)));

static void add(json_t *checks, const char *check, const char *state, const char *hint, const char *format,
                ...)
{
    char found[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(found, sizeof found, format, arguments);
    va_end(arguments);
    json_array_append_new(
        checks, json_pack("{ss, ss, ss, ss}", "check", check, "state", state, "found", found, "do", hint));
}

/* The value of "key…: value" in a file of such lines. */
static bool line_value(const char *path, const char *key, char *value, size_t value_bytes)
{
    char line[4096];
    FILE *file = fopen(path, "re");
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) != 0 || !colon)
            continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(value, value_bytes, "%s", colon);
        found = true;
    }
    if (file)
        fclose(file);
    return found;
}

static bool on_path(const char *program, char *where, size_t where_bytes)
{
    const char *path = getenv("PATH");
    for (const char *from = path ? path : ""; *from;) {
        size_t bytes = strcspn(from, ":");
        snprintf(where, where_bytes, "%.*s/%s", (int)bytes, from, program);
        if (access(where, X_OK) == 0)
            return true;
        from += bytes + (from[bytes] == ':');
    }
    return false;
}

static void first_line(const char *command, char *line, size_t line_bytes)
{
    FILE *pipe = popen(command, "re");
    line[0] = '\0';
    if (pipe && fgets(line, (int)line_bytes, pipe))
        line[strcspn(line, "\n")] = '\0';
    if (pipe)
        pclose(pipe);
}

static int usable_cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static void check_processor(json_t *checks)
{
    char name[256] = "unknown", flags[4096] = "";
    line_value("/proc/cpuinfo", "model name", name, sizeof name);
    if (line_value("/proc/cpuinfo", "flags", flags + 1, sizeof flags - 2))
        flags[0] = ' ';
    strncat(flags, " ", sizeof flags - strlen(flags) - 1);
    static const char *const wanted[] = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"};
    char has[128] = "";
    size_t used = 0;
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        char word[32];
        snprintf(word, sizeof word, " %s ", wanted[i]);
        if (strstr(flags, word) && used < sizeof has)
            used += (size_t)snprintf(has + used, sizeof has - used, "%s%s", used ? ", " : "", wanted[i]);
    }
    add(checks, "processor", "ok", "", "%s", name);
    add(checks, "cores", "ok", "", "%d usable of %ld", usable_cores(), sysconf(_SC_NPROCESSORS_ONLN));
    bool bf16 = strstr(has, "bf16") != NULL;
    add(checks, "instructions", bf16 ? "ok" : "note",
        bf16 ? "" : "bf16 products run in fp32 on bf16-rounded inputs here: right, and slower", "%s",
        has[0] ? has : "none of AVX2, AVX-512, AMX");
}

static double cgroup_limit(void)
{
    char text[64] = "";
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "re");
    if (!file)
        file = fopen("/sys/fs/cgroup/memory/memory.limit_in_bytes", "re");
    if (file && !fgets(text, sizeof text, file))
        text[0] = '\0';
    if (file)
        fclose(file);
    double limit = strtod(text, NULL);
    return limit > 0 && limit < 1e15 ? limit : 0;
}

static void check_memory(json_t *checks, const char *state_folder)
{
    char total[64] = "0", available[64] = "0", limit_text[64] = "";
    struct statvfs disk;
    struct rlimit files;
    line_value("/proc/meminfo", "MemTotal", total, sizeof total);
    line_value("/proc/meminfo", "MemAvailable", available, sizeof available);
    double limit = cgroup_limit();
    if (limit > 0)
        snprintf(limit_text, sizeof limit_text, "; this container may use %.1f GB", limit / 1e9);
    add(checks, "memory", "ok", "", "%.1f GB, %.1f GB available%s", strtod(total, NULL) * 1024e-9,
        strtod(available, NULL) * 1024e-9, limit_text);
    if (statvfs(state_folder, &disk) == 0)
        add(checks, "disk", "ok", "", "%.1f GB free at %s",
            (double)disk.f_bavail * (double)disk.f_frsize * 1e-9, state_folder);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0)
        add(checks, "open files", files.rlim_max >= 1024 ? "ok" : "note",
            files.rlim_max >= 1024 ? "" : "raise it with ulimit -Hn for more clients", "%llu, at most %llu",
            (unsigned long long)files.rlim_cur, (unsigned long long)files.rlim_max);
}

static bool is_set(const char *name)
{
    const char *value = getenv(name);
    return value && value[0] && strcmp(value, "0") != 0;
}

static void check_mpi_root(json_t *checks)
{
    if (geteuid() != 0)
        return;
    bool told = is_set("OMPI_ALLOW_RUN_AS_ROOT") && is_set("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM");
    add(checks, "mpirun as root", told ? "ok" : "missing",
        told ? "" : "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1, or use another user",
        "%s", told ? "allowed by the environment" : "Open MPI refuses root unless told twice");
}

static void check_mpi_slots(json_t *checks)
{
    bool told = is_set("OMPI_MCA_rmaps_base_oversubscribe");
    add(checks, "mpirun slots", told ? "ok" : "note",
        told ? "" : "for more ranks than cores: export OMPI_MCA_rmaps_base_oversubscribe=1", "%s",
        told ? "more ranks than cores are allowed by the environment"
             : "mpirun starts at most one rank a physical core");
}

/* May one process read another's memory, as Open MPI moves large messages between ranks? Tried with two
 * children. */
static bool single_copy_works(void)
{
    static char there[64] = "there", here[64];
    int ready[2];
    char byte;
    if (pipe2(ready, O_CLOEXEC) != 0)
        return true;
    pid_t target = fork();
    if (target == 0) {
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); /* as Open MPI does */
        (void)!write(ready[1], "x", 1);
        for (;;)
            pause();
    }
    (void)!read(ready[0], &byte, 1);
    pid_t reader = fork();
    if (reader == 0) {
        struct iovec local = {here, sizeof here}, remote = {there, sizeof there};
        _exit(process_vm_readv(target, &local, 1, &remote, 1, 0) == (ssize_t)sizeof here ? 0 : 1);
    }
    int status = 1;
    waitpid(reader, &status, 0);
    kill(target, SIGKILL);
    waitpid(target, NULL, 0);
    close(ready[0]);
    close(ready[1]);
    return status == 0;
}

static void check_mpi_copy(json_t *checks)
{
    const char *set = getenv("OMPI_MCA_btl_vader_single_copy_mechanism");
    bool none = set && strcmp(set, "none") == 0, works = single_copy_works();
    add(checks, "mpi single copy", works || none ? "ok" : "missing",
        works || none ? "" : "export OMPI_MCA_btl_vader_single_copy_mechanism=none", "%s",
        works  ? "ranks may read each other's memory (process_vm_readv)"
        : none ? "process_vm_readv is forbidden here, and the environment tells Open MPI so"
               : "process_vm_readv is forbidden here: every large message would fail");
}

/* Interfaces that programs make on every host alike: their addresses mean nothing on the next one. */
static bool is_alike_everywhere(const char *interface)
{
    static const char *const made[] = {"docker", "br-", "virbr", "podman", "cni", "lxc", "lxd", "veth"};
    for (size_t i = 0; i < sizeof made / sizeof made[0]; i++)
        if (strncmp(interface, made[i], strlen(made[i])) == 0)
            return true;
    return false;
}

/* Open MPI tries every interface to reach the other hosts, and hangs on one that leads nowhere. */
static void check_network(json_t *checks)
{
    struct ifaddrs *all = NULL;
    char found[256] = "", good[64] = "", hint[256] = "";
    const char *alike = NULL, *told = getenv("OMPI_MCA_btl_tcp_if_include");
    size_t used = 0;
    bool told_is_there = false;
    if (getifaddrs(&all) != 0)
        return;
    told = told && told[0] ? told : NULL;
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        char text[INET_ADDRSTRLEN];
        struct sockaddr_in address;
        unsigned wanted = IFF_UP | IFF_RUNNING;
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || (i->ifa_flags & wanted) != wanted)
            continue;
        told_is_there |= told && strcmp(told, i->ifa_name) == 0;
        if (i->ifa_flags & IFF_LOOPBACK)
            continue;
        memcpy(&address, i->ifa_addr, sizeof address);
        inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
        if (used < sizeof found)
            used += (size_t)snprintf(found + used, sizeof found - used, "%s%s %s", used ? ", " : "",
                                     i->ifa_name, text);
        if (is_alike_everywhere(i->ifa_name))
            alike = i->ifa_name;
        else if (!good[0])
            snprintf(good, sizeof good, "%s", i->ifa_name);
    }
    bool lost = told && !strpbrk(told, ",/") && !told_is_there;
    bool open = !lost && alike && !told && !getenv("OMPI_MCA_btl_tcp_if_exclude");
    if (lost || open)
        snprintf(hint, sizeof hint, "%sexport OMPI_MCA_btl_tcp_if_include=%s OMPI_MCA_oob_tcp_if_include=%s",
                 lost ? "" : "for several hosts, since the others may have that address too: ",
                 good[0] ? good : "INTERFACE", good[0] ? good : "INTERFACE");
    add(checks, "network",
        lost   ? "missing"
        : open ? "note"
               : "ok",
        hint, "%s%s%s", used ? found : "no interface but the loopback: this host alone",
        lost ? "; there is no interface named by OMPI_MCA_btl_tcp_if_include=" : "", lost ? told : "");
    freeifaddrs(all);
}

static void check_mpi(json_t *checks)
{
    char where[4096], version[256];
    if (!on_path("mpirun", where, sizeof where)) {
        add(checks, "Open MPI", "missing", "apt-get install openmpi-bin", "there is no mpirun in PATH");
        return;
    }
    first_line("mpirun --version 2>/dev/null", version, sizeof version);
    bool open_mpi = strstr(version, "Open MPI") != NULL || strstr(version, "OpenRTE") != NULL;
    add(checks, "Open MPI", open_mpi ? "ok" : "missing", open_mpi ? "" : "apt-get install openmpi-bin",
        "%s: %s", where, version[0] ? version : "does not say its version");
    check_mpi_root(checks);
    check_mpi_slots(checks);
    check_mpi_copy(checks);
    check_network(checks);
}

static void check_programs(json_t *checks)
{
    static const struct {
        const char *check, *program, *package, *what;
    } rows[] = {
        {"gnuplot", "gnuplot", "apt-get install gnuplot-nox", "trainctl plot and compare draw with it"},
        {"trainerd", "trainerd", "meson install, or put the build's daemon/ into PATH", "the daemon itself"},
    };
    char where[4096];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bool there = on_path(rows[i].program, where, sizeof where);
        add(checks, rows[i].check, there ? "ok" : "note", there ? "" : rows[i].package, "%s%s%s",
            there ? where : "not in PATH", there ? "" : ": ", there ? "" : rows[i].what);
    }
}

static void check_device(json_t *checks)
{
    struct device device;
    char why[256];
    if (device_open(&device, "cpu", 0, why, sizeof why) != 0) {
        add(checks, "kernels", "missing", "", "the CPU cannot be used: %s", why);
        return;
    }
    add(checks, "kernels", "ok", "", "%s", device.description);
    add(checks, "products", "ok", "", "%s", device.products);
    device_close(&device);
}

json_t *doctor_checks(const char *state_folder)
{
    json_t *checks = json_array();
    check_processor(checks);
    check_memory(checks, state_folder);
    check_mpi(checks);
    check_programs(checks);
    check_device(checks);
    return checks;
}
