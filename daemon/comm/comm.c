#include "comm.h"

#include "bounds.h"
#include "clock.h"
#include "last_words.h"
#include "watch.h"

#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define COMM_STAGING_BYTES ((size_t)4 << 20) /* split over the ranks of a staged collective */
#define COMM_NAP_NS_MIN    20000
#define COMM_NAP_NS_MAX    10000000

/* Open MPI spins in its waits. Where ranks outnumber cores that starves the rank that has work, so they must
 * yield; mpirun knows that only when it was told the slots, we know it from its environment. */
static void yield_if_crowded(void)
{
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    cpu_set_t all;
    memset(&all, 0xff, sizeof all);
    cpu_set_t before;
    sched_getaffinity(0, sizeof before, &before);
    sched_setaffinity(0, sizeof all, &all); /* mpirun may have bound us to one core: count the host's */
    cpu_set_t usable;
    sched_getaffinity(0, sizeof usable, &usable);
    sched_setaffinity(0, sizeof before, &before);
    if (local && atoi(local) > CPU_COUNT(&usable))
        setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
}

bool comm_init(struct comm *comm, int *argc, char ***argv, struct err *err)
{
    *comm = (struct comm){0};
    yield_if_crowded();
    int provided, length;
    if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS ||
        provided < MPI_THREAD_FUNNELED)
        return err_set(err, ERR_RANK, "MPI does not start with threads (it offers level %d)", provided);
    comm->axis = "all";
    comm->wire = calloc(1, sizeof *comm->wire);
    MPI_Comm *group = malloc(sizeof *group);
    INVARIANT(comm->wire && group);
    *group = MPI_COMM_WORLD;
    comm->group = group;
    MPI_Comm_rank(MPI_COMM_WORLD, &comm->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &comm->ranks);
    MPI_Comm local;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    MPI_Comm_rank(local, &comm->local_rank);
    MPI_Comm_size(local, &comm->local_ranks);
    comm->home = comm->rank;
    MPI_Bcast(&comm->home, 1, MPI_INT32_T, 0, local);
    MPI_Comm_free(&local);
    gethostname(comm->host, sizeof comm->host - 1);
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Get_library_version(version, &length);
    version[strcspn(version, ",")] = '\0';
    snprintf(comm->version, sizeof comm->version, "%.*s", (int)sizeof comm->version - 1, version);
    return true;
}

void comm_done(struct comm *comm)
{
    free(comm->wire->staging);
    free(comm->wire->notice);
    free(comm->wire);
    free(comm->group);
    *comm = (struct comm){0};
    MPI_Finalize();
}

static MPI_Comm mpi_of(const struct comm *comm)
{
    return *(MPI_Comm *)comm->group;
}

bool comm_split(struct comm *group, const struct comm *world, const char *axis, int32_t color, int32_t key,
                struct err *err)
{
    MPI_Comm *made = malloc(sizeof *made);
    INVARIANT(made != NULL);
    if (MPI_Comm_split(mpi_of(world), color, key, made) != MPI_SUCCESS) {
        free(made);
        return err_set(err, ERR_RANK, "MPI cannot make the groups of axis %s", axis);
    }
    *group = *world;
    group->axis = axis;
    group->group = made;
    MPI_Comm_rank(*made, &group->rank);
    MPI_Comm_size(*made, &group->ranks);
    return true;
}

void comm_part(struct comm *group)
{
    if (group->group)
        MPI_Comm_free(group->group);
    free(group->group);
    *group = (struct comm){0};
}

void comm_set_device(struct comm *comm, struct device *device)
{
    comm->wire->device = device;
}

_Noreturn void comm_abort(struct comm *comm, const struct err *err)
{
    (void)comm;
    last_words_because(err);
    MPI_Abort(MPI_COMM_WORLD, LAST_WORDS_EXIT);
    _exit(LAST_WORDS_EXIT);
}

static double enter(const struct comm *comm, const char *operation, int64_t count)
{
    watch_enter(operation, comm->axis, count);
    return clock_s();
}

static void leave(struct comm *comm, double entered_s)
{
    comm->wire->seconds += clock_s() - entered_s;
    watch_leave();
}

void comm_broadcast(struct comm *comm, void *bytes, size_t count)
{
    comm_broadcast_from(comm, 0, bytes, count);
}

void comm_broadcast_from(struct comm *comm, int32_t root, void *bytes, size_t count)
{
    if (comm->ranks == 1)
        return;
    double entered = enter(comm, "broadcast", (int64_t)count);
    for (size_t done = 0; done < count;) {
        size_t piece = count - done < LIMIT_MESSAGE_BYTES ? count - done : LIMIT_MESSAGE_BYTES;
        MPI_Bcast((char *)bytes + done, (int)piece, MPI_BYTE, root, mpi_of(comm));
        done += piece;
    }
    leave(comm, entered);
}

