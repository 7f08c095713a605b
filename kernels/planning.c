/* The planning table: kernels that do nothing. Playing a model with it finds out what memory the model asks
 * for. */
#include "kernels.h"

/* The rows' parameters are there to be ignored. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

#define X(name, parameters, arguments)                                                                       \
    static void planning_##name parameters                                                                   \
    {                                                                                                        \
    }
KERNELS(X)
#undef X

struct kernels kernels_planning(const struct kernels *real)
{
    return (struct kernels){
#define X(name, parameters, arguments) .name = planning_##name,
        KERNELS(X)
#undef X
#define X(name, parameters) .name = real->name,
            KERNEL_SCRATCHES(X)
#undef X
    };
}
