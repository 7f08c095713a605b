#include "last_words.h"

#include "host.h"
#include "log.h"
#include "watch.h"
#include "words.h"

#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS_MAPS      16
#define WORDS_PATH      1024
#define WORDS_STACK     65536
#define WORDS_BACKTRACE 64

static struct {
    int32_t rank;
    char host[256];
    int64_t oom_kills; /* by the kernel, before we started */
    /* Two places for the checkpoint, one written while the other is read. */
    char checkpoints[2][WORDS_PATH + 32];
    _Atomic(const char *) checkpoint;
    struct {
        _Atomic uintptr_t first, past;
        char path[WORDS_PATH];
    } maps[WORDS_MAPS];
    pthread_mutex_t maps_lock; /* of writers; the handler only reads */
} words = {.rank = -1, .maps_lock = PTHREAD_MUTEX_INITIALIZER};

void last_words_set_rank(int32_t rank, const char *host)
{
    words.rank = rank;
    snprintf(words.host, sizeof words.host, "%s", host);
}

void last_words_set_checkpoint(const char *path, int64_t step)
{
    char *free_one = words.checkpoints[atomic_load(&words.checkpoint) == words.checkpoints[0]];
    snprintf(free_one, sizeof words.checkpoints[0], "%.*s step %lld", WORDS_PATH, path, (long long)step);
    atomic_store(&words.checkpoint, free_one);
}

const char *last_words_checkpoint(void)
{
    return atomic_load(&words.checkpoint);
}

void last_words_map(const void *bytes, size_t count, const char *path)
{
    pthread_mutex_lock(&words.maps_lock);
    for (int i = 0; i < WORDS_MAPS; i++)
        if (!atomic_load(&words.maps[i].past)) {
            snprintf(words.maps[i].path, WORDS_PATH, "%s", path);
            atomic_store(&words.maps[i].first, (uintptr_t)bytes);
            atomic_store(&words.maps[i].past, (uintptr_t)bytes + count);
            break;
        }
    pthread_mutex_unlock(&words.maps_lock);
}

void last_words_unmap(const void *bytes)
{
    pthread_mutex_lock(&words.maps_lock);
    for (int i = 0; i < WORDS_MAPS; i++)
        if (atomic_load(&words.maps[i].first) == (uintptr_t)bytes)
            atomic_store(&words.maps[i].past, 0);
    pthread_mutex_unlock(&words.maps_lock);
}

static const char *mapped_file(uintptr_t address)
{
    for (int i = 0; i < WORDS_MAPS; i++)
        if (address >= atomic_load(&words.maps[i].first) && address < atomic_load(&words.maps[i].past))
            return words.maps[i].path;
    return NULL;
}

/* "trainerd: rank 3 (pid 1234, host x) died: " */
static void begin(struct words *w, int32_t rank, int32_t pid)
{
    words_text(w, "trainerd: ");
    words_text(w, rank < 0 ? "the launcher" : "rank ");
    if (rank >= 0)
        words_int(w, rank);
    words_text(w, " (pid ");
    words_int(w, pid);
    words_text(w, ", host ");
    words_text(w, words.host);
    words_text(w, ") died: ");
}

/* "; all ranks end; the last checkpoint stands: PATH step N", and out with it. */
static void finish(struct words *w)
{
    const char *checkpoint = atomic_load(&words.checkpoint);
    words_text(w, checkpoint ? "; all ranks end; the last checkpoint stands: "
                             : "; all ranks end; no checkpoint was saved or loaded since the start");
    words_text(w, checkpoint ? checkpoint : "");
    log_words(w);
    kin_spoken();
}

static void signal_name(struct words *w, int number)
{
    const char *name = sigabbrev_np(number);
    words_text(w, name ? "SIG" : "signal ");
    if (name)
        words_text(w, name);
    else
        words_int(w, number);
}

static void say_cause(struct words *w, int status)
{
    if (status >= 0 && !WIFSIGNALED(status)) {
        words_text(w, "it ended by itself with status ");
        words_int(w, WEXITSTATUS(status));
        return;
    }
    int64_t kills = host_out_of_memory_kills() - words.oom_kills;
    bool known = status >= 0;
    if (known && WTERMSIG(status) != SIGKILL) {
        words_text(w, "ended by ");
        signal_name(w, WTERMSIG(status));
    } else if (kills > 0) {
        words_text(w, "killed (SIGKILL), it seems by the kernel because memory ran out");
    } else {
        words_text(w, known ? "killed from outside (SIGKILL)"
                            : "killed from outside, it seems (SIGKILL; the kernel ended none for memory)");
    }
}

