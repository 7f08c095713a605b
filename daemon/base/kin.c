#include "kin.h"

#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <time.h>
#include <unistd.h>

#define KIN_AWAIT_MS 500
#define KIN_GRACE_MS 30000 /* until somebody sets it */

struct kin_seat {
    _Atomic int32_t left, inside;
    _Atomic int64_t sequence;
};

struct kin_table { /* shared by the ranks of one host; zero at first */
    _Atomic int32_t speaker, spoken;
    struct guard_orders guard;
    struct kin_seat seats[KIN_RANKS_MAX];
};

/* Set once by kin_meet, before the watchdog's thread starts; signal handlers read it. */
static struct {
    _Atomic(struct kin_table *) table; /* NULL: alone, or not met */
    int table_fd;                      /* of the home rank */
    int32_t mine, count;               /* this rank's seat; seats taken */
    struct kin members[KIN_RANKS_MAX];
    int fds[KIN_RANKS_MAX]; /* pidfds; -1: this process */
    int launcher_fd;
    int32_t launcher;
    _Atomic bool claimed; /* by this process */
} kin = {.table_fd = -1, .launcher_fd = -1};

struct kin_card kin_card_make(int32_t rank, int32_t home)
{
    struct kin_card card = {.rank = rank, .home = home, .pid = getpid(), .table = -1};
    if (rank != home)
        return card;
    int fd = memfd_create("trainerd-kin", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, sizeof(struct kin_table)) != 0) {
        close(fd);
        fd = -1;
    }
    return card.table = kin.table_fd = fd, card;
}

static struct kin_table *map_table(const struct kin_card *home)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", home->pid, home->table);
    int fd = home->table >= 0 ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return NULL;
    void *table = mmap(NULL, sizeof(struct kin_table), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return table == MAP_FAILED ? NULL : table;
}

/* From the home rank, as long as the process is small. */
static void set_guard(struct kin_table *table)
{
    int fds[KIN_RANKS_MAX], self = pidfd_open(getpid(), 0);
    for (int32_t i = 0; i < kin.count; i++)
        fds[i] = kin.fds[i] >= 0 ? kin.fds[i] : self;
    atomic_store(&table->guard.grace_ms, KIN_GRACE_MS);
    if (self < 0)
        return;
    guard_start(fds, kin.count, guard_is_launcher(kin.launcher) ? kin.launcher_fd : -1, &table->guard);
    close(self);
}

/* mpirun, or its daemon on another host. A process that nobody launched may outlive its parent. */
static void watch_launcher(void)
{
    if (!getenv("OMPI_COMM_WORLD_LOCAL_RANK"))
        return;
    kin.launcher = getppid();
    kin.launcher_fd = pidfd_open(kin.launcher, 0);
}

bool kin_meet(const struct kin_card *cards, int32_t count, int32_t rank, struct err *err)
{
    int32_t home = -1;
    const struct kin_card *host = NULL;
    for (int32_t i = 0; i < count; i++)
        if (cards[i].rank == rank)
            home = cards[i].home;
    bool several = false;
    for (int32_t i = 0; i < count; i++)
        several |= cards[i].home != home;
    kin.count = 0;
    for (int32_t i = 0; i < count; i++) {
        if (cards[i].home != home)
            continue;
        if (kin.count == KIN_RANKS_MAX)
            return err_set(err, ERR_UNSUPPORTED, "a host has more than %d ranks", KIN_RANKS_MAX);
        if (cards[i].rank == home)
            host = &cards[i];
        int32_t seat = kin.count++;
        kin.members[seat] = (struct kin){cards[i].rank, cards[i].pid};
        kin.fds[seat] = cards[i].rank == rank ? -1 : pidfd_open(cards[i].pid, 0);
        if (cards[i].rank == rank)
            kin.mine = seat;
        else if (kin.fds[seat] < 0)
            return err_errno(err, "cannot watch over rank %d (pid %d)", cards[i].rank, cards[i].pid);
    }
    struct kin_table *table = host ? map_table(host) : NULL;
    if (!table)
        return err_errno(err, "the ranks of this host cannot share a page of memory");
    watch_launcher();
    if (several && rank == home)
        set_guard(table);
    atomic_store(&kin.table, table);
    return true;
}

void kin_set_grace(double seconds)
{
    struct kin_table *table = atomic_load(&kin.table);
    if (table)
        atomic_store(&table->guard.grace_ms, (int32_t)(seconds * 1e3));
}

void kin_part(void)
{
    struct kin_table *table = atomic_load(&kin.table);
    kin_leave();
    if (table)
        atomic_store(&table->guard.dismissed, 1);
    atomic_store(&kin.table, NULL); /* the page stays mapped: a handler may be looking at it */
}

int32_t kin_siblings(void)
{
    return atomic_load(&kin.table) ? kin.count - 1 : 0;
}

