/* Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): random
 * bits as a pure function of a key and a counter, so that they depend on no rank, thread, layout or order of
 * work.
 *
 * - key: the daemon's seed, low and high word
 * - counter: (block low, block high, total step, stream)
 * - streams 0, 1, 2: stochastic rounding of W, m, v. block = global element index >> 3; the element with
 *   index & 7 = j takes the j-th 16-bit half-word, low half of a word first
 * - stream 3: initial weights, total step 0. block = global element index >> 1: one call serves two elements
 * - stream 4: the order of the data. block = position, total step = epoch */
#pragma once

#include "bf16.h"

enum { PHILOX_STREAM_W, PHILOX_STREAM_M, PHILOX_STREAM_V, PHILOX_STREAM_INIT, PHILOX_STREAM_ORDER };

#define PHILOX_MULTIPLIER_0 0xD2511F53u
#define PHILOX_MULTIPLIER_1 0xCD9E8D57u
#define PHILOX_WEYL_0       0x9E3779B9u
#define PHILOX_WEYL_1       0xBB67AE85u

struct philox_block {
    uint32_t word[4];
};

KERNEL_FN struct philox_block philox4x32_10(struct philox_block counter, uint32_t key0, uint32_t key1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)PHILOX_MULTIPLIER_0 * counter.word[0];
        uint64_t product1 = (uint64_t)PHILOX_MULTIPLIER_1 * counter.word[2];
        struct philox_block next = {{(uint32_t)(product1 >> 32) ^ counter.word[1] ^ key0, (uint32_t)product1,
                                     (uint32_t)(product0 >> 32) ^ counter.word[3] ^ key1,
                                     (uint32_t)product0}};
        counter = next;
        key0 += PHILOX_WEYL_0;
        key1 += PHILOX_WEYL_1;
    }
    return counter;
}

KERNEL_FN struct philox_block philox_stream_block(uint64_t seed, uint64_t block, uint64_t total_step,
                                                  uint32_t stream)
{
    struct philox_block counter = {{(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)total_step, stream}};
    return philox4x32_10(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
}

/* The 16 random bits of one element in stream 0, 1 or 2. */
KERNEL_FN uint32_t philox_halfword(uint64_t seed, uint64_t index, uint64_t total_step, uint32_t stream)
{
    struct philox_block block = philox_stream_block(seed, index >> 3, total_step, stream);
    return (block.word[(index & 7) >> 1] >> (16 * (index & 1))) & 0xFFFFu;
}
