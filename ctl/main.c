/* trainctl: parse, look up the row, call its function. */
#include "call.h"

#include <signal.h>
#include <stdio.h>

static int run(struct call *call, int argc, char **argv)
{
    struct err err = ERR_INIT;
    if (!call_parse(call, argc, argv, &err))
        return err.code == ERR_OK ? EXIT_DONE : call_fail(call, &err);
    if (call->command->run)
        return call->command->run(call);
    err_set(&err, ERR_UNSUPPORTED, "trainctl %s is not built yet", call->command->name);
    err_hint(&err, "trainctl --help lists what is");
    return call_fail(call, &err);
}

int main(int argc, char **argv)
{
    static struct call call;
    signal(SIGPIPE, SIG_DFL); /* trainctl metrics | head ends quietly */
    int code = run(&call, argc, argv);
    call_done(&call);
    if (fflush(stdout) != 0 && code == EXIT_DONE) {
        perror("trainctl: cannot write to stdout");
        code = EXIT_REFUSED;
    }
    return code;
}
