#include "statedir.h"

#include "address.h"
#include "file.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static bool refuse_second(int fd, const char *path, struct err *err)
{
    char text[32] = "";
    ssize_t count = pread(fd, text, sizeof text - 1, 0);
    long pid = count > 0 ? strtol(text, NULL, 10) : 0;
    if (pid > 0)
        err_set(err, ERR_STATE, "another trainerd has the state folder %s: process %ld", path, pid);
    else
        err_set(err, ERR_STATE, "another trainerd has the state folder %s", path);
    err_why(err, "one daemon owns a folder, for its checkpoints and journal");
    return err_hint(
        err, "talk to it (trainctl status), end it (trainctl shutdown), or give this one --state-dir DIR");
}

static bool take_lock(struct statedir *dir, struct err *err)
{
    char path[LIMIT_PATH_BYTES];
    if (!file_join(path, sizeof path, dir->path, "lock", err))
        return false;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, "cannot open %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        bool held = errno == EWOULDBLOCK;
        held ? refuse_second(fd, dir->path, err) : err_errno(err, "cannot lock %s", path);
        close(fd);
        return false;
    }
    char text[32];
    int bytes = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)bytes, 0) != bytes) {
        err_errno(err, "cannot write %s", path);
        close(fd);
        return false;
    }
    dir->lock_fd = fd;
    return true;
}

static void say_if_others_may_enter(const char *path)
{
    struct stat info;
    if (stat(path, &info) == 0 && (info.st_mode & 077))
        log_info("control",
                 "others may enter the state folder; the socket in it is for its owner alone path=%s mode=%o",
                 path, (unsigned)(info.st_mode & 07777));
}

bool statedir_open(struct statedir *dir, const char *path, struct err *err)
{
    struct statedir opened = {.lock_fd = -1};
    char wanted[LIMIT_PATH_BYTES], runs[LIMIT_PATH_BYTES];
    if (path && path[0])
        snprintf(wanted, sizeof wanted, "%s", path);
    else if (!address_state_folder(wanted, err))
        return false;
    if (path && strlen(path) >= sizeof wanted)
        return err_set(err, ERR_INVALID, "the state folder's path is longer than %zu bytes",
                       sizeof wanted - 1);
    if (!file_make_folder(wanted, 0700, err))
        return false;

    char *absolute = realpath(wanted, NULL);
    if (!absolute || strlen(absolute) >= sizeof opened.path) {
        err_errno(err, "cannot find the state folder %s", wanted);
        free(absolute);
        return false;
    }
    snprintf(opened.path, sizeof opened.path, "%s", absolute);
    free(absolute);
    say_if_others_may_enter(opened.path);
    if (!take_lock(&opened, err))
        return false;
    opened.open = true;
    if (!file_join(runs, sizeof runs, opened.path, "runs", err) || !file_make_folder(runs, 0700, err)) {
        statedir_close(&opened);
        return false;
    }
    *dir = opened;
    return true;
}

void statedir_close(struct statedir *dir)
{
    if (dir->open)
        close(
            dir->lock_fd); /* the file stays: removing it would let two daemons lock two files of one name */
    *dir = (struct statedir){.lock_fd = -1};
}
