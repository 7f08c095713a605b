/* Products by oneDNN 2.6: the only file with its calls (3.x names and creates things differently).
 *
 * oneDNN decides by itself how its threads split a product, the sum over k included, and even one thread's
 * bits depend on the shape that it is given. So it gets no threads here: a product is cut into tiles of its
 * rows and columns, never of k, by a rule that knows the product's shape only; each tile is one
 * single-threaded primitive on strided views, and our threads take tiles as they are free. Bits cannot depend
 * on the number of threads. Tiles of 256 x 1024 run within 2 % of the best whole product in all three
 * directions, tiles of 128 x 1024 within 5 %, of 128 x 512 within 13 % (measured): hence the limits, which
 * still give four threads work at 512 rows. Where b is not transposed (the input's gradient), 256 x 512 is
 * 10 % ahead of 128 x 1024; where it is, 2 % behind.
 *
 * Primitives are kept in a bounded cache: making one takes about 0.4 ms, and packed batches have many
 * lengths. What they need while they run depends on the shape in ways that only oneDNN knows, so it is part
 * of the cache (one pad a thread, a few hundred KB, as large as the largest needs) and not of the rows'
 * scratch, which stays plain arithmetic. Only the thread that owns the device calls this file. */
#include "loops.h"
#include "tables.h"

#include <oneapi/dnnl/dnnl.h>

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    TILE_ROWS = 256,
    TILE_ROWS_MANY = 512, /* where there are many tiles: 3 % more */
    TILE_COLUMNS = 1024,
    TILE_COLUMNS_LONG = 512,
    LONG = 4096,
    STEP = 16,
    COLUMN_STEP = 64,
    PIECE = 2048 /* of k, where tiles are widened: bounds their copies */
};
enum {
    TILES_MANY = 8,
    TILES_FEW = 16,
    TILES_WANTED = 4,
    ROWS_WANTED = 128,
    COLUMNS_WANTED = 512,
    TILE_MIN = 64
};
enum { SETS = 128, WAYS = 8 };

/* All that a tile's primitive depends on. Without padding bytes, so that keys compare as memory. */
struct key {
    int64_t m, n, k;       /* of the tile */
    int64_t lda, ldb, ldc; /* elements from row to row, as stored */
    int32_t in_bf16, out_bf16;
    uint32_t flags, unused;
};

struct entry {
    struct key key;
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t a, b, c, scratchpad;
    size_t scratch_bytes;
    uint64_t used; /* the clock's time of its last use */
};

static struct {
    dnnl_engine_t engine;
    int threads; /* that have a pad: no more work on one product */
    char *pads;
    size_t pad_bytes; /* of one */
    bool native_bf16; /* oneDNN takes bf16 here (in hardware or emulated); else tiles are widened to fp32 */
    char products[64];
    uint64_t clock;
    struct entry entries[SETS][WAYS];
} lib;

/* Shapes were checked by whoever made the model: what fails here is memory, or us. */
static void check(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success)
        return;
    fprintf(stderr, "kernels: oneDNN could not %s (status %d)\n", what, (int)status);
    abort();
}

static void describe(dnnl_memory_desc_t *desc, int64_t rows, int64_t columns, int64_t row_stride,
                     int64_t column_stride, bool bf16)
{
    dnnl_dims_t dims = {rows, columns}, strides = {row_stride, column_stride};
    check(dnnl_memory_desc_init_by_strides(desc, 2, dims, bf16 ? dnnl_bf16 : dnnl_f32, strides),
          "describe a matrix");
}

