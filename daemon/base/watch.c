#include "watch.h"

#include "kin.h"
#include "last_words.h"
#include "log.h"
#include "roll.h"
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
#define WATCH_ASK_NS     5000000000ll /* hosts ask each other so often, or eight times within stuck_after */
#define WATCH_DEFER_NS   2000000000ll /* for the host's first rank to speak, or a quarter of stuck_after */
#define WATCH_GRACE_S    30.0         /* for the launcher, or a quarter of stuck_after */

/* Written by the engine's thread, read by the watchdog's; each field is its own atomic, since a torn pair
 * only garbles the text of a line that is about to end the process. */
static struct {
    _Atomic(const char *) operation, axis;
    _Atomic int64_t count, sequence,
        alive_ns; /* alive_ns: when the operation last showed life; 0: none under way */
    pthread_t thread;
    bool running;
    int32_t rank;
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

int32_t watch_name_silent(struct words *w)
{
    return roll_name_silent(w, now_ns(), watch.stuck_after_ns / 3, false);
}

/* What the host's first rank knows of the others: who does not answer, who is elsewhere. */
static int name_hosts(struct words *w)
{
    int named = watch_name_silent(w);
    return named ? named : roll_name_elsewhere(w);
}

static void name_checkpoint(struct words *w)
{
    const char *checkpoint = last_words_checkpoint();
    words_text(w, checkpoint ? "; the last checkpoint stands: " : "");
    words_text(w, checkpoint ? checkpoint : "");
}

static _Noreturn void leave_and_end(void)
{
    kin_leave();
    _exit(LAST_WORDS_EXIT);
}

/* One line a host, from the first rank whose patience ends; all ranks end. */
static _Noreturn void end_stuck_process(int64_t stuck_ns)
{
    if (kin_claim()) {
        char host[256] = "?";
        struct words missing = {.used = 0}, kept = {.used = 0};
        gethostname(host, sizeof host - 1);
        if (name_ranks(&missing, true) == 0 && name_hosts(&missing) == 0 &&
            name_ranks(&missing, false) == 0 && (kin_siblings() > 0 || roll_hosts() > 1))
            words_text(&missing, "; all ranks of this host wait in one, so look at the other hosts");
        name_checkpoint(&kept);
        log_error("watch",
                  "no progress for %.0f s host=%s axis=%s operation=%s sequence=%lld count=%lld: a rank is "
                  "stopped, "
                  "lost or stuck%.*s; ending all ranks (raise --stuck-after if the work is only slow)%.*s",
                  (double)stuck_ns * 1e-9, host, atomic_load(&watch.axis), atomic_load(&watch.operation),
                  (long long)watch_sequence(), (long long)atomic_load(&watch.count), (int)missing.used,
                  missing.text, (int)kept.used, kept.text);
        kin_spoken();
    }
    leave_and_end();
}

/* A host that answered before and does not for so long is lost, also where no collective waits for it. */
static void end_with_lost_host(void)
{
    struct words missing = {.used = 0}, kept = {.used = 0};
    if (roll_name_silent(&missing, now_ns(), watch.stuck_after_ns, true) == 0)
        return;
    if (kin_claim()) {
        char host[256] = "?";
        gethostname(host, sizeof host - 1);
        name_checkpoint(&kept);
        log_error(
            "watch",
            "lost contact host=%s%.*s: cut off, down or stopped; ending all ranks (raise --stuck-after if it "
            "would have come back)%.*s",
            host, (int)missing.used, missing.text, (int)kept.used, kept.text);
        kin_spoken();
    }
    leave_and_end();
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

/* The one rank of this host that other hosts would hear of. */
static struct roll_news what_is_new(void)
{
    struct kin_place other;
    struct roll_news news = {.place = atomic_load(&watch.alive_ns) ? ROLL_INSIDE : ROLL_ELSEWHERE,
                             .rank = watch.rank,
                             .sequence = watch_sequence()};
    for (int32_t i = 0; kin_sibling(i, &other); i++)
        if (other.stopped || (!other.inside && news.place == ROLL_INSIDE))
            news = (struct roll_news){.place = other.stopped ? ROLL_STOPPED : ROLL_ELSEWHERE,
                                      .rank = other.who.rank,
                                      .sequence = other.sequence};
    return news;
}

/* Other hosts ask this one, and the other way round; all of them once a collective has stood still for a
 * while. */
static void attend_roll(int64_t stuck_ns)
{
    if (roll_descriptor() < 0)
        return;
    struct roll_news news = what_is_new();
    int64_t every_ns = watch.stuck_after_ns / 8 < WATCH_ASK_NS ? watch.stuck_after_ns / 8 : WATCH_ASK_NS;
    roll_attend(now_ns(), every_ns, stuck_ns > watch.stuck_after_ns / 4, &news);
    end_with_lost_host();
}

/* Where hosts ask each other, the first rank of each knows more than the others: it speaks first. */
static int64_t patience_ns(void)
{
    int64_t defer = watch.stuck_after_ns / 4 < WATCH_DEFER_NS ? watch.stuck_after_ns / 4 : WATCH_DEFER_NS;
    return watch.stuck_after_ns + (roll_hosts() > 1 && roll_descriptor() < 0 ? defer : 0);
}

static void *watch_main(void *unused)
{
    (void)unused;
    sigset_t stops; /* not here: this thread may be in the middle of the line that their handler waits for */
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stops, NULL);
    int64_t left_since_ns = 0, stuck = 0, nap_ms = watch.stuck_after_ns / 8000000;
    while (!is_stopping()) {
        attend_roll(stuck);
        kin_wait(watch.stop, roll_descriptor(), nap_ms < WATCH_NAP_MS ? (int)nap_ms : WATCH_NAP_MS);
        end_with_siblings(&left_since_ns);
        int64_t alive = atomic_load(&watch.alive_ns);
        stuck = alive ? now_ns() - alive : 0;
        if (stuck > patience_ns())
            end_stuck_process(stuck);
    }
    return NULL;
}

bool watch_start(int rank, double stuck_after_s, struct err *err)
{
    watch.rank = rank;
    watch.stuck_after_ns = (int64_t)(stuck_after_s * 1e9);
    kin_set_grace(stuck_after_s / 4 < WATCH_GRACE_S ? stuck_after_s / 4 : WATCH_GRACE_S);
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
    roll_done();
    watch.running = false;
}
