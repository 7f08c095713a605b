/* Ranks and what they say to each other. The only place that knows MPI (initialised FUNNELED: the engine's
 * thread).
 *
 * MPI moves bytes and never adds: sums are made by our own kernels or in rank order on the host, so their
 * order is fixed. Collectives take device memory; where host code cannot touch it (device->host_access) they
 * stage through host buffers. Messages above LIMIT_MESSAGE_BYTES are split. In a group of one every
 * collective is a no-op. The watchdog sees each. */
#pragma once

#include "device.h"
#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the world and all groups of a process share. */
struct comm_wire {
    double seconds;             /* spent inside collectives since the caller last zeroed it */
    int64_t bytes_sent;         /* payload this rank put on the wire, for the plan's check */
    int64_t collectives;        /* all-gathers and exchanges that this rank took part in */
    char *staging;              /* two host buffers of COMM_STAGING_BYTES each, made on first need */
    struct device *device;      /* of the buffers that collectives take */
    struct comm_notice *notice; /* under way: comm_notice_post */
};

/* All ranks, or the group of those that share one axis of the layout (groups.h). */
struct comm {
    int32_t rank, ranks; /* in the group */
    const char *axis;    /* "all", "dc", "t", "c" or "p": what the watchdog names */
    void *group;         /* MPI's own, allocated; NULL: one rank alone */
    struct comm_wire *wire;
    int32_t local_rank, local_ranks; /* on this host */
    int32_t home;                    /* the lowest rank of this host */
    char host[256];
    char version[64]; /* the MPI library's, for status */
};

/* Before MPI_Init: with more local ranks than cores, waiting ranks must yield. */
bool comm_init(struct comm *comm, int *argc, char ***argv, struct err *err) MUST_USE;
void comm_done(struct comm *comm); /* MPI_Finalize: only when all ranks come here */
void comm_set_device(struct comm *comm, struct device *device);

/* The group of all ranks of `world` with the same color, numbered by key. Collective over world. */
bool comm_split(struct comm *group, const struct comm *world, const char *axis, int32_t color, int32_t key,
                struct err *err) MUST_USE;
void comm_part(struct comm *group); /* of a group, by all its ranks; zeroed: fine */

/* Every rank calls it with its own outcome; all get the same answer: true when every rank's err is OK, else
 * false and the error of the lowest rank that failed. Every collective command ends in one. */
bool comm_agree(struct comm *comm, struct err *err);

/* rank 0's bytes to all (host memory), or the root's. */
void comm_broadcast(struct comm *comm, void *bytes, size_t count);
void comm_broadcast_from(struct comm *comm, int32_t root, void *bytes, size_t count);

/* As comm_broadcast, for ranks that may wait for hours: they sleep between looks, and no watchdog runs. */
void comm_broadcast_idle(struct comm *comm, void *bytes, size_t count);

/* Rank 0's number to all, without anyone waiting: it travels with the collectives between notice_post and
 * notice_take. Every rank posts, then takes. */
void comm_notice_post(struct comm *comm, int32_t number); /* ignored but on rank 0 */
int32_t comm_notice_take(struct comm *comm);

/* Host memory: all[rank] = each rank's `each` bytes. */
void comm_all_gather_host(struct comm *comm, void *all, const void *mine, size_t each);

/* Over all ranks. Floating-point numbers are gathered and added in rank order by who wants their sum. */
int64_t comm_sum_int(struct comm *comm, int64_t mine);
int64_t comm_max_int(struct comm *comm, int64_t mine);

/* Device memory, in place: rank r's part lies at r * each bytes; afterwards all parts are there. */
void comm_all_gather(struct comm *comm, void *all, size_t each);

/* Device memory, all-to-all: part r of `from` goes to rank r; part r of `to` comes from rank r. The wire
 * bytes of a ring reduce-scatter; the receiver adds in a fixed order. */
void comm_exchange(struct comm *comm, void *to, const void *from, size_t each);

/* Device memory, between two ranks of the group: sends and receives at once, either or neither with bytes 0.
 * The two must not share memory. Returns when both are through; a send waits for its receiver, so nothing
 * relies on MPI's own buffers. */
struct comm_message {
    int32_t rank; /* to or from whom */
    void *at;
    size_t bytes;
};
void comm_transfer(struct comm *comm, const struct comm_message *out, const struct comm_message *in);

/* Phase 2 broke on this rank: ends every rank, non-zero, after the one line (last_words.h). */
_Noreturn void comm_abort(struct comm *comm, const struct err *err);
