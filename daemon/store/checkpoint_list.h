/* The checkpoints of a folder, from their manifests alone: no device, no model, no ranks. The control thread
 * answers `checkpoint list` with this.
 *
 * A checkpoint is a folder NAME/ whose manifest.json is whole; what is still being written, or was cut off,
 * is called NAME.partial and never seen here. Newest means saved last: every save takes the next serial
 * number of its folder, so neither a clock set back, nor a load of an older state, nor a new model with fewer
 * steps changes the order. */
#pragma once

#include "bounds.h"
#include "err.h"
#include "manifest.h"

#include <stdbool.h>
#include <stdint.h>

#define CHECKPOINT_VERSION  2 /* 1 had no slices of columns */
#define CHECKPOINT_KIND     "trainerd checkpoint"
#define CHECKPOINT_MANIFEST "manifest.json"
#define CHECKPOINT_PARTIAL  ".partial"

/* What the last verification said. The mark names the manifest's checksum: another checkpoint of the same
 * name does not inherit it. */
#define CHECKPOINT_HEALTHS(X)                                                                                \
    X(CHECKPOINT_UNKNOWN, "unknown")                                                                         \
    X(CHECKPOINT_VERIFIED, "verified")                                                                       \
    X(CHECKPOINT_CORRUPT, "corrupt")

enum checkpoint_health {
#define X(health, name) health,
    CHECKPOINT_HEALTHS(X)
#undef X
        CHECKPOINT_HEALTH_COUNT
};
const char *checkpoint_health_name(enum checkpoint_health health);

struct checkpoint_about {
    char name[LIMIT_NAME_BYTES];
    char run[LIMIT_NAME_BYTES];    /* "" when no run was under way */
    char policy[LIMIT_NAME_BYTES]; /* as policies are written: "fp32-master+m=bf16" */
    bool automatic;                /* saved by `checkpoint: every`: retention may take it away */
    int64_t step, total_steps;     /* k; all applied updates */
    int64_t serial;                /* filled in by the commit */
    int64_t time_s;                /* since 1970, UTC; filled in by the commit */
    int64_t bytes;                 /* of the shard files; filled in by the commit */
    enum checkpoint_health health;
    char hash[MANIFEST_HASH_BYTES];
    char problem[ERR_TEXT_BYTES]; /* of a manifest that cannot be read: then health is corrupt, numbers are -1
                                   */
};

struct checkpoint_list {
    int64_t count;
    struct checkpoint_about *items; /* newest first; unreadable ones last */
};

/* A folder that does not exist holds no checkpoints. */
bool checkpoint_list_read(struct checkpoint_list *list, const char *folder, struct err *err) MUST_USE;
void checkpoint_list_done(struct checkpoint_list *list); /* zeroed: fine */

const struct checkpoint_about *checkpoint_list_find(const struct checkpoint_list *list,
                                                    const char *name); /* or NULL */

/* Candidates to go on from, newest first: the first at or after index `from` that is not known to be corrupt,
 * or -1. Readers verify before they use: a caller whose candidate fails goes on with from = index + 1. */
int64_t checkpoint_list_newest(const struct checkpoint_list *list, int64_t from);

/* Retention, `keep` >= 1: which automatic checkpoints of the run may go. Those older than the `keep` newest
 * *verified* ones: the oldest goes only once the new one has verified. surplus[list->count] gets the indices;
 * returns how many. */
int64_t checkpoint_list_surplus(const struct checkpoint_list *list, const char *run, int64_t keep,
                                int64_t *surplus);

/* Letters, digits, '.', '_', '-'; no leading dot; not ending in ".partial". */
bool checkpoint_name_check(const char *name, struct err *err) MUST_USE;

/* Renamed to NAME.partial first, so a deletion cut short leaves nothing that looks whole. */
bool checkpoint_delete(const char *folder, const char *name, struct err *err) MUST_USE;

/* Records what a verification said, for lists. */
bool checkpoint_mark(const char *folder, const char *name, const char *manifest_hash,
                     enum checkpoint_health health, struct err *err) MUST_USE;

/* The head of an open manifest, in checkpoint.c and here. */
bool checkpoint_about_parse(struct checkpoint_about *about, const struct manifest *manifest,
                            struct err *err) MUST_USE;
bool checkpoint_path(char path[MANIFEST_PATH_BYTES], const char *folder, const char *name, const char *suffix,
                     const char *file, struct err *err) MUST_USE; /* "FOLDER/NAME SUFFIX[/FILE]" */
