/* A hub folder: config.json, the index, and three weight files. What is accepted can be read whole. */
#include "fuzz.h"
#include "hub.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"config.json", "model.safetensors.index.json",
                                        "model-00001-of-00002.safetensors",
                                        "model-00002-of-00002.safetensors", "model.safetensors"};
    enum { COUNT = sizeof names / sizeof *names };
    struct fuzz_part parts[COUNT];
    struct hub hub;
    struct err err = ERR_INIT;
    fuzz_split(parts, COUNT, data, size);
    fuzz_write_parts(names, parts, COUNT);
    if (!fuzz_told(hub_open(&hub, fuzz_folder(), &err), &err))
        return 0;
    for (int32_t i = 0; i < hub.table.count; i++)
        CHECK(hub_read(&hub, i, 0, hub.table.params[i].elements, NULL, NULL, &err));
    (void)fuzz_told(hub_check_tied(&hub, 0, 1, &err), &err);
    hub_close(&hub);
    return 0;
}
