/* The control thread: one libuv loop, started before the engine's first command and stopped after its last.
 */
#include "server.h"

#include "address.h"
#include "file.h"
#include "log.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 128, DESCRIPTORS_FOR_THE_REST = 256 };

static void wake_loop(void *context)
{
    struct control *control = context;
    uv_async_send(&control->woken);
}

static bool somebody_listens(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool listens =
        fd >= 0 && (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN);
    if (fd >= 0)
        close(fd);
    return listens;
}

/* A socket that a killed daemon left is replaced; anything else in the way stays. */
static bool clear_the_way(const char *path, struct err *err)
{
    struct stat info;
    if (lstat(path, &info) != 0)
        return errno == ENOENT || err_errno(err, "cannot look at %s", path);
    if (!S_ISSOCK(info.st_mode)) {
        err_set(err, ERR_INVALID, "%s is in the way", path);
        err_why(err, "it is not a socket");
        return err_hint(err, "choose another place: --listen unix:PATH");
    }
    if (somebody_listens(path)) {
        err_set(err, ERR_STATE, "another process listens on %s", path);
        return err_hint(err, "end it (trainctl --connect unix:%s shutdown) or choose another --listen", path);
    }
    return unlink(path) == 0 || err_errno(err, "cannot remove the stale socket %s", path);
}

static bool make_socket_folder(const char *path, struct err *err)
{
    char folder[LIMIT_SOCKET_PATH_BYTES + 1];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash || slash == folder)
        return true;
    *slash = '\0';
    return file_make_folder(folder, 0700, err);
}

static void when_client(uv_stream_t *stream, int status)
{
    struct listener *listener = (struct listener *)stream;
    struct control *control = stream->data;
    if (status == 0)
        session_accept(control, listener);
    else
        log_warning("control", "a client could not be accepted: %s", uv_strerror(status));
}

static bool listen_on(struct control *control, const char *path, struct err *err)
{
    struct listener *listener = &control->listeners[control->listener_count];
    if (!make_socket_folder(path, err) || !clear_the_way(path, err))
        return false;
    if (uv_pipe_init(&control->loop, &listener->pipe, 0) != 0)
        return err_set(err, ERR_IO, "cannot make a socket");
    listener->pipe.data = control;
    control->listener_count++; /* from here on it is closed with the rest */
    snprintf(listener->path, sizeof listener->path, "%s", path);
    mode_t before = umask(0177); /* 0600 from its first moment */
    int code = uv_pipe_bind(&listener->pipe, path);
    umask(before);
    if (code == 0) {
        listener->open = true;
        code = uv_listen((uv_stream_t *)&listener->pipe, BACKLOG, when_client);
    }
    if (code == 0)
        return true;
    err_set(err, ERR_IO, "cannot listen on %s", path);
    return err_why(err, "%s", uv_strerror(code));
}

static bool listen_on_all(struct control *control, const struct control_options *options, struct err *err)
{
    char path[LIMIT_SOCKET_PATH_BYTES + 1];
    if (options->listen_count > SERVER_LISTENERS)
        return err_set(err, ERR_INVALID, "%d --listen addresses are more than %d", options->listen_count,
                       SERVER_LISTENERS);
    if (options->listen_count == 0)
        return address_socket_in(path, options->state_dir, err) && listen_on(control, path, err);
    for (int i = 0; i < options->listen_count; i++)
        if (!address_parse(path, options->listen[i], err) || !listen_on(control, path, err))
            return false;
    return true;
}

/* The soft limit goes up to the hard one; how many clients fit is said, and kept to. */
static int raise_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return LIMIT_CLIENTS;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        getrlimit(RLIMIT_NOFILE, &limit);
    long long left = (long long)limit.rlim_cur - DESCRIPTORS_FOR_THE_REST;
    int fits = limit.rlim_cur == RLIM_INFINITY || left > LIMIT_CLIENTS ? LIMIT_CLIENTS
               : left < 1                                              ? 1
                                                                       : (int)left;
    log_info("control", "clients fit=%d descriptors=%llu", fits, (unsigned long long)limit.rlim_cur);
    return fits;
}

static void when_signal(uv_signal_t *signal, int number)
{
    (void)number;
    engine_side_shutdown(signal->data);
}

