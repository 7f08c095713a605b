/* What trainerd is told when it starts: flags win over the environment (TRAINERD_…), which wins over --config
 * FILE. */
#pragma once

#include "engine.h"

enum { OPTIONS_LISTEN_MAX = 8 };

struct options {
    char model[LIMIT_PATH_BYTES], init[LIMIT_PATH_BYTES]; /* at most one; neither: the newest checkpoint */
    int64_t seed;
    char layout[LIMIT_NAME_BYTES];
    int64_t zero, lanes;
    char policy[LIMIT_NAME_BYTES];
    bool yes;
    int32_t compute;   /* 0: the policy's, 1 bf16, 2 fp32 */
    int32_t recompute; /* 0 none, 1 block */
    char run[LIMIT_PATH_BYTES];
    char device[LIMIT_NAME_BYTES];
    int64_t threads;
    int32_t bind; /* 0 share, 1 keep */
    char state_dir[LIMIT_PATH_BYTES], checkpoint_dir[LIMIT_PATH_BYTES];
    char metrics[LIMIT_PATH_BYTES];
    double stuck_after;
    bool dry_run, json;
    int64_t ranks, sequence, global_batch; /* of a dry run */
    char machine[LIMIT_NAME_BYTES];
    char listen[OPTIONS_LISTEN_MAX][LIMIT_PATH_BYTES];
    int listen_count;
    bool help, version;
};

/* Before MPI_Init, which takes nothing from argv. Wrong usage: ERR_INVALID or ERR_UNSUPPORTED, exit 2. */
bool options_read(struct options *options, int argc, char **argv, struct err *err) MUST_USE;
void options_warn(void); /* of TRAINERD_… variables that nothing reads */
void options_help(void);
