/* Text files and JSON lines to a dataset, streaming: one line, or one row of a document, is in memory at a
 * time. */
#include "data_tools.h"
#include "dataset_writer.h"
#include "tokenizer_bytes.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define LINE_BYTES_MAX    LIMIT_JSON_BYTES
#define READ_BYTES        65536
#define PROGRESS_EVERY_MS 200

struct prepare {
    const struct data_prepare_options *options;
    struct dataset_writer writer;
    struct bytes_row row;
    int64_t cutoff;
    const char *path; /* of the file being read */
    int64_t line;     /* of it; 0: not in lines */
    char *line_text;  /* [line_capacity] */
    size_t line_capacity;
    int64_t bytes_total, bytes_done; /* of all files; total 0: not known */
    int64_t progress_ms;
};

static bool is_lines(const char *path)
{
    static const char *const endings[] = {".jsonl", ".ndjson", ".json"};
    size_t length = strlen(path);
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        size_t ending = strlen(endings[i]);
        if (length > ending && strcmp(path + length - ending, endings[i]) == 0)
            return true;
    }
    return false;
}

/* Every input is there and can be read, before anything is made. */
static bool check_inputs(struct prepare *p, struct err *err)
{
    bool lines = false;
    if (p->options->file_count == 0)
        return err_set(err, ERR_INVALID, "no file is named");
    for (size_t i = 0; i < p->options->file_count; i++) {
        const char *path = p->options->files[i];
        struct stat info;
        if (stat(path, &info) != 0)
            return err_errno(err, "cannot read %s", path);
        if (S_ISDIR(info.st_mode)) {
            err_set(err, ERR_INVALID, "%s is a folder", path);
            return err_hint(err, "name the files in it, for example %.200s/*.jsonl", path);
        }
        if (S_ISREG(info.st_mode) && info.st_size == 0)
            return err_set(err, ERR_INVALID, "%s is empty", path);
        if (!is_lines(path) && p->options->sort_by) {
            err_set(err, ERR_INVALID, "%s is a text file, which has no field \"%.60s\" to sort by", path,
                    p->options->sort_by);
            return err_hint(err, "leave --sort-by out, or give JSON lines (a name that ends in .jsonl)");
        }
        lines = lines || is_lines(path);
        p->bytes_total += S_ISREG(info.st_mode) ? info.st_size : 0;
    }
    p->cutoff = p->options->cutoff > 0 ? p->options->cutoff
                                       : (lines ? DATA_PREPARE_CUTOFF_CHAT : DATA_PREPARE_CUTOFF_TEXT);
    return true;
}

/* Puts the place in front of what went wrong there. */
static bool locate(const struct prepare *p, struct err *err)
{
    char what[ERR_TEXT_BYTES];
    snprintf(what, sizeof what, "%s", err->what);
    if (p->line > 0)
        snprintf(err->what, sizeof err->what, "%.150s:%" PRId64 ": %.200s", p->path, p->line, what);
    else
        snprintf(err->what, sizeof err->what, "%.150s: %.200s", p->path, what);
    return false;
}

static bool keep_going(struct prepare *p, struct err *err)
{
    struct timespec now;
    if (p->options->stop && *p->options->stop)
        return err_set(err, ERR_RUN, "stopped; nothing was written");
    if (!p->options->progress)
        return true;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t now_ms = now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (now_ms - p->progress_ms < PROGRESS_EVERY_MS)
        return true;
    p->progress_ms = now_ms;
    fprintf(p->options->progress, "\r\033[K");
    if (p->bytes_total > 0)
        fprintf(p->options->progress, "%3d%%  ", (int)(100 * p->bytes_done / p->bytes_total));
    fprintf(p->options->progress, "%" PRId64 " rows, %" PRId64 " tokens", p->writer.row_count,
            p->writer.tokens);
    fflush(p->options->progress);
    return true;
}

static bool add_row(struct prepare *p, const struct dataset_sort_value *sort_value, struct err *err)
{
    bool good =
        dataset_writer_add(&p->writer, p->row.tokens, p->row.trained, (int64_t)p->row.count, sort_value, err);
    p->row.count = 0;
    return good;
}

/* More of a document; whole rows go out as they fill. */
static bool add_document_text(struct prepare *p, const char *text, size_t bytes,
                              const struct dataset_sort_value *sort_value, struct err *err)
{
    while (bytes > 0) {
        size_t room = (size_t)p->cutoff - p->row.count, piece = bytes < room ? bytes : room;
        if (!bytes_append_text(&p->row, text, piece, true, err))
            return false;
        text += piece;
        bytes -= piece;
        if (p->row.count == (size_t)p->cutoff && !add_row(p, sort_value, err))
            return false;
    }
    return true;
}

