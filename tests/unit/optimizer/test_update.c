/* Every level of the update (plain, AVX2, AVX-512 loops, the AVX-512 overlay) against the plain loop, bit for
 * bit in every array and in the measures: 10^7 random elements for each combination of formats with --long,
 * 10^5 otherwise; then odd lengths, cut ranges, offsets of the global index, and 1, 2 and 3 threads. Pieces
 * of a matrix's columns against the matrix. */
#include "device_main.h"
#include "state_arrays.h"

#include "queue.h"
#include "tables.h"

/* ---- inputs with everything in them ---- */

/* Any bits at all, half of the time; else a magnitude that optimizers see, zeros now and then. */
static float any_float(struct test_random *r)
{
    uint64_t bits = test_random_bits(r);
    if (bits % 16 == 0)
        return test_float((uint32_t)(bits >> 32)); /* NaN, infinities, denormals among them */
    if (bits % 16 == 1)
        return test_float((uint32_t)(bits >> 32) & 0x807FFFFFu); /* denormals */
    if (bits % 64 == 2)
        return bits >> 63 ? 0.0f : -0.0f;
    float x = (float)(1 + (double)(uint32_t)(bits >> 32) * 0x1p-32);
    int exponent = (int)(bits >> 8 & 63) - 48;
    return ldexpf(bits & 128 ? -x : x, exponent);
}

static void fill_state(struct state_arrays *s, struct test_random *r, bool wild)
{
    for (int a = 0; a < STATE_ARRAYS; a++)
        for (size_t i = 0; i < s->bytes[a]; i++)
            ((uint8_t *)s->memory[a])[i] = (uint8_t)(test_random_bits(r) >> 24);
    const enum state_part parts[] = {STATE_W, STATE_M, STATE_V};
    float *values = calloc((size_t)s->n + 1, sizeof *values);
    for (int p = 0; p < 3; p++) {
        if (wild && test_random_bits(r) % 4 == 0)
            continue; /* any bits, codes that no writer makes among them */
        bool zero_groups = test_random_bits(r) % 2;
        for (int64_t i = 0; i < s->n; i++) {
            values[i] = wild ? any_float(r) : (float)(0.02 * test_random_gauss(r));
            if (parts[p] == STATE_V)
                values[i] = fabsf(values[i]) * 0.01f;
            if (zero_groups && i / 32 % 5 == 3)
                values[i] = 0.0f;
        }
        kernels_reference.state_write(device.queue, &s->view, parts[p], values, s->n, &(struct index_map){0},
                                      3, 4);
    }
    free(values);
}

static void *fill_gradient(struct test_random *r, enum dtype dtype, int64_t n, bool wild)
{
    float *g = calloc((size_t)n + 1, sizeof *g);
    for (int64_t i = 0; i < n; i++) {
        g[i] = wild ? any_float(r) : (float)(0.01 * test_random_gauss(r));
        if (i / 32 % 7 == 2)
            g[i] = 0.0f;
    }
    if (dtype == DTYPE_BF16)
        kernels_reference.cast(device.queue, g, g, n, DTYPE_BF16, DTYPE_F32);
    return g;
}

static struct update_scalars some_scalars(struct test_random *r)
{
    struct optimizer_settings settings = optimizer_settings_default();
    static const double beta1s[] = {0.9, 0.5, 0.3, 0.95, 0.0}, beta2s[] = {0.999, 0.95, 0.99};
    settings.beta1 = beta1s[test_random_bits(r) % 5];
    settings.beta2 = beta2s[test_random_bits(r) % 3];
    settings.weight_decay = test_random_bits(r) % 2 ? 0.01 : 0;
    double lr = test_random_bits(r) % 8 == 0 ? 0 : pow(10, -1 - 5 * test_random_uniform(r));
    int64_t t = 1 + (int64_t)(test_random_bits(r) % 1000);
    return optimizer_scalars(&settings, lr, 0.125 + test_random_uniform(r), t, t + (1ll << 33),
                             test_random_bits(r), true);
}

/* ---- one comparison ---- */

