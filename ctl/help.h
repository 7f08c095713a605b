/* Help and shell completion, made from the table of commands and the tables of keys. */
#pragma once

#include "call.h"

#include <stdio.h>

void help_all(FILE *out, const char *group); /* group "": every command; "checkpoint": its commands */
void help_command(FILE *out, const struct command *command);
bool help_is_group(const char *word); /* the first of a command's two words */

/* ERR_INVALID, with the nearest right name; next: the word after it, "" for none. */
bool help_no_command(const char *word, const char *next, struct err *err);

/* "lr" for optimizer.lr: the shortest flag that is unambiguous, with dashes. */
void help_flag_name(char flag[LIMIT_NAME_BYTES], enum keys_of keys, const struct key *key);

void help_completion(FILE *out); /* for bash: source <(trainctl completion) */