static bool end_document(struct prepare *p, const struct dataset_sort_value *sort_value, struct err *err)
{
    if (!bytes_append_special(&p->row, BYTES_END_OF_TEXT, true, err))
        return false;
    if (p->row.count >= 2) /* a last token alone has nothing before it to be predicted from */
        return add_row(p, sort_value, err);
    p->row.count = 0;
    return true;
}

/* ---- JSON lines ---- */

static bool append_parts(struct bytes_row *text, const json_t *parts, int number, struct err *err)
{
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i), *words = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!json_is_string(words) || (type && strcmp(type, "text") != 0))
            return err_set(err, ERR_INVALID, "message %d has a part that is not text", number);
        if (!bytes_append_text(text, json_string_value(words), json_string_length(words), false, err))
            return false;
    }
    return true;
}

/* The parts of a message joined to one text of the caller's (free). */
static bool join_parts(const json_t *parts, int number, char **text, size_t *bytes, struct err *err)
{
    struct bytes_row row = {0};
    bool good = append_parts(&row, parts, number, err);
    char *joined = good ? malloc(row.count + 1) : NULL;
    for (size_t i = 0; joined && i < row.count; i++)
        joined[i] = (char)row.tokens[i];
    *bytes = row.count;
    *text = joined;
    bytes_row_done(&row);
    return joined || (good && err_set(err, ERR_MEMORY, "no memory for message %d", number));
}

static bool check_role(const char *role, int number, struct err *err)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool", "developer"};
    if (!role)
        return err_set(err, ERR_INVALID, "message %d has no role", number);
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strcmp(role, roles[i]) == 0)
            return true;
    const char *nearest = err_nearest(role, roles, sizeof roles / sizeof roles[0]);
    err_set(err, ERR_INVALID,
            "message %d has the role \"%.40s\", which is not one of system, user, assistant, tool, developer",
            number, role);
    return nearest ? err_hint(err, "did you mean \"%s\"?", nearest) : false;
}

static bool add_message(struct prepare *p, const json_t *message, int number, struct err *err)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    const json_t *content = json_object_get(message, "content");
    char *joined = NULL;
    size_t bytes;
    if (!check_role(role, number, err))
        return false;
    if (json_is_string(content))
        return bytes_append_message(&p->row, role, json_string_value(content), json_string_length(content),
                                    err);
    if (!json_is_array(content))
        return err_set(err, ERR_INVALID, "message %d has no content that is a text", number);
    bool good = join_parts(content, number, &joined, &bytes, err) &&
                bytes_append_message(&p->row, role, joined, bytes, err);
    free(joined);
    return good;
}

static bool sort_value_of(const struct prepare *p, const json_t *entry, struct dataset_sort_value *value,
                          struct err *err)
{
    const json_t *field = p->options->sort_by ? json_object_get(entry, p->options->sort_by) : NULL;
    *value = (struct dataset_sort_value){0};
    if (!p->options->sort_by)
        return true;
    if (json_is_string(field))
        *value = (struct dataset_sort_value){.type = DATASET_SORT_TEXT, .text = json_string_value(field)};
    else if (json_is_number(field))
        *value = (struct dataset_sort_value){.type = DATASET_SORT_NUMBER, .number = json_number_value(field)};
    else
        return err_set(err, ERR_INVALID, "there is no \"%.60s\" to sort by that is a text or a number",
                       p->options->sort_by);
    return true;
}

static bool add_entry(struct prepare *p, const json_t *entry, struct err *err)
{
    const json_t *messages = json_object_get(entry, "messages"), *text = json_object_get(entry, "text");
    struct dataset_sort_value sort_value;
    if (!json_is_object(entry)) {
        err_set(err, ERR_INVALID, "this is not a JSON object");
        return err_hint(err, "one object a line; `jq -c '.[]'` makes lines of a JSON list");
    }
    if (!sort_value_of(p, entry, &sort_value, err))
        return false;
    if (json_is_string(text) && !messages)
        return add_document_text(p, json_string_value(text), json_string_length(text), &sort_value, err) &&
               end_document(p, &sort_value, err);
    if (!json_is_array(messages) || json_array_size(messages) == 0) {
        err_set(err, ERR_INVALID, "there is neither a list \"messages\" nor a \"text\"");
        return err_hint(err, "a chat is {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}");
    }
    for (size_t i = 0; i < json_array_size(messages); i++)
        if (!add_message(p, json_array_get(messages, i), (int)i + 1, err))
            return false;
    return add_row(p, &sort_value, err);
}