static dnnl_status_t entry_desc(struct entry *e, dnnl_primitive_desc_t *desc)
{
    const struct key *key = &e->key;
    bool ta = key->flags & MATMUL_A_TRANSPOSED, tb = key->flags & MATMUL_B_TRANSPOSED;
    describe(&e->a, key->m, key->k, ta ? 1 : key->lda, ta ? key->lda : 1, key->in_bf16);
    describe(&e->b, key->k, key->n, tb ? 1 : key->ldb, tb ? key->ldb : 1, key->in_bf16);
    describe(&e->c, key->m, key->n, key->ldc, 1, key->out_bf16);
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t post;
    check(dnnl_primitive_attr_create(&attr), "make attributes");
    check(dnnl_post_ops_create(&post), "make post-ops");
    if (key->flags & MATMUL_ADD)
        check(dnnl_post_ops_append_sum(post, 1.0f), "append a sum");
    check(dnnl_primitive_attr_set_post_ops(attr, post), "set post-ops");
    check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user),
          "set the scratchpad's mode");
    dnnl_matmul_desc_t matmul;
    check(dnnl_matmul_desc_init(&matmul, &e->a, &e->b, NULL, &e->c), "describe a product");
    int threads = omp_get_max_threads();
    omp_set_num_threads(1); /* the primitive is made for one thread */
    dnnl_status_t status = dnnl_primitive_desc_create(desc, &matmul, attr, lib.engine, NULL);
    omp_set_num_threads(threads);
    dnnl_post_ops_destroy(post);
    dnnl_primitive_attr_destroy(attr);
    if (status != dnnl_success)
        return status;
    e->scratchpad = *dnnl_primitive_desc_query_md(*desc, dnnl_query_scratchpad_md, 0);
    e->scratch_bytes = dnnl_memory_desc_get_size(&e->scratchpad);
    return status;
}

static size_t align(size_t bytes)
{
    return (bytes + 4095) / 4096 * 4096;
}

/* Pads of at least so many bytes, for every thread. Nothing runs while they are replaced. */
static void pads_reserve(size_t bytes)
{
    if (bytes <= lib.pad_bytes)
        return;
    free(lib.pads);
    lib.pad_bytes = align(bytes);
    lib.pads = aligned_alloc(4096, (size_t)lib.threads * lib.pad_bytes);
    check(lib.pads ? dnnl_success : dnnl_out_of_memory, "get its working memory");
}

static uint64_t key_hash(const struct key *key)
{
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t hash = 14695981039346656037ull; /* FNV-1a */
    for (size_t i = 0; i < sizeof *key; i++)
        hash = (hash ^ bytes[i]) * 1099511628211ull;
    return hash ^ hash >> 32;
}

/* The tile's primitive, from the cache, or made in the place of the set's longest unused. */
static const struct entry *entry_get(const struct key *key)
{
    struct entry *set = lib.entries[key_hash(key) % SETS], *oldest = &set[0];
    for (int way = 0; way < WAYS; way++) {
        if (set[way].primitive && memcmp(&set[way].key, key, sizeof *key) == 0) {
            set[way].used = ++lib.clock;
            return &set[way];
        }
        if (set[way].used < oldest->used)
            oldest = &set[way];
    }
    if (oldest->primitive)
        dnnl_primitive_destroy(oldest->primitive);
    *oldest = (struct entry){.key = *key, .used = ++lib.clock};
    dnnl_primitive_desc_t desc;
    check(entry_desc(oldest, &desc), "plan a product");
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    check(dnnl_primitive_create(&oldest->primitive, desc), "make a product's code");
    omp_set_num_threads(threads);
    dnnl_primitive_desc_destroy(desc);
    pads_reserve(oldest->scratch_bytes);
    return oldest;
}

struct tiling {
    int64_t m, n, k;        /* of the whole product */
    int64_t tile_m, tile_n; /* the last row and column of tiles may be smaller */
    int64_t rows, columns;  /* of tiles */
    bool in_bf16, out_bf16; /* of what oneDNN sees */
    bool widen;             /* bf16 tiles are widened to fp32 first, and rounded after */
    bool result_bf16;       /* of what we see */
    int64_t piece_k;        /* k, or where tiles are widened pieces of it, in order */
    int64_t pieces;
    unsigned flags;
};

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Equal tiles within the limits; where there are few, an even number of them, then four, as long as they stay
 * large. */
