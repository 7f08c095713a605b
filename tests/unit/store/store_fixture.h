/* A tiny model, a device whose memory is not the host's to touch (the copies count), and values that depend
 * on nothing but tensor, part and element, so that any layout makes the same ones. */
#pragma once

#include "check.h"
#include "checkpoint.h"
#include "temp_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* 1 block, tied: 4*2 + 2*2 + 2*2 + 4*(2*2) + 3*(3*2) + 2 = 52 elements in 13 tensors. */
#define TINY_CONFIG                                                                                          \
    "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"hidden_size\": 2, "            \
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"num_key_value_heads\": 1, \"head_dim\": 2, "    \
    "\"intermediate_size\": 3, \"vocab_size\": 4, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-6, " \
    "\"rope_theta\": 1000000.0, \"tie_word_embeddings\": true}"
/* Columns that split by 2 and 4 into whole groups of 32. */
#define WIDE_CONFIG                                                                                          \
    "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"hidden_size\": 32, "           \
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 32, "   \
    "\"intermediate_size\": 640, \"vocab_size\": 97, \"max_position_embeddings\": 64, \"rms_norm_eps\": "    \
    "1e-6, \"rope_theta\": 1000000.0, \"tie_word_embeddings\": true}"
/* Large enough for slices, groups and tails: 2 blocks, hidden 25, vocabulary 301. FFN matrices of 1025
 * elements: a tail of one. */
#define SMALL_CONFIG                                                                                         \
    "{\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", \"hidden_size\": 25, "           \
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 6, "    \
    "\"intermediate_size\": 41, \"vocab_size\": 301, \"max_position_embeddings\": 64, \"rms_norm_eps\": "    \
    "1e-6, "                                                                                                 \
    "\"rope_theta\": 1000000.0, \"tie_word_embeddings\": false}"

struct fixture {
    struct temp_folder folder;
    struct model_config config;
    struct param_table table;
    const char *config_text;
    json_t *state; /* an empty object: what the engine gives where a test says nothing else */
};

static inline void fixture_make(struct fixture *f, const char *config_text)
{
    struct err err = ERR_INIT;
    temp_folder_make(&f->folder);
    f->config_text = config_text;
    f->state = json_object();
    check_ok(model_config_parse(&f->config, "test", config_text, strlen(config_text), &err), &err);
    check_ok(param_table_init(&f->table, &f->config, &err), &err);
}

static inline void fixture_done(struct fixture *f)
{
    json_decref(f->state);
    param_table_done(&f->table);
    temp_folder_remove(&f->folder);
}

/* ---- a device: host code that used its pointers as they are would read other bytes ---- */

#define FAR 0x5a /* device bytes are kept inverted by this */

static inline void far_copy(void *to, const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        ((unsigned char *)to)[i] = (unsigned char)(((const unsigned char *)from)[i] ^ FAR);
}
static inline void far_in(struct queue *queue, void *to, const void *from, size_t bytes)
{
    (void)queue;
    far_copy(to, from, bytes);
}
static const struct device_backend far_backend = {.name = "far", .copy_in = far_in, .copy_out = far_in};
static struct device far_device = {.name = "far", .backend = &far_backend};

/* ---- values ---- */

static inline unsigned char value_byte(int32_t tensor, int part, int64_t byte)
{
    uint64_t x = (uint64_t)tensor * 1000003u + (uint64_t)part * 7919u + (uint64_t)byte * 0x9e3779b97f4a7c15u;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9u;
    return (unsigned char)(x >> 56);
}

/* Bytes of elements start … start+count-1, as they lie on the device (far = FAR) or the host (far = 0). */
static inline void value_fill(unsigned char *to, int32_t tensor, int part, int64_t start, int64_t count,
                              size_t width, unsigned char far)
{
    int64_t from = start * (int64_t)width;
    for (int64_t i = 0; i < count * (int64_t)width; i++)
        to[i] = value_byte(tensor, part, from + i) ^ far;
}

