#include "layout.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bounds.h"

static bool read_letters(struct layout *layout, const char *text, struct err *err)
{
    static const char letters[] = "dtpc";
    int32_t values[4] = {0};
    for (const char *at = text; *at;) {
        const char *letter = strchr(letters, *at);
        char *end;
        long value = letter && isdigit((unsigned char)at[1]) ? strtol(at + 1, &end, 10) : 0;
        if (!letter || value < 1 || value > LIMIT_RANKS || values[letter - letters]) {
            err_set(err, ERR_INVALID, "'%s' is not a layout", text);
            err_why(err, "at '%s': expected one of d, t, p, c, each once, with a count from 1", at);
            return err_hint(err, "write it like d8t1p1c1; missing letters are 1");
        }
        values[letter - letters] = (int32_t)value;
        at = end;
    }
    *layout = (struct layout){.d = values[0] ? values[0] : 1,
                              .t = values[1] ? values[1] : 1,
                              .p = values[2] ? values[2] : 1,
                              .c = values[3] ? values[3] : 1};
    return true;
}

bool layout_parse(struct layout *layout, const char *text, int32_t ranks, struct err *err)
{
    struct layout read = {.d = ranks, .t = 1, .p = 1, .c = 1};
    if (text[0] && !read_letters(&read, text, err))
        return false;
    if ((int64_t)read.d * read.t * read.p * read.c != ranks) {
        err_set(err, ERR_INVALID, "the layout %s needs %lld ranks, and mpirun started %d", text,
                (long long)read.d * read.t * read.p * read.c, ranks);
        return err_hint(err, "use --layout d%d, or start mpirun with -n %lld", ranks,
                        (long long)read.d * read.t * read.p * read.c);
    }
    *layout = read;
    return true;
}

int32_t layout_product(const char *text)
{
    struct layout read;
    struct err err = ERR_INIT;
    if (!text[0] || !read_letters(&read, text, &err))
        return 0;
    int64_t product = (int64_t)read.d * read.t;
    product = product > LIMIT_RANKS ? product : product * read.p;
    product = product > LIMIT_RANKS ? product : product * read.c;
    return product > LIMIT_RANKS ? 0 : (int32_t)product;
}

struct layout_place layout_place(const struct layout *layout, int32_t rank)
{
    struct layout_place place = {.t = rank % layout->t};
    rank /= layout->t;
    place.c = rank % layout->c;
    rank /= layout->c;
    place.d = rank % layout->d;
    place.p = rank / layout->d;
    return place;
}

void layout_print(const struct layout *layout, char *text, size_t text_bytes)
{
    snprintf(text, text_bytes, "d%dt%dp%dc%d", layout->d, layout->t, layout->p, layout->c);
}
