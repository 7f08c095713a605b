#include "dataset_writer.h"

#include "dataset_manifest.h"
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SPOOL_TOKENS_NAME  "tokens.spool"
#define SPOOL_TRAINED_NAME "trained.spool"
#define PIECE_TOKENS       (1 << 16) /* copied at a time */

struct dataset_row_entry {
    int64_t start; /* in the spools, in tokens: also the order they came in */
    int32_t length, labels, first_trained;
    double number; /* what it is sorted by, one of the two */
    char *text;
};

static FILE *open_spool(const char *folder, const char *name, struct err *err)
{
    char path[LIMIT_PATH_BYTES];
    if (!file_join(path, sizeof path, folder, name, err))
        return NULL;
    FILE *spool = fopen(path, "w+be");
    if (!spool)
        err_errno(err, "cannot create %s", path);
    return spool;
}

/* A folder that is not there, or empty, or, with overwrite, a dataset. */
static bool check_target(const char *folder, bool overwrite, struct err *err)
{
    char manifest[LIMIT_PATH_BYTES + 32];
    struct stat info;
    snprintf(manifest, sizeof manifest, "%s/" DATASET_MANIFEST_NAME, folder);
    if (lstat(folder, &info) != 0 && errno == ENOENT)
        return true;
    bool dataset = stat(manifest, &info) == 0;
    if (overwrite && dataset)
        return true;
    if (rmdir(folder) == 0) /* an empty folder is as good as none */
        return true;
    err_set(err, ERR_INVALID, "%s exists already", folder);
    if (dataset)
        return err_hint(err, "choose another folder, or say --overwrite");
    err_why(err, "it is not a dataset, so it is never replaced");
    return err_hint(err, "choose another folder");
}

bool dataset_writer_open(struct dataset_writer *writer, const char *folder,
                         const struct dataset_writer_options *options, struct err *err)
{
    struct dataset_writer made = {
        .vocabulary = options->vocabulary, .cutoff = options->cutoff, .overwrite = options->overwrite};
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/')
        length--;
    INVARIANT(options->vocabulary > 0 && options->vocabulary <= LIMIT_VOCABULARY);
    if (options->cutoff < 2 || options->cutoff > DATASET_ROW_TOKENS_MAX)
        return err_set(err, ERR_INVALID, "the cutoff is %" PRId64 ", but must be from 2 to %d",
                       options->cutoff, DATASET_ROW_TOKENS_MAX);
    if (length == 0 || length + 64 >= sizeof made.aside)
        return err_set(err, ERR_INVALID, "the folder's name is empty or too long");
    snprintf(made.folder, sizeof made.folder, "%.*s", (int)length, folder);
    snprintf(made.aside, sizeof made.aside, "%.*s.new-%ld", (int)length, folder, (long)getpid());
    snprintf(made.tokenizer, sizeof made.tokenizer, "%s", options->tokenizer);
    snprintf(made.tokenizer_hash, sizeof made.tokenizer_hash, "%s", options->tokenizer_hash);
    snprintf(made.sort_key, sizeof made.sort_key, "%s", options->sort_key ? options->sort_key : "");
    if (!check_target(made.folder, options->overwrite, err) || !file_remove_tree(made.aside, err) ||
        !file_make_folder(made.aside, 0777, err))
        return false;
    made.open = true;
    made.tokens_spool = open_spool(made.aside, SPOOL_TOKENS_NAME, err);
    made.trained_spool = made.tokens_spool ? open_spool(made.aside, SPOOL_TRAINED_NAME, err) : NULL;
    if (!made.trained_spool) {
        dataset_writer_abandon(&made);
        return false;
    }
    *writer = made;
    return true;
}

/* Room for one entry more. */
static bool grow(struct dataset_writer *writer, struct err *err)
{
    if (writer->row_count == DATASET_ROWS_MAX) {
        err_set(err, ERR_INVALID, "the dataset would have more than %d rows", DATASET_ROWS_MAX);
        return err_hint(err, "split the input over several datasets, or use longer rows");
    }
    if (writer->row_count < writer->row_capacity)
        return true;
    int64_t capacity = writer->row_capacity ? 2 * writer->row_capacity : 1024;
    struct dataset_row_entry *rows = realloc(writer->rows, (size_t)capacity * sizeof *rows);
    if (!rows)
        return err_set(err, ERR_MEMORY, "no memory for an index of %" PRId64 " rows", capacity);
    writer->rows = rows;
    writer->row_capacity = capacity;
    return true;
}

