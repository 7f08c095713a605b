#include "watch.h"

#include "kin.h"
#include "last_words.h"
#include "log.h"
#include "words.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define WATCH_NAP_MS     1000
#define WATCH_LINGER_MS  200 /* after a sibling's death: the launcher names the first that it sees end */
#define WATCH_LAUNCHER_S 2.0 /* in which a launcher ends all ranks after one that ended in words */

/* Written by the engine's thread, read by the watchdog's; each field is its own atomic, since a torn pair
 * only garbles the text of a line that is about to end the process. */
static struct {
    _Atomic(const char *) operation, axis;
    _Atomic int64_t count, sequence,
        alive_ns; /* alive_ns: when the operation last showed life; 0: none under way */
    pthread_t thread;
    bool running;
    int stop; /* an eventfd: readable once the watchdog is to end */
    int64_t stuck_after_ns;
} watch;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

void watch_enter(const char *operation, const char *axis, int64_t count)
{
    atomic_store(&watch.operation, operation);
    atomic_store(&watch.axis, axis);
    atomic_store(&watch.count, count);
    kin_set_place(atomic_fetch_add(&watch.sequence, 1) + 1, true);
    atomic_store(&watch.alive_ns, now_ns());
}

void watch_leave(void)
{
    atomic_store(&watch.alive_ns, 0);
    kin_set_place(atomic_load(&watch.sequence), false);
}

void watch_tick(void)
{
    if (atomic_load(&watch.alive_ns))
        atomic_store(&watch.alive_ns, now_ns());
}

int64_t watch_sequence(void)
{
    return atomic_load(&watch.sequence);
}

struct watch_place watch_where(void)
{
    return (struct watch_place){.operation = atomic_load(&watch.operation),
                                .sequence = atomic_load(&watch.sequence),
                                .inside = atomic_load(&watch.alive_ns) != 0};
}

/* "; rank 3 (pid 1234) is stopped". Where none is: "; rank 5 (pid 1236) is in none (its last is 50)". */
static int name_ranks(struct words *w, bool stopped)
{
    struct kin_place other;
    int named = 0;
    for (int32_t i = 0; kin_sibling(i, &other); i++) {
        if (stopped ? !other.stopped : other.inside)
            continue;
        named++;
        words_text(w, "; rank ");
        words_int(w, other.who.rank);
        words_text(w, " (pid ");
        words_int(w, other.who.pid);
        words_text(w, stopped ? ") is stopped (SIGSTOP, or a debugger)" : ") is in none (its last is ");
        if (stopped)
            continue;
        words_int(w, other.sequence);
        words_text(w, ")");
    }
    return named;
}

/* One line a host, from the first rank whose patience ends; all ranks end. */
static void end_stuck_process(int64_t stuck_ns)
{
    if (kin_claim()) {
        char host[256] = "?";
        struct words missing = {.used = 0};
        gethostname(host, sizeof host - 1);
        if (name_ranks(&missing, true) == 0 && name_ranks(&missing, false) == 0 && kin_siblings() > 0)
            words_text(&missing, "; all ranks of this host wait in one, so look at the other hosts");
        log_error("watch",
                  "no progress for %.0f s host=%s axis=%s operation=%s sequence=%lld count=%lld: a rank is "
                  "stopped, "
                  "lost or stuck%.*s; ending all ranks (raise --stuck-after if the work is only slow)",
                  (double)stuck_ns * 1e-9, host, atomic_load(&watch.axis), atomic_load(&watch.operation),
                  (long long)watch_sequence(), (long long)atomic_load(&watch.count), (int)missing.used,
                  missing.text);
        kin_spoken();
    }
    kin_leave();
    _exit(LAST_WORDS_EXIT);
}

/* A rank that died ends us at once. One that ended in words has told the launcher, which ends us; where
 * nobody does, we do. */
static void end_with_siblings(int64_t *left_since_ns)
{
    struct kin who;
    enum kin_end end = kin_look(&who);
    if (end == KIN_ALL_ALIVE)
        return;
    if (end == KIN_LEFT) {
        *left_since_ns = *left_since_ns ? *left_since_ns : now_ns();
        if ((double)(now_ns() - *left_since_ns) < WATCH_LAUNCHER_S * 1e9) {
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* its pidfd stays readable */
            return;
        }
    }
    last_words_about(end, &who);
    kin_leave();
    nanosleep(&(struct timespec){.tv_nsec = WATCH_LINGER_MS * 1000000l}, NULL);
    _exit(LAST_WORDS_EXIT);
}

static bool is_stopping(void)
{
    uint64_t asked;
    return read(watch.stop, &asked, sizeof asked) == sizeof asked;
}

static void *watch_main(void *unused)
{
    (void)unused;
    sigset_t stops; /* not here: this thread may be in the middle of the line that their handler waits for */
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stops, NULL);
    int64_t left_since_ns = 0, nap_ms = watch.stuck_after_ns / 8000000;
    while (!is_stopping()) {
        kin_wait(watch.stop, nap_ms < WATCH_NAP_MS ? (int)nap_ms : WATCH_NAP_MS);
        end_with_siblings(&left_since_ns);
        int64_t alive = atomic_load(&watch.alive_ns);
        int64_t stuck = alive ? now_ns() - alive : 0;
        if (stuck > watch.stuck_after_ns)
            end_stuck_process(stuck);
    }
    return NULL;
}

bool watch_start(int rank, double stuck_after_s, struct err *err)
{
    (void)rank;
    watch.stuck_after_ns = (int64_t)(stuck_after_s * 1e9);
    watch.stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (watch.stop < 0)
        return err_errno(err, "cannot start the watchdog");
    int status = pthread_create(&watch.thread, NULL, watch_main, NULL);
    if (status != 0) {
        errno = status;
        return err_errno(err, "cannot start the watchdog thread");
    }
    watch.running = true;
    return true;
}

void watch_stop(void)
{
    if (!watch.running)
        return;
    uint64_t one = 1;
    INVARIANT(write(watch.stop, &one, sizeof one) == sizeof one);
    pthread_join(watch.thread, NULL);
    close(watch.stop);
    watch.running = false;
}
