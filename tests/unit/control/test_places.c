/* Where a daemon listens, who else may, and how it stops. */
#include "control_rig.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static void test_the_socket_is_private(void **state)
{
    struct place *place = *state;
    struct stat info;
    assert_int_equal(stat(place->address + 5, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(stat(place->folder, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
}

static void test_sigusr1_queues_a_shutdown(void **state)
{
    struct place *place = *state;
    kill(getpid(), SIGUSR1);
    for (int i = 0; i < 5000 && atomic_load(&place->engine.shutdowns) == 0; i++)
        nap();
    assert_int_equal(atomic_load(&place->engine.shutdowns), 1);
}

static void test_a_second_daemon_is_refused_with_the_firsts_pid(void **state)
{
    struct place *place = *state;
    struct statedir second = {0};
    struct err err = ERR_INIT;
    check_refused(statedir_open(&second, place->folder, &err), &err, ERR_STATE);
    char pid[32];
    snprintf(pid, sizeof pid, "process %ld", (long)getpid());
    assert_non_null(strstr(err.what, pid));
    statedir_close(&second);
}

static void start_refused(const struct place *place, const char *listen, enum err_code code, const char *says)
{
    struct control *second = NULL;
    struct err err = ERR_INIT;
    struct control_options options = {
        .listen = &listen, .listen_count = 1, .state_dir = place->dir.path, .version = "test"};
    check_refused(control_start(&second, &options, &err), &err, code);
    char line[4 * ERR_TEXT_BYTES];
    err_line(&err, line, sizeof line);
    if (!strstr(line, says))
        fail_msg("\"%s\" does not say \"%s\"", line, says);
}

static void test_addresses_that_cannot_be(void **state)
{
    struct place *place = *state;
    char path[256];
    start_refused(place, "tcp:localhost:7000", ERR_UNSUPPORTED, "not built yet");
    start_refused(place, "nonsense", ERR_INVALID, "unix:");
    start_refused(place, place->address, ERR_STATE, "listens");
    snprintf(path, sizeof path, "unix:%s/%0110d.sock", place->folder, 7);
    start_refused(place, path, ERR_INVALID, "use --listen unix:/");
    snprintf(path, sizeof path, "unix:%s/lock", place->folder);
    start_refused(place, path, ERR_INVALID, "not a socket");
    /* None of it hurt the one that runs. */
    struct client client = connect_to(place);
    trainerd__reply__free_unpacked(status_of(&client), NULL);
    client_close(&client);
}

/* What a killed daemon leaves behind does not stand in the way. */
static void test_a_stale_socket_is_replaced(void **state)
{
    struct place *place = *state;
    char path[100], listen_on[160];
    snprintf(path, sizeof path, "%s/stale.sock", place->folder);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    snprintf(listen_on, sizeof listen_on, "unix:%s", path);
    const char *listen_text = listen_on;
    struct control *second = NULL;
    struct err err = ERR_INIT;
    struct control_options options = {
        .listen = &listen_text, .listen_count = 1, .state_dir = place->dir.path, .version = "test"};
    check_ok(control_start(&second, &options, &err), &err);
    struct client client;
    check_ok(client_open(&client, listen_on, 5, &err), &err);
    client_close(&client);
    control_stop(second);
    assert_int_equal(access(path, F_OK), -1);
}

/* control_stop while clients wait, subscribe and never read: it ends within its second, and says so to those
 * who wait. */
static void test_stopping_with_clients(void **state)
{
    struct place *place = *state;
    struct client waiting = connect_to(place), deaf = connect_to(place);
    trainerd__reply__free_unpacked(status_of(&waiting), NULL);
    atomic_store(&place->engine.hold, true);
    REQUEST(request, INIT, InitRequest);
    request_body.path = (char *)"/tmp/c";
    request.init = &request_body;
    request.id = 5;
    size_t count;
    unsigned char *bytes = frame_pack(&request.base, &count);
    send_raw(&waiting, bytes, count);
    free(bytes);
    while (atomic_load(&place->engine.commands) == 0)
        nap();
    fake_engine_join(&place->engine); /* leaves without an answer, as an engine that failed does */
    control_stop(place->control);
    place->control = NULL;
    unsigned char reply[512];
    assert_true(recv(waiting.fd, reply, sizeof reply, 0) > 0);
    client_close(&waiting);
    client_close(&deaf);
    atomic_store(&place->engine.stop, false);
    struct control_options options = {.state_dir = place->dir.path, .version = "test"};
    struct err err = ERR_INIT;
    check_ok(control_start(&place->control, &options, &err), &err); /* and the place is free again */
    atomic_store(&place->engine.hold, false);
    fake_engine_start(&place->engine, control_mailbox(place->control), place->dir.path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_the_socket_is_private),
        CASE(test_sigusr1_queues_a_shutdown),
        CASE(test_a_second_daemon_is_refused_with_the_firsts_pid),
        CASE(test_addresses_that_cannot_be),
        CASE(test_a_stale_socket_is_replaced),
        CASE(test_stopping_with_clients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