static bool take_sort_value(struct dataset_writer *writer, struct dataset_row_entry *entry,
                            const struct dataset_sort_value *value, struct err *err)
{
    if (!*writer->sort_key)
        return true;
    if (!value || value->type == DATASET_SORT_NONE)
        return err_set(err, ERR_INVALID, "there is no \"%s\" to sort by", writer->sort_key);
    if (writer->sort_type == DATASET_SORT_NONE)
        writer->sort_type = value->type;
    if (writer->sort_type != value->type)
        return err_set(err, ERR_INVALID, "\"%s\" is a %s here and a %s before: they cannot be sorted",
                       writer->sort_key, value->type == DATASET_SORT_TEXT ? "text" : "number",
                       value->type == DATASET_SORT_TEXT ? "number" : "text");
    entry->number = value->number;
    if (value->type == DATASET_SORT_TEXT && !(entry->text = strdup(value->text)))
        return err_set(err, ERR_MEMORY, "no memory for an index of %" PRId64 " rows", writer->row_count);
    return true;
}

bool dataset_writer_add(struct dataset_writer *writer, const uint32_t *tokens, const uint8_t *trained,
                        int64_t count, const struct dataset_sort_value *sort_value, struct err *err)
{
    INVARIANT(writer->open);
    int64_t length = count < writer->cutoff ? count : writer->cutoff;
    struct dataset_row_entry entry = {
        .start = writer->tokens, .length = (int32_t)length, .first_trained = -1};
    for (int64_t t = 0; t < length; t++) {
        INVARIANT(tokens[t] < writer->vocabulary && trained[t] <= 1);
        entry.labels += t > 0 && trained[t];
        if (trained[t] && entry.first_trained < 0)
            entry.first_trained = (int32_t)t;
    }
    if (entry.labels == 0) {
        writer->dropped++;
        return true;
    }
    if (!grow(writer, err) || !take_sort_value(writer, &entry, sort_value, err))
        return false;
    if (fwrite(tokens, sizeof *tokens, (size_t)length, writer->tokens_spool) != (size_t)length ||
        fwrite(trained, 1, (size_t)length, writer->trained_spool) != (size_t)length) {
        err_errno(err, "cannot write to %s", writer->aside);
        free(entry.text);
        return false;
    }
    writer->cut += count > length;
    writer->tokens += length;
    writer->rows[writer->row_count++] = entry;
    return true;
}

static int by_number(const void *left, const void *right)
{
    const struct dataset_row_entry *a = left, *b = right;
    if (a->number < b->number || a->number > b->number)
        return a->number < b->number ? -1 : 1;
    return (a->start > b->start) - (a->start < b->start);
}

static int by_text(const void *left, const void *right)
{
    const struct dataset_row_entry *a = left, *b = right;
    int order = strcmp(a->text, b->text);
    return order ? order : (a->start > b->start) - (a->start < b->start);
}

enum { TENSOR_ROW_START, TENSOR_TOKENS, TENSOR_TRAINED, TENSORS };

