/* A guard over two "ranks" and a "launcher", which are children that sleep. */
#include "check.h"

#include "guard.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANK_0, RANK_1, LAUNCHER, CHILDREN };

static struct {
    pid_t pids[CHILDREN];
    int fds[CHILDREN];
    struct guard_orders *orders;
} g;

static int begin(void **state)
{
    (void)state;
    g.orders = mmap(NULL, sizeof *g.orders, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(g.orders != MAP_FAILED);
    for (int c = 0; c < CHILDREN; c++) {
        g.pids[c] = fork();
        if (g.pids[c] == 0)
            for (;;)
                pause();
        g.fds[c] = pidfd_open(g.pids[c], 0);
        assert_true(g.fds[c] >= 0);
    }
    atomic_store(&g.orders->grace_ms, 300);
    guard_start(g.fds, 2, g.fds[LAUNCHER], g.orders);
    return 0;
}

static int end(void **state)
{
    (void)state;
    atomic_store(&g.orders->dismissed, 1);
    for (int c = 0; c < CHILDREN; c++) {
        kill(g.pids[c], SIGKILL);
        waitpid(g.pids[c], NULL, 0);
        close(g.fds[c]);
    }
    while (waitpid(-1, NULL, 0) > 0) /* the guard */
        ;
    return 0;
}

/* Ended within so long; 0: by now. */
static bool has_ended(int child, int wait_ms)
{
    struct pollfd p = {.fd = g.fds[child], .events = POLLIN};
    return poll(&p, 1, wait_ms) == 1;
}

static void what_is_left_after_a_rank_is_killed(void **state)
{
    (void)state;
    kill(g.pids[RANK_1], SIGSTOP); /* a stopped rank too */
    kill(g.pids[RANK_0], SIGKILL);
    assert_true(has_ended(LAUNCHER, 60000));
    assert_true(has_ended(RANK_1, 60000));
}

static void who_says_that_it_ends_has_the_time_of_grace(void **state)
{
    (void)state;
    atomic_store(&g.orders->ending, 1);
    assert_true(has_ended(RANK_0, 60000));
    assert_true(has_ended(LAUNCHER, 60000));
}

static void nothing_is_killed_after_an_end_in_order(void **state)
{
    (void)state;
    atomic_store(&g.orders->dismissed, 1);
    kill(g.pids[RANK_0], SIGKILL);
    assert_int_equal(waitpid(g.pids[RANK_0], NULL, 0), g.pids[RANK_0]);
    assert_true(wait(NULL) > 0); /* the guard itself goes, before that or after, and without this */
    assert_false(has_ended(LAUNCHER, 0));
    assert_false(has_ended(RANK_1, 0));
}

static void nothing_is_killed_while_all_live(void **state)
{
    (void)state;
    assert_false(has_ended(LAUNCHER, 1500)); /* five times the grace */
    assert_false(has_ended(RANK_0, 0));
}

/* A rank may have been started by a script, or adopted: who is not the launcher by name is left alone. */
static void only_a_launcher_is_one(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool is;
    } rows[] = {{"mpirun", true},   {"mpirun.openmpi", true}, {"orted", true},      {"bash", false},
                {"systemd", false}, {"slurmstepd", false},    {"mpirunner", false}, {"trainerd", false}};
    char before[16];
    prctl(PR_GET_NAME, before);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        prctl(PR_SET_NAME, rows[i].name);
        if (guard_is_launcher(getpid()) != rows[i].is)
            fail_msg("%s is taken for %s", rows[i].name, rows[i].is ? "another" : "a launcher");
    }
    prctl(PR_SET_NAME, before);
    assert_false(guard_is_launcher(0)); /* no such process */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_left_after_a_rank_is_killed, begin, end),
        cmocka_unit_test_setup_teardown(who_says_that_it_ends_has_the_time_of_grace, begin, end),
        cmocka_unit_test_setup_teardown(nothing_is_killed_after_an_end_in_order, begin, end),
        cmocka_unit_test_setup_teardown(nothing_is_killed_while_all_live, begin, end),
        cmocka_unit_test(only_a_launcher_is_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
