/* Every loop's end and every buffer's size that a user, a file or a peer could push at: one place. */
#pragma once

#define LIMIT_NAME_BYTES        128  /* tensor, policy, run and checkpoint names */
#define LIMIT_PATH_BYTES        1024 /* paths carried in commands */
#define LIMIT_SOCKET_PATH_BYTES 100  /* sun_path has 108 */
#define LIMIT_RANKS             65536
#define LIMIT_LANES             65536
#define LIMIT_DIMS              4 /* of a tensor */
#define LIMIT_LAYERS            1024
#define LIMIT_VOCABULARY        (1 << 22)
#define LIMIT_FRAME_BYTES       (128 << 20) /* a controller's frame */
#define LIMIT_OBSERVER_BYTES    (1 << 20)   /* an observer's frame */
#define LIMIT_COMMAND_QUEUE     64          /* commands accepted and not yet taken up */
#define LIMIT_EVENT_QUEUE       1024        /* events waiting for the control thread */
#define LIMIT_CLIENTS           1024
#define LIMIT_SUBSCRIBER_QUEUE  4096        /* events waiting for one slow client */
#define LIMIT_JSON_BYTES        (64 << 20)  /* headers, manifests, config.json */
#define LIMIT_MESSAGE_BYTES     (1ll << 30) /* one MPI call; larger transfers are split */
#define LIMIT_SKIPS_IN_A_ROW    10          /* skipped updates that end a run */
#define LIMIT_WARNINGS          8           /* shown in status */