void last_words_about(enum kin_end end, const struct kin *who)
{
    if ((end != KIN_DIED && end != KIN_LAUNCHER_DIED) || !kin_claim())
        return;
    struct words w = {.used = 0};
    begin(&w, who->rank, who->pid);
    say_cause(&w, kin_exit_status(who->pid));
    finish(&w);
}

void last_words_because(const struct err *err)
{
    char line[3 * ERR_TEXT_BYTES + 8];
    if (kin_claim()) {
        struct words w = {.used = 0};
        begin(&w, words.rank, getpid());
        words_text(&w, err_line(err, line, sizeof line));
        finish(&w);
    }
    kin_leave();
}

static void end_by(int number)
{
    signal(number, SIG_DFL);
    raise(number); /* taken when the handler returns */
}

static void say_place(struct words *w)
{
    struct watch_place at = watch_where();
    words_text(w, at.inside ? ", in " : ", between collectives, the last ");
    words_text(w, at.operation ? at.operation : "none");
    words_text(w, " (sequence ");
    words_int(w, at.sequence);
    words_text(w, ")");
}

static void on_crash(int number, siginfo_t *info, void *context)
{
    (void)context;
    bool faulted = number != SIGABRT && info->si_code > 0;
    const char *file = faulted && number == SIGBUS ? mapped_file((uintptr_t)info->si_addr) : NULL;
    if (kin_claim()) {
        struct words w = {.used = 0};
        begin(&w, words.rank, getpid());
        signal_name(&w, number);
        if (file) {
            words_text(&w, ": the mapped file ");
            words_text(&w, file);
            words_text(&w, " was shortened, or its disk cannot be read");
        } else if (faulted) {
            words_text(&w, " at address ");
            words_address(&w, (uintptr_t)info->si_addr);
        } else if (info->si_code <= 0 && info->si_pid != getpid()) {
            words_text(&w, " from pid ");
            words_int(&w, info->si_pid);
        }
        say_place(&w);
        finish(&w);
    }
    kin_leave();
    void *frames[WORDS_BACKTRACE];
    int log = log_descriptor();
    if (log >= 0 && !file)
        backtrace_symbols_fd(frames, backtrace(frames, WORDS_BACKTRACE), log);
    end_by(number);
}

/* The launcher may have lost a host and end us before our own patience does. */
static void say_silent_hosts(void)
{
    struct words w = {.used = 0};
    words_text(&w, "trainerd: ended by the launcher on host ");
    words_text(&w, words.host);
    if (watch_name_silent(&w) == 0 || !kin_claim())
        return;
    finish(&w);
}

/* The launcher's, or whoever's. */
static void on_stop(int number, siginfo_t *info, void *context)
{
    (void)context;
    struct kin who;
    kin_leave();
    enum kin_end end = kin_look(&who);
    last_words_about(end, &who);
    bool from_elsewhere = info->si_code <= 0 && info->si_pid != getppid() && info->si_pid != getpid();
    if (end == KIN_ALL_ALIVE && from_elsewhere && kin_siblings() > 0 && kin_claim()) {
        struct words w = {.used = 0};
        begin(&w, words.rank, getpid());
        signal_name(&w, number);
        words_text(&w, " from pid ");
        words_int(&w, info->si_pid);
        finish(&w);
    }
    if (end == KIN_ALL_ALIVE && !from_elsewhere)
        say_silent_hosts();
    kin_await_words();
    end_by(number);
}

void last_words_install(void)
{
    static char stack[WORDS_STACK];
    words.oom_kills = host_out_of_memory_kills();
    struct sigaction stop = {.sa_sigaction = on_stop, .sa_flags = SA_SIGINFO};
    sigemptyset(&stop.sa_mask);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)stack, (void)on_crash;
#else
    void *frame[1];
    backtrace(frame, 1); /* loads what it needs, now rather than in a handler */
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack},
                NULL); /* a stack overflow has none left */
    struct sigaction crash = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&crash.sa_mask);
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++)
        sigaction(crashes[i], &crash, NULL);
#endif
}
