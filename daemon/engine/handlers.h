/* Inside the engine: what each command does, on every rank. A handler reserves, agrees, then changes; on
 * failure every rank has the same err and is as it was. */
#pragma once

#include "engine.h"

typedef bool (*command_handler)(struct engine *engine, const struct command *command,
                                struct command_result *result, struct err *err);
extern const command_handler handlers[COMMAND_COUNT];

bool handle_init(struct engine *, const struct command *, struct command_result *, struct err *) MUST_USE;
bool handle_load(struct engine *, const struct command *, struct command_result *, struct err *) MUST_USE;
bool handle_export(struct engine *, const struct command *, struct command_result *, struct err *) MUST_USE;
bool handle_set_optimizer(struct engine *, const struct command *, struct command_result *,
                          struct err *) MUST_USE;
bool handle_set_layout(struct engine *, const struct command *, struct command_result *,
                       struct err *) MUST_USE;

/* The newest checkpoint that opens and verifies; false with ERR_NOT_FOUND where there is none. policy: as for
 * engine_load_checkpoint. */
bool load_newest(struct engine *engine, const char *policy, struct command_result *result,
                 struct err *err) MUST_USE;
