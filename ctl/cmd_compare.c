/* compare: what was typed, checked here before the daemon is touched; the loop itself is compare.c. */
#include "commands.h"
#include "compare.h"
#include "compare_rows.h"
#include "file.h"
#include "follow.h"
#include "policy.h"
#include "recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Splits "A,B,…" in place; each must be a policy and come once. */
static bool split_policies(char *list, const char **policies, int *count, struct err *err)
{
    char *rest = NULL;
    *count = 0;
    for (char *name = strtok_r(list, ",", &rest); name != NULL; name = strtok_r(NULL, ",", &rest)) {
        struct policy policy;
        if (*count == PLOT_CURVES)
            return err_set(err, ERR_INVALID, "compare takes at most %d policies", PLOT_CURVES);
        if (!policy_parse(&policy, name, NULL, err))
            return false;
        for (int i = 0; i < *count; i++)
            if (strcmp(policies[i], name) == 0)
                return err_set(err, ERR_INVALID, "policy %s is named twice", name);
        policies[(*count)++] = name;
    }
    return *count > 0 || err_set(err, ERR_INVALID, "--policies names none");
}

/* The recipe and the flags as one text whose paths mean the same to the daemon; malloc'ed. */
static bool read_recipe(struct call *call, char **text, struct err *err)
{
    char here[LIMIT_PATH_BYTES], *read = NULL;
    size_t bytes = 0;
    struct recipe recipe;
    const char *name = call->arguments[0];
    bool fine = file_slurp(name, RECIPE_TEXT_BYTES, &read, &bytes, err) &&
                recipe_parse(&recipe, name, read, bytes, (const char *const *)call->settings,
                             (size_t)call->setting_count, err);
    free(read);
    if (fine && getcwd(here, sizeof here) == NULL)
        fine = err_errno(err, "cannot tell the present folder");
    if (!fine || !recipe_paths_absolute(&recipe, here, err))
        return false;
    *text = recipe_print(&recipe);
    return *text != NULL || err_set(err, ERR_MEMORY, "no memory for the recipe");
}

/* --out, else a folder of its own beside the daemon's runs. */
static bool choose_folder(struct call *call, char folder[LIMIT_PATH_BYTES], struct err *err)
{
    char state[LIMIT_PATH_BYTES], name[64];
    if (call_option(call, "out"))
        return call_absolute(folder, call_option(call, "out"), err);
    snprintf(name, sizeof name, "compare/%ld", (long)getpid());
    return call_state_folder(call, state, err) && file_join(folder, LIMIT_PATH_BYTES, state, name, err);
}

static void show(const struct call *call, const json_t *rows)
{
    if (call->output == OUTPUT_JSON)
        output_json(rows);
    else if (call->output == OUTPUT_CSV)
        compare_rows_csv(stdout, rows);
    else
        compare_rows_print(stdout, rows);
}

int cmd_compare(struct call *call)
{
    struct err err = ERR_INIT, unwritten = ERR_INIT;
    char folder[LIMIT_PATH_BYTES], *list = NULL, *recipe = NULL;
    const char *policies[PLOT_CURVES], *named = call_option(call, "policies");
    struct compare compare = {
        .client = &call->client, .policies = policies, .progress = call->quiet ? NULL : stderr};
    json_t *rows = NULL;
    if (named == NULL) {
        err_set(&err, ERR_INVALID, "compare needs policies to compare");
        err_hint(&err, "trainctl compare --policies fp32-master,bf16 RECIPE.yaml");
        return call_fail(call, &err);
    }
    list = strdup(named);
    bool fine = list != NULL && split_policies(list, policies, &compare.policy_count, &err) &&
                read_recipe(call, &recipe, &err) && call_connect(call, &err) &&
                choose_folder(call, folder, &err);
    if (fine) {
        compare.recipe = recipe;
        compare.recipe_name = call->arguments[0];
        compare.stopped = follow_interrupt_flag();
        follow_catch_interrupt();
        fine = compare_run(&compare, &rows, &err);
    }
    if (json_array_size(rows) > 0) {
        show(call, rows); /* also after a failure: what was measured stands */
        if (compare_write(rows, folder, &unwritten))
            call_note(call, "table.json, table.csv, table.png, table.svg are in %s", folder);
        else if (fine)
            fine =
                err_set(&err, unwritten.code, "%s", unwritten.what) || err_hint(&err, "%s", unwritten.hint);
    }
    json_decref(rows);
    free(recipe);
    free(list);
    if (fine)
        return EXIT_DONE;
    int code = call_fail(call, &err);
    return err.code == ERR_RUN ? EXIT_SHORT : code;
}