struct candidate {
    const char *name;
    const struct kernels *kernels;
};

static const struct candidate *candidates(size_t *count)
{
    static struct candidate list[3];
    size_t n = 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        list[n++] = (struct candidate){"v3", &kernels_v3};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        list[n++] = (struct candidate){"v4", &kernels_v4};
    list[n++] = (struct candidate){"device", device.kernels};
    *count = n;
    return list;
}

struct problem {
    enum weight_format w;
    enum moment_format m, v;
    enum dtype gradient;
    int64_t n, index0;
    bool wild;
};

static void check_measures(const struct update_measures *got, const struct update_measures *want,
                           const char *what)
{
    if (memcmp(got, want, sizeof *got) == 0)
        return;
    fail_msg("%s: measures %lld %lld %lld %lld %.17g %.17g, want %lld %lld %lld %lld %.17g %.17g", what,
             (long long)got->changing, (long long)got->lost, (long long)got->v_changing,
             (long long)got->v_stalled, got->stored_exact, got->exact_exact, (long long)want->changing,
             (long long)want->lost, (long long)want->v_changing, (long long)want->v_stalled,
             want->stored_exact, want->exact_exact);
}

/* What the update wrote for the model is what weight_compute_copy makes of the stored weights. */
static void check_copy(const struct state_arrays *s)
{
    void *copy = calloc(1, s->bytes[STATE_ARRAY_COPY] + 1);
    kernels_reference.weight_compute_copy(device.queue, copy, &s->view, s->n, s->view.copy_dtype);
    assert_memory_equal(s->view.copy, copy, s->bytes[STATE_ARRAY_COPY]);
    free(copy);
}

static void compare(const struct problem *p, uint64_t seed, int threads)
{
    struct test_random r = {seed};
    struct state_arrays start, want, got;
    state_arrays_init(&start, p->w, p->m, p->v, p->n);
    state_arrays_init(&want, p->w, p->m, p->v, p->n);
    state_arrays_init(&got, p->w, p->m, p->v, p->n);
    fill_state(&start, &r, p->wild);
    void *gradient = fill_gradient(&r, p->gradient, p->n, p->wild);
    struct update_scalars scalars = some_scalars(&r);
    void *scratch = calloc(1, kernels_reference.update_scratch(p->n) + 1);
    struct update_measures want_measures, measures;
    struct index_map map = {.index = p->index0};
    state_arrays_copy(&want, &start);
    device.queue->threads = 1;
    kernels_reference.update(device.queue, &want_measures, &want.view, gradient, p->gradient, p->n, &map,
                             &scalars, scratch);
    check_copy(&want);
    size_t count;
    const struct candidate *list = candidates(&count);
    for (size_t c = 0; c < count; c++) {
        char what[160];
        snprintf(what, sizeof what, "%s, %s/%s/%s, gradient %s, n %lld, index %lld, %d threads, seed %llu",
                 list[c].name, weight_format_name(p->w), moment_format_name(p->m), moment_format_name(p->v),
                 dtype_name(p->gradient), (long long)p->n, (long long)p->index0, threads,
                 (unsigned long long)seed);
        state_arrays_copy(&got, &start);
        device.queue->threads = threads;
        list[c].kernels->update(device.queue, &measures, &got.view, gradient, p->gradient, p->n, &map,
                                &scalars, scratch);
        state_arrays_check_equal(&got, &want, what);
        check_measures(&measures, &want_measures, what);
    }
    free(scratch);
    free(gradient);
    state_arrays_done(&got);
    state_arrays_done(&want);
    state_arrays_done(&start);
}

/* ---- the tests ---- */

static int64_t elements_total(void)
{
    return getenv("TRAINERD_TEST_LONG") ? 10000000 : 100000;
}

/* Every weight format with each pair of equal moment formats, and every pair of moments under fp32: 18 + 12.
 */
