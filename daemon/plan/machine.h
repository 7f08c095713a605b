/* What a step is planned for: the published rates of a device, or this host's measured ones, and the share of
 * them that a step's parts are taken to reach. All rates are of one rank. */
#pragma once

#include "err.h"

#include <stdint.h>

struct machine {
    const char *name, *title;
    double product_flops; /* a second: dense bf16 products, at their peak */
    double memory_rate;   /* bytes a second, read plus written */
    double link_rate;     /* bytes a second that a rank sends to another of its host … */
    double network_rate;  /* … and of another host */
    int64_t memory_bytes;
    int32_t ranks_a_host;
    bool overlaps; /* weights and gradients travel while others are computed with */
    /* shares of the peaks that are reached */
    double products, attention_forward, attention_backward, streaming, links;
};

/* "h100", "h200", "b200" from the table; ERR_INVALID with the nearest name. */
bool machine_find(struct machine *machine, const char *name, struct err *err) MUST_USE;

/* This host's CPU, by the rates that `trainctl doctor` kept in its state folder, shared by so many ranks;
 * ERR_NOT_FOUND where it kept none. memory_bytes is 0: whoever plans knows what is there. */
bool machine_here(struct machine *machine, int32_t ranks_here, struct err *err) MUST_USE;
