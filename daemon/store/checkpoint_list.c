#include "checkpoint_list.h"

#include "file.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARK_FILE       "verified.json"
#define MARK_BYTES_MAX  4096
#define CHECKPOINTS_MAX (1 << 16) /* in one folder */

static const char *const health_names[] = {
#define X(health, name) [health] = name,
    CHECKPOINT_HEALTHS(X)
#undef X
};

const char *checkpoint_health_name(enum checkpoint_health health)
{
    return health_names[health];
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

bool checkpoint_name_check(const char *name, struct err *err)
{
    const char *allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t length = strlen(name);
    if (length > 0 && length < LIMIT_NAME_BYTES && name[0] != '.' && strspn(name, allowed) == length &&
        !ends_with(name, CHECKPOINT_PARTIAL))
        return true;
    err_set(err, ERR_INVALID, "\"%.60s\" cannot be a checkpoint's name", name);
    return err_hint(
        err,
        "use letters, digits, '.', '_' and '-', at most %d of them, not starting with a dot and not "
        "ending in " CHECKPOINT_PARTIAL,
        LIMIT_NAME_BYTES - 1);
}

bool checkpoint_path(char path[MANIFEST_PATH_BYTES], const char *folder, const char *name, const char *suffix,
                     const char *file, struct err *err)
{
    int length = snprintf(path, MANIFEST_PATH_BYTES, "%s/%s%s%s%s", folder, name, suffix, file ? "/" : "",
                          file ? file : "");
    if (length >= MANIFEST_PATH_BYTES)
        return err_set(err, ERR_INVALID, "the path %.80s…/%s is too long", folder, name);
    return true;
}

bool checkpoint_about_parse(struct checkpoint_about *about, const struct manifest *manifest, struct err *err)
{
    char kind[LIMIT_NAME_BYTES];
    int64_t version;
    const json_t *root = manifest->root;
    struct checkpoint_about a = {.health = CHECKPOINT_UNKNOWN};
    if (!manifest_string(manifest, root, "kind", kind, sizeof kind, err) ||
        !manifest_integer(manifest, root, "version", 1, INT64_MAX, &version, err))
        return false;
    if (strcmp(kind, CHECKPOINT_KIND) != 0)
        return err_set(err, ERR_CORRUPT, "%s is of kind \"%s\", not \"" CHECKPOINT_KIND "\"", manifest->path,
                       kind);
    if (version > CHECKPOINT_VERSION) {
        err_set(err, ERR_UNSUPPORTED, "%s has version %lld; this trainerd reads up to %d", manifest->path,
                (long long)version, CHECKPOINT_VERSION);
        return err_hint(err, "use the trainerd that wrote it, or a newer one");
    }
    if (!manifest_string(manifest, root, "name", a.name, sizeof a.name, err) ||
        !manifest_string(manifest, root, "run", a.run, sizeof a.run, err) ||
        !manifest_string(manifest, root, "policy", a.policy, sizeof a.policy, err) ||
        !manifest_boolean(manifest, root, "automatic", &a.automatic, err) ||
        !manifest_integer(manifest, root, "step", 0, INT64_MAX, &a.step, err) ||
        !manifest_integer(manifest, root, "total_steps", 0, INT64_MAX, &a.total_steps, err) ||
        !manifest_integer(manifest, root, "serial", 1, INT64_MAX - 1, &a.serial, err) ||
        !manifest_integer(manifest, root, "time_s", 0, INT64_MAX, &a.time_s, err) ||
        !manifest_integer(manifest, root, "bytes", 0, INT64_MAX, &a.bytes, err))
        return false;
    memcpy(a.hash, manifest->hash, sizeof a.hash);
    *about = a;
    return true;
}

/* Unknown unless the mark says otherwise about this very manifest: a broken mark is no mark. */
static enum checkpoint_health mark_read(const char *folder, const char *name, const char *hash)
{
    char path[MANIFEST_PATH_BYTES], *text;
    size_t bytes;
    struct err ignored = ERR_INIT;
    if (!checkpoint_path(path, folder, name, "", MARK_FILE, &ignored) || access(path, F_OK) != 0 ||
        !file_slurp(path, MARK_BYTES_MAX, &text, &bytes, &ignored))
        return CHECKPOINT_UNKNOWN;
    json_t *mark = json_loadb(text, bytes, 0, NULL);
    const char *of = json_string_value(json_object_get(mark, "manifest"));
    const char *said = json_string_value(json_object_get(mark, "health"));
    enum checkpoint_health health = CHECKPOINT_UNKNOWN;
    if (of && said && strcmp(of, hash) == 0)
        for (int i = 0; i < CHECKPOINT_HEALTH_COUNT; i++)
            health = strcmp(said, health_names[i]) == 0 ? (enum checkpoint_health)i : health;
    json_decref(mark);
    free(text);
    return health;
}

/* The folder's name is the checkpoint's: a copy under another name is what it is called now. */
static void item_read(struct checkpoint_about *about, const char *folder, const char *name, const char *path)
{
    struct manifest manifest = {0};
    struct err err = ERR_INIT;
    char line[3 * ERR_TEXT_BYTES];
    if (manifest_load(&manifest, path, &err) && checkpoint_about_parse(about, &manifest, &err)) {
        about->health = mark_read(folder, name, about->hash);
    } else {
        *about =
            (struct checkpoint_about){.step = -1, .total_steps = -1, .serial = -1, .time_s = -1, .bytes = -1};
        about->health = CHECKPOINT_CORRUPT;
        snprintf(about->problem, sizeof about->problem, "%.*s", ERR_TEXT_BYTES - 1,
                 err_line(&err, line, sizeof line));
    }
    snprintf(about->name, sizeof about->name, "%s", name);
    manifest_close(&manifest);
}

static int newest_first(const void *a, const void *b)
{
    const struct checkpoint_about *x = a, *y = b;
    if (x->serial != y->serial) /* -1 (unreadable) last; equal ones were copied here by hand */
        return x->serial < y->serial ? 1 : -1;
    if (x->time_s != y->time_s)
        return x->time_s < y->time_s ? 1 : -1;
    return strcmp(x->name, y->name);
}

static bool list_add(struct checkpoint_list *list, const char *folder, const char *name, struct err *err)
{
    char path[MANIFEST_PATH_BYTES];
    struct err ignored = ERR_INIT;
    if (!checkpoint_name_check(name, &ignored) ||
        !checkpoint_path(path, folder, name, "", CHECKPOINT_MANIFEST, &ignored) || access(path, F_OK) != 0)
        return true; /* something else that lives here */
    if (list->count == CHECKPOINTS_MAX)
        return err_set(err, ERR_UNSUPPORTED, "%s holds more than %d checkpoints", folder, CHECKPOINTS_MAX);
    struct checkpoint_about *items = realloc(list->items, (size_t)(list->count + 1) * sizeof *items);
    if (!items)
        return err_set(err, ERR_MEMORY, "no memory to list %s", folder);
    list->items = items;
    item_read(&items[list->count], folder, name, path);
    list->count += access(path, F_OK) == 0; /* deleted while we looked: not there, rather than damaged */
    return true;
}

bool checkpoint_list_read(struct checkpoint_list *list, const char *folder, struct err *err)
{
    struct checkpoint_list found = {0};
    DIR *dir = opendir(folder);
    if (!dir && errno != ENOENT)
        return err_errno(err, "cannot read the folder %s", folder);
    bool read = true;
    struct dirent *entry;
    while (read && dir && (entry = readdir(dir)))
        read = list_add(&found, folder, entry->d_name, err);
    if (dir)
        closedir(dir);
    if (!read) {
        checkpoint_list_done(&found);
        return false;
    }
    if (found.count > 1)
        qsort(found.items, (size_t)found.count, sizeof *found.items, newest_first);
    *list = found;
    return true;
}

void checkpoint_list_done(struct checkpoint_list *list)
{
    free(list->items);
    *list = (struct checkpoint_list){0};
}

const struct checkpoint_about *checkpoint_list_find(const struct checkpoint_list *list, const char *name)
{
    for (int64_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].name, name) == 0)
            return &list->items[i];
    return NULL;
}