static void test_storages(void **state)
{
    (void)state;
    enum { PART = 50000 };
    for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++)
        for (int m = 0; m < MOMENT_FORMAT_COUNT; m++)
            for (int v = 0; v < MOMENT_FORMAT_COUNT; v++) {
                if (m != v && w != WEIGHT_FP32 && w != WEIGHT_SPLIT8)
                    continue;
                for (int64_t done = 0; done < elements_total(); done += PART) {
                    struct problem p = {(enum weight_format)w,
                                        (enum moment_format)m,
                                        (enum moment_format)v,
                                        done / PART % 4 == 3 ? DTYPE_BF16 : DTYPE_F32,
                                        PART - 13,
                                        256 * (done / PART) + ((1ll << 35) - 512) * (done / PART % 3),
                                        done / PART % 2 == 1};
                    compare(&p, 1000 + (uint64_t)done + (uint64_t)(w * 16 + m * 4 + v),
                            1 + (int)(done / PART % 3));
                }
            }
}

/* Tails 1 … 33 behind nothing, a block and a chunk; indices whose random block number carries into its high
 * word. */
static void test_lengths_and_offsets(void **state)
{
    (void)state;
    static const int64_t bases[] = {0, 96, 4096, 2 * 4096 + 128};
    static const int64_t offsets[] = {0, 256, 8, 3, (1ll << 35) - 64, (1ll << 35) - 256};
    static const struct problem formats[] = {
        {.w = WEIGHT_FP32, .m = MOMENT_FP32, .v = MOMENT_FP32},
        {.w = WEIGHT_BF16S, .m = MOMENT_BF16S, .v = MOMENT_BF16S},
        {.w = WEIGHT_SPLIT8, .m = MOMENT_Q8, .v = MOMENT_Q8},
        {.w = WEIGHT_KAHAN, .m = MOMENT_BF16, .v = MOMENT_Q8},
    };
    for (size_t f = 0; f < 4; f++)
        for (size_t b = 0; b < 4; b++)
            for (int64_t tail = 1; tail <= 33; tail++) {
                struct problem p = formats[f];
                p.n = bases[b] + tail;
                p.index0 = offsets[(size_t)tail % 6];
                p.gradient = tail % 2 ? DTYPE_F32 : DTYPE_BF16;
                p.wild = tail % 3 == 0;
                compare(&p, 77 + (uint64_t)tail, 1 + (int)(tail % 3));
            }
}

static size_t array_bytes_of_32(const struct state_arrays *s, int array)
{
    if (array == STATE_ARRAY_COPY)
        return 32 * dtype_bytes(s->view.copy_dtype);
    return state_array_bytes(array, s->view.w_format, array < 4 ? s->view.m_format : s->view.v_format, 32);
}

/* The range from element `start` on, a multiple of 256. */
static struct state_view view_from(const struct state_arrays *s, int64_t start)
{
    struct state_view view = s->view;
    void **arrays[] = {&view.w, &view.w_extra, &view.m, &view.m_extra, &view.v, &view.v_extra, &view.copy};
    for (int a = 0; a < STATE_ARRAYS; a++)
        if (*arrays[a]) /* every array's bytes are in proportion to elements, or groups of 32 */
            *arrays[a] = (char *)*arrays[a] + (size_t)start / 32 * array_bytes_of_32(s, a);
    return view;
}

/* A range cut in two at a multiple of 256 gives the bits of the whole: what sharding rests on. */
static void test_cut_ranges(void **state)
{
    (void)state;
    enum { N = 9000, CUT = 4096 + 256 };
    for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++) {
        enum moment_format moment = (enum moment_format)(w % MOMENT_FORMAT_COUNT);
        struct test_random r = {5};
        struct state_arrays whole, cut;
        state_arrays_init(&whole, (enum weight_format)w, moment, moment, N);
        state_arrays_init(&cut, (enum weight_format)w, moment, moment, N);
        fill_state(&whole, &r, false);
        state_arrays_copy(&cut, &whole);
        float *gradient = fill_gradient(&r, DTYPE_F32, N, false);
        struct update_scalars scalars = some_scalars(&r);
        struct update_measures measures;
        void *scratch = calloc(1, kernels_reference.update_scratch(N));
        device.kernels->update(device.queue, &measures, &whole.view, gradient, DTYPE_F32, N,
                               &(struct index_map){.index = 512}, &scalars, scratch);
        struct state_view second = view_from(&cut, CUT);
        device.kernels->update(device.queue, &measures, &second, gradient + CUT, DTYPE_F32, N - CUT,
                               &(struct index_map){.index = 512 + CUT}, &scalars, scratch);
        device.kernels->update(device.queue, &measures, &cut.view, gradient, DTYPE_F32, CUT,
                               &(struct index_map){.index = 512}, &scalars, scratch);
        state_arrays_check_equal(&cut, &whole, weight_format_name((enum weight_format)w));
        free(scratch);
        free(gradient);
        state_arrays_done(&whole);
        state_arrays_done(&cut);
    }
}

