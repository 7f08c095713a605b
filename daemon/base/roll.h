/* The hosts of a job ask each other "are you there?" in small datagrams, so that one that is cut off, down or
 * stopped is known by name. MPI cannot say: its ranks wait in a collective, and the network's own patience is
 * minutes.
 *
 * The lowest rank of each host speaks for it. In quiet times all ask the first host and it asks them, a
 * datagram each every few seconds; while a collective of this host stands still everyone asks everyone. An
 * answer carries what the ranks of the asked host are doing. Datagrams hold numbers drawn at the start, and
 * others are not heard. Where a firewall lets none through nobody is ever heard, and then nobody is called
 * silent.
 *
 * Owner: roll_card_make and roll_meet belong to the engine's thread, before the watchdog's starts; the rest
 * to that. */
#pragma once

#include "err.h"

#include <stdbool.h>
#include <stdint.h>

#define ROLL_ADDRESSES_MAX 8
#define ROLL_NAME_BYTES    64

/* What each rank tells all others once. */
struct roll_card {
    int32_t rank, home; /* home: the lowest rank of its host */
    char host[ROLL_NAME_BYTES];
    uint64_t numbers[2]; /* a datagram to this host holds them */
    uint16_t port;       /* 0: does not speak for its host */
    int32_t address_count;
    uint8_t addresses[ROLL_ADDRESSES_MAX][16]; /* IPv6; those of IPv4 mapped */
};

/* The one rank of a host that others want to hear of. */
enum roll_place { ROLL_INSIDE, ROLL_ELSEWHERE, ROLL_STOPPED };
struct roll_news {
    int32_t rank;
    int32_t place;    /* enum roll_place: all wait in a collective; this rank is in none; it is stopped */
    int64_t sequence; /* of its last collective */
};

struct roll_card roll_card_make(int32_t rank, int32_t home, const char *host);

/* cards: of all ranks, any order. Without memory or a socket this host neither asks nor answers. */
void roll_meet(const struct roll_card *cards, int32_t count, int32_t rank);
void roll_done(void);

int32_t roll_hosts(void);  /* in the job */
int roll_descriptor(void); /* readable when a datagram is there; -1: none to read */

/* Answers what has come and asks who is due, every `every_ns`; all hosts where trouble. */
void roll_attend(int64_t now_ns, int64_t every_ns, bool trouble, const struct roll_news *mine);

/* Hosts that have left what they were asked unanswered for silence_ns, in words: "; host node3 (rank 3) has
 * not answered for 8 s". Their number. known: only hosts that have been heard before; otherwise all, once any
 * has been. */
struct words;
int32_t roll_name_silent(struct words *w, int64_t now_ns, int64_t silence_ns, bool known);

/* Ranks that are in no collective or stopped, by what their hosts last said: "; rank 5 on host node2 is
 * stopped (…)". */
int32_t roll_name_elsewhere(struct words *w);