int64_t checkpoint_list_newest(const struct checkpoint_list *list, int64_t from)
{
    for (int64_t i = from; i < list->count; i++)
        if (list->items[i].health != CHECKPOINT_CORRUPT)
            return i;
    return -1;
}

int64_t checkpoint_list_surplus(const struct checkpoint_list *list, const char *run, int64_t keep,
                                int64_t *surplus)
{
    INVARIANT(keep >= 1);
    int64_t verified = 0, count = 0;
    for (int64_t i = 0; i < list->count; i++) {
        const struct checkpoint_about *about = &list->items[i];
        if (!about->automatic || strcmp(about->run, run) != 0)
            continue;
        if (verified >= keep)
            surplus[count++] = i;
        verified += about->health == CHECKPOINT_VERIFIED;
    }
    return count;
}

bool checkpoint_delete(const char *folder, const char *name, struct err *err)
{
    char path[MANIFEST_PATH_BYTES], aside[MANIFEST_PATH_BYTES], manifest[MANIFEST_PATH_BYTES];
    if (!checkpoint_name_check(name, err) || !checkpoint_path(path, folder, name, "", NULL, err) ||
        !checkpoint_path(aside, folder, name, CHECKPOINT_PARTIAL, NULL, err) ||
        !checkpoint_path(manifest, folder, name, "", CHECKPOINT_MANIFEST, err))
        return false;
    if (access(manifest, F_OK) != 0) { /* never another folder that happens to lie here */
        err_set(err, ERR_NOT_FOUND, "there is no checkpoint \"%s\" in %s", name, folder);
        return err_hint(err, "`trainctl checkpoint list` shows what is there");
    }
    if (!file_remove_tree(aside, err))
        return false;
    if (rename(path, aside) != 0)
        return err_errno(err, "cannot rename %s before deleting it", path);
    return file_sync_folder(folder, err) && file_remove_tree(aside, err);
}

bool checkpoint_mark(const char *folder, const char *name, const char *manifest_hash,
                     enum checkpoint_health health, struct err *err)
{
    char path[MANIFEST_PATH_BYTES], text[MANIFEST_HASH_BYTES + 64];
    if (!checkpoint_name_check(name, err) || !checkpoint_path(path, folder, name, "", MARK_FILE, err))
        return false;
    int bytes = snprintf(text, sizeof text, "{\"manifest\": \"%s\", \"health\": \"%s\"}\n", manifest_hash,
                         health_names[health]);
    return file_replace(path, text, (size_t)bytes, err);
}
