/* A daemon without MPI for the tests of trainctl: the real control thread over the fake engine.
 *
 *     fake_trainerd STATE_DIR [seconds a step]      until a shutdown was asked for */
#include "control.h"
#include "fake_engine.h"
#include "statedir.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
    static struct fake_engine engine;
    struct statedir dir = {0};
    struct control *control = NULL;
    struct err err = ERR_INIT;
    char text[4 * ERR_TEXT_BYTES];
    if (!statedir_open(&dir, argc > 1 ? argv[1] : "", &err)) {
        fprintf(stderr, "fake_trainerd: %s\n", err_line(&err, text, sizeof text));
        return 2;
    }
    struct control_options options = {.state_dir = dir.path, .version = "fake"};
    if (!control_start(&control, &options, &err)) {
        fprintf(stderr, "fake_trainerd: %s\n", err_line(&err, text, sizeof text));
        return 2;
    }
    engine.step_s = argc > 2 ? strtod(argv[2], NULL) : 0.01;
    fake_engine_start(&engine, control_mailbox(control), dir.path);
    while (atomic_load(&engine.shutdowns) == 0)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    fake_engine_join(&engine);
    control_stop(control);
    statedir_close(&dir);
    return 0;
}
