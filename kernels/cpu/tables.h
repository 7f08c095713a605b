/* The tables of the CPU: three levels of the plain loops (rows.h), and overlays that replace single rows. */
#pragma once

#include "kernels.h"

extern const struct kernels kernels_v3; /* x86-64-v3: AVX2 and FMA; same bits as kernels_reference */
extern const struct kernels kernels_v4; /* x86-64-v4: AVX-512 F, BW, CD, DQ, VL; same bits */

/* Each overlay replaces the rows that it does better on this processor, or none. */
void overlay_dnnl(struct kernels *table, int threads); /* matmul_dnnl.c: products by oneDNN */
void overlay_update_avx512(struct kernels *table);     /* update_avx512.c */
void overlay_attention_avx512(struct kernels *table);  /* attention_avx512.c */
void overlay_bf16_avx512(struct kernels *table);       /* bf16_avx512.c: norms, RoPE, SwiGLU; same bits */

/* How bf16 products are computed here, for device.products; and the library's version, for
 * device.description. */
const char *dnnl_products(void);
const char *dnnl_release(void);