/* ---- a matrix cut into pieces of its columns ---- */

struct matrix {
    int64_t rows, columns, pieces;
    int64_t cut; /* a piece is updated in two ranges, the second from here on: a multiple of 256 */
    int64_t index;
};

/* Columns of piece `piece`, in an array of which 32 elements are `bytes`. */
static void take_columns(void *to, const void *from, const struct matrix *m, int64_t piece, size_t bytes)
{
    int64_t run = m->columns / m->pieces;
    for (int64_t r = 0; r < m->rows; r++)
        memcpy((char *)to + (size_t)(r * run) * bytes / 32,
               (const char *)from + (size_t)(r * m->columns + piece * run) * bytes / 32,
               (size_t)run * bytes / 32);
}

enum { MATRIX_UPDATES = 3 };

/* What a whole matrix is set to, and the gradients of its updates. */
struct history {
    float *values[STATE_PART_COUNT], *gradient[MATRIX_UPDATES];
    struct update_scalars scalars[MATRIX_UPDATES];
};

/* Sets and updates a range, which is all of `s` from `start` on. */
static void live(const struct kernels *k, struct state_arrays *s, const struct history *h, int64_t start,
                 int64_t end, const struct index_map *map)
{
    struct state_view view = view_from(s, start);
    struct update_measures measures;
    void *scratch = calloc(1, k->update_scratch(end - start) + 1);
    for (int part = 0; part < STATE_PART_COUNT; part++)
        k->state_write(device.queue, &view, (enum state_part)part, h->values[part] + start, end - start, map,
                       5, 6);
    for (int i = 0; i < MATRIX_UPDATES; i++)
        k->update(device.queue, &measures, &view, h->gradient[i] + start, DTYPE_F32, end - start, map,
                  &h->scalars[i], scratch);
    free(scratch);
}

static void check_piece(const struct kernels *k, const struct matrix *m, int64_t piece,
                        const struct state_arrays *whole, const struct history *h)
{
    int64_t run = m->columns / m->pieces, n = m->rows * run, cut = m->cut < n ? m->cut : n;
    struct state_arrays got, want;
    struct history mine = *h;
    state_arrays_init(&got, whole->view.w_format, whole->view.m_format, whole->view.v_format, n);
    state_arrays_init(&want, whole->view.w_format, whole->view.m_format, whole->view.v_format, n);
    for (int i = 0; i < STATE_PART_COUNT + MATRIX_UPDATES; i++) {
        float *to = malloc((size_t)n * sizeof *to);
        const float *from = i < STATE_PART_COUNT ? h->values[i] : h->gradient[i - STATE_PART_COUNT];
        take_columns(to, from, m, piece, 32 * sizeof *to);
        *(i < STATE_PART_COUNT ? &mine.values[i] : &mine.gradient[i - STATE_PART_COUNT]) = to;
    }
    struct index_map map = {.index = m->index + piece * run, .run = run, .stride = m->columns};
    struct index_map rest = index_map_from(&map, cut);
    live(k, &got, &mine, cut, n, &rest);
    live(k, &got, &mine, 0, cut, &map);
    for (int a = 0; a < STATE_ARRAYS; a++)
        if (want.memory[a])
            take_columns(want.memory[a], whole->memory[a], m, piece, array_bytes_of_32(whole, a));
    char what[80];
    snprintf(what, sizeof what, "%s/%s, piece %d of %d", weight_format_name(got.view.w_format),
             moment_format_name(got.view.m_format), (int)piece, (int)m->pieces);
    state_arrays_check_equal(&got, &want, what);
    for (int i = 0; i < STATE_PART_COUNT; i++)
        free(mine.values[i]);
    for (int i = 0; i < MATRIX_UPDATES; i++)
        free(mine.gradient[i]);
    state_arrays_done(&got);
    state_arrays_done(&want);
}