/* One row from the spools into the file, at token `at` of it. */
static bool copy_row(struct dataset_writer *writer, struct safetensors_writer *file,
                     const struct dataset_row_entry *row, int64_t at, uint32_t *piece, struct err *err)
{
    bool narrow = file->tensors[TENSOR_TOKENS].dtype == DTYPE_U16;
    uint16_t *halves = (uint16_t *)piece;
    for (int64_t done = 0; done < row->length;) {
        int64_t count = row->length - done < PIECE_TOKENS ? row->length - done : PIECE_TOKENS;
        int64_t from = row->start + done;
        size_t token_bytes = narrow ? sizeof *halves : sizeof *piece;
        if (!file_read_all(fileno(writer->trained_spool), piece, (size_t)count, from, err) ||
            !safetensors_writer_put(file, TENSOR_TRAINED, (uint64_t)(at + done), piece, (size_t)count, err) ||
            !file_read_all(fileno(writer->tokens_spool), piece, (size_t)count * sizeof *piece,
                           from * (int64_t)sizeof *piece, err))
            return false;
        for (int64_t t = 0; narrow && t < count; t++) { /* in place: the narrow ones never overtake */
            uint32_t token;
            memcpy(&token, &piece[t], sizeof token);
            uint16_t half = (uint16_t)token;
            memcpy(&halves[t], &half, sizeof half);
        }
        if (!safetensors_writer_put(file, TENSOR_TOKENS, (uint64_t)(at + done) * token_bytes, piece,
                                    (size_t)count * token_bytes, err))
            return false;
        done += count;
    }
    return true;
}

static bool copy_rows(struct dataset_writer *writer, struct safetensors_writer *file, struct err *err)
{
    int64_t at = 0, start = 0;
    uint32_t *piece = malloc(PIECE_TOKENS * sizeof *piece);
    if (!piece)
        return err_set(err, ERR_MEMORY, "no memory to copy rows");
    bool good = safetensors_writer_put(file, TENSOR_ROW_START, 0, &start, sizeof start, err);
    for (int64_t r = 0; good && r < writer->row_count; r++) {
        good = copy_row(writer, file, &writer->rows[r], at, piece, err);
        at += writer->rows[r].length;
        good = good && safetensors_writer_put(file, TENSOR_ROW_START, (uint64_t)(r + 1) * sizeof at, &at,
                                              sizeof at, err);
    }
    free(piece);
    return good;
}

static bool write_data(struct dataset_writer *writer, const char *path, struct err *err)
{
    /* int64 before u16 before u8: each lies at a multiple of its size */
    struct safetensor tensors[TENSORS] = {
        [TENSOR_ROW_START] = {.name = "row_start",
                              .dtype = DTYPE_I64,
                              .dims = 1,
                              .shape = {writer->row_count + 1}},
        [TENSOR_TOKENS] = {.name = "tokens", .dims = 1, .shape = {writer->tokens}},
        [TENSOR_TRAINED] = {.name = "trained", .dtype = DTYPE_U8, .dims = 1, .shape = {writer->tokens}},
    };
    tensors[TENSOR_TOKENS].dtype = writer->vocabulary <= 65536 ? DTYPE_U16 : DTYPE_U32;
    struct safetensors_writer file = {0};
    if (fflush(writer->tokens_spool) != 0 || fflush(writer->trained_spool) != 0)
        return err_errno(err, "cannot write to %s", writer->aside);
    bool good = safetensors_writer_open(&file, path, tensors, TENSORS, NULL, 0, err) &&
                copy_rows(writer, &file, err) && safetensors_writer_finish(&file, err);
    safetensors_writer_abandon(&file);
    return good;
}

static bool write_manifest(const struct dataset_writer *writer, const char *data_path, struct err *err)
{
    struct dataset_manifest manifest = {.vocabulary = writer->vocabulary, .cutoff = writer->cutoff};
    struct dataset_statistics *statistics = &manifest.statistics;
    size_t count = (size_t)writer->row_count;
    struct file_map map;
    snprintf(manifest.tokenizer, sizeof manifest.tokenizer, "%s", writer->tokenizer);
    snprintf(manifest.tokenizer_hash, sizeof manifest.tokenizer_hash, "%s", writer->tokenizer_hash);
    snprintf(manifest.sort_key, sizeof manifest.sort_key, "%s", writer->sort_key);
    if (!file_map_open(&map, data_path, err))
        return false;
    dataset_manifest_hash_data(manifest.data_xxh3, map.bytes, map.count);
    file_map_close(&map);
    int32_t *sorted = malloc(count * sizeof *sorted);
    manifest.lengths = malloc(count * sizeof *manifest.lengths);
    manifest.first_trained = malloc(count * sizeof *manifest.first_trained);
    bool good = (sorted && manifest.lengths && manifest.first_trained) ||
                err_set(err, ERR_MEMORY, "no memory for the manifest of %zu rows", count);
    if (good) {
        statistics->rows = writer->row_count;
        statistics->tokens = writer->tokens;
        statistics->cut = writer->cut;
        statistics->dropped = writer->dropped;
        for (size_t r = 0; r < count; r++) {
            sorted[r] = manifest.lengths[r] = writer->rows[r].length;
            manifest.first_trained[r] = writer->rows[r].first_trained;
            statistics->labelled += writer->rows[r].labels;
        }
        dataset_count_percentiles(statistics, sorted, writer->row_count);
        good = dataset_manifest_write(&manifest, writer->aside, err);
    }
    free(sorted);
    dataset_manifest_done(&manifest);
    return good;
}

