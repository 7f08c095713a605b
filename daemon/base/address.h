/* Where a daemon is found: its state folder and its socket. Both sides agree by using the same functions. */
#pragma once

#include "bounds.h"
#include "err.h"

/* $XDG_STATE_HOME/trainerd, else $HOME/.local/state/trainerd. */
bool address_state_folder(char path[LIMIT_PATH_BYTES], struct err *err) MUST_USE;

/* FOLDER/trainerd.sock, or ERR_INVALID with a shorter place proposed (sun_path ends at 107 bytes). */
bool address_socket_in(char path[LIMIT_SOCKET_PATH_BYTES + 1], const char *folder, struct err *err) MUST_USE;

/* "unix:PATH", or a path with a slash in it. tcp: is ERR_UNSUPPORTED; anything else ERR_INVALID. */
bool address_parse(char path[LIMIT_SOCKET_PATH_BYTES + 1], const char *text, struct err *err) MUST_USE;
