#include "fit.h"

#include "params.h"
#include "shard.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FIT_NAMED 12 /* layouts in a hint */

static bool check(const struct layout *layout, const struct model_config *config, struct err *err)
{
    if (!param_table_check_cut(config, layout->t, err))
        return false;
    if (layout->p > config->layers) {
        err_set(err, ERR_INVALID, "p = %d pipeline stages are more than the model's %" PRId64 " layers",
                layout->p, config->layers);
        return err_why(err, "every stage holds a layer at least");
    }
    if ((int64_t)layout->d * layout->c <= SHARD_RANKS_MAX)
        return true;
    return err_set(err, ERR_UNSUPPORTED, "d x c is %lld, and at most %d are built",
                   (long long)layout->d * layout->c, SHARD_RANKS_MAX);
}

/* Letters that are 1 are left out. */
static int print_short(const struct layout *layout, char *text, size_t text_bytes)
{
    char d[16] = "", t[16] = "", p[16] = "";
    if (layout->d > 1 || (layout->t == 1 && layout->p == 1))
        snprintf(d, sizeof d, "d%d", layout->d);
    if (layout->t > 1)
        snprintf(t, sizeof t, "t%d", layout->t);
    if (layout->p > 1)
        snprintf(p, sizeof p, "p%d", layout->p);
    return snprintf(text, text_bytes, "%s%s%s", d, t, p);
}

int fit_list(const struct model_config *config, int32_t ranks, char *text, size_t text_bytes)
{
    int found = 0;
    size_t at = 0;
    text[0] = '\0';
    for (int32_t model = 1; model <= ranks; model++) /* t x p */
        for (int32_t t = 1; ranks % model == 0 && t <= model; t++) {
            struct layout layout = {.d = ranks / model, .t = t, .p = model / t, .c = 1};
            struct err unused = ERR_INIT;
            char name[48];
            if (model % t != 0 || !check(&layout, config, &unused))
                continue;
            size_t length = (size_t)print_short(&layout, name, sizeof name);
            if (++found > FIT_NAMED || at + length + 8 > text_bytes)
                continue;
            at += (size_t)snprintf(text + at, text_bytes - at, "%s%s", found > 1 ? ", " : "", name);
        }
    if (found > FIT_NAMED)
        snprintf(text + at, text_bytes - at, ", …");
    return found;
}

bool fit_advise(const struct model_config *config, int32_t ranks, struct err *err)
{
    char list[ERR_TEXT_BYTES - 128];
    int found = fit_list(config, ranks, list, sizeof list);
    if (found == 0)
        return err_advise(err, "no layout of %d ranks fits this model: use another number", ranks);
    return err_advise(err, "of %d ranks %s %s this model; c may take the place of d", ranks, list,
                      found == 1 ? "fits" : "fit");
}

bool fit_layout(const struct layout *layout, const struct model_config *config, struct err *err)
{
    return check(layout, config, err) ||
           fit_advise(config, layout->d * layout->t * layout->p * layout->c, err);
}
