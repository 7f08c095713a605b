/* The AVX-512 update: none yet, the plain loop runs. */
#include "tables.h"

void overlay_update_avx512(struct kernels *table)
{
    (void)table;
}
