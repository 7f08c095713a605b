/* A model's config.json. What is accepted has a parameter table and prints as a config that is the same. */
#include "fuzz.h"
#include "model_config.h"
#include "params.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config config, again;
    struct param_table table;
    struct err err = ERR_INIT;
    memset(&config, 0, sizeof config); /* compared with its padding */
    memset(&again, 0, sizeof again);
    if (!fuzz_told(model_config_parse(&config, "config.json", (const char *)data, size, &err), &err))
        return 0;
    CHECK(model_config_parameters(&config) > 0);
    char *text = model_config_print(&config, "float32");
    CHECK(model_config_parse(&again, "printed", text, strlen(text), &err));
    CHECK(memcmp(&config, &again, sizeof config) == 0);
    free(text);
    if (fuzz_told(param_table_init(&table, &config, &err), &err))
        param_table_done(&table);
    return 0;
}
