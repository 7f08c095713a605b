/* A dataset's statistics and samples, decoded, with what is trained on. */
#include "data_tools.h"
#include "dataset.h"
#include "tokenizer_bytes.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the UTF-8 character at text, or 0 if there is none (overlong, surrogate, cut short). */
static size_t utf8_length(const unsigned char *text, size_t bytes)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (text[0] < 0x80)
        return 1;
    size_t length = text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
    if (text[0] < 0xc2 || text[0] > 0xf4 || length > bytes)
        return 0;
    uint32_t code = text[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (text[i] & 0x3f);
    }
    return code >= least[length] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff) ? length : 0;
}

/* The bytes as valid UTF-8, U+FFFD for what is none. */
static json_t *text_value(const char *bytes, size_t count)
{
    char *text = malloc(3 * count + 1);
    size_t used = 0;
    if (!text)
        return NULL;
    for (size_t at = 0; at < count;) {
        size_t length = utf8_length((const unsigned char *)bytes + at, count - at);
        memcpy(text + used, length ? bytes + at : "\xef\xbf\xbd", length ? length : 3);
        used += length ? length : 3;
        at += length ? length : 1;
    }
    json_t *value = json_stringn(text, used);
    free(text);
    return value;
}

struct piece { /* tokens of one kind in a row, decoded */
    char *text;
    size_t bytes;
    bool trained;
};

static void end_piece(struct piece *piece, json_t *pieces)
{
    if (piece->bytes > 0)
        json_array_append_new(pieces, json_pack("{s:o, s:b}", "text", text_value(piece->text, piece->bytes),
                                                "trained", piece->trained));
    piece->bytes = 0;
}

/* longest: bytes of a token's text at most. */
static json_t *show_pieces(const struct dataset *dataset, const int32_t *tokens, const uint8_t *trained,
                           int64_t count)
{
    const size_t longest = 32;
    bool known = strcmp(dataset->tokenizer, TOKENIZER_BYTES_NAME) == 0;
    struct piece piece = {.text = malloc((size_t)count * longest + 1)};
    json_t *pieces = json_array();
    for (int64_t t = 0; piece.text && t < count; t++) {
        char one[2], number[32];
        size_t bytes;
        const char *text = bytes_token_text(tokens[t], one, &bytes);
        if (!known) { /* another vocabulary: the numbers themselves */
            text = number;
            bytes = (size_t)snprintf(number, sizeof number, "%" PRId32 " ", tokens[t]);
        }
        if (trained[t] != piece.trained)
            end_piece(&piece, pieces);
        piece.trained = trained[t];
        memcpy(piece.text + piece.bytes, text, bytes);
        piece.bytes += bytes;
    }
    end_piece(&piece, pieces);
    free(piece.text);
    return pieces;
}

static json_t *show_sample(const struct dataset *dataset, int64_t row, int64_t tokens_most)
{
    int64_t length = dataset_row_length(dataset, row);
    int64_t shown = tokens_most >= 0 && tokens_most < length ? tokens_most : length;
    int32_t *tokens = malloc((size_t)shown * sizeof *tokens + 1);
    uint8_t *trained = malloc((size_t)shown + 1);
    json_t *sample = NULL;
    if (tokens && trained) {
        dataset_row_read(dataset, row, shown, tokens, trained);
        sample = json_pack("{s:I, s:I, s:I, s:I, s:o}", "row", (json_int_t)row, "tokens", (json_int_t)length,
                           "labelled_tokens", (json_int_t)dataset_row_labels(dataset, row, length), "shown",
                           (json_int_t)shown, "pieces", show_pieces(dataset, tokens, trained, shown));
    }
    free(tokens);
    free(trained);
    return sample;
}

static json_t *show_statistics(const struct dataset *d, const char *folder)
{
    const struct dataset_statistics *s = &d->statistics;
    json_t *result =
        json_pack("{s:s, s:s, s:I, s:o, s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:I}", "folder", folder,
                  "tokenizer", d->tokenizer, "vocabulary", (json_int_t)d->vocabulary, "sort_key",
                  *d->sort_key ? json_string(d->sort_key) : json_null(), "cutoff", (json_int_t)d->cutoff,
                  "rows", (json_int_t)s->rows, "tokens", (json_int_t)s->tokens, "labelled_tokens",
                  (json_int_t)s->labelled, "labelled_share", (double)s->labelled / (double)s->tokens, "cut",
                  (json_int_t)s->cut, "dropped", (json_int_t)s->dropped, "longest", (json_int_t)s->longest);
    for (int i = 0; i < DATASET_PERCENTILES; i++) {
        char name[32];
        snprintf(name, sizeof name, "length_p%d", dataset_percentiles[i]);
        json_object_set_new(result, name, json_integer(s->percentile[i]));
    }
    json_object_set_new(result, "hash", json_string(d->hash));
    return result;
}

