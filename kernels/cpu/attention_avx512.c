/* The AVX-512 attention: none yet, the plain loop runs. */
#include "tables.h"

void overlay_attention_avx512(struct kernels *table)
{
    (void)table;
}