/* The same of a range of a band. */
static inline void value_fill_range(unsigned char *to, int32_t tensor, int part,
                                    const struct band_range *range, size_t width, unsigned char far)
{
    const struct band *b = &range->band;
    for (int64_t i = 0; i < range->count; i++) {
        int64_t e = range->start + i, at = b->run ? b->first + e / b->run * b->stride + e % b->run : e;
        value_fill(to + (size_t)i * width, tensor, part, at, 1, width, far);
    }
}

/* Where rank of ranks begins in an array of so many elements: uneven on purpose, some ranges empty. */
static inline int64_t cut(int64_t length, int rank, int ranks, int salt)
{
    if (rank == 0 || rank == ranks)
        return rank ? length : 0;
    int64_t at = length * rank / ranks + salt % 4;
    return at > length ? length : at;
}

/* How arrays are cut: matrices into bands of columns, each of them, and all else, among `ranks`. bands 0:
 * as 1. */
struct cuts {
    int ranks, bands;
};

/* What is held of a part by rank in band: count 0 is nothing. Where the columns of a part cannot be told
 * (scales of groups that pass a row's end), band 0 has it whole. */
static inline struct band_range cut_range(const struct param *param, int64_t length, struct cuts cuts,
                                          int rank, int band, int salt)
{
    struct band_range range = {0};
    int64_t elements = length, stride = param->columns ? length / param->rows : 0;
    if (cuts.bands > 1 && stride >= cuts.bands && stride * param->rows == length) {
        int64_t first = cut(stride, band, cuts.bands, salt), past = cut(stride, band + 1, cuts.bands, salt);
        if (past <= first)
            return range;
        if (past - first < stride)
            range.band = (struct band){first, past - first, stride};
        elements = param->rows * (past - first);
    } else if (band > 0) {
        return range;
    }
    range.start = cut(elements, rank, cuts.ranks, salt);
    int64_t count = cut(elements, rank + 1, cuts.ranks, salt) - range.start;
    range.count = count > 0 ? count : 0;
    return range;
}

/* This rank's slices of one band, with device memory of their own. */
struct cutting {
    struct checkpoint_slice *slices;
    int64_t count;
};

static inline struct cutting cutting_make(const struct param_table *table,
                                          const struct checkpoint_formats *formats, struct cuts cuts,
                                          int rank, int band)
{
    struct cutting c = {.slices = calloc((size_t)table->count * CHECKPOINT_PARTS, sizeof *c.slices)};
    for (int32_t tensor = 0; tensor < table->count; tensor++) {
        for (int part = 0; part < CHECKPOINT_PARTS; part++) {
            enum dtype dtype;
            int64_t length;
            if (!checkpoint_part_shape(formats, part, table->params[tensor].elements, &dtype, &length))
                continue;
            struct band_range range = cut_range(&table->params[tensor], length, cuts, rank, band, tensor);
            if (range.count == 0)
                continue;
            size_t width = dtype_bytes(dtype);
            unsigned char *memory = malloc((size_t)range.count * width);
            value_fill_range(memory, tensor, part, &range, width, FAR);
            c.slices[c.count++] = (struct checkpoint_slice){tensor, part, range, memory};
        }
    }
    return c;
}

static inline void cutting_done(struct cutting *c)
{
    for (int64_t i = 0; i < c->count; i++)
        free(c->slices[i].memory);
    free(c->slices);
    *c = (struct cutting){0};
}

/* ---- a save as the engine makes it, all ranks in turn ---- */

struct saving {
    const char *name;
    int ranks, bands; /* bands * ranks save: see struct cuts */
    bool replace;
    struct checkpoint_formats formats;
    struct checkpoint_about about; /* run, policy, automatic, step, total_steps */
    const json_t *state;           /* NULL: the fixture's */
};

