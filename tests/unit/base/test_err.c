/* The first description wins; near names are proposed, far ones are not; files are whole or absent. */
#include "check.h"

#include "err.h"
#include "file.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static void first_description_wins(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    char line[1024];
    assert_false(err_set(&err, ERR_INVALID, "no policy '%s'", "fp23"));
    assert_false(err_hint(&err, "did you mean fp24?"));
    err_set(&err, ERR_IO, "something else");
    err_hint(&err, "another hint");
    assert_int_equal(err.code, ERR_INVALID);
    assert_string_equal(err_line(&err, line, sizeof line), "no policy 'fp23'; did you mean fp24?");
}

static void errno_becomes_the_reason(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    errno = ENOSPC;
    assert_false(err_errno(&err, "cannot write"));
    assert_int_equal(err.code, ERR_IO);
    assert_string_equal(err.why, strerror(ENOSPC));
}

static void nearest_names(void **state)
{
    (void)state;
    static const char *const names[] = {"fp32-master", "bf16", "bf16-kahan"};
    assert_string_equal(err_nearest("fp32-mastre", names, 3), "fp32-master");
    assert_string_equal(err_nearest("bf61", names, 3), "bf16");
    assert_string_equal(err_nearest("bf16kahan", names, 3), "bf16-kahan");
    assert_null(err_nearest("adam", names, 3));
    assert_null(err_nearest("", names, 3));
}

static void codes_have_names(void **state)
{
    (void)state;
    for (int code = 0; code < ERR_CODE_COUNT; code++)
        assert_int_equal(err_code_from_name(err_code_name((enum err_code)code)), code);
    assert_int_equal(err_code_from_name("no such code"), ERR_INVALID);
}

/* A write that fails half-way leaves the old file, and nothing beside it. */
static void replace_is_all_or_nothing(void **state)
{
    (void)state;
    char folder[] = "/tmp/test-file-XXXXXX", path[64], aside[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/value", folder);
    snprintf(aside, sizeof aside, "%s/value.new", folder);
    struct err err = ERR_INIT;
    assert_true(file_replace(path, "old", 3, &err));
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, tiny;
    getrlimit(RLIMIT_FSIZE, &before);
    tiny = before;
    tiny.rlim_cur = 1;
    setrlimit(RLIMIT_FSIZE, &tiny);
    bool replaced = file_replace(path, "newer", 5, &err);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_false(replaced);
    assert_int_equal(err.code, ERR_IO);
    assert_non_null(strstr(err.what, aside)); /* which file, and what to do */
    assert_non_null(strstr(err.hint, "make room"));
    char *text;
    size_t bytes;
    struct err none = ERR_INIT;
    assert_true(file_slurp(path, 100, &text, &bytes, &none));
    assert_string_equal(text, "old");
    assert_int_equal(access(aside, F_OK), -1);
    free(text);
    assert_true(file_remove_tree(folder, &none));
    assert_int_equal(access(folder, F_OK), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(first_description_wins),
                                       cmocka_unit_test(errno_becomes_the_reason),
                                       cmocka_unit_test(nearest_names), cmocka_unit_test(codes_have_names),
                                       cmocka_unit_test(replace_is_all_or_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
