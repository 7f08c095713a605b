/* Ranks of one host, here a parent and its forked children: who died, who left, who is stopped, who speaks.
 */
#include "check.h"

#include "kin.h"
#include "log.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHILDREN = 2 };

static struct {
    struct kin_card cards[1 + CHILDREN];
    int orders[CHILDREN], answers[CHILDREN]; /* pipes: what a child does next; what it says */
} family;

/* A child does what it is told, a letter each, and answers with one. */
static _Noreturn void live(int32_t rank, int orders, int answers)
{
    struct err err = ERR_INIT;
    char order, met = 'y';
    if (read(orders, family.cards, sizeof family.cards) != sizeof family.cards ||
        !kin_meet(family.cards, 1 + CHILDREN, rank, &err))
        met = 'n';
    for (char answer = met; write(answers, &answer, 1) == 1 && read(orders, &order, 1) == 1;) {
        answer = 'd';
        if (order == 'l')
            kin_leave();
        else if (order == 'c')
            answer = kin_claim() ? 'y' : 'n';
        else if (order == 'p')
            kin_set_place(50, false);
        else
            _exit(7);
    }
    _exit(0);
}

static char tell(int child, char order)
{
    char answer = '?';
    assert_int_equal(write(family.orders[child], &order, 1), 1);
    return read(family.answers[child], &answer, 1) == 1 ? answer : 'x';
}

static int begin(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    family.cards[0] = kin_card_make(0, 0);
    for (int c = 0; c < CHILDREN; c++) {
        int down[2], up[2];
        assert_int_equal(pipe(down), 0);
        assert_int_equal(pipe(up), 0);
        pid_t pid = fork();
        if (pid == 0) {
            for (int other = 0; other < c; other++)
                close(family.orders[other]);
            close(down[1]);
            live(1 + c, down[0], up[1]);
        }
        close(down[0]);
        close(up[1]);
        family.orders[c] = down[1];
        family.answers[c] = up[0];
        family.cards[1 + c] = (struct kin_card){.rank = 1 + c, .home = 0, .pid = pid, .table = -1};
    }
    for (int c = 0; c < CHILDREN; c++) {
        char met = '?';
        assert_int_equal(write(family.orders[c], family.cards, sizeof family.cards), sizeof family.cards);
        assert_int_equal(read(family.answers[c], &met, 1), 1);
        assert_int_equal(met, 'y');
    }
    assert_true(kin_meet(family.cards, 1 + CHILDREN, 0, &err));
    assert_int_equal(kin_siblings(), CHILDREN);
    return 0;
}

static int end(void **state)
{
    (void)state;
    kin_part();
    for (int c = 0; c < CHILDREN; c++) {
        close(family.orders[c]);
        close(family.answers[c]);
        kill(family.cards[1 + c].pid, SIGKILL);
        waitpid(family.cards[1 + c].pid, NULL, 0);
    }
    return 0;
}

static enum kin_end look_until_one_ended(struct kin *who)
{
    for (int i = 0; i < 100; i++) {
        enum kin_end end_ = kin_look(who);
        if (end_ != KIN_ALL_ALIVE)
            return end_;
        kin_wait(-1, -1, 100);
    }
    return KIN_ALL_ALIVE;
}

static void a_killed_sibling_has_died(void **state)
{
    (void)state;
    struct kin who = {0};
    assert_int_equal(kin_look(&who), KIN_ALL_ALIVE);
    kill(family.cards[2].pid, SIGKILL);
    assert_int_equal(look_until_one_ended(&who), KIN_DIED);
    assert_int_equal(who.rank, 2);
    assert_int_equal(who.pid, family.cards[2].pid);
    int status = kin_exit_status(who.pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void one_that_ends_by_itself_has_died_too(void **state)
{
    (void)state;
    struct kin who = {0};
    tell(0, 'x');
    assert_int_equal(look_until_one_ended(&who), KIN_DIED);
    int status = kin_exit_status(who.pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void one_that_left_first_has_not(void **state)
{
    (void)state;
    struct kin who = {0};
    assert_int_equal(tell(0, 'l'), 'd');
    kill(family.cards[1].pid, SIGKILL);
    assert_int_equal(look_until_one_ended(&who), KIN_LEFT);
    kill(family.cards[2].pid, SIGKILL); /* and a death beside it is still seen */
    for (int i = 0; i < 100 && kin_look(&who) == KIN_LEFT; i++)
        usleep(10000);
    assert_int_equal(kin_look(&who), KIN_DIED);
    assert_int_equal(who.rank, 2);
}

static void one_rank_speaks_for_its_host(void **state)
{
    (void)state;
    assert_int_equal(tell(1, 'c'), 'y');
    assert_int_equal(tell(0, 'c'), 'n');
    assert_false(kin_claim());
}

static void a_stopped_sibling_is_seen(void **state)
{
    (void)state;
    struct kin_place place;
    assert_int_equal(tell(1, 'p'), 'd');
    kill(family.cards[1].pid, SIGSTOP);
    waitpid(family.cards[1].pid, NULL, WUNTRACED);
    assert_true(kin_sibling(0, &place));
    assert_int_equal(place.who.rank, 1);
    assert_true(place.stopped);
    assert_true(kin_sibling(1, &place));
    assert_false(place.stopped);
    assert_int_equal(place.sequence, 50);
    assert_false(kin_sibling(2, &place));
}

/* Our own reckoning of dates, for signal handlers, against the library's. */
static void a_log_line_has_the_time(void **state)
{
    (void)state;
    char path[] = "/tmp/test-kin-XXXXXX", line[256], wanted[32];
    struct err err = ERR_INIT;
    close(mkstemp(path));
    assert_true(log_open(path, false, &err));
    for (int tries = 0;; tries++) {
        time_t before = time(NULL), after;
        assert_int_equal(truncate(path, 0), 0);
        log_info("test", "%s", "a line");
        after = time(NULL);
        if (before != after && tries < 100)
            continue;
        struct tm tm;
        gmtime_r(&before, &tm);
        strftime(wanted, sizeof wanted, "%Y-%m-%dT%H:%M:%S.", &tm);
        break;
    }
    log_close();
    FILE *file = fopen(path, "re");
    assert_non_null(fgets(line, sizeof line, file));
    fclose(file);
    unlink(path);
    assert_memory_equal(line, wanted, strlen(wanted));
    assert_string_equal(line + strlen(wanted) + 3, "Z info rank=-1 step=-1 test: a line\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_killed_sibling_has_died, begin, end),
        cmocka_unit_test_setup_teardown(one_that_ends_by_itself_has_died_too, begin, end),
        cmocka_unit_test_setup_teardown(one_that_left_first_has_not, begin, end),
        cmocka_unit_test_setup_teardown(one_rank_speaks_for_its_host, begin, end),
        cmocka_unit_test_setup_teardown(a_stopped_sibling_is_seen, begin, end),
        cmocka_unit_test(a_log_line_has_the_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
