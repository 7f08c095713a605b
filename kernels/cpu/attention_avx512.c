/* Fast attention on fp32 tensors, and on bf16 ones (widened) where the processor has no bf16 products. */
#define ATTENTION_BF16 0
#include "attention_rows_avx512.h"