static void tiling_cut(struct tiling *t)
{
    t->columns = divide_up(t->n, t->k > LONG ? TILE_COLUMNS_LONG : TILE_COLUMNS);
    t->rows = divide_up(t->m, TILE_ROWS_MANY);
    if (t->rows * t->columns < TILES_MANY)
        t->rows = divide_up(t->m, TILE_ROWS);
    int64_t tiles = t->rows * t->columns;
    if (tiles % 2 != 0 && tiles < TILES_FEW) {
        if (t->m / (t->rows + 1) >= TILE_MIN)
            t->rows++;
        else if (t->n / (t->columns + 1) >= TILE_MIN)
            t->columns++;
    }
    if (t->rows * t->columns < TILES_WANTED && !(t->flags & MATMUL_B_TRANSPOSED) &&
        t->n / (2 * t->columns) >= COLUMNS_WANTED)
        t->columns *= 2;
    while (t->rows * t->columns < TILES_WANTED && t->m / (2 * t->rows) >= ROWS_WANTED)
        t->rows *= 2;
    t->tile_m = divide_up(divide_up(t->m, t->rows), STEP) * STEP;
    t->tile_n = divide_up(divide_up(t->n, t->columns), COLUMN_STEP) * COLUMN_STEP;
    t->tile_m = t->tile_m < t->m ? t->tile_m : t->m;
    t->tile_n = t->tile_n < t->n ? t->tile_n : t->n;
    t->rows = divide_up(t->m, t->tile_m);
    t->columns = divide_up(t->n, t->tile_n);
}

static struct tiling tiling_choose(int64_t m, int64_t n, int64_t k, enum dtype in, enum dtype out,
                                   unsigned flags)
{
    struct tiling t = {.m = m, .n = n, .k = k, .flags = flags};
    t.widen = in == DTYPE_BF16 && !lib.native_bf16;
    t.in_bf16 = in == DTYPE_BF16 && !t.widen;
    t.out_bf16 = out == DTYPE_BF16 && !t.widen;
    t.result_bf16 = out == DTYPE_BF16;
    t.piece_k = t.widen && k > PIECE ? PIECE : k;
    t.pieces = divide_up(k, t.piece_k);
    tiling_cut(&t);
    return t;
}

static int64_t tile_height(const struct tiling *t, int64_t row)
{
    return row + 1 < t->rows ? t->tile_m : t->m - row * t->tile_m;
}

static int64_t tile_width(const struct tiling *t, int64_t column)
{
    return column + 1 < t->columns ? t->tile_n : t->n - column * t->tile_n;
}

/* Tiles come in at most eight sizes: corner's bit 0 says the last row of tiles, bit 1 the last column, bit 2
 * the last piece of k. Widened tiles are dense copies and are summed up over pieces; the others are views
 * into the matrices. */
enum { CORNERS = 8 };

static struct key corner_key(const struct tiling *t, int corner)
{
    bool ta = t->flags & MATMUL_A_TRANSPOSED, tb = t->flags & MATMUL_B_TRANSPOSED;
    struct key key = {.m = tile_height(t, corner & 1 ? t->rows - 1 : 0),
                      .n = tile_width(t, corner & 2 ? t->columns - 1 : 0),
                      .k = corner & 4 ? t->k - (t->pieces - 1) * t->piece_k : t->piece_k,
                      .flags = t->widen ? t->flags | MATMUL_ADD : t->flags,
                      .in_bf16 = t->in_bf16,
                      .out_bf16 = t->out_bf16};
    key.lda = ta ? (t->widen ? key.m : t->m) : key.k;
    key.ldb = tb ? key.k : (t->widen ? key.n : t->n);
    key.ldc = t->widen ? key.n : t->n;
    return key;
}

/* Where a widened tile's copies of a, b and c lie in a pad, behind oneDNN's own part. */
struct wide {
    size_t a, b, c, bytes;
};

static struct wide wide_lay(const struct tiling *t, size_t scratch_bytes)
{
    struct wide wide = {.a = align(scratch_bytes)};
    wide.b = wide.a + align(sizeof(float) * (size_t)(t->tile_m * t->piece_k));
    wide.c = wide.b + align(sizeof(float) * (size_t)(t->tile_n * t->piece_k));
    wide.bytes = wide.c + align(sizeof(float) * (size_t)(t->tile_m * t->tile_n));
    return wide;
}