static inline bool save(const struct fixture *f, const struct saving *s, struct err *err)
{
    char *fragments[32] = {0};
    struct cuts cuts = {s->ranks, s->bands > 1 ? s->bands : 1};
    int all = cuts.ranks * cuts.bands;
    struct checkpoint_about about = s->about;
    snprintf(about.name, sizeof about.name, "%s", s->name);
    bool saved = checkpoint_save_begin(f->folder.path, s->name, s->replace, err);
    for (int rank = 0; saved && rank < all; rank++) {
        struct cutting c = cutting_make(&f->table, &s->formats, cuts, rank / cuts.bands, rank % cuts.bands);
        saved = checkpoint_save_shard(f->folder.path, s->name, rank, &f->table, &s->formats, c.slices,
                                      c.count, &far_device, &fragments[rank], err);
        cutting_done(&c);
    }
    struct checkpoint_record record = {&about, &f->table, &s->formats, f->config_text,
                                       s->state ? s->state : f->state};
    saved = saved && checkpoint_save_commit(f->folder.path, &record, (const char *const *)fragments, all,
                                            s->replace, NULL, err);
    if (!saved)
        checkpoint_save_abort(f->folder.path, s->name);
    for (int rank = 0; rank < all; rank++)
        free(fragments[rank]);
    return saved;
}

/* One slice, read as its rank would. */
static inline bool slice_equal(struct checkpoint *c, int32_t tensor, int part, const struct band_range *range,
                               size_t width, struct err *err)
{
    size_t bytes = (size_t)range->count * width;
    unsigned char *got = calloc(1, bytes + 1), *want = calloc(1, bytes + 1);
    const struct checkpoint_slice slice = {tensor, part, *range, got};
    value_fill_range(want, tensor, part, range, width, FAR);
    bool same = checkpoint_read(c, &far_device, &slice, err) && memcmp(got, want, bytes) == 0;
    free(got);
    free(want);
    return same;
}

/* Reads every part under another cutting; true when each byte is what was saved. */
static inline bool read_equal(struct checkpoint *c, struct cuts cuts, struct err *err)
{
    for (int32_t tensor = 0; tensor < c->table.count; tensor++) {
        for (int part = 0; part < CHECKPOINT_PARTS; part++) {
            enum dtype dtype;
            int64_t length;
            const struct param *param = &c->table.params[tensor];
            if (!checkpoint_part_shape(&c->formats, part, param->elements, &dtype, &length))
                continue;
            for (int rank = 0; rank < cuts.ranks * cuts.bands; rank++) {
                struct band_range range =
                    cut_range(param, length, cuts, rank / cuts.bands, rank % cuts.bands, tensor + 3);
                if (range.count > 0 && !slice_equal(c, tensor, part, &range, dtype_bytes(dtype), err))
                    return false;
            }
        }
    }
    return true;
}

/* Opened, verified by all ranks in turn, read. */
static inline bool load_equal_cut(const char *folder, const char *name, struct cuts cuts, struct err *err)
{
    struct checkpoint c;
    if (!checkpoint_open(&c, folder, name, err))
        return false;
    bool good = true;
    for (int rank = 0; good && rank < cuts.ranks; rank++)
        good = checkpoint_verify(&c, rank, cuts.ranks, err);
    good = good && read_equal(&c, cuts, err);
    checkpoint_close(&c);
    return good;
}

static inline bool load_equal(const char *folder, const char *name, int ranks, struct err *err)
{
    return load_equal_cut(folder, name, (struct cuts){ranks, 1}, err);
}

/* How many entries of a folder end so; "" counts all. */
static inline int entries_ending(const char *path, const char *end)
{
    int count = 0;
    DIR *dir = opendir(path);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        size_t length = strlen(entry->d_name), tail = strlen(end);
        count += entry->d_name[0] != '.' && length >= tail && strcmp(entry->d_name + length - tail, end) == 0;
    }
    if (dir)
        closedir(dir);
    return count;
}
