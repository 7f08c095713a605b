/* The element types that tensors, states and files are made of. The names are safetensors' own. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define DTYPES(X)                                                                                            \
    X(DTYPE_F32, "F32", "fp32", 4)                                                                           \
    X(DTYPE_BF16, "BF16", "bf16", 2)                                                                         \
    X(DTYPE_F16, "F16", "fp16", 2)                                                                           \
    X(DTYPE_F64, "F64", "fp64", 8)                                                                           \
    X(DTYPE_I64, "I64", "int64", 8)                                                                          \
    X(DTYPE_I32, "I32", "int32", 4)                                                                          \
    X(DTYPE_I16, "I16", "int16", 2)                                                                          \
    X(DTYPE_I8, "I8", "int8", 1)                                                                             \
    X(DTYPE_U32, "U32", "uint32", 4)                                                                         \
    X(DTYPE_U16, "U16", "uint16", 2)                                                                         \
    X(DTYPE_U8, "U8", "uint8", 1)

enum dtype {
#define X(dtype, hub, name, bytes) dtype,
    DTYPES(X)
#undef X
        DTYPE_COUNT
};

static inline size_t dtype_bytes(enum dtype dtype)
{
    static const size_t table[] = {
#define X(dtype, hub, name, bytes) bytes,
        DTYPES(X)
#undef X
    };
    return table[dtype];
}

static inline const char *dtype_name(enum dtype dtype) /* "bf16": what people read */
{
    static const char *const table[] = {
#define X(dtype, hub, name, bytes) name,
        DTYPES(X)
#undef X
    };
    return table[dtype];
}

static inline const char *dtype_hub_name(enum dtype dtype) /* "BF16": what safetensors writes */
{
    static const char *const table[] = {
#define X(dtype, hub, name, bytes) hub,
        DTYPES(X)
#undef X
    };
    return table[dtype];
}
