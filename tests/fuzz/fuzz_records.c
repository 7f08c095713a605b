/* What a run left on disk, as trainctl reads it without a daemon: run.json, and lines of events.jsonl. */
#include "fuzz.h"

#include "file.h"
#include "records.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_part parts[2];
    struct err err = ERR_INIT;
    Trainerd__Runs *runs;
    fuzz_split(parts, 2, data, size);
    CHECK(file_make_folder(fuzz_path("runs/run-1"), 0700, &err));
    fuzz_write(fuzz_path("runs/run-1/run.json"), parts[0].bytes, parts[0].count);
    if (fuzz_told(records_runs(&runs, fuzz_folder(), &err), &err))
        trainerd__runs__free_unpacked(runs, NULL);
    if (parts[1].bytes) {
        Trainerd__Step *step = records_step((const char *)parts[1].bytes, parts[1].count);
        if (step)
            trainerd__step__free_unpacked(step, NULL);
    }
    return 0;
}
