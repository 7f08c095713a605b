/* comm_transfer among all ranks: around the ring and against it, both ways between two, one way only, with
 * more bytes than one piece and different sizes out and in. Every byte arrives where it belongs, and what is
 * counted is what was sent.
 *
 *     ranks_comm DEVICE */
#include "comm.h"
#include "watch.h"

#include <stdio.h>
#include <stdlib.h>

static unsigned char byte_at(int32_t from, int32_t to, size_t i)
{
    return (unsigned char)((i * 2654435761u >> 24) + (size_t)from * 31 + (size_t)to * 7);
}

/* out_bytes to one rank while in_bytes come from another; 0: none. */
static bool transfer(struct comm *comm, struct device *device, int32_t to, size_t out_bytes, int32_t from,
                     size_t in_bytes)
{
    unsigned char *host = malloc(out_bytes + in_bytes + 1);
    void *out = device_allocate(device, out_bytes + 1), *in = device_allocate(device, in_bytes + 1);
    if (!host || !out || !in)
        return false;
    for (size_t i = 0; i < out_bytes; i++)
        host[i] = byte_at(comm->rank, to, i);
    device_copy_in(device, out, host, out_bytes);
    int64_t before = comm->wire->bytes_sent;
    comm_transfer(comm, &(struct comm_message){to, out, out_bytes},
                  &(struct comm_message){from, in, in_bytes});
    bool right = comm->wire->bytes_sent - before == (int64_t)out_bytes;
    device_copy_out(device, host, in, in_bytes);
    for (size_t i = 0; i < in_bytes; i++)
        right &= host[i] == byte_at(from, comm->rank, i);
    if (!right)
        fprintf(stderr, "rank %d: %zu bytes to %d, %zu from %d: wrong\n", comm->rank, out_bytes, to, in_bytes,
                from);
    device_release(device, out, out_bytes + 1);
    device_release(device, in, in_bytes + 1);
    free(host);
    return right;
}

static size_t size_of(int32_t rank, int round)
{
    static const size_t sizes[] = {1, 4096, 9u << 20, (4u << 20) + 1, 0, 300000};
    return sizes[(size_t)(rank * 2 + round) % (sizeof sizes / sizeof *sizes)];
}

static bool try_all(struct comm *comm, struct device *device)
{
    int32_t ranks = comm->ranks, rank = comm->rank;
    bool right = true;
    for (int round = 0; round < 6; round++)
        for (int32_t k = 1; k < ranks; k++) {
            int32_t to = (rank + k) % ranks, from = (rank + ranks - k) % ranks;
            right &= transfer(comm, device, to, size_of(rank, round), from, size_of(from, round));
        }
    /* down a chain, each rank what it got: nobody but the first has anything before */
    right &= rank == 0 || transfer(comm, device, 0, 0, rank - 1, 5u << 20);
    right &= rank == ranks - 1 || transfer(comm, device, rank + 1, 5u << 20, 0, 0);
    return right;
}

int main(int argc, char **argv)
{
    static struct comm comm;
    static struct device device;
    struct err err = ERR_INIT;
    char why[256];
    if (!comm_init(&comm, &argc, &argv, &err) || argc < 2 || !watch_start(comm.rank, 60, &err))
        return 1;
    if (device_open(&device, argv[1], 1, why, sizeof why) != 0)
        return 1;
    comm_set_device(&comm, &device);
    bool right = try_all(&comm, &device);
    if (!right)
        err_set(&err, ERR_CORRUPT, "what came is not what was sent");
    right = comm_agree(&comm, &err);
    watch_stop();
    device_close(&device);
    comm_done(&comm);
    return right ? 0 : 1;
}
