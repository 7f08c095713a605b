/* An engine that trains nothing: it takes commands out of a mailbox as the real one does, keeps a state by
 * the table of command.h, and posts made-up steps, so that the whole socket path is tested without MPI, model
 * or data. */
#pragma once

#include "mailbox.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

struct fake_engine {
    struct mailbox *box;
    pthread_t thread;
    atomic_bool stop, hold; /* hold: commands are taken and not answered until it is cleared */
    atomic_bool hold_post;  /* a step is written to its file and not posted until it is cleared */
    atomic_int commands, expired, shutdowns;
    atomic_llong steps_wanted; /* while running: so many more at once */
    double step_s;             /* else one each so often; 0: only as wanted */
    const char *state_dir;

    /* the engine thread's own */
    enum engine_state state;
    char run[LIMIT_NAME_BYTES];
    int64_t step, run_steps, total_steps;
    struct policy policy;
    struct optimizer_settings settings;
    struct schedule schedule;
    FILE *jsonl;
};

void fake_engine_start(struct fake_engine *engine, struct mailbox *box, const char *state_dir);
void fake_engine_join(struct fake_engine *engine);