static void check_matrix(const struct kernels *k, const struct matrix *m, enum weight_format w,
                         enum moment_format moment)
{
    int64_t n = m->rows * m->columns;
    struct test_random r = {17};
    struct history h;
    for (int part = 0; part < STATE_PART_COUNT; part++) {
        h.values[part] = malloc((size_t)n * sizeof(float));
        for (int64_t i = 0; i < n; i++) {
            float x = (float)(0.02 * test_random_gauss(&r));
            h.values[part][i] = part == STATE_V ? x * x : x;
        }
    }
    for (int i = 0; i < MATRIX_UPDATES; i++) {
        h.gradient[i] = fill_gradient(&r, DTYPE_F32, n, false);
        h.scalars[i] = some_scalars(&r);
    }
    struct state_arrays whole;
    state_arrays_init(&whole, w, moment, moment, n);
    live(k, &whole, &h, 0, n, &(struct index_map){.index = m->index});
    for (int64_t piece = 0; piece < m->pieces; piece++)
        check_piece(k, m, piece, &whole, &h);
    for (int i = 0; i < STATE_PART_COUNT; i++)
        free(h.values[i]);
    for (int i = 0; i < MATRIX_UPDATES; i++)
        free(h.gradient[i]);
    state_arrays_done(&whole);
}

/* Tensor parallelism cuts some matrices by columns: the pieces' elements have the bits of the whole's,
 * whatever is stored. Runs of 256, 128 and 64 columns; of 48, which cut groups of 32 and 128, so q8 is not
 * for them; an index whose random-number block carries into its high word. */
static void test_pieces_of_columns(void **state)
{
    (void)state;
    static const struct matrix matrices[] = {{96, 256, 1, 4096 + 256, 512},
                                             {96, 256, 2, 4096 + 256, 512},
                                             {96, 256, 4, 2048 + 512, (1ll << 35) - 4096},
                                             {64, 240, 5, 1280, 256}};
    const struct kernels *tables[] = {&kernels_reference, device.kernels};
    for (int i = 0; i < 4 * 2; i++)
        for (int w = 0; w < WEIGHT_FORMAT_COUNT; w++)
            for (int moment = 0; moment < MOMENT_FORMAT_COUNT; moment++)
                if (i / 2 < 3 || moment != MOMENT_Q8)
                    check_matrix(tables[i % 2], &matrices[i / 2], (enum weight_format)w,
                                 (enum moment_format)moment);
}

/* A matrix of 20 x 128 whole, and its columns 64 … 127 as a rank holds them, in two segments: the same bits.
 * q8 is refused where it would cut groups, when the state is made and when it is converted. */