void kin_wait(int stop_fd, int other_fd, int timeout_ms)
{
    struct pollfd fds[KIN_RANKS_MAX + 3];
    nfds_t count = 0;
    fds[count++] = (struct pollfd){.fd = stop_fd, .events = POLLIN};
    fds[count++] = (struct pollfd){.fd = other_fd, .events = POLLIN};
    fds[count++] = (struct pollfd){.fd = kin.launcher_fd, .events = POLLIN}; /* -1 is passed over */
    for (int32_t i = 0; i < kin.count; i++)
        fds[count++] = (struct pollfd){.fd = kin.fds[i], .events = POLLIN};
    poll(fds, count, timeout_ms);
}

static bool has_ended(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return fd >= 0 && poll(&p, 1, 0) == 1;
}

void kin_leave(void)
{
    struct kin_table *table = atomic_load(&kin.table);
    if (table)
        atomic_store(&table->seats[kin.mine].left, 1);
}

enum kin_end kin_look(struct kin *who)
{
    struct kin_table *table = atomic_load(&kin.table);
    enum kin_end end = KIN_ALL_ALIVE;
    for (int32_t i = 0; table && i < kin.count; i++) {
        if (!has_ended(kin.fds[i]))
            continue;
        *who = kin.members[i];
        if (!atomic_load(&table->seats[i].left))
            return KIN_DIED;
        end = KIN_LEFT;
    }
    if (!table || end == KIN_LEFT || !has_ended(kin.launcher_fd))
        return end;
    *who = (struct kin){.rank = -1, .pid = kin.launcher};
    return KIN_LAUNCHER_DIED;
}

bool kin_claim(void)
{
    struct kin_table *table = atomic_load(&kin.table);
    int32_t nobody = 0;
    if (table)
        atomic_store(&table->guard.ending, 1);
    if (table && !atomic_compare_exchange_strong(&table->speaker, &nobody, getpid()))
        return false;
    return !atomic_exchange(&kin.claimed, true);
}

void kin_spoken(void)
{
    struct kin_table *table = atomic_load(&kin.table);
    if (table)
        atomic_store(&table->spoken, 1);
}

void kin_await_words(void)
{
    struct kin_table *table = atomic_load(&kin.table);
    for (int ms = 0; table && ms < KIN_AWAIT_MS; ms++) {
        if (atomic_load(&table->speaker) != getpid() || atomic_load(&table->spoken))
            return;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

void kin_set_place(int64_t sequence, bool inside)
{
    struct kin_table *table = atomic_load_explicit(&kin.table, memory_order_relaxed);
    if (!table)
        return;
    atomic_store_explicit(&table->seats[kin.mine].sequence, sequence, memory_order_relaxed);
    atomic_store_explicit(&table->seats[kin.mine].inside, inside, memory_order_relaxed);
}

/* /proc/PID/stat as far as a fixed buffer goes: its fields are counted after the name, which may hold spaces.
 * Returns where field `wanted` (3 is the state) begins, or NULL. */
static const char *stat_field(int32_t pid, int wanted, char *buffer, size_t bytes)
{
    char path[32] = "/proc/", digits[12];
    size_t used = 6, count = 0;
    for (int32_t rest = pid; rest > 0 && count < sizeof digits; rest /= 10)
        digits[count++] = (char)('0' + rest % 10);
    while (count > 0)
        path[used++] = digits[--count];
    memcpy(path + used, "/stat", sizeof "/stat");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    ssize_t got = read(fd, buffer, bytes - 1);
    close(fd);
    buffer[got > 0 ? got : 0] = '\0';
    const char *at = strrchr(buffer, ')');
    for (int field = 2; at && field < wanted; field++)
        at = strchr(at + 1, ' ');
    return at ? at + 1 : NULL;
}

bool kin_sibling(int32_t i, struct kin_place *place)
{
    struct kin_table *table = atomic_load(&kin.table);
    int32_t seat = i < kin.mine ? i : i + 1;
    char buffer[1024];
    if (!table || seat >= kin.count)
        return false;
    const char *state = stat_field(kin.members[seat].pid, 3, buffer, sizeof buffer);
    *place = (struct kin_place){.who = kin.members[seat],
                                .inside = atomic_load(&table->seats[seat].inside),
                                .sequence = atomic_load(&table->seats[seat].sequence),
                                .stopped = state && (*state == 'T' || *state == 't')};
    return true;
}

int kin_exit_status(int32_t pid)
{
    char buffer[1024];
    const char *state = stat_field(pid, 3, buffer, sizeof buffer);
    if (!state || (*state != 'Z' && *state != 'X'))
        return -1; /* its parent has already asked */
    const char *status = stat_field(pid, 52, buffer, sizeof buffer);
    return status && *status >= '0' && *status <= '9' ? atoi(status) : -1;
}
