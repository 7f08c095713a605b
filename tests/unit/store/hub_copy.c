/* hub_copy FROM TO bf16|fp32: a hub folder in and out, for hub_peer.py. */
#include "hub.h"

#include <stdio.h>
#include <string.h>

static void put(void *context, int32_t tensor, int64_t start, const float *values, int64_t count)
{
    struct err err = ERR_INIT;
    if (!hub_export_put(context, tensor, &(struct band_range){.start = start, .count = count}, DTYPE_F32,
                        values, &err))
        fprintf(stderr, "%s\n", err.what); /* the commit, or the comparison, will fail */
}

static bool copy(const char *from, const char *to, enum dtype dtype, struct err *err)
{
    struct hub hub;
    struct hub_export export = {0};
    const struct hub_export_options options = {.dtype = dtype, .source = from, .shard_bytes = 200000};
    if (!hub_open(&hub, from, err))
        return false;
    bool good = hub_check_tied(&hub, 0, 1, err) &&
                hub_export_begin(to, &hub.config, &hub.table, &options, err) &&
                hub_export_join(&export, to, &hub.table, &options, err);
    for (int32_t i = 0; good && i < hub.table.count; i++)
        good =
            hub_read(&hub, i, &(struct band_range){.count = hub.table.params[i].elements}, put, &export, err);
    good = good && hub_export_finish(&export, err) && hub_export_commit(to, NULL, err);
    hub_export_done(&export);
    hub_close(&hub);
    return good;
}

int main(int argc, char **argv)
{
    struct err err = ERR_INIT;
    char line[4 * ERR_TEXT_BYTES];
    if (argc != 4 || (strcmp(argv[3], "bf16") != 0 && strcmp(argv[3], "fp32") != 0))
        return 2;
    if (copy(argv[1], argv[2], strcmp(argv[3], "bf16") == 0 ? DTYPE_BF16 : DTYPE_F32, &err))
        return 0;
    fprintf(stderr, "%s\n", err_line(&err, line, sizeof line));
    return 1;
}
