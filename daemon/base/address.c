#include "address.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool address_state_folder(char path[LIMIT_PATH_BYTES], struct err *err)
{
    const char *state = getenv("XDG_STATE_HOME");
    const char *home = getenv("HOME");
    int wrote;
    if (state && state[0] == '/')
        wrote = snprintf(path, LIMIT_PATH_BYTES, "%s/trainerd", state);
    else if (home && home[0] == '/')
        wrote = snprintf(path, LIMIT_PATH_BYTES, "%s/.local/state/trainerd", home);
    else {
        err_set(err, ERR_INVALID, "there is no default state folder");
        err_why(err, "neither XDG_STATE_HOME nor HOME is an absolute path");
        return err_hint(err, "name one with --state-dir, or set HOME");
    }
    if (wrote < 0 || wrote >= LIMIT_PATH_BYTES)
        return err_set(err, ERR_INVALID, "the default state folder's path is longer than %d bytes",
                       LIMIT_PATH_BYTES - 1);
    return true;
}

static bool copy_checked(char path[LIMIT_SOCKET_PATH_BYTES + 1], const char *text, struct err *err)
{
    size_t bytes = strlen(text);
    if (bytes <= LIMIT_SOCKET_PATH_BYTES) {
        memcpy(path, text, bytes + 1);
        return true;
    }
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    err_set(err, ERR_INVALID, "the socket's path has %zu bytes: %s", bytes, text);
    err_why(err, "the system's limit leaves room for %d", LIMIT_SOCKET_PATH_BYTES);
    if (runtime && runtime[0] == '/' && strlen(runtime) < 60)
        return err_hint(err, "use --listen unix:%s/trainerd.sock (and the same for trainctl --connect)",
                        runtime);
    return err_hint(err,
                    "use --listen unix:/tmp/trainerd-%u/trainerd.sock (and the same for trainctl --connect)",
                    (unsigned)getuid());
}

bool address_socket_in(char path[LIMIT_SOCKET_PATH_BYTES + 1], const char *folder, struct err *err)
{
    char whole[LIMIT_PATH_BYTES + 32];
    snprintf(whole, sizeof whole, "%s/trainerd.sock", folder);
    return copy_checked(path, whole, err);
}

bool address_parse(char path[LIMIT_SOCKET_PATH_BYTES + 1], const char *text, struct err *err)
{
    if (strncmp(text, "tcp:", 4) == 0) {
        err_set(err, ERR_UNSUPPORTED, "%s: TCP is not built yet", text);
        return err_hint(err, "use unix:PATH; for another machine, forward it: ssh -L PATH:PATH HOST");
    }
    const char *from = strncmp(text, "unix:", 5) == 0 ? text + 5 : strchr(text, '/') ? text : "";
    if (!from[0]) {
        err_set(err, ERR_INVALID, "\"%s\" is no address", text);
        return err_hint(err, "write unix:PATH");
    }
    return copy_checked(path, from, err);
}
