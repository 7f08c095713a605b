/* A precision policy is a value: the storage formats of weight and moments, the types of gradient
 * accumulation, of gradients on the wire, and of the computation. Presets name the useful points,
 * `PRESET+key=value…` any other.
 *
 * Pure text and numbers: no device, no state; trainctl uses it as it is. The contract's section 1 is the
 * reference. */
#pragma once

#include "bounds.h"
#include "dtype.h"
#include "err.h"
#include "state.h"

#include <stdbool.h>
#include <stddef.h>

struct policy {
    char name[LIMIT_NAME_BYTES]; /* canonical: the nearest preset and what differs, "fp32-master+v=bf16s" */
    enum weight_format weight;
    enum moment_format m, v;
    enum dtype accumulate; /* of the gradient on the shard: DTYPE_F32 or DTYPE_BF16 */
    enum dtype reduce;     /* of gradients on the wire: DTYPE_F32 or DTYPE_BF16 */
    enum dtype compute;    /* of activations and gathered weights: DTYPE_BF16 or DTYPE_F32 */
};

/* One row of the contract's table. What is not said here is accumulate=fp32, reduce=fp32, compute=bf16. */
struct policy_preset {
    const char *name;
    enum weight_format weight;
    enum moment_format m, v;
    const char *text; /* what it is, one line */
};
extern const struct policy_preset policy_presets[];
extern const int policy_preset_count;

/* fp32-master: what a daemon starts with. */
struct policy policy_default(void);

/* text: `PRESET` or `PRESET+key=value…` (keys weight, m, v, accumulate, reduce, compute; a key at most once).
 * compute: NULL, or what --compute said; equal to the text's own is fine, different is refused.
 * ERR_INVALID names the nearest right preset, key or value. *policy is set only on success. */
bool policy_parse(struct policy *policy, const char *text, const char *compute, struct err *err) MUST_USE;

/* Writes the canonical name of the formats into policy->name: the preset that differs in the fewest keys, the
 * first in the table among equals, then the differing keys in the order above. Parsing it gives the same
 * policy. */
void policy_rename(struct policy *policy);

bool policy_equal(const struct policy *a, const struct policy *b); /* in every format and type */

/* The optimizer's state only: weight, m and v with their extra arrays; q8's scale counts 1/16 byte.
 * fp24-q8: 5.125. */
double policy_bytes_per_parameter(const struct policy *policy);

/* Why a policy deserves a second look: shown wherever the policy is (status, set-optimizer, metrics). */
#define POLICY_NOTES_MAX 3
struct policy_note {
    bool warning;   /* true: plain bf16 weight; false: a note */
    char text[320]; /* one or two sentences: what, and the reason */
};
/* beta2 of the settings in force. Returns how many notes were written. */
int policy_notes(const struct policy *policy, double beta2, struct policy_note notes[POLICY_NOTES_MAX]);

/* True for a weight kept in plain bf16 (the preset `bf16` among them): taken only with --yes, except by
 * compare. */
bool policy_needs_confirmation(const struct policy *policy);
/* ERR_CONFIRM with the reason where it does and yes is false. */
bool policy_confirm(const struct policy *policy, bool yes, struct err *err) MUST_USE;

/* What converting live state from one policy to another keeps and loses, in words, by format alone (the
 * conversion itself measures): one sentence a part that changes, or that nothing is lost. Returns text. */
const char *policy_conversion_text(const struct policy *from, const struct policy *to, char *text,
                                   size_t text_bytes);
bool policy_conversion_exact(const struct policy *from,
                             const struct policy *to); /* no stored value changes */

/* The stored w is, bit for bit, what the model computes with: any weight but fp32, in bf16 compute. Where the
 * model's copy stays in memory, one array is both. */
bool policy_stores_copy(const struct policy *policy);

const char *weight_format_name(enum weight_format format);
const char *moment_format_name(enum moment_format format);

/* The types of a format's main and extra array; DTYPE_COUNT for none. Indexed by the format. */
extern const enum dtype weight_storage[][2];
extern const enum dtype moment_storage[][2];
