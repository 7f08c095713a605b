/* Qwen3 once more, written for the tests from the paper alone: double precision, one sequence at a time,
 * whole T x T probabilities, a backward by hand. It shares nothing with the model but the parameter table's
 * order. */
#pragma once

#include "model_config.h"
#include "params.h"

/* weights[i], gradients[i]: the elements of table->params[i]; gradients are added to, NULL: forward only.
 * tokens, labels of one sequence (label < 0: none); logprob[length]. Returns the sum of the labelled
 * log-probabilities. */
double naive_sequence(const struct model_config *config, const struct param_table *table,
                      double *const *weights, double **gradients, const int32_t *tokens,
                      const int32_t *labels, int64_t length, double *logprob);
