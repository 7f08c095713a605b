/* `data prepare` on JSON lines: the first byte chooses the cutoff and whether to sort. What it makes, the
 * reader of datasets accepts (data_prepare reads it back), or it refuses naming the line and leaves nothing.
 */
#include "data_tools.h"
#include "file.h"
#include "fuzz.h"

#include <jansson.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int64_t cutoffs[] = {-1, 1, 2, 17};
    if (size < 1)
        return 0;
    const char *input = fuzz_path("chat.jsonl"), *output = fuzz_path("dataset");
    struct data_prepare_options options = {.files = &input,
                                           .file_count = 1,
                                           .output = output,
                                           .sort_by = data[0] & 4 ? "instance_id" : NULL,
                                           .cutoff = cutoffs[data[0] & 3]};
    struct json_t *result = NULL;
    struct err err = ERR_INIT;
    fuzz_write(input, data + 1, size - 1);
    bool made = fuzz_told(data_prepare(&options, &result, &err), &err);
    CHECK(made == (access(output, F_OK) == 0));
    if (!made) {
        CHECK(err.code != ERR_CORRUPT); /* that would be a dataset of our own that we cannot read */
        return 0;
    }
    json_decref(result);
    CHECK(data_show(output, &(struct data_show_options){.count = 4, .tokens = -1}, &result, &err));
    json_decref(result);
    CHECK(file_remove_tree(output, &err));
    return 0;
}
