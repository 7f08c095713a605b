/* Files that are whole or absent: written beside their final name, synced, renamed, the folder synced. A
 * failed fsync condemns the file (the kernel may have dropped the pages): write anew, never retry the sync.
 */
#pragma once

#include "err.h"

#include <stddef.h>
#include <stdint.h>

bool file_make_folder(const char *path, unsigned mode,
                      struct err *err) MUST_USE; /* with its parents; exists: fine */
bool file_sync_folder(const char *path, struct err *err) MUST_USE;
bool file_remove_tree(const char *path, struct err *err) MUST_USE; /* does not follow links; absent: fine */

/* Writes all of it, or fails; offset -1 appends at the file's position. */
bool file_write_all(int fd, const void *bytes, size_t count, int64_t offset, struct err *err) MUST_USE;
bool file_read_all(int fd, void *bytes, size_t count, int64_t offset,
                   struct err *err) MUST_USE; /* short: ERR_CORRUPT */

/* Replaces path by these bytes, atomically and durably. */
bool file_replace(const char *path, const void *bytes, size_t count, struct err *err) MUST_USE;

/* The whole file, zero-terminated, malloc'ed; larger than limit is refused. */
bool file_slurp(const char *path, size_t limit, char **text, size_t *bytes, struct err *err) MUST_USE;

/* A read-only mapping of a whole file. */
struct file_map {
    const unsigned char *bytes;
    size_t count;
};
bool file_map_open(struct file_map *map, const char *path,
                   struct err *err) MUST_USE; /* empty files are refused */
void file_map_close(struct file_map *map);    /* zeroed: fine */

/* "DIR/NAME" into path; false with ERR_INVALID when it does not fit. */
bool file_join(char *path, size_t path_bytes, const char *folder, const char *name, struct err *err) MUST_USE;

/* FOLDER/NAME, locked while the process lives or until it is unlocked, with the process id in it. Held by
 * another: ERR_STATE, with that id; where the file system knows no locks: ERR_UNSUPPORTED. The lock is the
 * kernel's (flock): a process that was killed leaves none behind. kind says whose folder: "state folder". */
struct file_lock {
    int fd;
    bool held;
};
bool file_lock(struct file_lock *lock, const char *folder, const char *name, const char *kind,
               struct err *err) MUST_USE;
void file_unlock(struct file_lock *lock); /* zeroed: fine */
