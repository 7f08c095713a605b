/* Products by oneDNN 2.6: the only file with its calls. */
#include "tables.h"

#include <oneapi/dnnl/dnnl.h>

#include <stdio.h>

const char *dnnl_release(void)
{
    static char release[32];
    const dnnl_version_t *version = dnnl_version();
    snprintf(release, sizeof release, "%d.%d.%d", version->major, version->minor, version->patch);
    return release;
}

const char *dnnl_products(void)
{
    return "plain C (slow)";
}

void overlay_dnnl(struct kernels *table)
{
    (void)table;
}
