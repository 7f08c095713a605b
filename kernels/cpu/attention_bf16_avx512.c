/* Fast attention on bf16 tensors for processors with AVX-512 BF16. */
#define ATTENTION_BF16 1
#include "attention_rows_avx512.h"
