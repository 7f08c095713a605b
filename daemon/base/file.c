#include "file.h"

#include "bounds.h"
#include "last_words.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool file_make_folder(const char *path, unsigned mode, struct err *err)
{
    char part[4096];
    if (strlen(path) >= sizeof part)
        return err_set(err, ERR_INVALID, "the path is too long: %.80s…", path);
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = part + 1; *slash; slash++) {
        if (*slash != '/')
            continue;
        *slash = '\0';
        if (mkdir(part, mode) != 0 && errno != EEXIST)
            return err_errno(err, "cannot make the folder %s", part);
        *slash = '/';
    }
    struct stat stat_now;
    if (mkdir(part, mode) != 0 &&
        !(errno == EEXIST && stat(part, &stat_now) == 0 && S_ISDIR(stat_now.st_mode)))
        return err_errno(err, "cannot make the folder %s", part);
    return true;
}

bool file_sync_folder(const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, "cannot open the folder %s", path);
    bool done = fsync(fd) == 0 || err_errno(err, "cannot sync the folder %s", path);
    close(fd);
    return done;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    return remove(path);
}

bool file_remove_tree(const char *path, struct err *err)
{
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT)
        return err_errno(err, "cannot remove %s", path);
    return true;
}

/* What errno says of a write to this descriptor, with its path and, where the disk is full, what to do. */
static bool refuse_write(int fd, size_t count, struct err *err)
{
    int number = errno;
    char link[32], path[ERR_TEXT_BYTES];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = '\0';
    errno = number;
    err_errno(err, "cannot write %zu bytes to %.300s", count, length > 0 ? path : "a file");
    bool full = number == ENOSPC || number == EDQUOT || number == EFBIG;
    return full && err_hint(err, "make room there, or choose a folder on another disk");
}

bool file_write_all(int fd, const void *bytes, size_t count, int64_t offset, struct err *err)
{
    const char *from = bytes;
    while (count > 0) {
        size_t piece = count > (1u << 30) ? 1u << 30 : count;
        ssize_t written = offset < 0 ? write(fd, from, piece) : pwrite(fd, from, piece, offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return refuse_write(fd, count, err);
        from += written;
        count -= (size_t)written;
        offset += offset < 0 ? 0 : written;
    }
    return true;
}

bool file_read_all(int fd, void *bytes, size_t count, int64_t offset, struct err *err)
{
    char *to = bytes;
    while (count > 0) {
        size_t piece = count > (1u << 30) ? 1u << 30 : count;
        ssize_t got = pread(fd, to, piece, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_errno(err, "cannot read %zu bytes", count);
        if (got == 0) {
            err_set(err, ERR_CORRUPT, "the file ends %zu bytes too early", count);
            return err_hint(err, "it was cut short: copy it again or use another");
        }
        to += got;
        count -= (size_t)got;
        offset += got;
    }
    return true;
}

bool file_replace(const char *path, const void *bytes, size_t count, struct err *err)
{
    char aside[4096], folder[4096];
    if (snprintf(aside, sizeof aside, "%s.new", path) >= (int)sizeof aside)
        return err_set(err, ERR_INVALID, "the path is too long: %.80s…", path);
    int fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, "cannot create %s", aside);
    bool written = file_write_all(fd, bytes, count, -1, err) &&
                   (fsync(fd) == 0 || err_errno(err, "cannot sync %s", aside));
    close(fd);
    if (written && rename(aside, path) != 0)
        written = err_errno(err, "cannot rename %s to %s", aside, path);
    if (!written) {
        unlink(aside);
        return false;
    }
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash == folder)
        slash++;
    if (slash)
        *slash = '\0';
    return file_sync_folder(slash ? folder : ".", err);
}