static void close_one(uv_handle_t *handle, void *context)
{
    (void)context;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

/* The last replies and events are on their way; sessions close when they have taken them, or when time is up.
 */
static void close_sessions(struct control *control, bool at_once)
{
    for (struct session *s = control->sessions, *next; s; s = next) {
        next = s->next;
        s->close_when_sent = true;
        if (at_once || s->out_bytes == 0)
            session_close(s);
    }
}

static void close_the_rest(struct control *control)
{
    close_sessions(control, true);
    uv_walk(&control->loop, close_one, NULL); /* skips what is closing */
}

static void when_farewell(uv_timer_t *timer)
{
    struct control *control = timer->data;
    bool late = uv_now(&control->loop) >= control->farewell_until;
    if (!late && (control->session_count > 0 || control->file_work > 0)) {
        close_sessions(control, false);
        return;
    }
    uv_timer_stop(timer);
    close_the_rest(control);
}

static void begin_stop(struct control *control)
{
    struct err err = ERR_INIT;
    err_set(&err, ERR_STATE, "the daemon is ending");
    control->stopping = true;
    engine_side_answer_all(control, &err);
    for (int i = 0; i < control->listener_count; i++)
        if (!uv_is_closing((uv_handle_t *)&control->listeners[i].pipe))
            uv_close((uv_handle_t *)&control->listeners[i].pipe, NULL);
    for (struct session *s = control->sessions; s; s = s->next)
        s->follow = false;
    uv_update_time(&control->loop);
    control->farewell_until = uv_now(&control->loop) + SERVER_STOP_MS;
    uv_timer_start(&control->farewell, when_farewell, 1, 10);
}

static void when_woken(uv_async_t *async)
{
    struct control *control = async->data;
    engine_side_drain(control);
    if (atomic_load(&control->stop) && !control->stopping)
        begin_stop(control);
}

static void run_loop(void *context)
{
    struct control *control = context;
    uv_run(&control->loop, UV_RUN_DEFAULT);
}

static bool make_handles(struct control *control, struct err *err)
{
    if (uv_loop_init(&control->loop) != 0)
        return err_set(err, ERR_IO, "cannot make the control thread's event loop");
    uv_timer_init(&control->loop, &control->deadlines);
    uv_timer_init(&control->loop, &control->farewell);
    control->deadlines.data = control;
    control->farewell.data = control;
    if (uv_async_init(&control->loop, &control->woken, when_woken) != 0 ||
        uv_signal_init(&control->loop, &control->shutdown_signal) != 0)
        return err_set(err, ERR_IO, "cannot make the control thread's handles");
    control->woken.data = control;
    control->shutdown_signal.data = control;
    if (uv_signal_start(&control->shutdown_signal, when_signal, SIGUSR1) != 0)
        return err_set(err, ERR_IO, "cannot handle SIGUSR1");
    return true;
}

static void control_free(struct control *control)
{
    for (int i = 0; i < control->listener_count; i++)
        if (control->listeners[i].open)
            unlink(control->listeners[i].path);
    engine_side_done(control);
    mailbox_free(control->mailbox);
    free(control->hosts);
    free(control);
}

bool control_start(struct control **control, const struct control_options *options, struct err *err)
{
    struct control *made = calloc(1, sizeof *made);
    if (!made)
        return err_set(err, ERR_MEMORY, "no memory for the control thread");
    made->mailbox = mailbox_new(wake_loop, made);
    made->remembered = calloc(SERVER_KEYS, sizeof *made->remembered);
    snprintf(made->state_dir, sizeof made->state_dir, "%s", options->state_dir);
    snprintf(made->checkpoint_dir, sizeof made->checkpoint_dir, "%s",
             options->checkpoint_dir ? options->checkpoint_dir : "");
    snprintf(made->version, sizeof made->version, "%s", options->version ? options->version : "");
    signal(SIGPIPE,
           SIG_IGN); /* libuv writes with write(2): a client that left is an error there, not our end */
    made->sessions_max = raise_descriptors();
    made->host_count = options->host_count;
    made->hosts = calloc((size_t)options->host_count + 1, sizeof *made->hosts);
    if (made->hosts && options->host_count)
        memcpy(made->hosts, options->hosts, (size_t)options->host_count * sizeof *made->hosts);
    if (!made->mailbox || !made->remembered || !made->hosts) {
        err_set(err, ERR_MEMORY, "no memory for the control thread");
        control_free(made);
        return false;
    }
    bool done = make_handles(made, err) && listen_on_all(made, options, err);
    if (done && uv_thread_create(&made->thread, run_loop, made) != 0)
        done = err_set(err, ERR_IO, "cannot start the control thread");
    if (!done) {
        uv_walk(&made->loop, close_one, NULL);
        uv_run(&made->loop, UV_RUN_DEFAULT);
        uv_loop_close(&made->loop);
        control_free(made);
        return false;
    }
    *control = made;
    return true;
}

struct mailbox *control_mailbox(struct control *control)
{
    return control->mailbox;
}

void control_stop(struct control *control)
{
    if (!control)
        return;
    atomic_store(&control->stop, true);
    uv_async_send(&control->woken);
    uv_thread_join(&control->thread);
    INVARIANT(uv_loop_close(&control->loop) == 0);
    control_free(control);
}
