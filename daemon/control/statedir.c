#include "statedir.h"

#include "address.h"
#include "file.h"
#include "log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

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
    struct statedir opened = {0};
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
    if (!file_lock(&opened.lock, opened.path, "lock", "state folder", err))
        return err->code == ERR_STATE &&
               err_hint(err, "talk to it (trainctl status), end it (trainctl shutdown), or give this one "
                             "--state-dir DIR");
    if (!file_join(runs, sizeof runs, opened.path, "runs", err) || !file_make_folder(runs, 0700, err)) {
        statedir_close(&opened);
        return false;
    }
    *dir = opened;
    return true;
}

void statedir_close(struct statedir *dir)
{
    file_unlock(&dir->lock);
    *dir = (struct statedir){0};
}
