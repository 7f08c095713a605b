#include "roll.h"

#include "words.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROLL_MAGIC 0x6c6c6f72u
#define ROLL_BURST 4096 /* datagrams read in one go: more can wait for the next */
#define ROLL_NAMED 8    /* hosts in one line */

enum roll_kind { ROLL_ASK, ROLL_ANSWER };

/* Ranks of one MPI job agree on byte order. */
struct roll_datagram {
    uint32_t magic;
    int32_t kind; /* enum roll_kind */
    int32_t from, to;
    uint64_t numbers[2]; /* the receiver's */
    struct roll_news news;
};

struct roll_host {
    struct roll_card card; /* its home rank's */
    int32_t ranks;
    bool heard;       /* ever */
    int64_t asked_ns; /* when it was asked what it has not answered; 0: nothing is open */
    int64_t due_ns;   /* when to ask next */
    struct roll_news news;
};

static struct {
    int fd;
    bool only_ipv4;
    struct roll_host *hosts; /* in the order of their lowest ranks */
    int32_t count, mine;
    bool any_heard;
} roll = {.fd = -1};

/* A socket for both families; where the kernel has no IPv6, for the other alone. Returns the port, 0: none.
 */
static uint16_t open_socket(void)
{
    const int type = SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, off = 0;
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    struct sockaddr_in four = {.sin_family = AF_INET};
    socklen_t six_bytes = sizeof six, four_bytes = sizeof four;
    roll.fd = socket(AF_INET6, type, 0);
    if (roll.fd >= 0 && setsockopt(roll.fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0 &&
        bind(roll.fd, (struct sockaddr *)&six, sizeof six) == 0 &&
        getsockname(roll.fd, (struct sockaddr *)&six, &six_bytes) == 0)
        return ntohs(six.sin6_port);
    if (roll.fd >= 0)
        close(roll.fd);
    roll.only_ipv4 = true;
    roll.fd = socket(AF_INET, type, 0);
    if (roll.fd >= 0 && bind(roll.fd, (struct sockaddr *)&four, sizeof four) == 0 &&
        getsockname(roll.fd, (struct sockaddr *)&four, &four_bytes) == 0)
        return ntohs(four.sin_port);
    roll_done();
    return 0;
}

/* Of interfaces that are up, but not those that every host has alike or that mean nothing elsewhere. */
static void note_address(struct roll_card *card, const struct ifaddrs *interface)
{
    uint8_t *to = card->addresses[card->address_count];
    unsigned wanted = IFF_UP | IFF_RUNNING;
    if (!interface->ifa_addr || (interface->ifa_flags & (wanted | IFF_LOOPBACK)) != wanted)
        return;
    if (interface->ifa_addr->sa_family == AF_INET) {
        struct sockaddr_in address;
        memcpy(&address, interface->ifa_addr, sizeof address);
        memset(to, 0, 10);
        memset(to + 10, 0xff, 2);
        memcpy(to + 12, &address.sin_addr, 4);
        card->address_count++;
    } else if (interface->ifa_addr->sa_family == AF_INET6) {
        struct sockaddr_in6 address;
        memcpy(&address, interface->ifa_addr, sizeof address);
        if (IN6_IS_ADDR_LINKLOCAL(&address.sin6_addr))
            return;
        memcpy(to, &address.sin6_addr, 16);
        card->address_count++;
    }
}

struct roll_card roll_card_make(int32_t rank, int32_t home, const char *host)
{
    struct roll_card card = {.rank = rank, .home = home};
    struct ifaddrs *all = NULL;
    snprintf(card.host, sizeof card.host, "%.*s", ROLL_NAME_BYTES - 1, host);
    if (rank != home || getrandom(card.numbers, sizeof card.numbers, 0) != sizeof card.numbers ||
        getifaddrs(&all) != 0)
        return card;
    for (const struct ifaddrs *i = all; i && card.address_count < ROLL_ADDRESSES_MAX; i = i->ifa_next)
        note_address(&card, i);
    freeifaddrs(all);
    card.port = open_socket();
    return card;
}

void roll_meet(const struct roll_card *cards, int32_t count, int32_t rank)
{
    int32_t hosts = 0;
    for (int32_t i = 0; i < count; i++)
        hosts += cards[i].rank == cards[i].home;
    roll.count = hosts;
    roll.hosts = hosts > 1 && roll.fd >= 0 ? calloc((size_t)hosts, sizeof *roll.hosts) : NULL;
    if (!roll.hosts) {
        roll_done();
        return;
    }
    int32_t *host_of = calloc((size_t)count, sizeof *host_of); /* [rank], of home ranks */
    INVARIANT(host_of != NULL);
    for (int32_t i = 0, next = 0; i < count; i++)
        if (cards[i].rank == cards[i].home) {
            roll.hosts[next].card = cards[i];
            roll.hosts[next].news.rank = cards[i].rank;
            host_of[cards[i].rank] = next++;
        }
    for (int32_t i = 0; i < count; i++) {
        roll.hosts[host_of[cards[i].home]].ranks++;
        if (cards[i].rank == rank)
            roll.mine = host_of[cards[i].home];
    }
    free(host_of);
}

void roll_done(void)
{
    struct roll_host *hosts = roll.hosts;
    if (roll.fd >= 0)
        close(roll.fd);
    roll.fd = -1;
    roll.any_heard = false;
    roll.hosts = NULL; /* first: a signal handler may ask who is silent */
    free(hosts);
}

int32_t roll_hosts(void)
{
    return roll.count;
}

int roll_descriptor(void)
{
    return roll.fd;
}

/* What cannot be sent is what is not answered: nothing to report. */
static void send_to(const struct roll_datagram *datagram, const uint8_t address[16], uint16_t port)
{
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
    memcpy(&six.sin6_addr, address, 16);
    memcpy(&four.sin_addr, address + 12, 4);
    if (!roll.only_ipv4)
        sendto(roll.fd, datagram, sizeof *datagram, 0, (struct sockaddr *)&six, sizeof six);
    else if (IN6_IS_ADDR_V4MAPPED(&six.sin6_addr))
        sendto(roll.fd, datagram, sizeof *datagram, 0, (struct sockaddr *)&four, sizeof four);
}

static void say(enum roll_kind kind, int32_t to, const struct roll_news *mine)
{
    const struct roll_card *card = &roll.hosts[to].card;
    struct roll_datagram datagram = {.magic = ROLL_MAGIC,
                                     .kind = (int32_t)kind,
                                     .from = roll.mine,
                                     .to = to,
                                     .numbers = {card->numbers[0], card->numbers[1]},
                                     .news = *mine};
    for (int32_t i = 0; i < card->address_count; i++)
        send_to(&datagram, card->addresses[i], card->port);
}

static void hear(const struct roll_datagram *datagram, const struct roll_news *mine)
{
    const struct roll_card *card = &roll.hosts[roll.mine].card;
    if (datagram->magic != ROLL_MAGIC || datagram->to != roll.mine || datagram->from < 0 ||
        datagram->from >= roll.count || datagram->from == roll.mine ||
        memcmp(datagram->numbers, card->numbers, sizeof card->numbers) != 0)
        return;
    struct roll_host *host = &roll.hosts[datagram->from];
    host->heard = roll.any_heard = true;
    host->asked_ns = 0;
    host->news = datagram->news;
    if (datagram->kind == ROLL_ASK)
        say(ROLL_ANSWER, datagram->from, mine);
}

void roll_attend(int64_t now_ns, int64_t every_ns, bool trouble, const struct roll_news *mine)
{
    struct roll_datagram datagram;
    if (!roll.hosts)
        return;
    for (int i = 0; i < ROLL_BURST; i++) {
        ssize_t got = recv(roll.fd, &datagram, sizeof datagram, MSG_TRUNC);
        if (got < 0)
            break;
        if (got == sizeof datagram)
            hear(&datagram, mine);
    }
    for (int32_t h = 0; h < roll.count; h++) {
        struct roll_host *host = &roll.hosts[h];
        bool star = h == 0 || roll.mine == 0;
        if (h == roll.mine || host->card.port == 0 || now_ns < host->due_ns)
            continue;
        if (!star && !trouble) {
            host->asked_ns = 0; /* who is asked no more owes no answer */
            continue;
        }
        host->due_ns = now_ns + every_ns;
        host->asked_ns = host->asked_ns ? host->asked_ns : now_ns;
        say(ROLL_ASK, h, mine);
    }
}

static void name_host(struct words *w, const struct roll_host *host)
{
    words_text(w, "; host ");
    words_text(w, host->card.host);
    words_text(w, host->ranks == 1 ? " (rank " : " (the lowest of its ");
    if (host->ranks > 1) {
        words_int(w, host->ranks);
        words_text(w, " ranks is ");
    }
    words_int(w, host->card.rank);
    words_text(w, ")");
}

int32_t roll_name_silent(struct words *w, int64_t now_ns, int64_t silence_ns, bool known)
{
    int32_t named = 0;
    for (int32_t h = 0; roll.hosts && h < roll.count; h++) {
        const struct roll_host *host = &roll.hosts[h];
        if (!host->asked_ns || now_ns - host->asked_ns < silence_ns ||
            !(known ? host->heard : roll.any_heard))
            continue;
        if (named++ >= ROLL_NAMED)
            continue;
        name_host(w, host);
        words_text(w, " has not answered for ");
        words_int(w, (now_ns - host->asked_ns) / 1000000000);
        words_text(w, " s");
    }
    if (named > ROLL_NAMED) {
        words_text(w, "; and ");
        words_int(w, named - ROLL_NAMED);
        words_text(w, " more");
    }
    return named;
}

int32_t roll_name_elsewhere(struct words *w)
{
    int32_t named = 0;
    for (int32_t h = 0; roll.hosts && h < roll.count; h++) {
        const struct roll_host *host = &roll.hosts[h];
        if (!host->heard || host->news.place == ROLL_INSIDE || named++ >= ROLL_NAMED)
            continue;
        words_text(w, "; rank ");
        words_int(w, host->news.rank);
        words_text(w, " on host ");
        words_text(w, host->card.host);
        words_text(w, host->news.place == ROLL_STOPPED ? " is stopped (SIGSTOP, or a debugger)"
                                                       : " is in none (its last is ");
        if (host->news.place == ROLL_STOPPED)
            continue;
        words_int(w, host->news.sequence);
        words_text(w, ")");
    }
    return named;
}