/* Nothing comes from the caller: see the top. */
static size_t products_scratch(int64_t m, int64_t n, int64_t k, enum dtype in_dtype, enum dtype out_dtype,
                               unsigned flags)
{
    (void)m, (void)n, (void)k, (void)in_dtype, (void)out_dtype, (void)flags;
    return 0;
}

/* What one thread works with. */
struct hands {
    dnnl_stream_t stream;
    char *pad;
    const struct wide *wide;
};

static dnnl_memory_t memory_of(const dnnl_memory_desc_t *desc, const void *data)
{
    dnnl_memory_t memory;
    check(dnnl_memory_create(&memory, desc, lib.engine, (void *)(uintptr_t)data), "make a memory");
    return memory;
}

static void tile_execute(const struct hands *hands, const struct entry *e, void *out, const void *a,
                         const void *b)
{
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, memory_of(&e->a, a)},
                              {DNNL_ARG_WEIGHTS, memory_of(&e->b, b)},
                              {DNNL_ARG_DST, memory_of(&e->c, out)},
                              {DNNL_ARG_SCRATCHPAD, memory_of(&e->scratchpad, hands->pad)}};
    check(dnnl_primitive_execute(e->primitive, hands->stream, 4, args), "run a product");
    for (int i = 0; i < 4; i++)
        dnnl_memory_destroy(args[i].memory);
}

/* to[rows][columns] fp32, dense, from bf16 rows `stride` apart. */
static void widen(float *to, const uint16_t *from, int64_t rows, int64_t columns, int64_t stride)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            to[r * columns + c] = bf16_to_float(from[r * stride + c]);
}

/* out = or += the tile's sum, rounded once */
static void tile_finish(const struct tiling *t, void *out, const float *sum, int64_t rows, int64_t columns)
{
    bool add = t->flags & MATMUL_ADD;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            int64_t at = r * t->n + c;
            float x = sum[r * columns + c];
            put(out, at, add ? get(out, at, t->result_bf16) + x : x, t->result_bf16);
        }
}

/* A processor without bf16: the same tile in fp32, on inputs that are bf16 already. */
static void tile_widened(const struct hands *hands, const struct tiling *t,
                         const struct entry *const entries[CORNERS], int corner, void *out, const uint16_t *a,
                         const uint16_t *b)
{
    float *wide_a = (float *)(void *)(hands->pad + hands->wide->a);
    float *wide_b = (float *)(void *)(hands->pad + hands->wide->b);
    float *sum = (float *)(void *)(hands->pad + hands->wide->c);
    const struct key *key = &entries[corner]->key;
    memset(sum, 0, sizeof(float) * (size_t)(key->m * key->n));
    for (int64_t piece = 0; piece < t->pieces; piece++) {
        const struct entry *e = entries[piece + 1 < t->pieces ? corner : corner | 4];
        int64_t k = piece * t->piece_k, count = e->key.k;
        if (t->flags & MATMUL_A_TRANSPOSED)
            widen(wide_a, a + k * t->m, count, key->m, t->m);
        else
            widen(wide_a, a + k, key->m, count, t->k);
        if (t->flags & MATMUL_B_TRANSPOSED)
            widen(wide_b, b + k, key->n, count, t->k);
        else
            widen(wide_b, b + k * t->n, count, key->n, t->n);
        tile_execute(hands, e, sum, wide_a, wide_b);
    }
    tile_finish(t, out, sum, key->m, key->n);
}

static void tile_run(const struct hands *hands, const struct tiling *t,
                     const struct entry *const entries[CORNERS], int64_t tile, char *out, const char *a,
                     const char *b)
{
    int64_t row = tile / t->columns, column = tile % t->columns;
    int64_t i = row * t->tile_m, j = column * t->tile_n;
    int corner = (row + 1 == t->rows ? 1 : 0) | (column + 1 == t->columns ? 2 : 0);
    int64_t in = t->in_bf16 || t->widen ? 2 : 4, result = t->result_bf16 ? 2 : 4;
    a += in * (t->flags & MATMUL_A_TRANSPOSED ? i : i * t->k);
    b += in * (t->flags & MATMUL_B_TRANSPOSED ? j * t->k : j);
    out += result * (i * t->n + j);
    if (t->widen)
        tile_widened(hands, t, entries, corner, out, (const uint16_t *)(const void *)a,
                     (const uint16_t *)(const void *)b);
    else
        tile_execute(hands, entries[corner], out, a, b);
}

