/* The control thread of rank 0: sockets, sessions, subscriptions. The engine's thread starts and stops it and
 * meets it in the mailbox; nothing else is shared.
 *
 *     statedir_open  →  control_start  →  engine on control_mailbox()  →  control_stop  →  statedir_close
 *
 * Read-only requests are answered from the last snapshot that the engine published, all others go through the
 * mailbox and are answered when the engine replies. SIGUSR1 queues a shutdown. */
#pragma once

#include "err.h"
#include "mailbox.h"

struct control;

struct control_host {
    char name[64];
    int32_t ranks;
};

struct control_options {
    const char *const *listen; /* addresses; none: unix:STATE_DIR/trainerd.sock */
    int listen_count;
    const char *state_dir; /* absolute, from statedir_open */
    const char *checkpoint_dir;
    const char *version;
    const struct control_host *hosts; /* of the job, copied */
    int32_t host_count;
};

/* Binds every socket (0600) before it returns. Addresses that are wrong or not built are refused here
 * (ERR_INVALID, ERR_UNSUPPORTED): trainerd exits 2. The strings need only live during the call. */
bool control_start(struct control **control, const struct control_options *options, struct err *err) MUST_USE;

/* Lives until control_stop. */
struct mailbox *control_mailbox(struct control *control);

/* Sends the replies and events that are in the mailbox, gives clients a moment to take them, closes, joins
 * the thread, removes the sockets. NULL: fine. */
void control_stop(struct control *control);
