/* The engine: the state machine that owns the model, its optimizer state and a run, on every rank alike.
 *
 * All ranks hold the same state and take the same branches: rank 0 takes a command from the mailbox,
 * broadcasts it, every rank runs the same handler, and the handlers agree before anything changes (design law
 * 3). Between commands, while the state is running, every rank makes the next step. Owner: the thread that
 * called MPI_Init; nothing here locks. */
#pragma once

#include "device.h"
#include "feed.h"
#include "file.h"
#include "groups.h"
#include "loader.h"
#include "mailbox.h"
#include "measures.h"
#include "optimizer.h"
#include "shard.h"
#include "tape.h"

struct engine_options {
    char state_dir[LIMIT_PATH_BYTES], checkpoint_dir[LIMIT_PATH_BYTES];
    struct layout layout;
    struct policy policy; /* what a model starts with */
    uint64_t seed;
    int64_t lanes;      /* 0: the plain reduction */
    int32_t zero;       /* stage 1, 2 or 3 */
    int32_t zero_asked; /* the one that --zero named; 0: none, it follows the layout */
    bool recompute;
    int32_t threads;
    double product_flops; /* of this host, as doctor measured it; 0: not measured */
};

/* A model with its storage: made beside the old one, then swapped in. */
struct body {
    struct model model;
    struct shard shard;
    struct optimizer optimizer;
};

/* One micro-batch on its way through this rank's blocks, forward and back. */
struct flight {
    struct tape *tape;
    struct arena activations;
    struct feed feed;
    struct batch batch;
};

/* Memory for micro-batches of one bounded shape: taken when a run or an evaluation starts. */
struct workspace {
    struct device *device;
    struct batch_bounds bounds;
    bool training;
    int64_t groups;         /* leaves of one rank in a global batch */
    struct flight *flights; /* as many as a pipeline stage has in flight; one where there is one stage */
    int64_t flight_count;
    struct arena blocks, gradients;  /* shared by the flights */
    int64_t batches_sent, rows_sent; /* micro-batches so far, and their rows, padding included */
    int64_t labelled_sent;           /* of these rows */
    int64_t *live;                   /* [groups], of the step under way: the leaf groups that some rank has */
    double *device_nll;              /* [groups] */
    double *nll;                     /* host, [groups * d]: leaf g*d + r, after batch_nll */
};

/* The loader points into its neighbours, so a source stays where it was made. */
struct data_source {
    struct dataset dataset;
    struct order order;
    struct loader loader;
};

/* A run: what `train` started. Everything that decides the next step is here or in the optimizer, and in
 * checkpoints. */
struct run {
    char id[LIMIT_NAME_BYTES];
    struct recipe recipe;
    struct schedule schedule;
    struct optimizer_settings settings;
    struct data_source *source, *evaluation; /* evaluation: NULL without `evaluate:` */
    int64_t evaluated_at;                    /* k of the last evaluation */
    int64_t positions;                       /* the longest sequence of both */
    struct workspace workspace, evaluation_workspace;
    int64_t steps;      /* N */
    int64_t k, skipped; /* finished updates; skipped ones */
    int32_t skips_in_a_row;
    int32_t bad_rank, bad_tensor; /* where the gradient of the last skipped one was first not finite */
    struct data_cursor cursor;
    char data_hash[DATASET_HASH_BYTES]; /* of the dataset it was started on */
    struct alarm alarm;
    uint8_t *still;         /* [tensors]: alarm_observe_tensors */
    FILE *events, *tensors; /* rank 0: the run's JSONL */
};

/* Of the step under way, for status; and what is done between two of its micro-batches. */
struct progress {
    int64_t micro_batch, micro_batches;
    double published_s;
    char waiting[LIMIT_NAME_BYTES];
    struct command taken; /* on rank 0: out of the mailbox, for all ranks after the next micro-batch */
};

struct engine {
    struct engine_options options;
    struct comm *comm;    /* all ranks */
    struct groups groups; /* and what the layout makes of them */
    struct device *device;
    struct mailbox *mailbox; /* rank 0 only */
    enum engine_state state;
    char failure[3 * ERR_TEXT_BYTES];
    char activity[LIMIT_NAME_BYTES];
    bool starting; /* until the loop begins: what the options ask for is being done, and status says busy */
    bool has_body, has_run;
    struct body body;
    char model_source[LIMIT_PATH_BYTES]; /* the folder it came from, whose other files export carries over */
    struct optimizer_settings
        settings; /* the next run's, unless its recipe says otherwise; `set-optimizer` */
    struct run run;
    struct command later; /* set-optimizer --at-step */
    int64_t later_step;
    bool has_later;
    bool ended_short;       /* the last run ended before its target: --run exits 5 */
    bool unsaved;           /* the run is at its end, and its final checkpoint could not be saved */
    int64_t weight_version; /* grows with every change of the weights */
    struct step_event last;
    bool has_last;
    struct update_measures *measures;       /* [tensors], of the last update, merged over ranks */
    struct update_measures *measures_ranks; /* [ranks * tensors] */
    FILE *journal;                          /* rank 0 */
    struct file_lock checkpoint_lock;       /* rank 0 */
    struct progress progress;
};

/* engine.c */
bool engine_init(struct engine *engine, const struct engine_options *options, struct comm *comm,
                 struct device *device, struct mailbox *mailbox, struct err *err) MUST_USE;
