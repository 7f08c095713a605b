/* Two hosts, here a parent and its forked child, over an address of this machine. Time is passed in, so
 * nothing here waits but for datagrams that come. */
#include "check.h"

#include "roll.h"
#include "words.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECOND 1000000000ll

static struct {
    struct roll_card cards[3]; /* ranks 0 and 1 on "here", rank 2 on "there" */
    pid_t there;
} hosts;

/* rank 2's: answers what comes until it is killed. */
static _Noreturn void live(int cards, int answers)
{
    struct roll_news news = {.rank = 2, .place = ROLL_ELSEWHERE, .sequence = 41};
    struct roll_card mine = roll_card_make(2, 2, "there");
    if (write(answers, &mine, sizeof mine) != sizeof mine ||
        read(cards, hosts.cards, sizeof hosts.cards) != sizeof hosts.cards)
        _exit(1);
    roll_meet(hosts.cards, 3, 2);
    for (;;) {
        struct pollfd p = {.fd = roll_descriptor(), .events = POLLIN};
        poll(&p, 1, -1);
        roll_attend(1, 1000 * SECOND, false, &news);
    }
}

static int begin(void **state)
{
    int down[2], up[2];
    (void)state;
    assert_int_equal(pipe(down), 0);
    assert_int_equal(pipe(up), 0);
    hosts.there = fork();
    if (hosts.there == 0)
        live(down[0], up[1]);
    hosts.cards[0] = roll_card_make(0, 0, "here");
    hosts.cards[1] = (struct roll_card){.rank = 1, .home = 0, .host = "here"};
    assert_int_equal(read(up[0], &hosts.cards[2], sizeof hosts.cards[2]), sizeof hosts.cards[2]);
    assert_int_equal(write(down[1], hosts.cards, sizeof hosts.cards), sizeof hosts.cards);
    roll_meet(hosts.cards, 3, 0);
    for (int i = 0; i < 2; i++) {
        close(down[i]);
        close(up[i]);
    }
    return 0;
}

static int end(void **state)
{
    (void)state;
    kill(hosts.there, SIGKILL);
    waitpid(hosts.there, NULL, 0);
    roll_done();
    return 0;
}

static const struct roll_news mine = {.rank = 0, .place = ROLL_INSIDE, .sequence = 42};

/* What comes within ten seconds; false: nothing. */
static bool hear(int64_t now_ns)
{
    struct pollfd p = {.fd = roll_descriptor(), .events = POLLIN};
    bool came = poll(&p, 1, 10000) == 1;
    roll_attend(now_ns, SECOND, false, &mine);
    return came;
}

static bool ask_and_hear(int64_t now_ns)
{
    roll_attend(now_ns, SECOND, false, &mine);
    return hear(now_ns);
}

static void a_host_that_answers_is_not_silent(void **state)
{
    struct words w = {.used = 0};
    (void)state;
    if (hosts.cards[0].address_count == 0)
        skip();
    assert_int_equal(roll_hosts(), 2);
    assert_true(ask_and_hear(SECOND));
    assert_int_equal(roll_name_silent(&w, 100 * SECOND, SECOND, true), 0);
    assert_int_equal(roll_name_elsewhere(&w), 1);
    assert_string_equal(w.text, "; rank 2 on host there is in none (its last is 41)");
}

/* The signal takes its time; a stopped child is waited for. */
static void stop_there(void)
{
    int status;
    kill(hosts.there, SIGSTOP);
    assert_int_equal(waitpid(hosts.there, &status, WUNTRACED), hosts.there);
    assert_true(WIFSTOPPED(status));
}

static void a_host_that_stopped_answering_is_named(void **state)
{
    struct words w = {.used = 0}, none = {.used = 0};
    (void)state;
    if (hosts.cards[0].address_count == 0)
        skip();
    assert_true(ask_and_hear(SECOND));
    stop_there();
    roll_attend(10 * SECOND, SECOND, false, &mine);
    assert_int_equal(roll_name_silent(&none, 15 * SECOND, 6 * SECOND, true), 0);
    roll_attend(15 * SECOND, SECOND, false, &mine); /* counts from the first that is unanswered */
    assert_int_equal(roll_name_silent(&w, 17 * SECOND, 6 * SECOND, true), 1);
    assert_string_equal(w.text, "; host there (rank 2) has not answered for 7 s");
}

static void who_was_never_heard_is_not_named(void **state)
{
    struct words w = {.used = 0};
    (void)state;
    if (hosts.cards[0].address_count == 0)
        skip();
    stop_there();
    roll_attend(SECOND, SECOND, true, &mine);
    assert_int_equal(roll_name_silent(&w, 100 * SECOND, SECOND, true), 0);
    assert_int_equal(roll_name_silent(&w, 100 * SECOND, SECOND, false),
                     0); /* nobody was: datagrams may be forbidden */
}

/* Bytes from anyone: only what holds this host's numbers is heard. */
static void a_strangers_datagram_is_not_heard(void **state)
{
    struct words w = {.used = 0};
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons(hosts.cards[0].port)};
    unsigned char bytes[64] = {'r', 'o', 'l', 'l', [8] = 1};
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    (void)state;
    if (hosts.cards[0].address_count == 0 || fd < 0)
        skip();
    memcpy(&to.sin6_addr, hosts.cards[0].addresses[0], 16);
    stop_there();
    for (size_t count = 1; count <= sizeof bytes; count++)
        assert_int_equal(sendto(fd, bytes, count, 0, (struct sockaddr *)&to, sizeof to), count);
    assert_true(hear(SECOND));
    assert_int_equal(roll_name_silent(&w, 100 * SECOND, SECOND, false), 0);
    memcpy(bytes + 16, hosts.cards[0].numbers, sizeof hosts.cards[0].numbers);
    assert_int_equal(sendto(fd, bytes, 48, 0, (struct sockaddr *)&to, sizeof to), 48);
    assert_true(hear(2 * SECOND));
    roll_attend(4 * SECOND, SECOND, false, &mine);
    assert_int_equal(roll_name_silent(&w, 100 * SECOND, SECOND, false), 1); /* it was heard, once */
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_host_that_answers_is_not_silent, begin, end),
        cmocka_unit_test_setup_teardown(a_host_that_stopped_answering_is_named, begin, end),
        cmocka_unit_test_setup_teardown(who_was_never_heard_is_not_named, begin, end),
        cmocka_unit_test_setup_teardown(a_strangers_datagram_is_not_heard, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
