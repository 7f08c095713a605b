/* Errors are values: what happened, why, what to do about it, and on which rank.
 *
 * A function that can fail returns bool and takes `struct err *err` last; it sets its outputs only on
 * success. The place where a failure is understood describes it once; whoever handles it logs or answers it
 * once. The first description wins: setting an error that is already set changes nothing. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define ERR_TEXT_BYTES 384

/* Grouped by what is lost: nothing but the request, the step, the run, the rank. name is the wire's and
 * JSON's. */
#define ERR_CODES(X)                                                                                         \
    X(ERR_OK, "ok", "nothing went wrong")                                                                    \
    X(ERR_INVALID, "invalid", "the request makes no sense as it stands")                                     \
    X(ERR_STATE, "state", "the daemon's present state does not allow it")                                    \
    X(ERR_CONFIRM, "confirm", "allowed, but only when said explicitly (--yes)")                              \
    X(ERR_NOT_FOUND, "not_found", "something named does not exist")                                          \
    X(ERR_UNSUPPORTED, "unsupported", "not built yet, or left out of this build")                            \
    X(ERR_MEMORY, "memory", "it does not fit")                                                               \
    X(ERR_CORRUPT, "corrupt", "a file is not what it says it is")                                            \
    X(ERR_IO, "io", "the operating system refused to read or write")                                         \
    X(ERR_TIMEOUT, "timeout", "the deadline passed first")                                                   \
    X(ERR_BUSY, "busy", "a limit on waiting work is reached; try again")                                     \
    X(ERR_RUN, "run", "the run ended short of its target")                                                   \
    X(ERR_RANK, "rank", "a rank is lost or stuck; the daemon ends")

enum err_code {
#define X(code, name, text) code,
    ERR_CODES(X)
#undef X
        ERR_CODE_COUNT
};

struct err {
    enum err_code code;
    int rank;                  /* the rank that failed; -1 where ranks mean nothing (clients) */
    char what[ERR_TEXT_BYTES]; /* one sentence, no trailing full stop */
    char why[ERR_TEXT_BYTES];  /* may be empty */
    char hint[ERR_TEXT_BYTES]; /* what to do; may be empty */
};

/* In the phases of a collective command: the outcome stays in err, and the agreement that follows reads it
 * there. */
static inline void err_keeps(bool outcome)
{
    (void)outcome;
}

#define ERR_INIT                                                                                             \
    {                                                                                                        \
        .code = ERR_OK, .rank = -1                                                                           \
    }
#define MUST_USE __attribute__((warn_unused_result))

/* All three return false, so that a failing function can end with `return err_hint(err, …)`. */
bool err_set(struct err *err, enum err_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
bool err_why(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool err_hint(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Instead of the hint there is: the caller of what failed knows a better way out. */
bool err_advise(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ERR_IO with strerror(errno) as the reason: `what` is the sentence. Call it before anything else touches
 * errno. */
bool err_errno(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ERR_CORRUPT for a file that cannot be what it claims to be: "PATH is not a sound KIND", the reason as
 * printed, the hint. */
bool err_unsound(struct err *err, const char *path, const char *kind, const char *hint, const char *format,
                 ...) __attribute__((format(printf, 5, 6)));

#if defined(__clang_analyzer__) && !defined(ERR_INSIDE) /* it cannot look into err.c, and would follow paths \
                             on which a failure returns true */
#define err_set(...)     ((void)err_set(__VA_ARGS__), false)
#define err_why(...)     ((void)err_why(__VA_ARGS__), false)
#define err_hint(...)    ((void)err_hint(__VA_ARGS__), false)
#define err_advise(...)  ((void)err_advise(__VA_ARGS__), false)
#define err_errno(...)   ((void)err_errno(__VA_ARGS__), false)
#define err_unsound(...) ((void)err_unsound(__VA_ARGS__), false)
#endif

const char *err_code_name(enum err_code code);
enum err_code err_code_from_name(const char *name); /* ERR_INVALID for an unknown name */

/* "what: why; hint" in one line, for logs and terminals. Returns text. */
const char *err_line(const struct err *err, char *text, size_t text_bytes);

/* The candidate nearest to word (Damerau-Levenshtein), or NULL if none is near enough to propose. */
const char *err_nearest(const char *word, const char *const *candidates, size_t count);

/* An invariant of ours that stays on in release builds; never for anything that came from outside. */
#define INVARIANT(condition)                                                                                 \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            err_invariant_failed(#condition, __FILE__, __LINE__);                                            \
    } while (0)
_Noreturn void err_invariant_failed(const char *condition, const char *file, int line);