/* Collective: every rank must see the checkpoint folder that rank 0 made, by a random file in it. */
bool engine_check_folder(struct engine *engine, struct err *err) MUST_USE;
void engine_done(struct engine *engine);
void engine_ready(struct engine *engine); /* the start is settled: from now on its state is shown */
/* Runs until a shutdown. Returns the exit status: 0, or 5 where a run that `--run` started ended short. */
int engine_loop(struct engine *engine, bool exit_when_idle);
/* One command as if it had come from the mailbox; on all ranks, with rank 0's command. */
bool engine_execute(struct engine *engine, struct command *command, struct command_result *result,
                    struct err *err) MUST_USE;
/* Around the micro-batch i of n of a step, on all ranks: a command that changes nothing is taken up before it
 * and done after it. */
void engine_before_micro_batch(struct engine *engine, int64_t i, int64_t n);
void engine_after_micro_batch(struct engine *engine, int64_t i, int64_t n);
/* A sentence for whoever follows: to the log and, from rank 0, as an event. engine_warn at warning level. */
void engine_warn(struct engine *engine, const char *format, ...) __attribute__((format(printf, 2, 3)));
void engine_note(struct engine *engine, const char *format, ...) __attribute__((format(printf, 2, 3)));
void engine_say_state(struct engine *engine, const char *why); /* publishes, with an event */
void engine_activity(struct engine *engine, const char *format, ...)
    __attribute__((format(printf, 2, 3))); /* "": none */

/* body.c: every function is collective; on failure nothing stays taken. */
bool body_make(struct engine *engine, struct body *body, const struct model_config *config,
               const struct policy *policy, uint64_t seed, struct err *err) MUST_USE;
void body_done(struct body *body);
/* A run needs the counter of the reproducible reduction as deep as its batches ask. */
bool body_fit_shard(struct engine *engine, struct body *body, int64_t groups, struct err *err) MUST_USE;
bool body_init_weights(struct engine *engine, struct body *body, struct err *err) MUST_USE;
void engine_take_body(struct engine *engine, struct body *body); /* frees the old one */
struct shard_options engine_shard_options(struct engine *engine, const struct stage *stage,
                                          const struct policy *policy, int64_t groups);
int64_t engine_lanes(const struct engine *engine); /* L: --lanes, or the ranks */
bool engine_lanes_fit(int64_t lanes, const struct layout *layout, struct err *err) MUST_USE; /* 0 always */

/* workspace.c */
bool workspace_make(struct engine *engine, struct workspace *workspace, const struct model *model,
                    const struct batch_bounds *bounds, bool training, struct err *err) MUST_USE;
void workspace_done(struct workspace *workspace);
struct data_source *source_open(struct engine *engine, const char *folder, const struct recipe *recipe,
                                const struct model *model, bool training,
                                struct err *err) MUST_USE; /* or NULL */
void source_free(struct data_source *source);              /* NULL: fine */

/* step.c */
bool engine_step(struct engine *engine); /* one attempt of the run; false: it skipped ten in a row */
/* The mean loss over every labelled token of a source, forward only. */
double engine_evaluate(struct engine *engine, struct data_source *source, struct workspace *workspace,
                       int64_t *labelled);

/* run.c */
bool run_start(struct engine *engine, const struct command *command, struct command_result *result,
               struct err *err) MUST_USE;
/* Saves, leaves idle or failed. False where the final checkpoint of a run that has not failed could not be
 * saved: the run is kept then, paused. */
bool run_end(struct engine *engine, const char *why, bool failed, struct err *err) MUST_USE;
void run_advance(struct engine *engine); /* one step, and what is due after it */
void run_done(struct run *run);
/* Opens data and memory of a run whose recipe, schedule, settings and counters are set. */
bool run_open(struct engine *engine, struct run *run, const struct model *model, struct err *err) MUST_USE;

/* save.c */
bool engine_save(struct engine *engine, const char *name, bool automatic, struct command_result *result,
                 struct err *err) MUST_USE; /* writes, verifies, marks */
/* policy: "" for the checkpoint's own, or what to convert to before anything is given up. */
bool engine_load_checkpoint(struct engine *engine, const char *name, const char *policy,
                            struct command_result *result, struct err *err) MUST_USE;
bool engine_verify(struct engine *engine, const char *name, struct err *err) MUST_USE;
bool engine_retain(struct engine *engine, struct err *err) MUST_USE;

/* publish.c: rank 0's view for the control thread; audit is collective. */
void engine_publish(struct engine *engine);
void engine_publish_audit(struct engine *engine);
void engine_rows(const struct engine *engine, shard_row_fn row, void *context); /* of this rank, for audit */

/* runlog.c: rank 0's files in the state folder. */
void runlog_model(struct engine *engine); /* whose body is new */
bool runlog_create(struct engine *engine, struct run *run, struct err *err) MUST_USE;
bool runlog_reopen(struct engine *engine, struct run *run, struct err *err) MUST_USE;
/* At start: a run that is still called running was cut off with its daemon; from now on it is "interrupted".
 */
void runlog_settle(const char *state_dir);
void runlog_close(struct run *run);
void runlog_describe(struct engine *engine, const struct run *run, const char *state); /* run.json */
void runlog_step(struct engine *engine, const struct step_event *event);
void runlog_evaluation(struct engine *engine, int64_t step, double loss, int64_t labelled);
/* outcome NULL: begun, so that the journal of a daemon that died says what was under way; not synced. */
bool journal_write(struct engine *engine, const struct command *command, const struct err *outcome,
                   struct err *err) MUST_USE;