void comm_broadcast_idle(struct comm *comm, void *bytes, size_t count)
{
    if (comm->ranks == 1)
        return;
    INVARIANT(count < LIMIT_MESSAGE_BYTES);
    MPI_Request request;
    MPI_Ibcast(bytes, (int)count, MPI_BYTE, 0, mpi_of(comm), &request);
    int done = 0;
    for (long nap_ns = COMM_NAP_NS_MIN;
         MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done;) {
        nanosleep(&(struct timespec){.tv_nsec = nap_ns}, NULL);
        nap_ns = nap_ns * 5 / 4 < COMM_NAP_NS_MAX ? nap_ns * 5 / 4 : COMM_NAP_NS_MAX;
    }
}

struct comm_notice {
    int32_t number;
    MPI_Request request;
};

void comm_notice_post(struct comm *comm, int32_t number)
{
    if (!comm->wire->notice)
        comm->wire->notice = malloc(sizeof *comm->wire->notice);
    struct comm_notice *notice = comm->wire->notice;
    INVARIANT(notice != NULL);
    notice->number = number;
    if (comm->ranks > 1)
        MPI_Ibcast(&notice->number, 1, MPI_INT32_T, 0, mpi_of(comm), &notice->request);
}

int32_t comm_notice_take(struct comm *comm)
{
    struct comm_notice *notice = comm->wire->notice;
    if (comm->ranks == 1)
        return notice->number;
    double entered = enter(comm, "notice", 1);
    MPI_Wait(&notice->request, MPI_STATUS_IGNORE);
    leave(comm, entered);
    return notice->number;
}

void comm_all_gather_host(struct comm *comm, void *all, const void *mine, size_t each)
{
    if (comm->ranks == 1) {
        memmove(all, mine, each);
        return;
    }
    double entered = enter(comm, "all-gather", (int64_t)each);
    INVARIANT(each < LIMIT_MESSAGE_BYTES);
    if ((char *)all + each * (size_t)comm->rank != (const char *)mine)
        memmove((char *)all + each * (size_t)comm->rank, mine, each);
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, (int)each, MPI_BYTE, mpi_of(comm));
    leave(comm, entered);
}

static int64_t reduce_int(struct comm *comm, int64_t mine, MPI_Op operation)
{
    if (comm->ranks == 1)
        return mine;
    double entered = enter(comm, "all-reduce", 1);
    int64_t result;
    MPI_Allreduce(&mine, &result, 1, MPI_INT64_T, operation,
                  mpi_of(comm)); /* integers: any order, same bits */
    leave(comm, entered);
    return result;
}

int64_t comm_sum_int(struct comm *comm, int64_t mine)
{
    return reduce_int(comm, mine, MPI_SUM);
}

int64_t comm_max_int(struct comm *comm, int64_t mine)
{
    return reduce_int(comm, mine, MPI_MAX);
}

bool comm_agree(struct comm *comm, struct err *err)
{
    if (err->code != ERR_OK && err->rank < 0)
        err->rank = comm->rank;
    if (comm->ranks == 1)
        return err->code == ERR_OK;
    int64_t failing = comm_max_int(comm, err->code == ERR_OK ? -1 : comm->ranks - 1 - comm->rank);
    if (failing < 0)
        return true;
    double entered = enter(comm, "agreement", 1);
    MPI_Bcast(err, (int)sizeof *err, MPI_BYTE, comm->ranks - 1 - (int)failing, mpi_of(comm));
    leave(comm, entered);
    return false;
}

/* A message of `bytes` within parts that lie `each` bytes apart: one element of this type a rank. */
static MPI_Datatype strided_part(size_t bytes, size_t each)
{
    MPI_Datatype plain, strided;
    MPI_Type_contiguous((int)bytes, MPI_BYTE, &plain);
    MPI_Type_create_resized(plain, 0, (MPI_Aint)each, &strided);
    MPI_Type_commit(&strided);
    MPI_Type_free(&plain);
    return strided;
}

static void take_staging(struct comm *comm)
{
    if (!comm->wire->staging)
        comm->wire->staging = malloc(COMM_STAGING_BYTES * 2);
    INVARIANT(comm->wire->staging != NULL);
}

/* Pieces of a collective over parts of `each` bytes: as large as MPI's counts, or as the staging buffer,
 * allow. */
static size_t piece_bytes(struct comm *comm, size_t each)
{
    size_t most = (size_t)LIMIT_MESSAGE_BYTES / (size_t)comm->ranks;
    if (!comm->wire->device->host_access) {
        most = COMM_STAGING_BYTES / (size_t)comm->ranks;
        take_staging(comm);
    }
    return each < most ? each : most;
}