static void close_spools(struct dataset_writer *writer)
{
    char path[LIMIT_PATH_BYTES + 32];
    if (writer->tokens_spool)
        fclose(writer->tokens_spool);
    if (writer->trained_spool)
        fclose(writer->trained_spool);
    writer->tokens_spool = writer->trained_spool = NULL;
    snprintf(path, sizeof path, "%s/" SPOOL_TOKENS_NAME, writer->aside);
    unlink(path);
    snprintf(path, sizeof path, "%s/" SPOOL_TRAINED_NAME, writer->aside);
    unlink(path);
}

/* The new folder takes the name in one step; a dataset that had it is removed after. */
static bool take_place(struct dataset_writer *writer, struct err *err)
{
    char parent[LIMIT_PATH_BYTES];
    bool replaced = false;
    if (!check_target(writer->folder, writer->overwrite, err))
        return false;
    if (writer->overwrite &&
        renameat2(AT_FDCWD, writer->aside, AT_FDCWD, writer->folder, RENAME_EXCHANGE) == 0)
        replaced = true;
    else if (writer->overwrite && errno != ENOENT && !file_remove_tree(writer->folder, err))
        return false;
    if (!replaced && rename(writer->aside, writer->folder) != 0)
        return err_errno(err, "cannot rename %s to %s", writer->aside, writer->folder);
    if (replaced && !file_remove_tree(writer->aside, err))
        return false;
    snprintf(parent, sizeof parent, "%s", writer->folder);
    char *slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = '\0';
    return file_sync_folder(slash ? parent : ".", err);
}

bool dataset_writer_finish(struct dataset_writer *writer, struct err *err)
{
    char path[LIMIT_PATH_BYTES];
    INVARIANT(writer->open);
    if (writer->row_count == 0) {
        err_set(err, ERR_INVALID, "no row of the input has anything to train on");
        err_why(err, "%" PRId64 " rows were left out for want of a trained token within %" PRId64 " tokens",
                writer->dropped, writer->cutoff);
        return err_hint(
            err, "chats are trained on what the assistant says: is there an assistant, and is --cutoff "
                 "long enough?");
    }
    if (writer->sort_type != DATASET_SORT_NONE)
        qsort(writer->rows, (size_t)writer->row_count, sizeof *writer->rows,
              writer->sort_type == DATASET_SORT_TEXT ? by_text : by_number);
    if (!file_join(path, sizeof path, writer->aside, DATASET_DATA_NAME, err) ||
        !write_data(writer, path, err))
        return false;
    close_spools(writer);
    if (!write_manifest(writer, path, err) || !file_sync_folder(writer->aside, err) ||
        !take_place(writer, err))
        return false;
    writer->aside[0] = '\0'; /* it has its name: nothing to remove */
    dataset_writer_abandon(writer);
    return true;
}

void dataset_writer_abandon(struct dataset_writer *writer)
{
    struct err ignored = ERR_INIT; /* what cannot be removed stays; the user sees the first error */
    if (!writer->open)
        return;
    if (*writer->aside) {
        close_spools(writer);
        if (!file_remove_tree(writer->aside, &ignored))
            ignored.code = ERR_OK;
    }
    for (int64_t r = 0; r < writer->row_count; r++)
        free(writer->rows[r].text);
    free(writer->rows);
    *writer = (struct dataset_writer){0};
}
