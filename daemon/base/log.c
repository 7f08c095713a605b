#include "log.h"

#include "words.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOG_ROTATE_BYTES (16 << 20)

/* The log is one of the two globals of the program (the other is the signal flag). */
static struct {
    pthread_mutex_t lock;
    int rank;
    _Atomic int64_t step;
    enum log_level stderr_level;
    int fd;
    bool rotates;
    char path[4096];
} g_log = {.lock = PTHREAD_MUTEX_INITIALIZER, .rank = -1, .step = -1, .stderr_level = LOG_WARNING, .fd = -1};

static const char *const level_names[] = {"debug", "info", "warning", "error"};

void log_set_rank(int rank)
{
    g_log.rank = rank;
}

void log_set_step(int64_t step)
{
    atomic_store(&g_log.step, step);
}

void log_set_stderr_level(enum log_level level)
{
    g_log.stderr_level = level;
}

bool log_open(const char *path, bool rotates, struct err *err)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, "cannot open the log %s", path);
    pthread_mutex_lock(&g_log.lock);
    if (g_log.fd >= 0)
        close(g_log.fd);
    g_log.fd = fd;
    g_log.rotates = rotates;
    snprintf(g_log.path, sizeof g_log.path, "%s", path);
    pthread_mutex_unlock(&g_log.lock);
    return true;
}

void log_close(void)
{
    pthread_mutex_lock(&g_log.lock);
    if (g_log.fd >= 0)
        close(g_log.fd);
    g_log.fd = -1;
    pthread_mutex_unlock(&g_log.lock);
}

/* Ranks that share the file notice the rotation by the inode. Called with the lock held. */
static void rotate_or_follow(void)
{
    struct stat ours, named;
    if (fstat(g_log.fd, &ours) != 0)
        return;
    bool moved = stat(g_log.path, &named) != 0 || named.st_ino != ours.st_ino;
    if (!moved && g_log.rotates && ours.st_size >= LOG_ROTATE_BYTES) {
        char old[sizeof g_log.path + 2];
        snprintf(old, sizeof old, "%s.1", g_log.path);
        moved = rename(g_log.path, old) == 0;
    }
    if (!moved)
        return;
    int fd = open(g_log.path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return; /* keep writing to the old file: a log that cannot rotate is still a log */
    close(g_log.fd);
    g_log.fd = fd;
}

static void write_all(int fd, const char *text, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = write(fd, text, bytes);
        if (written <= 0)
            return; /* nowhere left to report it */
        text += written;
        bytes -= (size_t)written;
    }
}

/* 2026-11-23T22:01:02.345Z, without the C library's time zones, whose lock a signal handler must not wait
 * for. Days since 1970 to a date by counting 400 years from the 1st of March of the year 0. */
static void put_time(struct words *w)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t second = (uint64_t)now.tv_sec % 86400, days = (uint64_t)now.tv_sec / 86400 + 719468;
    uint64_t era = days / 146097, day = days % 146097;
    uint64_t year = (day - day / 1460 + day / 36524 - day / 146096) / 365;
    day -= 365 * year + year / 4 - year / 100;
    uint64_t month = (5 * day + 2) / 153; /* 0 is March */
    const struct {
        uint64_t value;
        int digits;
        const char *after;
    } parts[] = {{era * 400 + year + (month >= 10), 4, "-"},
                 {month < 10 ? month + 3 : month - 9, 2, "-"},
                 {day - (153 * month + 2) / 5 + 1, 2, "T"},
                 {second / 3600, 2, ":"},
                 {second / 60 % 60, 2, ":"},
                 {second % 60, 2, "."},
                 {(uint64_t)now.tv_nsec / 1000000, 3, "Z "}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        words_digits(w, parts[i].value, 10, parts[i].digits);
        words_text(w, parts[i].after);
    }
}

/* "TIME level rank=0 step=12 module: " */
static void put_head(struct words *w, enum log_level level, const char *module)
{
    put_time(w);
    words_text(w, level_names[level]);
    words_text(w, " rank=");
    words_int(w, g_log.rank);
    words_text(w, " step=");
    words_int(w, atomic_load(&g_log.step));
    words_text(w, " ");
    words_text(w, module);
    words_text(w, ": ");
}

void log_line(enum log_level level, const char *module, const char *format, ...)
{
    struct words line = {.used = 0};
    put_head(&line, level, module);
    va_list args;
    va_start(args, format);
    size_t room = sizeof line.text - line.used;
    int wanted = vsnprintf(line.text + line.used, room, format, args);
    va_end(args);
    line.used += wanted < 0 ? 0 : (size_t)wanted < room ? (size_t)wanted : room - 1;
    line.text[line.used < sizeof line.text - 1 ? line.used++ : line.used - 1] = '\n';

    pthread_mutex_lock(&g_log.lock);
    if (level >= g_log.stderr_level)
        write_all(STDERR_FILENO, line.text, line.used);
    if (g_log.fd >= 0 && level >= LOG_INFO) {
        rotate_or_follow();
        write_all(g_log.fd, line.text, line.used);
    }
    pthread_mutex_unlock(&g_log.lock);
}

int log_descriptor(void)
{
    return g_log.fd;
}

void log_words(const struct words *w)
{
    struct words line = {.used = 0}, plain = *w;
    plain.text[plain.used < sizeof plain.text - 1 ? plain.used++ : plain.used - 1] = '\n';
    put_head(&line, LOG_ERROR, "end");
    for (size_t i = 0; i < plain.used && line.used < sizeof line.text; i++)
        line.text[line.used++] = plain.text[i];
    line.text[line.used - 1] = '\n';
    if (g_log.fd >= 0)
        write_all(g_log.fd, line.text,
                  line.used); /* first: stderr may be a pipe that nobody reads any more */
    write_all(STDERR_FILENO, plain.text, plain.used);
}

void log_err(const char *module, const struct err *err)
{
    char text[3 * ERR_TEXT_BYTES + 8];
    log_line(LOG_ERROR, module, "%s code=%s", err_line(err, text, sizeof text), err_code_name(err->code));
}