void comm_all_gather(struct comm *comm, void *all, size_t each)
{
    if (comm->ranks == 1 || each == 0)
        return;
    double entered = enter(comm, "all-gather", (int64_t)each);
    size_t most = piece_bytes(comm, each);
    char *parts = all;
    for (size_t done = 0; done < each; done += most) {
        size_t piece = each - done < most ? each - done : most;
        if (comm->wire->device->host_access) {
            MPI_Datatype part = strided_part(piece, each);
            MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, parts + done, 1, part, mpi_of(comm));
            MPI_Type_free(&part);
        } else {
            char *mine = comm->wire->staging + piece * (size_t)comm->rank;
            device_copy_out(comm->wire->device, mine, parts + each * (size_t)comm->rank + done, piece);
            MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, comm->wire->staging, (int)piece, MPI_BYTE,
                          mpi_of(comm));
            for (size_t r = 0; r < (size_t)comm->ranks; r++)
                device_copy_in(comm->wire->device, parts + each * r + done, comm->wire->staging + piece * r,
                               piece);
        }
        watch_tick();
    }
    comm->wire->bytes_sent += (int64_t)each * (comm->ranks - 1);
    comm->wire->collectives++;
    leave(comm, entered);
}

void comm_exchange(struct comm *comm, void *to, const void *from, size_t each)
{
    if (comm->ranks == 1) {
        device_copy(comm->wire->device, to, from, each);
        return;
    }
    double entered = enter(comm, "all-to-all", (int64_t)each);
    size_t most = piece_bytes(comm, each);
    for (size_t done = 0; done < each; done += most) {
        size_t piece = each - done < most ? each - done : most;
        if (comm->wire->device->host_access) {
            MPI_Datatype part = strided_part(piece, each);
            MPI_Alltoall((const char *)from + done, 1, part, (char *)to + done, 1, part, mpi_of(comm));
            MPI_Type_free(&part);
        } else {
            char *out = comm->wire->staging, *in = comm->wire->staging + COMM_STAGING_BYTES;
            for (size_t r = 0; r < (size_t)comm->ranks; r++)
                device_copy_out(comm->wire->device, out + piece * r, (const char *)from + each * r + done,
                                piece);
            MPI_Alltoall(out, (int)piece, MPI_BYTE, in, (int)piece, MPI_BYTE, mpi_of(comm));
            for (size_t r = 0; r < (size_t)comm->ranks; r++)
                device_copy_in(comm->wire->device, (char *)to + each * r + done, in + piece * r, piece);
        }
        watch_tick();
    }
    comm->wire->bytes_sent += (int64_t)each * (comm->ranks - 1);
    comm->wire->collectives++;
    leave(comm, entered);
}

/* One direction of a transfer: the piece under way. Each goes on by itself, whatever the other does. */
struct direction {
    struct comm *comm;
    const struct comm_message *message;
    char *staging; /* NULL: straight from and to the message's memory */
    size_t done, piece;
    bool sends;
};

static MPI_Request next_piece(struct direction *d)
{
    MPI_Request request = MPI_REQUEST_NULL;
    size_t left = d->message->bytes - d->done;
    size_t most = d->staging ? COMM_STAGING_BYTES : (size_t)LIMIT_MESSAGE_BYTES;
    char *at = (char *)d->message->at + d->done;
    d->piece = left < most ? left : most;
    if (d->piece == 0)
        return request;
    if (d->sends && d->staging)
        device_copy_out(d->comm->wire->device, d->staging, at, d->piece);
    at = d->staging ? d->staging : at;
    if (d->sends)
        MPI_Issend(at, (int)d->piece, MPI_BYTE, d->message->rank, 0, mpi_of(d->comm), &request);
    else
        MPI_Irecv(at, (int)d->piece, MPI_BYTE, d->message->rank, 0, mpi_of(d->comm), &request);
    return request;
}

static void finish_piece(struct direction *d)
{
    if (!d->sends && d->staging)
        device_copy_in(d->comm->wire->device, (char *)d->message->at + d->done, d->staging, d->piece);
    d->done += d->piece;
}

void comm_transfer(struct comm *comm, const struct comm_message *out, const struct comm_message *in)
{
    if (out->bytes == 0 && in->bytes == 0)
        return;
    double entered = enter(comm, "transfer", (int64_t)(out->bytes + in->bytes));
    bool staged = !comm->wire->device->host_access;
    if (staged)
        take_staging(comm);
    struct direction ways[2] = {{.comm = comm, .message = in}, {.comm = comm, .message = out, .sends = true}};
    for (int i = 0; i < 2 && staged; i++)
        ways[i].staging = comm->wire->staging + (size_t)i * COMM_STAGING_BYTES;
    MPI_Request requests[2] = {next_piece(&ways[0]), next_piece(&ways[1])};
    for (int i; MPI_Waitany(2, requests, &i, MPI_STATUS_IGNORE) == MPI_SUCCESS && i != MPI_UNDEFINED;) {
        finish_piece(&ways[i]);
        requests[i] = next_piece(&ways[i]);
        watch_tick();
    }
    comm->wire->bytes_sent += (int64_t)out->bytes;
    leave(comm, entered);
}
