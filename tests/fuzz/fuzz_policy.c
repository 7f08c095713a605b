/* Policy strings, as commands, recipes and checkpoints carry them. */
#include "fuzz.h"
#include "policy.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = strndup((const char *)data, size);
    struct policy policy, again;
    struct err err = ERR_INIT;
    struct policy_note notes[POLICY_NOTES_MAX];
    if (fuzz_told(policy_parse(&policy, text, NULL, &err), &err)) {
        CHECK(policy_parse(&again, policy.name, NULL, &err));
        CHECK(policy_equal(&policy, &again) && strcmp(policy.name, again.name) == 0);
        CHECK(policy_bytes_per_parameter(&policy) >= 4.0);
        CHECK(policy_notes(&policy, 0.999, notes) <= POLICY_NOTES_MAX);
    }
    free(text);
    return 0;
}