/* The next line without its end into line_text; *bytes -1 at the end of the file. */
static bool read_line(struct prepare *p, FILE *in, int64_t *bytes, struct err *err)
{
    size_t count = 0;
    int c;
    while ((c = getc_unlocked(in)) != EOF && c != '\n') {
        if (count == p->line_capacity) {
            size_t capacity = p->line_capacity ? 2 * p->line_capacity : READ_BYTES;
            char *grown = count < LINE_BYTES_MAX ? realloc(p->line_text, capacity) : NULL;
            if (!grown && count >= LINE_BYTES_MAX)
                return err_set(err, ERR_INVALID, "the line has more than %d bytes", LINE_BYTES_MAX);
            if (!grown)
                return err_set(err, ERR_MEMORY, "no memory for a line of %zu bytes", capacity);
            p->line_text = grown;
            p->line_capacity = capacity;
        }
        p->line_text[count++] = (char)c;
    }
    if (ferror(in))
        return err_errno(err, "cannot read on");
    *bytes = c == EOF && count == 0 ? -1 : (int64_t)count;
    p->bytes_done += (int64_t)count + (c == '\n');
    return true;
}

static bool is_blank(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r')
            return false;
    return true;
}

static bool add_line(struct prepare *p, const char *text, size_t bytes, struct err *err)
{
    json_error_t problem;
    if (p->line == 1 && bytes >= 3 &&
        memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* the mark some editors put first */
        text += 3;
        bytes -= 3;
    }
    if (is_blank(text, bytes))
        return true;
    json_t *entry = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    if (!entry) {
        err_set(err, ERR_INVALID, "this line is not JSON");
        err_why(err, "%.200s (at byte %d)", problem.text, problem.position);
        return err_hint(err, "one whole JSON object a line");
    }
    bool good = add_entry(p, entry, err);
    json_decref(entry);
    return good;
}

static bool add_lines(struct prepare *p, FILE *in, struct err *err)
{
    for (int64_t bytes = 0;;) {
        p->line++;
        if (!read_line(p, in, &bytes, err))
            return false;
        if (bytes < 0)
            return true;
        if (!add_line(p, p->line_text, (size_t)bytes, err) || !keep_going(p, err))
            return false;
    }
}

static bool add_document(struct prepare *p, FILE *in, struct err *err)
{
    char text[READ_BYTES];
    size_t bytes;
    while ((bytes = fread(text, 1, sizeof text, in)) > 0) {
        p->bytes_done += (int64_t)bytes;
        if (!add_document_text(p, text, bytes, NULL, err) || !keep_going(p, err))
            return false;
    }
    return ferror(in) ? err_errno(err, "cannot read on") : end_document(p, NULL, err);
}

static bool add_file(struct prepare *p, const char *path, struct err *err)
{
    p->path = path;
    p->line = 0;
    FILE *in = fopen(path, "re");
    if (!in)
        return err_errno(err, "cannot open %s", path);
    bool good = is_lines(path) ? add_lines(p, in, err) : add_document(p, in, err);
    fclose(in);
    return good || (err->code == ERR_RUN ? false : locate(p, err));
}

static bool add_all(struct prepare *p, struct err *err)
{
    char hash[17];
    struct dataset_writer_options options = {
        .tokenizer = TOKENIZER_BYTES_NAME,
        .tokenizer_hash = tokenizer_bytes_hash(hash),
        .vocabulary = BYTES_VOCABULARY,
        .cutoff = p->cutoff,
        .sort_key = p->options->sort_by,
        .overwrite = p->options->overwrite,
    };
    if (!dataset_writer_open(&p->writer, p->options->output, &options, err))
        return false;
    for (size_t i = 0; i < p->options->file_count; i++)
        if (!add_file(p, p->options->files[i], err))
            return false;
    return dataset_writer_finish(&p->writer, err);
}

bool data_prepare(const struct data_prepare_options *options, struct json_t **result, struct err *err)
{
    struct prepare p = {.options = options};
    bool good = check_inputs(&p, err) && add_all(&p, err);
    if (options->progress && p.progress_ms > 0)
        fprintf(options->progress, "\r\033[K");
    dataset_writer_abandon(&p.writer);
    bytes_row_done(&p.row);
    free(p.line_text);
    return good &&
           data_show(options->output, &(struct data_show_options){0}, result, err); /* reads it all back */
}
