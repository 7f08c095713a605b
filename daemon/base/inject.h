/* Bugs on demand, in builds with -Dtest_hooks=true only: TRAINERD_INJECT names one, and the tests must catch
 * it. In every other build the condition is the constant false and nothing of this is compiled. */
#pragma once

#include <stdbool.h>

#ifdef TRAINERD_TEST_HOOKS
#include <stdlib.h>
#include <string.h>
static inline bool inject(const char *bug)
{
    const char *asked = getenv("TRAINERD_INJECT");
    return asked && strcmp(asked, bug) == 0;
}
#else
#define inject(bug) false
#endif
