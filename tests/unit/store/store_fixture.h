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

/* Where rank of ranks begins in an array of so many elements: uneven on purpose, some ranges empty. */
static inline int64_t cut(int64_t length, int rank, int ranks, int salt)
{
    if (rank == 0 || rank == ranks)
        return rank ? length : 0;
    int64_t at = length * rank / ranks + salt % 4;
    return at > length ? length : at;
}

/* This rank's slices, with device memory of their own. */
struct cutting {
    struct checkpoint_slice *slices;
    int64_t count;
};

static inline struct cutting cutting_make(const struct param_table *table,
                                          const struct checkpoint_formats *formats, int rank, int ranks)
{
    struct cutting c = {.slices = calloc((size_t)table->count * CHECKPOINT_PARTS, sizeof *c.slices)};
    for (int32_t tensor = 0; tensor < table->count; tensor++) {
        for (int part = 0; part < CHECKPOINT_PARTS; part++) {
            enum dtype dtype;
            int64_t length;
            if (!checkpoint_part_shape(formats, part, table->params[tensor].elements, &dtype, &length))
                continue;
            int64_t start = cut(length, rank, ranks, tensor), end = cut(length, rank + 1, ranks, tensor);
            if (end <= start)
                continue;
            size_t width = dtype_bytes(dtype);
            unsigned char *memory = malloc((size_t)(end - start) * width);
            value_fill(memory, tensor, part, start, end - start, width, FAR);
            c.slices[c.count++] = (struct checkpoint_slice){tensor, part, start, end - start, memory};
        }
    }
    return c;
}

static inline void cutting_done(struct cutting *c)
{
    for (int64_t i = 0; i < c->count; i++)
        free((void *)(uintptr_t)c->slices[i].memory);
    free(c->slices);
    *c = (struct cutting){0};
}

/* ---- a save as the engine makes it, all ranks in turn ---- */

struct saving {
    const char *name;
    int ranks;
    bool replace;
    struct checkpoint_formats formats;
    struct checkpoint_about about; /* run, policy, automatic, step, total_steps */
    const json_t *state;           /* NULL: the fixture's */
};

static inline bool save(const struct fixture *f, const struct saving *s, struct err *err)
{
    char *fragments[16] = {0};
    struct checkpoint_about about = s->about;
    snprintf(about.name, sizeof about.name, "%s", s->name);
    bool saved = checkpoint_save_begin(f->folder.path, s->name, s->replace, err);
    for (int rank = 0; saved && rank < s->ranks; rank++) {
        struct cutting c = cutting_make(&f->table, &s->formats, rank, s->ranks);
        saved = checkpoint_save_shard(f->folder.path, s->name, rank, &f->table, &s->formats, c.slices,
                                      c.count, &far_device, &fragments[rank], err);
        cutting_done(&c);
    }
    struct checkpoint_record record = {&about, &f->table, &s->formats, f->config_text,
                                       s->state ? s->state : f->state};
    saved = saved && checkpoint_save_commit(f->folder.path, &record, (const char *const *)fragments, s->ranks,
                                            s->replace, NULL, err);
    if (!saved)
        checkpoint_save_abort(f->folder.path, s->name);
    for (int rank = 0; rank < s->ranks; rank++)
        free(fragments[rank]);
    return saved;
}

/* Reads every part under another cutting; true when each byte is what was saved. */
static inline bool read_equal(struct checkpoint *c, int ranks, struct err *err)
{
    for (int32_t tensor = 0; tensor < c->table.count; tensor++) {
        for (int part = 0; part < CHECKPOINT_PARTS; part++) {
            enum dtype dtype;
            int64_t length;
            if (!checkpoint_part_shape(&c->formats, part, c->table.params[tensor].elements, &dtype, &length))
                continue;
            for (int rank = 0; rank < ranks; rank++) {
                int64_t start = cut(length, rank, ranks, tensor + 3),
                        end = cut(length, rank + 1, ranks, tensor + 3);
                size_t bytes = end > start ? (size_t)(end - start) * dtype_bytes(dtype) : 0;
                unsigned char *got = calloc(1, bytes + 1), *want = calloc(1, bytes + 1);
                bool same = end <= start ||
                            checkpoint_read(c, &far_device, tensor, part, start, end - start, got, err);
                if (end > start)
                    value_fill(want, tensor, part, start, end - start, dtype_bytes(dtype), FAR);
                same = same && memcmp(got, want, bytes) == 0;
                free(got);
                free(want);
                if (!same)
                    return false;
            }
        }
    }
    return true;
}

/* Opened, verified by `ranks` ranks in turn, read. */
static inline bool load_equal(const char *folder, const char *name, int ranks, struct err *err)
{
    struct checkpoint c;
    if (!checkpoint_open(&c, folder, name, err))
        return false;
    bool good = true;
    for (int rank = 0; good && rank < ranks; rank++)
        good = checkpoint_verify(&c, rank, ranks, err);
    good = good && read_equal(&c, ranks, err);
    checkpoint_close(&c);
    return good;
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