static void test_segments_of_columns(void **state)
{
    (void)state;
    enum { ROWS = 20, COLUMNS = 128, RUN = 64, CUT = 512 };
    struct optimizer_segment whole_segment = {.elements = ROWS * COLUMNS, .index = 1024};
    struct optimizer_segment piece[] = {{.elements = CUT, .index = 1024 + RUN, .run = RUN, .stride = COLUMNS},
                                        {.offset = CUT,
                                         .elements = ROWS * RUN - CUT,
                                         .index = 1024 + RUN + CUT / RUN * COLUMNS,
                                         .run = RUN,
                                         .stride = COLUMNS}};
    struct optimizer_unit_plan whole_unit = {ROWS * COLUMNS, 1, &whole_segment},
                               piece_unit = {ROWS * RUN, 2, piece};
    struct policy p = policy_default(), q8 = policy_default();
    p.weight = WEIGHT_BF16S;
    p.m = p.v = MOMENT_BF16S;
    q8.m = q8.v = MOMENT_Q8;
    struct optimizer whole, part;
    struct err err = ERR_INIT;
    check_ok(optimizer_init(&whole, &device, &p, &(struct optimizer_plan){1, 1, &whole_unit, NULL}, 4, &err),
             &err);
    check_ok(optimizer_init(&part, &device, &p, &(struct optimizer_plan){1, 1, &piece_unit, NULL}, 4, &err),
             &err);
    float values[ROWS * COLUMNS], columns[ROWS * RUN], got[ROWS * RUN];
    struct test_random r = {31};
    for (int i = 0; i < ROWS * COLUMNS; i++)
        values[i] = (float)test_random_gauss(&r);
    for (int i = 0; i < ROWS * RUN; i++)
        columns[i] = values[i / RUN * COLUMNS + RUN + i % RUN];
    optimizer_set(&whole, 0, 0, STATE_W, 0, ROWS * COLUMNS, values);
    optimizer_set(&part, 0, 0, STATE_W, 0, CUT, columns);
    optimizer_set(&part, 0, 1, STATE_W, 0, 256, columns + CUT);
    optimizer_set(&part, 0, 1, STATE_W, 256, ROWS * RUN - CUT - 256, columns + CUT + 256);
    struct optimizer_settings settings = optimizer_settings_default();
    struct update_measures by_tensor[1];
    optimizer_update(&whole, &settings, 1e-3, 1, (const void *const[]){values}, NULL, by_tensor);
    optimizer_update(&part, &settings, 1e-3, 1, (const void *const[]){columns}, NULL, by_tensor);
    for (int part_of = 0; part_of < STATE_PART_COUNT; part_of++) {
        optimizer_get(&whole, 0, 0, (enum state_part)part_of, 0, ROWS * COLUMNS, values);
        optimizer_get(&part, 0, 0, (enum state_part)part_of, 0, CUT, got);
        optimizer_get(&part, 0, 1, (enum state_part)part_of, 0, ROWS * RUN - CUT, got + CUT);
        for (int i = 0; i < ROWS * RUN; i++)
            assert_true(got[i] == values[i / RUN * COLUMNS + RUN + i % RUN]);
    }
    optimizer_done(&whole);
    for (int i = 0; i < 2; i++)
        part.units[0].segments[i].run = piece[i].run = 48;
    struct optimizer_conversion conversion;
    check_refused(optimizer_convert_reserve(&part, &q8, NULL, &conversion, &err), &err, ERR_UNSUPPORTED);
    optimizer_done(&part);
    err = (struct err)ERR_INIT;
    check_refused(
        optimizer_init(&part, &device, &q8, &(struct optimizer_plan){1, 1, &piece_unit, NULL}, 4, &err), &err,
        ERR_UNSUPPORTED);
}

static void test_initial_pieces(void **state)
{
    (void)state;
    const struct matrix m = {40, 240, 5, 0, 3 * 256};
    float whole[40 * 240], want[40 * 48], got[40 * 48];
    device.kernels->init_normal(device.queue, whole, 40 * 240, &(struct index_map){.index = m.index}, 7,
                                0.02);
    for (int64_t piece = 0; piece < 5; piece++) {
        struct index_map map = {.index = m.index + 48 * piece, .run = 48, .stride = 240};
        take_columns(want, whole, &m, piece, 32 * sizeof(float));
        device.kernels->init_normal(device.queue, got, 1000, &map, 7, 0.02);
        map = index_map_from(&map, 1000);
        assert_int_equal(map.column, 1000 % 48);
        device.kernels->init_normal(device.queue, got + 1000, 40 * 48 - 1000, &map, 7, 0.02);
        assert_memory_equal(got, want, sizeof got);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_storages),
        cmocka_unit_test(test_lengths_and_offsets),
        cmocka_unit_test(test_cut_ranges),
        cmocka_unit_test(test_pieces_of_columns),
        cmocka_unit_test(test_segments_of_columns),
        cmocka_unit_test(test_initial_pieces),
    };
    return test_device_run(tests, "cpu", 2);
}
