/* Chooses the attention rows for this processor: AVX-512 with or without BF16, else the plain loops stay.
 * Compiled for any x86-64, since it runs before anything is known. */
#include "attention_fast.h"
#include "tables.h"

#define TAKE(set)                                                                                            \
    do {                                                                                                     \
        table->attention_forward = attention_forward_##set;                                                  \
        table->attention_forward_scratch = attention_forward_scratch_##set;                                  \
        table->attention_backward = attention_backward_##set;                                                \
        table->attention_backward_scratch = attention_backward_scratch_##set;                                \
    } while (0)

void overlay_attention_avx512(struct kernels *table)
{
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") &&
          __builtin_cpu_supports("fma")))
        return;
    if (__builtin_cpu_supports("avx512bf16"))
        TAKE(avx512_bf16);
    else
        TAKE(avx512);
}
