/* The one device that a program's tests share: opened by main, closed at its end. */
#pragma once

#include "device.h"

#include <stdio.h>

static struct device device;

static inline bool test_device_open(const char *name, int threads)
{
    char why[256] = "";
    if (device_open(&device, name, threads, why, sizeof why) == 0)
        return true;
    fprintf(stderr, "no device %s: %s\n", name, why);
    return false;
}

/* cmocka's count of failures, with the device closed; 1 where there is none. */
#define test_device_run(tests, name, threads)                                                                \
    (test_device_open(name, threads) ? test_device_close(cmocka_run_group_tests(tests, NULL, NULL)) : 1)

static inline int test_device_close(int failed)
{
    device_close(&device);
    return failed;
}
