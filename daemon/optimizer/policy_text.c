/* What is said about policies in words: notes, the question before a risky one, what a conversion keeps and
 * loses. */
#include "policy.h"

#include <stdio.h>
#include <string.h>

/* All mantissas of a bf16 v decay under v*beta2 only from here down (half a step is 2^-9 … 2^-8 of v). */
#define BETA2_BF16_MAX 0.996

int policy_notes(const struct policy *policy, double beta2, struct policy_note notes[POLICY_NOTES_MAX])
{
    int count = 0;
    if (policy->weight == WEIGHT_BF16)
        notes[count++] = (struct policy_note){
            true,
            "weights are kept in plain bf16: an update smaller than 1/512 to 1/256 of its weight is rounded "
            "away "
            "(near 1.0, every one under about 2e-3), and so is weight decay; training slows or stops unseen"};
    if (policy->v == MOMENT_BF16 && beta2 > BETA2_BF16_MAX) {
        struct policy_note *n = &notes[count++];
        n->warning = false;
        snprintf(n->text, sizeof n->text,
                 "v is kept in bf16 rounded to nearest with beta2 %.6g: v*beta2 rounds back to v, so v can "
                 "grow but "
                 "hardly decay; v=bf16s (stochastic) is unbiased, and from beta2 %.3g down all values decay",
                 beta2, BETA2_BF16_MAX);
    }
    return count;
}

bool policy_needs_confirmation(const struct policy *policy)
{
    return policy->weight == WEIGHT_BF16;
}

bool policy_confirm(const struct policy *policy, bool yes, struct err *err)
{
    if (yes || !policy_needs_confirmation(policy))
        return true;
    err_set(err, ERR_CONFIRM, "the policy %s keeps weights in plain bf16", policy->name);
    err_why(err, "small updates are rounded away: final losses of 3 to 5 times fp32-master's were measured");
    return err_hint(err, "add --yes to take it all the same, or take bf16-kahan, bf16-sr or fp24-q8");
}

/* ---- conversions ---- */

/* Whether every value that a format can hold is held by another one unchanged. */
static bool weight_holds(enum weight_format to, enum weight_format from)
{
    bool plain = from == WEIGHT_BF16 || from == WEIGHT_BF16S; /* every format holds a bf16 */
    if (to == from || plain || to == WEIGHT_FP32 || to == WEIGHT_SPLIT)
        return true; /* values are read in fp32, so fp32 holds them all */
    return false;
}

static bool moment_holds(enum moment_format to, enum moment_format from)
{
    bool plain = from == MOMENT_BF16 || from == MOMENT_BF16S;
    return to == from || to == MOMENT_FP32 || (plain && to != MOMENT_Q8);
}

static const char *weight_loss(enum weight_format to)
{
    static const char *const texts[WEIGHT_FORMAT_COUNT] = {
        [WEIGHT_FP32] = "",
        [WEIGHT_BF16] = "rounded to 8 bits of significand, half a step lost at most (1/512 to 1/256)",
        [WEIGHT_BF16S] =
            "rounded stochastically to 8 bits of significand, a step lost at most, none on average",
        [WEIGHT_KAHAN] = "rounded to about 16 bits of significand, the compensation keeps the remainder",
        [WEIGHT_SPLIT] = "",
        [WEIGHT_SPLIT8] = "rounded to about 16 bits of significand, an 8-bit code keeps the remainder",
    };
    return texts[to];
}

static const char *moment_loss(enum moment_format to)
{
    static const char *const texts[MOMENT_FORMAT_COUNT] = {
        [MOMENT_FP32] = "",
        [MOMENT_BF16] = "rounded to 8 bits of significand",
        [MOMENT_BF16S] = "rounded stochastically to 8 bits of significand",
        [MOMENT_Q8] = "rounded to 8-bit codes in groups of 32, small values beside large ones most",
    };
    return texts[to];
}

bool policy_conversion_exact(const struct policy *from, const struct policy *to)
{
    return weight_holds(to->weight, from->weight) && moment_holds(to->m, from->m) &&
           moment_holds(to->v, from->v);
}

/* Appends "part: from -> to, text; ". */
static void part_text(char *text, size_t bytes, const char *part, const char *from, const char *to,
                      const char *loss)
{
    size_t length = strlen(text);
    snprintf(text + length, bytes - length, "%s%s: %s -> %s, %s", length > 0 ? "; " : "", part, from, to,
             loss[0] ? loss : "exact");
}

/* fp32 and split hold the same values, and their bf16 copies differ where rounding is a tie. */
static void copy_text(const struct policy *from, const struct policy *to, char *text, size_t bytes)
{
    bool joins = from->weight == WEIGHT_FP32 && to->weight == WEIGHT_SPLIT;
    bool parts = from->weight == WEIGHT_SPLIT && to->weight == WEIGHT_FP32;
    if (to->compute == DTYPE_BF16 && (joins || parts))
        snprintf(text + strlen(text), bytes - strlen(text), "; exact ties of the model's bf16 now round %s",
                 joins ? "away from zero" : "to even");
}

const char *policy_conversion_text(const struct policy *from, const struct policy *to, char *text,
                                   size_t text_bytes)
{
    text[0] = '\0';
    if (from->weight != to->weight)
        part_text(text, text_bytes, "weight", weight_format_name(from->weight),
                  weight_format_name(to->weight),
                  weight_holds(to->weight, from->weight) ? "" : weight_loss(to->weight));
    if (from->m != to->m)
        part_text(text, text_bytes, "m", moment_format_name(from->m), moment_format_name(to->m),
                  moment_holds(to->m, from->m) ? "" : moment_loss(to->m));
    if (from->v != to->v)
        part_text(text, text_bytes, "v", moment_format_name(from->v), moment_format_name(to->v),
                  moment_holds(to->v, from->v) ? "" : moment_loss(to->v));
    if (text[0] == '\0')
        snprintf(text, text_bytes, "the stored state stays as it is");
    else if (policy_conversion_exact(from, to))
        snprintf(text + strlen(text), text_bytes - strlen(text), "; nothing is lost");
    copy_text(from, to, text, text_bytes);
    return text;
}
