#define ERR_INSIDE
#include "err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const code_names[] = {
#define X(code, name, text) [code] = name,
    ERR_CODES(X)
#undef X
};

bool err_set(struct err *err, enum err_code code, const char *format, ...)
{
    if (err->code != ERR_OK)
        return false;
    err->code = code;
    err->why[0] = err->hint[0] = '\0';
    va_list args;
    va_start(args, format);
    vsnprintf(err->what, sizeof err->what, format, args);
    va_end(args);
    return false;
}

bool err_why(struct err *err, const char *format, ...)
{
    if (err->why[0])
        return false;
    va_list args;
    va_start(args, format);
    vsnprintf(err->why, sizeof err->why, format, args);
    va_end(args);
    return false;
}

bool err_hint(struct err *err, const char *format, ...)
{
    if (err->hint[0])
        return false;
    va_list args;
    va_start(args, format);
    vsnprintf(err->hint, sizeof err->hint, format, args);
    va_end(args);
    return false;
}

bool err_advise(struct err *err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(err->hint, sizeof err->hint, format, args);
    va_end(args);
    return false;
}

bool err_errno(struct err *err, const char *format, ...)
{
    int number = errno;
    if (err->code != ERR_OK)
        return false;
    err->code = ERR_IO;
    err->hint[0] = '\0';
    va_list args;
    va_start(args, format);
    vsnprintf(err->what, sizeof err->what, format, args);
    va_end(args);
    snprintf(err->why, sizeof err->why, "%s", strerror(number));
    return false;
}

bool err_unsound(struct err *err, const char *path, const char *kind, const char *hint, const char *format,
                 ...)
{
    char why[ERR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    err_set(err, ERR_CORRUPT, "%.200s is not a sound %s", path, kind);
    err_why(err, "%s", why);
    return err_hint(err, "%s", hint);
}

const char *err_code_name(enum err_code code)
{
    return (unsigned)code < ERR_CODE_COUNT ? code_names[code] : "unknown";
}

enum err_code err_code_from_name(const char *name)
{
    for (int code = 0; code < ERR_CODE_COUNT; code++)
        if (strcmp(name, code_names[code]) == 0)
            return (enum err_code)code;
    return ERR_INVALID;
}

const char *err_line(const struct err *err, char *text, size_t text_bytes)
{
    snprintf(text, text_bytes, "%s%s%s%s%s", err->what, err->why[0] ? ": " : "", err->why,
             err->hint[0] ? "; " : "", err->hint);
    return text;
}

#define NEAREST_WORD_BYTES 64

/* Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours count one each. */
static int edit_distance(const char *a, const char *b)
{
    int rows[3][NEAREST_WORD_BYTES + 1];
    int n = (int)strlen(b);
    int *before = rows[0], *last = rows[1], *row = rows[2];
    for (int j = 0; j <= n; j++)
        last[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            row[j] = best;
        }
        int *spare = before;
        before = last;
        last = row;
        row = spare;
    }
    return last[n];
}

const char *err_nearest(const char *word, const char *const *candidates, size_t count)
{
    const char *nearest = NULL;
    size_t length = strlen(word);
    if (length > NEAREST_WORD_BYTES)
        return NULL;
    int best = 1 + (int)length / 3; /* one slip in short words, a third of the letters in long ones */
    for (size_t i = 0; i < count; i++) {
        if (strlen(candidates[i]) > NEAREST_WORD_BYTES)
            continue;
        int distance = edit_distance(word, candidates[i]);
        if (distance < best || (distance == best && !nearest)) {
            best = distance;
            nearest = candidates[i];
        }
    }
    return nearest;
}

_Noreturn void err_invariant_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "trainerd: broken invariant at %s:%d: %s. This is a bug in trainerd: please report it.\n",
            file, line, condition);
    abort();
}
