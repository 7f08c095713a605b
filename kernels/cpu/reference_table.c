/* One level's table (see rows.h). */
#include "rows.h"

#include "tables.h"

const struct kernels ROW_OF(kernels, LEVEL) = {
#define X(name, parameters, arguments) .name = ROW(name),
    KERNELS(X)
#undef X
#define X(name, parameters) .name = ROW(name),
        KERNEL_SCRATCHES(X)
#undef X
};
