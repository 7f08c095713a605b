/* The table of commands: one row says all that is known about one. A row without a function is not built yet.
 */
#include "commands.h"

#include "call.h"

// clang-format off
#define YES       {"yes", NULL, "confirmed: what would otherwise be refused with a warning"}
#define DRY_RUN   {"dry-run", NULL, "say what would happen, change nothing"}
#define COMPUTE   {"compute", "TYPE", "bf16 or fp32: short for +compute=TYPE in the policy"}
#define POLICIES  "Policies: fp32-master, fp32-lean, fp32-q8, fp24-q8, fp32-split, bf16-kahan, bf16-sr, bf16, and any of them\n" \
                  "with +key=value: +weight= fp32|bf16|bf16s|kahan|split8, +m= and +v= fp32|bf16|bf16s|q8,\n" \
                  "+accumulate= and +reduce= fp32|bf16, +compute= bf16|fp32."

const struct command commands[] = {
    {"status", "", 0, 0, "what the daemon is doing", .run = cmd_status},
    {"top", "", 0, 0, "a live screen", .run = NULL},
    {"wait", "", 0, 0, "block until a step or a state, connecting first if need be", .run = cmd_wait,
     .more = "Without options it waits until nothing is under way: no loading, no saving, and no run but a paused one.\n"
             "Exit 5 when the run ends before the step or short of its end, or fails; 130 after Ctrl-C.",
     .options = {{"step", "N", "until the run has finished N updates"},
                 {"state", "S", "until the state is S: empty, idle, running, paused, busy, failed or stopping"}}},

    {"init", "CONFIG", 1, 1, "a model with random weights, from a config.json or its folder", .run = cmd_init,
     .options = {{"seed", "N", "of the weights (the daemon's --seed)"}}},
    {"load", "DIR", 1, 1, "a hub-shaped model folder (config.json, safetensors)", .run = cmd_load},
    {"export", "DIR", 1, 1, "write the model as a hub-shaped folder", .run = cmd_export,
     .options = {{"dtype", "TYPE", "bf16 (default) or fp32"}}},

    {"data prepare", "FILES… -o DIR", 1, CALL_ARGUMENTS, "chat JSONL or text files to a dataset", .run = cmd_data_prepare,
     .more = "*.jsonl, *.ndjson, *.json: a JSON object a line, {\"messages\": [{\"role\": …, \"content\": …}, …]} or\n"
             "{\"text\": …}; anything else is a text. Of a chat, what the assistant says is trained on.",
     .options = {{"o", "DIR", "the dataset's folder; it appears whole or not at all"},
                 {"sort-by", "FIELD", "a field of every line; its order is what `order: sorted` means"},
                 {"cutoff", "N", "tokens a row (32768 for chats, 1024 for texts)"},
                 {"overwrite", NULL, "replace a dataset that is there"}}},
    {"data show", "DIR", 1, 1, "statistics of a dataset, and samples with what is trained on marked",
     .run = cmd_data_show,
     .options = {{"first", "ROW", "the first row shown (0)"},
                 {"count", "N", "how many rows (3)"},
                 {"all-tokens", NULL, "whole rows; without it 512 tokens of each"}}},

    {"train", "[RECIPE.yaml]", 0, 1, "start a run from a recipe, flags, or both", .run = cmd_train, .keys = KEYS_RECIPE,
     .more = "Flags are the recipe's keys and win over the file; --lr is optimizer.lr, --lr=1e-4 is the same.\n"
             "Paths are taken from the present folder.\n" POLICIES,
     .options = {{"follow", NULL, "show a bar until the run ends; exit 0 or 5; Ctrl-C leaves it going"},
                 {"keep-moments", NULL, "go on with the optimizer's moments; without it they start at zero"},
                 COMPUTE, YES}},
    {"evaluate", "DATA", 1, 1, "the mean loss on other data, without touching the run", .run = cmd_evaluate},
    {"pause", "", 0, 0, "pause the run after its present step", .run = cmd_pause},
    {"resume", "", 0, 0, "go on with a paused run", .run = cmd_resume},
    {"stop", "", 0, 0, "end the run; a final checkpoint is saved", .run = cmd_stop},

    {"forward-backward", "FILE", 1, 1, "gradients of a batch, without an update", .run = NULL},
    {"optim-step", "", 0, 0, "an update from the gradients there are", .run = NULL},
    {"zero-grad", "", 0, 0, "forget the gradients there are", .run = NULL},

    {"set-optimizer", "[POLICY]", 0, 1, "swap the precision policy, or change the optimizer's settings, live",
     .run = cmd_set_optimizer, .keys = KEYS_OPTIMIZER, .more = POLICIES,
     .options = {{"at-step", "N", "when the run has finished N updates (now)"}, DRY_RUN, COMPUTE, YES}},
    {"set-schedule", "", 0, 0, "change the run's schedule; what is not named stays", .run = cmd_set_schedule,
     .keys = KEYS_SCHEDULE,
     .more = "All in absolute steps, counted from the run's start. A decay that ends with the run goes on to end with it.",
     .options = {{"steps", "N", "the run's length: beyond what it has finished"}, DRY_RUN}},
    {"schedule", "[RECIPE.yaml]", 0, 1, "print f(k) and the learning rate: of a recipe or flags, else of the run",
     .run = cmd_schedule, .keys = KEYS_RECIPE,
     .options = {{"plot", NULL, "draw it in the terminal instead of printing it"}}},

    {"set-layout", "LAYOUT", 1, 1, "reshard live: parameters, optimizer state and data order move between two steps",
     .run = cmd_set_layout,
     .more = "LAYOUT is written like d2t2: data, tensor, pipeline, context; missing letters are 1, the product is the number of\n"
             "ranks. Every stored bit stays as it is; the next step is that of a run saved and restarted under the layout.",
     .options = {{"zero", "N", "the ZeRO stage, 1 to 3 (the one asked for before, else 3; with p > 1: 1)"}, DRY_RUN}},
    {"plan", "[CONFIG]", 0, 1, "the layouts that fit and what they cost: memory, bytes sent, time", .run = cmd_plan,
     .more = "Of the daemon's model and run, or of a config.json without a daemon. Planned by trainerd --dry-run, without the\n"
             "hardware it is about. Time is from a roofline of the machine; its assumptions come with --layout.",
     .options = {{"ranks", "N", "compare all layouts of N ranks (the daemon's)"},
                 {"layout", "LAYOUT", "one layout, in full: memory by kind, bytes by collective, parts of a step's time"},
                 {"machine", "NAME", "cpu (this host, where it is planned for the daemon's ranks), h100, h200 or b200"},
                 {"policy", "POLICY", "(the daemon's)"},
                 {"zero", "N", "ZeRO stage (3; 1 with p)"},
                 {"recompute", "WHAT", "none or block (the daemon's)"},
                 {"run", "RECIPE.yaml", "data and batches of this recipe (the daemon's run)"},
                 {"sequence", "N", "without a recipe: micro-batches of one sequence of N tokens"},
                 {"global-batch", "N", "without a recipe: sequences a step (64)"}}},
    {"audit", "", 0, 0, "every persistent tensor, its dtype and its bytes", .run = cmd_audit},

    {"runs", "", 0, 0, "past and present runs", .run = cmd_runs},
    {"metrics", "", 0, 0, "a run's numbers, step by step", .run = cmd_metrics,
     .more = "Without a daemon they are read from the state folder.",
     .options = {{"run", "ID", "which run (the present or latest)"},
                 {"follow", NULL, "go on as steps end; Ctrl-C leaves the run going"},
                 {"since", "N", "from step N on"},
                 {"tensor", "GLOB", "the precision measures of each tensor whose name matches"}}},
    {"plot", "", 0, 0, "a picture of runs: loss, quality of the updates, learning rate", .run = cmd_plot,
     .more = "Drawn by gnuplot from what runs left in the state folder; needs no daemon.",
     .options = {{"run", "ID,…", "which runs, all in one picture (the latest)"},
                 {"out", "FILE", "FILE.png or FILE.svg (ID.png in the present folder)"},
                 {"title", "TEXT", "above the picture (the run's name)"},
                 {"open", NULL, "show it in the system's viewer"}}},
    {"compare", "--policies A,B,… RECIPE.yaml", 1, 1, "the same recipe from the same checkpoint under several policies", .run = cmd_compare,
     .keys = KEYS_RECIPE,
     .more = "Saves a checkpoint, runs the recipe from it under each policy with fresh moments, and loads it again at the end,\n"
             "also after Ctrl-C or a failure; the runs' own checkpoints are deleted. Exit 5 when a run ended short.\n" POLICIES,
     .options = {{"policies", "A,B,…", "the policies to compare"},
                 {"out", "DIR", "for table.json, table.csv, table.png, table.svg (a folder beside the daemon's runs)"}}},

    {"checkpoint save", "[NAME]", 0, 1, "save everything that decides the next step", .run = cmd_checkpoint_save},
    {"checkpoint load", "[NAME]", 0, 1, "go on from one; without a name the newest that verifies",
     .run = cmd_checkpoint_load,
     .options = {{"policy", "POLICY", "convert to it; what is lost is printed"}, COMPUTE, YES}},
    {"checkpoint list", "", 0, 0, "the checkpoints there are, newest first", .run = cmd_checkpoint_list},
    {"checkpoint verify", "NAME", 1, 1, "read one through and compare its checksums", .run = cmd_checkpoint_verify},
    {"checkpoint delete", "NAME", 1, 1, "remove one", .run = cmd_checkpoint_delete},

    {"generate", "PROMPT", 1, 1, "sample from the model being trained", .run = NULL},
    {"doctor", "", 0, 0, "what this machine has, what is missing, how fast it is", .run = cmd_doctor,
     .options = {{"quick", NULL, "without the measurements"},
                 {"state-dir", "DIR", "where the measured rates are kept for the daemon (its state folder)"}}},
    {"completion", "", 0, 0, "completion for bash: source <(trainctl completion)", .run = cmd_completion},
    {"shutdown", "", 0, 0, "finish the step, save if there is a run, end the daemon", .run = cmd_shutdown},
};
// clang-format on

const int command_count = sizeof commands / sizeof commands[0];
