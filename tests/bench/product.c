/* This machine's own large bf16 product: oneDNN as it comes, all its threads, nothing of ours in between.
 * What a training step is held against.
 *
 *     bench_product [runs]          threads: OMP_NUM_THREADS
 *
 * Prints one JSON object, {"flops": of one product, "seconds": [of each run]}; the first run is warm-up. */
#include <oneapi/dnnl/dnnl.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { SIDE = 4096, RUNS = 12 };

static void check(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success)
        return;
    fprintf(stderr, "bench_product: oneDNN could not %s (status %d)\n", what, (int)status);
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Values of every sign and some exponents: a product of zeros may be quicker than a real one. */
static dnnl_memory_t matrix(dnnl_engine_t engine, const dnnl_memory_desc_t *desc, uint32_t seed)
{
    uint16_t *values = aligned_alloc(4096, sizeof *values * SIDE * SIDE);
    dnnl_memory_t memory;
    check(values ? dnnl_success : dnnl_out_of_memory, "get memory");
    for (int i = 0; i < SIDE * SIDE; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (uint16_t)(0x3d00 + (seed >> 24) + (seed >> 8 & 0x8000));
    }
    check(dnnl_memory_create(&memory, desc, engine, values), "make a memory");
    return memory;
}

int main(int count, char **arguments)
{
    int runs = count > 1 ? atoi(arguments[1]) : RUNS;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    check(dnnl_engine_create(&engine, dnnl_cpu, 0), "start");
    check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "make a stream");
    dnnl_dims_t dims = {SIDE, SIDE}, plain = {SIDE, 1}, transposed = {1, SIDE};
    dnnl_memory_desc_t a, b;
    check(dnnl_memory_desc_init_by_strides(&a, 2, dims, dnnl_bf16, plain), "describe a matrix");
    check(dnnl_memory_desc_init_by_strides(&b, 2, dims, dnnl_bf16, transposed), "describe a matrix");
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    check(dnnl_matmul_desc_init(&matmul, &a, &b, NULL, &a), "describe a product");
    check(dnnl_primitive_desc_create(&desc, &matmul, NULL, engine, NULL), "plan a product");
    check(dnnl_primitive_create(&primitive, desc), "make a product's code");
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, matrix(engine, &a, 1)},
                              {DNNL_ARG_WEIGHTS, matrix(engine, &b, 2)},
                              {DNNL_ARG_DST, matrix(engine, &a, 3)}};
    printf("{\"flops\": %.0f, \"seconds\": [", 2.0 * SIDE * SIDE * SIDE);
    for (int run = 0; run < runs; run++) {
        double start = now_s();
        check(dnnl_primitive_execute(primitive, stream, 3, args), "run a product");
        check(dnnl_stream_wait(stream), "wait for a product");
        printf("%s%.6f", run ? ", " : "", now_s() - start);
    }
    printf("]}\n");
    return 0;
}
