/* The training state in a checkpoint. What is accepted can go on: counters in order, a learning rate at every
 * step. */
#include "fuzz.h"
#include "state_json.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>

enum { TENSORS = 3 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct state_read state;
    struct err err = ERR_INIT;
    json_t *json = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    if (json && fuzz_told(state_json_read(&state, json, TENSORS, &err), &err)) {
        const struct run *run = &state.run;
        CHECK(state.t >= 0 && state.total_steps >= state.t);
        if (run->id[0]) {
            CHECK(run->k >= 0 && run->k <= run->steps && run->cursor.samples >= 0);
            for (int64_t k = run->k; k < run->k + 50; k++)
                CHECK(isfinite(schedule_lr(&run->schedule, k)));
        }
        free(run->still);
    }
    json_decref(json);
    return 0;
}
