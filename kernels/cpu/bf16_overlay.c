/* Chooses the AVX-512 BF16 rows where the processor has them. Compiled for any x86-64, since it runs before
 * anything is known. */
#include "bf16_rows.h"
#include "tables.h"

void overlay_bf16_avx512(struct kernels *table)
{
    __builtin_cpu_init();
    if (table->add != kernels_v4.add || !__builtin_cpu_supports("avx512bf16"))
        return;
#define X(name) table->name = bf16_avx512_##name;
    BF16_ROWS(X)
#undef X
}
