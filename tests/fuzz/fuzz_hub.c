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
    for (int32_t i = 0; i < hub.table.count; i++) {
        struct band_range range = {.count = hub.table.params[i].elements};
        CHECK(hub_read(&hub, i, &range, NULL, NULL, &err));
        int64_t columns = hub.table.params[i].columns;
        if (columns < 2)
            continue;
        range = (struct band_range){{columns / 2, columns - columns / 2, columns}, 0, 0};
        range.count = band_elements(&range.band, hub.table.params[i].elements);
        CHECK(hub_read(&hub, i, &range, NULL, NULL, &err));
    }
    (void)fuzz_told(hub_check_tied(&hub, 0, 1, &err), &err);
    hub_close(&hub);
    return 0;
}
