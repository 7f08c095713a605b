#include "log.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE_BYTES   2048
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

void log_set_step(int64_t total_step)
{
    atomic_store(&g_log.step, total_step);
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

void log_line(enum log_level level, const char *module, const char *format, ...)
{
    char line[LOG_LINE_BYTES];
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    size_t used = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    used += (size_t)snprintf(line + used, sizeof line - used,
                             ".%03ldZ %s rank=%d step=%lld %s: ", now.tv_nsec / 1000000, level_names[level],
                             g_log.rank, (long long)atomic_load(&g_log.step), module);
    va_list args;
    va_start(args, format);
    int wanted = vsnprintf(line + used, sizeof line - used - 1, format, args);
    va_end(args);
    used += wanted < 0 ? 0 : (size_t)wanted;
    if (used > sizeof line - 2)
        used = sizeof line - 2;
    line[used++] = '\n';

    pthread_mutex_lock(&g_log.lock);
    if (level >= g_log.stderr_level)
        write_all(STDERR_FILENO, line, used);
    if (g_log.fd >= 0 && level >= LOG_INFO) {
        rotate_or_follow();
        write_all(g_log.fd, line, used);
    }
    pthread_mutex_unlock(&g_log.lock);
}

void log_err(const char *module, const struct err *err)
{
    char text[3 * ERR_TEXT_BYTES + 8];
    log_line(LOG_ERROR, module, "%s code=%s", err_line(err, text, sizeof text), err_code_name(err->code));
}
