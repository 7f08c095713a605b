/* The main of a target in an ordinary build: each file of the folders named, once, and the empty input. Words
 * that begin with '-' are libFuzzer's and passed over, so that one command line serves both. */
#include "file.h"
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

static int replay_folder(const char *path)
{
    int count = 0;
    struct dirent *entry;
    DIR *dir = opendir(path);
    CHECK(dir != NULL);
    while ((entry = readdir(dir))) {
        struct err err = ERR_INIT;
        char file[1024], *bytes;
        size_t size;
        if (entry->d_name[0] == '.')
            continue;
        CHECK(file_join(file, sizeof file, path, entry->d_name, &err));
        CHECK(file_slurp(file, 1 << 20, &bytes, &size, &err));
        fprintf(stderr, "%s\n", file); /* where it crashes, the last line says on what */
        LLVMFuzzerTestOneInput((const uint8_t *)bytes, size);
        free(bytes);
        count++;
    }
    closedir(dir);
    return count;
}

int main(int argc, char **argv)
{
    int count = 0;
    fuzz_verbose = true;
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    for (int i = 1; i < argc; i++)
        if (argv[i][0] != '-')
            count += replay_folder(argv[i]);
    CHECK(count > 0 && fuzz_accepted > 0); /* seeds that are all refused would test little */
    printf("%d inputs, accepted %d times\n", count, fuzz_accepted);
    return 0;
}