bool data_show(const char *folder, const struct data_show_options *options, struct json_t **result,
               struct err *err)
{
    struct dataset dataset;
    if (!dataset_open(&dataset, folder, err))
        return false;
    int64_t rows = dataset_rows(&dataset), left = options->count;
    if (options->first < 0 || options->first >= rows) {
        err_set(err, ERR_INVALID, "there is no row %" PRId64, options->first);
        err_why(err, "%.200s has rows 0 to %" PRId64, folder, rows - 1);
        dataset_close(&dataset);
        return false;
    }
    json_t *made = show_statistics(&dataset, folder), *samples = left > 0 ? json_array() : NULL;
    bool good = made && (samples || left <= 0);
    for (int64_t row = options->first; good && left > 0 && row < rows; row++, left--)
        good = json_array_append_new(samples, show_sample(&dataset, row, options->tokens)) == 0;
    dataset_close(&dataset);
    if (samples)
        good = json_object_set_new(made, "samples", samples) == 0 && good;
    if (!good) {
        json_decref(made);
        return err_set(err, ERR_MEMORY, "no memory to show %.200s", folder);
    }
    *result = made;
    return true;
}

/* ---- for people ---- */

/* Control characters would steer the terminal: they are shown, not sent. */
static void print_safely(FILE *out, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        bool is_c1 = c == 0xc2 && i + 1 < bytes && (unsigned char)text[i + 1] < 0xa0; /* U+0080 … U+009F */
        if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
            fprintf(out, "\\x%02x", c);
        else if (is_c1)
            fprintf(out, "\\x%02x", (unsigned char)text[++i]);
        else
            putc(c, out);
    }
}

static void print_sample(FILE *out, const json_t *sample, bool colour)
{
    const json_t *pieces = json_object_get(sample, "pieces");
    int64_t tokens = json_integer_value(json_object_get(sample, "tokens"));
    int64_t shown = json_integer_value(json_object_get(sample, "shown"));
    fprintf(out, "\n%srow %" PRId64 ", %" PRId64 " tokens, %" PRId64 " labelled%s\n",
            colour ? "\033[1m" : "--- ", (int64_t)json_integer_value(json_object_get(sample, "row")), tokens,
            (int64_t)json_integer_value(json_object_get(sample, "labelled_tokens")),
            colour ? "\033[0m" : " ---");
    for (size_t i = 0; i < json_array_size(pieces); i++) {
        const json_t *piece = json_array_get(pieces, i), *text = json_object_get(piece, "text");
        bool trained = json_is_true(json_object_get(piece, "trained"));
        if (trained)
            fputs(colour ? "\033[32m" : "⟦", out);
        print_safely(out, json_string_value(text), json_string_length(text));
        if (trained)
            fputs(colour ? "\033[0m" : "⟧", out);
    }
    if (shown < tokens)
        fprintf(out, "… and %" PRId64 " tokens more", tokens - shown);
    putc('\n', out);
}

static int64_t number(const json_t *result, const char *name)
{
    return json_integer_value(json_object_get(result, name));
}

void data_show_print(FILE *out, const struct json_t *result, bool colour)
{
    const char *sort_key = json_string_value(json_object_get(result, "sort_key"));
    const json_t *samples = json_object_get(result, "samples");
    fprintf(out, "%s\n", json_string_value(json_object_get(result, "folder")));
    fprintf(out, "  rows        %" PRId64, number(result, "rows"));
    if (number(result, "cut") || number(result, "dropped"))
        fprintf(out,
                " (%" PRId64 " cut at %" PRId64 " tokens, %" PRId64 " left out: nothing trained in them)",
                number(result, "cut"), number(result, "cutoff"), number(result, "dropped"));
    fprintf(out, "\n  tokens      %" PRId64 ", %" PRId64 " of them labelled (%.1f %%)\n",
            number(result, "tokens"), number(result, "labelled_tokens"),
            100 * json_real_value(json_object_get(result, "labelled_share")));
    fprintf(out,
            "  length      5 %%: %" PRId64 ", 25 %%: %" PRId64 ", median: %" PRId64 ", 75 %%: %" PRId64
            ", 95 %%: %" PRId64 ", longest: %" PRId64 "\n",
            number(result, "length_p5"), number(result, "length_p25"), number(result, "length_p50"),
            number(result, "length_p75"), number(result, "length_p95"), number(result, "longest"));
    fprintf(out, "  vocabulary  %" PRId64 " (%s)\n", number(result, "vocabulary"),
            json_string_value(json_object_get(result, "tokenizer")));
    fprintf(out, "  order       %s%s\n", sort_key ? "by " : "as it came", sort_key ? sort_key : "");
    for (size_t i = 0; i < json_array_size(samples); i++)
        print_sample(out, json_array_get(samples, i), colour);
    if (json_array_size(samples) > 0)
        fprintf(out, "\n%s is what the model is trained to say.\n", colour ? "\033[32mGreen\033[0m" : "⟦…⟧");
}
