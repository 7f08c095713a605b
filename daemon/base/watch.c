#include "watch.h"

#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WATCH_EXIT_STATUS 3

/* Written by the engine's thread, read by the watchdog's; each field is its own atomic, since a torn pair
 * only garbles the text of a line that is about to end the process. */
static struct {
    _Atomic(const char *) operation, axis;
    _Atomic int64_t count, sequence,
        alive_ns; /* alive_ns: when the operation last showed life; 0: none under way */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t stop;
    bool running, stopping;
    int rank;
    int64_t stuck_after_ns;
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER};

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
    atomic_fetch_add(&watch.sequence, 1);
    atomic_store(&watch.alive_ns, now_ns());
}

void watch_leave(void)
{
    atomic_store(&watch.alive_ns, 0);
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

static void end_stuck_process(int64_t stuck_ns)
{
    char host[256] = "?";
    gethostname(host, sizeof host - 1);
    log_error("watch",
              "no progress for %.0f s host=%s axis=%s operation=%s sequence=%lld count=%lld: a rank is "
              "stopped, lost or "
              "stuck; ending this rank, which ends all (raise --stuck-after if the work is only slow)",
              (double)stuck_ns * 1e-9, host, atomic_load(&watch.axis), atomic_load(&watch.operation),
              (long long)watch_sequence(), (long long)atomic_load(&watch.count));
    _exit(WATCH_EXIT_STATUS);
}

static void *watch_main(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&watch.lock);
    while (!watch.stopping) {
        struct timespec wake;
        clock_gettime(CLOCK_REALTIME, &wake);
        int64_t nap_ns = watch.stuck_after_ns / 8 < 1000000000 ? watch.stuck_after_ns / 8 : 1000000000;
        wake.tv_nsec += nap_ns;
        wake.tv_sec += wake.tv_nsec / 1000000000;
        wake.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&watch.stop, &watch.lock, &wake);
        int64_t alive = atomic_load(&watch.alive_ns);
        int64_t stuck = alive ? now_ns() - alive : 0;
        if (!watch.stopping && stuck > watch.stuck_after_ns)
            end_stuck_process(stuck);
    }
    pthread_mutex_unlock(&watch.lock);
    return NULL;
}

bool watch_start(int rank, double stuck_after_s, struct err *err)
{
    watch.rank = rank;
    watch.stuck_after_ns = (int64_t)(stuck_after_s * 1e9);
    watch.stopping = false;
    pthread_cond_init(&watch.stop, NULL);
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
    pthread_mutex_lock(&watch.lock);
    watch.stopping = true;
    pthread_cond_signal(&watch.stop);
    pthread_mutex_unlock(&watch.lock);
    pthread_join(watch.thread, NULL);
    pthread_cond_destroy(&watch.stop);
    watch.running = false;
}
