/* Recipes: YAML, then overrides, one a line, after "====". What is accepted prints as a recipe that is the
 * same. */
#include "fuzz.h"
#include "recipe.h"

#include <stdlib.h>
#include <string.h>

enum { OVERRIDES_MAX = 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_part parts[2];
    const char *overrides[OVERRIDES_MAX];
    size_t count = 0;
    struct recipe recipe, again;
    struct err err = ERR_INIT;
    fuzz_split(parts, 2, data, size);
    char *lines = strndup(parts[1].bytes ? (const char *)parts[1].bytes : "", parts[1].count), *rest = NULL;
    for (char *line = strtok_r(lines, "\n", &rest); line && count < OVERRIDES_MAX;
         line = strtok_r(NULL, "\n", &rest))
        overrides[count++] = line;
    if (fuzz_told(recipe_parse(&recipe, "recipe.yaml", (const char *)parts[0].bytes, parts[0].count,
                               overrides, count, &err),
                  &err)) {
        char *text = recipe_print(&recipe), *text_again;
        CHECK(text != NULL);
        CHECK(recipe_parse(&again, "printed", text, strlen(text), NULL, 0, &err));
        text_again = recipe_print(&again);
        CHECK(text_again && strcmp(text, text_again) == 0);
        free(text);
        free(text_again);
    }
    free(lines);
    return 0;
}
