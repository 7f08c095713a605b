/* Which layouts a model can have. Pure. */
#pragma once

#include "layout.h"
#include "model_config.h"

/* False: why not, and which layouts of as many ranks would do. */
bool fit_layout(const struct layout *layout, const struct model_config *config, struct err *err) MUST_USE;
/* Instead of the hint there is: the layouts of `ranks` ranks that would do. False. */
bool fit_advise(const struct model_config *config, int32_t ranks, struct err *err);
/* "d8, d4t2, d2t2p2, …" of `ranks` ranks; c stands in for d, so it is not named. Returns how many there are.
 */
int fit_list(const struct model_config *config, int32_t ranks, char *text, size_t text_bytes);
