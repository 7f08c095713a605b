#include "output.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELL_BYTES = 1024, COLUMNS_MAX = 64 };

void output_json(const json_t *value)
{
    json_dumpf(value, stdout, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    putchar('\n');
    fflush(stdout);
}

const char *output_bytes(char *text, size_t text_bytes, double bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    int unit = 0;
    double value = bytes;
    while (fabs(value) >= 999.5 && unit < 4) {
        value /= 1000;
        unit++;
    }
    snprintf(text, text_bytes, unit == 0 || value >= 99.95 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

const char *output_duration(char *text, size_t text_bytes, double seconds)
{
    long s = seconds > 0 ? lround(fmin(seconds, 1e9)) : 0;
    if (s < 3600)
        snprintf(text, text_bytes, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(text, text_bytes, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    return text;
}

static const json_t *find_field(const json_t *row, const char *field)
{
    char part[64];
    for (const char *dot; row && (dot = strchr(field, '.')); field = dot + 1) {
        snprintf(part, sizeof part, "%.*s", (int)(dot - field), field);
        row = json_object_get(row, part);
    }
    return json_object_get(row, field);
}

static void number_text(char *text, size_t text_bytes, double value, enum column_kind kind)
{
    switch (kind) {
    case AS_BYTES:
        output_bytes(text, text_bytes, value);
        break;
    case AS_EXACT:
        snprintf(text, text_bytes, "%.17g", value);
        break;
    case AS_RATE:
        snprintf(text, text_bytes, "%.3g", value);
        break;
    case AS_SECONDS:
        snprintf(text, text_bytes, value < 10 ? "%.3f" : "%.1f", value);
        break;
    case AS_INTEGER:
        snprintf(text, text_bytes, "%.0f", value);
        break;
    case AS_TEXT:
    case AS_REAL:
        snprintf(text, text_bytes, "%.4g", value);
        break;
    }
}

const char *output_cell(char *text, size_t text_bytes, const json_t *row, const struct column *column)
{
    const json_t *value = find_field(row, column->field);
    text[0] = '\0';
    if (json_is_string(value))
        snprintf(text, text_bytes, "%s", json_string_value(value));
    else if (json_is_boolean(value))
        snprintf(text, text_bytes, "%s", json_is_true(value) ? "yes" : "no");
    else if (json_is_integer(value) && column->kind == AS_INTEGER)
        snprintf(text, text_bytes, "%lld", (long long)json_integer_value(value));
    else if (json_is_number(value))
        number_text(text, text_bytes, json_number_value(value), column->kind);
    else if (json_is_null(value) || !value)
        snprintf(text, text_bytes, "-");
    return text;
}

/* Characters, not bytes: what lines up is what is seen. */
static int seen_width(const char *text)
{
    int width = 0;
    for (; *text; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

static bool is_right(const struct column *column)
{
    return column->kind != AS_TEXT;
}

static void print_padded(const char *text, int width, bool right, bool last)
{
    int pad = width - seen_width(text);
    if (pad < 0)
        pad = 0;
    if (right)
        printf("%*s%s", pad, "", text);
    else
        printf("%s%*s", text, last ? 0 : pad, "");
    fputs(last ? "\n" : "  ", stdout);
}

static void csv_text(const char *text)
{
    if (!strpbrk(text, ",\"\n\r")) {
        fputs(text, stdout);
        return;
    }
    putchar('"');
    for (; *text; text++) {
        if (*text == '"')
            putchar('"');
        putchar(*text);
    }
    putchar('"');
}

static void csv_value(const json_t *value)
{
    if (json_is_string(value))
        csv_text(json_string_value(value));
    else if (json_is_integer(value))
        printf("%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        printf("%.17g", json_real_value(value));
    else if (json_is_boolean(value))
        fputs(json_is_true(value) ? "true" : "false", stdout);
}

static void csv_row(const struct column *columns, int count, const json_t *row)
{
    for (int c = 0; c < count; c++) {
        if (c > 0)
            putchar(',');
        csv_value(find_field(row, columns[c].field));
    }
    putchar('\n');
}

static void csv_header(const struct column *columns, int count)
{
    for (int c = 0; c < count; c++) {
        if (c > 0)
            putchar(',');
        csv_text(columns[c].field);
    }
    putchar('\n');
}

static void print_table(const struct column *columns, int count, const json_t *rows)
{
    int width[COLUMNS_MAX];
    char cell[CELL_BYTES];
    size_t i;
    const json_t *row;
    for (int c = 0; c < count; c++)
        width[c] = seen_width(columns[c].title);
    json_array_foreach((json_t *)(uintptr_t)rows, i, row) for (int c = 0; c < count; c++)
    {
        int seen = seen_width(output_cell(cell, sizeof cell, row, &columns[c]));
        width[c] = seen > width[c] ? seen : width[c];
    }
    for (int c = 0; c < count; c++)
        print_padded(columns[c].title, width[c], is_right(&columns[c]), c == count - 1);
    json_array_foreach((json_t *)(uintptr_t)rows, i, row) for (int c = 0; c < count; c++) print_padded(
        output_cell(cell, sizeof cell, row, &columns[c]), width[c], is_right(&columns[c]), c == count - 1);
}

void output_rows(const struct call *call, const struct column *columns, int count, const json_t *rows,
                 const json_t *whole)
{
    size_t i;
    const json_t *row;
    INVARIANT(count <= COLUMNS_MAX);
    switch (call->output) {
    case OUTPUT_JSON:
        output_json(whole);
        break;
    case OUTPUT_CSV:
        csv_header(columns, count);
        json_array_foreach((json_t *)(uintptr_t)rows, i, row) csv_row(columns, count, row);
        break;
    case OUTPUT_TABLE:
        print_table(columns, count, rows);
        break;
    }
}

void output_object(const struct call *call, const struct column *columns, int count, const json_t *object)
{
    char cell[CELL_BYTES];
    int width = 0;
    switch (call->output) {
    case OUTPUT_JSON:
        output_json(object);
        break;
    case OUTPUT_CSV:
        csv_header(columns, count);
        csv_row(columns, count, object);
        break;
    case OUTPUT_TABLE:
        for (int c = 0; c < count; c++)
            width = seen_width(columns[c].title) > width ? seen_width(columns[c].title) : width;
        for (int c = 0; c < count; c++) {
            print_padded(columns[c].title, width, false, false);
            printf("%s\n", output_cell(cell, sizeof cell, object, &columns[c]));
        }
        break;
    }
}

static int stream_width(const struct column *column)
{
    int title = seen_width(column->title);
    return column->width > title ? column->width : title;
}

void output_stream_header(const struct call *call, const struct column *columns, int count)
{
    if (call->output == OUTPUT_CSV)
        csv_header(columns, count);
    for (int c = 0; call->output == OUTPUT_TABLE && c < count; c++)
        print_padded(columns[c].title, stream_width(&columns[c]), is_right(&columns[c]), c == count - 1);
    fflush(stdout);
}

void output_stream_row(const struct call *call, const struct column *columns, int count, const json_t *row)
{
    char cell[CELL_BYTES];
    if (call->output == OUTPUT_JSON) {
        output_json(row);
        return;
    }
    if (call->output == OUTPUT_CSV)
        csv_row(columns, count, row);
    for (int c = 0; call->output == OUTPUT_TABLE && c < count; c++)
        print_padded(output_cell(cell, sizeof cell, row, &columns[c]), stream_width(&columns[c]),
                     is_right(&columns[c]), c == count - 1);
    fflush(stdout);
}