/* The primitives of all corners, and pads for them. */
static struct wide tiling_prepare(const struct tiling *t, const struct entry *entries[CORNERS])
{
    size_t most = 0;
    for (int corner = 0; corner < CORNERS; corner++) {
        struct key key = corner_key(t, corner);
        entries[corner] = corner & 4 && t->pieces == 1 ? entries[corner & 3] : entry_get(&key);
        most = entries[corner]->scratch_bytes > most ? entries[corner]->scratch_bytes : most;
    }
    struct wide wide = {0};
    if (t->widen) {
        wide = wide_lay(t, most);
        pads_reserve(wide.bytes);
    }
    return wide;
}

static void products_matmul(struct queue *q, void *out, const void *a, const void *b, int64_t m, int64_t n,
                            int64_t k, enum dtype in_dtype, enum dtype out_dtype, unsigned flags,
                            void *scratch)
{
    (void)scratch;
    if (m == 0 || n == 0 || k == 0) {
        if (!(flags & MATMUL_ADD))
            memset(out, 0, (size_t)(m * n) * dtype_bytes(out_dtype));
        return;
    }
    struct tiling t = tiling_choose(m, n, k, in_dtype, out_dtype, flags);
    const struct entry *entries[CORNERS];
    struct wide wide = tiling_prepare(&t, entries);
    int threads = q->threads < lib.threads ? q->threads : lib.threads, before = omp_get_max_threads();
    omp_set_num_threads(1); /* for oneDNN, inside; the region below says its own number */
#pragma omp parallel num_threads(threads) if (t.rows * t.columns > 1)
    {
        struct hands hands = {.pad = lib.pads + (size_t)omp_get_thread_num() * lib.pad_bytes, .wide = &wide};
        check(dnnl_stream_create(&hands.stream, lib.engine, dnnl_stream_default_flags), "make a stream");
#pragma omp for schedule(dynamic)
        for (int64_t tile = 0; tile < t.rows * t.columns; tile++)
            tile_run(&hands, &t, entries, tile, out, a, b);
        dnnl_stream_destroy(hands.stream);
    }
    omp_set_num_threads(before);
}

const char *dnnl_release(void)
{
    static char release[32];
    const dnnl_version_t *version = dnnl_version();
    snprintf(release, sizeof release, "%d.%d.%d", version->major, version->minor, version->patch);
    return release;
}

const char *dnnl_products(void)
{
    return lib.products;
}

/* Does oneDNN have a fast bf16 product for this processor? Asked of a product like ours. */
static bool bf16_is_native(void)
{
    struct entry e = {
        .key = {.m = 256, .n = 256, .k = 256, .lda = 256, .ldb = 256, .ldc = 256, .in_bf16 = 1}};
    dnnl_primitive_desc_t desc;
    if (entry_desc(&e, &desc) != dnnl_success)
        return false;
    const char *name = "";
    dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, &name);
    bool native = strncmp(name, "ref", 3) != 0;
    snprintf(lib.products, sizeof lib.products, "bf16 by oneDNN (%.40s)", name);
    dnnl_primitive_desc_destroy(desc);
    return native;
}

static bool lib_open(void)
{
    if (dnnl_engine_create(&lib.engine, dnnl_cpu, 0) != dnnl_success) {
        snprintf(lib.products, sizeof lib.products, "plain C (oneDNN did not start)");
        return false;
    }
    lib.native_bf16 = bf16_is_native();
    if (!lib.native_bf16)
        snprintf(lib.products, sizeof lib.products, "fp32 by oneDNN, on bf16-rounded inputs");
    return true;
}

void overlay_dnnl(struct kernels *table, int threads)
{
    if (!lib.engine && !lib_open())
        return;
    if (threads > lib.threads) {
        size_t bytes = lib.pad_bytes;
        lib.threads = threads;
        lib.pad_bytes = 0;
        pads_reserve(bytes);
    }
    table->matmul = products_matmul;
    table->matmul_scratch = products_scratch;
}