bool file_slurp(const char *path, size_t limit, char **text, size_t *bytes, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, "cannot open %s", path);
    struct stat info;
    char *buffer = NULL;
    bool done = false;
    if (fstat(fd, &info) != 0) {
        err_errno(err, "cannot stat %s", path);
    } else if (!S_ISREG(info.st_mode)) {
        err_set(err, ERR_INVALID, "%s is not a regular file", path);
    } else if ((uint64_t)info.st_size > limit) {
        err_set(err, ERR_INVALID, "%s has %lld bytes, more than the %zu that such a file may have", path,
                (long long)info.st_size, limit);
    } else if (!(buffer = malloc((size_t)info.st_size + 1))) {
        err_set(err, ERR_MEMORY, "no memory for the %lld bytes of %s", (long long)info.st_size, path);
    } else {
        done = file_read_all(fd, buffer, (size_t)info.st_size, 0, err);
    }
    close(fd);
    if (!done) {
        free(buffer);
        return false;
    }
    buffer[info.st_size] = '\0';
    *text = buffer;
    *bytes = (size_t)info.st_size;
    return true;
}

bool file_map_open(struct file_map *map, const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, "cannot open %s", path);
    struct stat info;
    void *bytes = MAP_FAILED;
    if (fstat(fd, &info) != 0)
        err_errno(err, "cannot stat %s", path);
    else if (!S_ISREG(info.st_mode) || info.st_size == 0)
        err_set(err, ERR_INVALID, "%s is empty or not a regular file", path);
    else if ((bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        err_errno(err, "cannot map %s", path);
    close(fd);
    if (bytes == MAP_FAILED)
        return false;
    map->bytes = bytes;
    map->count = (size_t)info.st_size;
    last_words_map(bytes, map->count, path); /* who shortens it now ends us with SIGBUS: the line names it */
    return true;
}

void file_map_close(struct file_map *map)
{
    if (map->bytes) {
        last_words_unmap(map->bytes);
        munmap((void *)(uintptr_t)map->bytes, map->count);
    }
    *map = (struct file_map){0};
}

bool file_join(char *path, size_t path_bytes, const char *folder, const char *name, struct err *err)
{
    if (snprintf(path, path_bytes, "%s/%s", folder, name) >= (int)path_bytes)
        return err_set(err, ERR_INVALID, "the path %s/%s is longer than %zu bytes", folder, name,
                       path_bytes - 1);
    return true;
}

static bool refuse_second(int fd, const char *folder, const char *kind, struct err *err)
{
    char text[32] = "";
    ssize_t count = pread(fd, text, sizeof text - 1, 0);
    long pid = count > 0 ? strtol(text, NULL, 10) : 0;
    if (pid > 0)
        err_set(err, ERR_STATE, "another trainerd has the %s %s: process %ld", kind, folder, pid);
    else
        err_set(err, ERR_STATE, "another trainerd has the %s %s", kind, folder);
    return err_why(err, "one daemon alone writes to it");
}

static bool lock_refused(int fd, const char *folder, const char *path, const char *kind, struct err *err)
{
    if (errno == EWOULDBLOCK)
        return refuse_second(fd, folder, kind, err);
    if (errno == EOPNOTSUPP || errno == ENOLCK || errno == ENOSYS) {
        err_set(err, ERR_UNSUPPORTED, "the %s %s cannot be locked", kind, folder);
        return err_why(err, "%s", strerror(errno));
    }
    return err_errno(err, "cannot lock %s", path);
}

bool file_lock(struct file_lock *lock, const char *folder, const char *name, const char *kind,
               struct err *err)
{
    char path[LIMIT_PATH_BYTES], text[32];
    if (!file_join(path, sizeof path, folder, name, err))
        return false;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, "cannot open %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        lock_refused(fd, folder, path, kind, err);
        close(fd);
        return false;
    }
    int bytes = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)bytes, 0) != bytes) {
        err_errno(err, "cannot write %s", path);
        close(fd);
        return false;
    }
    *lock = (struct file_lock){.fd = fd, .held = true};
    return true;
}

void file_unlock(struct file_lock *lock)
{
    if (lock->held)
        close(lock->fd); /* the file stays: removing it would let two processes lock two files of one name */
    *lock = (struct file_lock){0};
}
