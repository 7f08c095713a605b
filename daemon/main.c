/* trainerd: starts the modules in order and stops them in mirror order. The architecture on one screen. */
#include "control.h"
#include "dry_run.h"
#include "engine.h"
#include "file.h"
#include "fit.h"
#include "handlers.h"
#include "host.h"
#include "kin.h"
#include "last_words.h"
#include "log.h"
#include "options.h"
#include "roll.h"
#include "statedir.h"
#include "watch.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXIT_REFUSED 1
#define EXIT_USAGE   2

struct daemon {
    struct options options;
    int cores; /* this rank may use */
    struct comm comm;
    struct statedir statedir;
    struct device device;
    struct control *control; /* rank 0 */
    struct control_host *hosts;
    int32_t host_count;
    struct engine engine;
    struct engine_options engine_options;
};

static void report(const struct err *err)
{
    char line[3 * ERR_TEXT_BYTES + 8];
    fprintf(stderr, "trainerd: %s\n", err_line(err, line, sizeof line));
}

/* mpirun exits as the first rank to end did, so all ranks must say the same. */
static int exit_status(const struct err *err)
{
    return err->code == ERR_INVALID || err->code == ERR_UNSUPPORTED || err->code == ERR_CONFIRM
               ? EXIT_USAGE
               : EXIT_REFUSED;
}

/* Rank 0 locks the state folder; the others hear its path. */
static bool open_state(struct daemon *d, struct err *err)
{
    struct engine_options *o = &d->engine_options;
    if (d->comm.rank == 0 && statedir_open(&d->statedir, d->options.state_dir, err))
        snprintf(o->state_dir, sizeof o->state_dir, "%s", d->statedir.path);
    if (!comm_agree(&d->comm, err))
        return false;
    comm_broadcast(&d->comm, o->state_dir, sizeof o->state_dir);
    char path[LIMIT_PATH_BYTES];
    if (file_join(path, sizeof path, o->state_dir, "log", err))
        err_keeps(log_open(path, d->comm.rank == 0, err));
    if (d->options.checkpoint_dir[0])
        snprintf(o->checkpoint_dir, sizeof o->checkpoint_dir, "%s", d->options.checkpoint_dir);
    else
        err_keeps(file_join(o->checkpoint_dir, sizeof o->checkpoint_dir, o->state_dir, "checkpoints", err));
    return comm_agree(&d->comm, err);
}

/* For status, in the order of their lowest ranks. */
static void list_hosts(struct daemon *d, const struct roll_card *cards)
{
    int32_t *place = calloc((size_t)d->comm.ranks, sizeof *place); /* [rank], of home ranks */
    d->hosts = calloc((size_t)d->comm.ranks, sizeof *d->hosts);
    INVARIANT(d->hosts && place);
    for (int32_t r = 0; r < d->comm.ranks; r++) { /* a host's lowest rank comes first */
        if (cards[r].rank == cards[r].home) {
            place[r] = d->host_count++;
            snprintf(d->hosts[place[r]].name, sizeof d->hosts->name, "%s", cards[r].host);
        }
        d->hosts[place[cards[r].home]].ranks++;
    }
    free(place);
}

/* One rank of each host gets to know those of the others, so that a host that is lost can be named. */
static void meet_hosts(struct daemon *d)
{
    struct roll_card mine = roll_card_make(d->comm.rank, d->comm.home, d->comm.host);
    struct roll_card *cards = malloc(sizeof mine * (size_t)d->comm.ranks);
    INVARIANT(cards != NULL);
    comm_all_gather_host(&d->comm, cards, &mine, sizeof mine);
    roll_meet(cards, d->comm.ranks, d->comm.rank);
    list_hosts(d, cards);
    free(cards);
}

/* The ranks of a host get to know each other, so that the death of one is said by the others. Where they
 * cannot see each other the launcher's word has to do, so it is no reason to end. */
static void meet_kin(struct daemon *d)
{
    struct kin_card mine = kin_card_make(d->comm.rank, d->comm.home);
    struct kin_card *cards = malloc(sizeof mine * (size_t)d->comm.ranks);
    struct err why = ERR_INIT;
    char line[3 * ERR_TEXT_BYTES + 8];
    INVARIANT(cards != NULL);
    meet_hosts(d);
    last_words_set_rank(d->comm.rank, d->comm.host);
    comm_all_gather_host(&d->comm, cards, &mine, sizeof mine);
    err_keeps(kin_meet(cards, d->comm.ranks, d->comm.rank, &why));
    free(cards);
    if (!comm_agree(&d->comm, &why)) { /* all see each other, or none looks */
        kin_part();
        log_info("main", "the launcher alone will name a rank that dies: %s",
                 err_line(&why, line, sizeof line));
    }
}

/* The rate of this host's own large product, measured by `trainctl doctor`; 0 where it never was. */
static double measured_product(const char *state_dir)
{
    char path[LIMIT_PATH_BYTES];
    struct err err = ERR_INIT;
    if (!file_join(path, sizeof path, state_dir, "doctor.json", &err))
        return 0;
    json_t *json = json_load_file(path, 0, NULL);
    double flops = json_number_value(json_object_get(json, "product_flops"));
    json_decref(json);
    return flops > 0 ? flops : 0;
}

/* --ranks beside --layout: that layout alone is meant, and has to be of as many. */
static bool ranks_of_layout(struct daemon *d, struct err *err)
{
    int32_t product = layout_product(d->options.layout);
    if (product != 0 && product != d->options.ranks) {
        err_set(err, ERR_INVALID, "the layout %s is one of %d ranks, not of %lld", d->options.layout, product,
                (long long)d->options.ranks);
        return err_hint(err, "leave out --layout to compare all layouts of %lld",
                        (long long)d->options.ranks);
    }
    d->options.ranks = 0;
    return true;
}

/* Which layouts would do, where it is known for which model and ranks. False. */
static bool advise_layout(const struct daemon *d, struct err *err)
{
    struct model_config config;
    struct err unknown = ERR_INIT;
    const char *model = d->options.model[0] ? d->options.model : d->options.init;
    return d->comm.ranks > 1 && model[0] && model_config_load(&config, model, &unknown) &&
           fit_advise(&config, d->comm.ranks, err);
}

static bool settle_options(struct daemon *d, struct err *err)
{
    struct engine_options *o = &d->engine_options;
    static const char *const computes[] = {NULL, "bf16", "fp32"};
    int32_t elsewhere = d->options.dry_run && d->comm.ranks == 1 ? layout_product(d->options.layout) : 0;
    if (d->options.dry_run && d->options.ranks && d->options.layout[0] && !ranks_of_layout(d, err))
        return false;
    if (d->options.dry_run && d->options.ranks)
        o->layout = (struct layout){1, 1, 1, 1}; /* all there are will be compared */
    else if (!layout_parse(&o->layout, d->options.layout, elsewhere ? elsewhere : d->comm.ranks, err))
        return advise_layout(d, err);
    if (!engine_lanes_fit(d->options.lanes, &o->layout, err))
        return false;
    const char *policy = d->options.policy[0] ? d->options.policy : policy_default().name;
    if (!policy_parse(&o->policy, policy, computes[d->options.compute], err) ||
        !policy_confirm(&o->policy, d->options.yes, err))
        return false;
    if (d->options.lanes && o->policy.accumulate != DTYPE_F32)
        return err_set(err, ERR_INVALID, "accumulate=bf16 and --lanes exclude each other");
    o->seed = (uint64_t)d->options.seed;
    o->lanes = d->options.lanes;
    o->zero_asked = (int32_t)d->options.zero;
    o->zero = d->options.zero ? (int32_t)d->options.zero : layout_zero(&o->layout);
    o->recompute = d->options.recompute == 1;
    o->product_flops = measured_product(o->state_dir);
    return true;
}

static bool open_device(struct daemon *d, struct err *err)
{
    char why[256];
    const char *fixed = getenv("OMP_NUM_THREADS");
    int threads = d->options.threads         ? (int)d->options.threads
                  : fixed && atoi(fixed) > 0 ? atoi(fixed)
                                             : d->cores;
    if (device_open(&d->device, d->options.device, threads, why, sizeof why) != 0) {
        err_set(err, ERR_UNSUPPORTED, "the device '%s' cannot be used", d->options.device);
        err_why(err, "%s", why);
        return err_hint(err, "use --device cpu");
    }
    d->engine_options.threads = d->device.threads;
    comm_set_device(&d->comm, &d->device);
    return true;
}

static bool start_control(struct daemon *d, struct err *err)
{
    const char *listen[OPTIONS_LISTEN_MAX];
    for (int i = 0; i < d->options.listen_count; i++)
        listen[i] = d->options.listen[i];
    struct control_options options = {.listen = listen,
                                      .listen_count = d->options.listen_count,
                                      .state_dir = d->engine_options.state_dir,
                                      .checkpoint_dir = d->engine_options.checkpoint_dir,
                                      .version = TRAINERD_VERSION,
                                      .hosts = d->hosts,
                                      .host_count = d->host_count};
    return d->comm.rank != 0 || control_start(&d->control, &options, err);
}

/* --run's file, from rank 0: hosts may hold different files of that name. Collective. */
static bool read_recipe(struct daemon *d, struct recipe *recipe, struct err *err)
{
    char *text = NULL;
    size_t bytes;
    if (file_slurp(d->options.run, RECIPE_TEXT_BYTES, &text, &bytes, err))
        err_keeps(recipe_parse(recipe, d->options.run, text, bytes, NULL, 0, err));
    free(text);
    if (!comm_agree(&d->comm, err))
        return false;
    comm_broadcast(&d->comm, recipe, sizeof *recipe);
    return true;
}

/* Takes no state folder and no socket: a daemon may be running there. */
static int plan_only(struct daemon *d)
{
    struct err err = ERR_INIT;
    static struct recipe recipe;
    struct policy *policy = &d->engine_options.policy;
    if (settle_options(d, &err))
        err_keeps(open_device(d, &err));
    bool good = comm_agree(&d->comm, &err) && (!d->options.run[0] || read_recipe(d, &recipe, &err));
    if (good && recipe.optimizer.policy[0] && !d->options.policy[0])
        good = policy_parse(policy, recipe.optimizer.policy, NULL, &err);
    struct dry_run what = {.model = d->options.model[0] ? d->options.model : d->options.init,
                           .recipe = d->options.run[0] ? &recipe : NULL,
                           .sequence = d->options.sequence,
                           .global_batch = d->options.global_batch,
                           .machine = d->options.machine,
                           .ranks = (int32_t)d->options.ranks,
                           .zero = (int32_t)d->options.zero,
                           .json = d->options.json};
    good = good && dry_run(&what, &d->engine_options, &d->comm, &d->device, &err);
    if (!good && d->comm.rank == 0)
        report(&err);
    kin_part();
    device_close(&d->device);
    return good ? 0 : exit_status(&err);
}

/* What the options ask for first, as the commands they stand for. Without any: the newest checkpoint, paused.
 */
static bool first_commands(struct daemon *d, struct err *err)
{
    struct command_result result = {0};
    struct command command = {.kind = d->options.model[0] ? COMMAND_LOAD : COMMAND_INIT,
                              .yes = d->options.yes};
    const char *path = d->options.model[0] ? d->options.model : d->options.init;
    snprintf(command.u.model.path, sizeof command.u.model.path, "%s", path);
    if (path[0] && !engine_execute(&d->engine, &command, &result, err))
        return false;
    if (!path[0]) {
        struct err none = ERR_INIT;
        if (!load_newest(&d->engine, "", &result, &none) && none.code != ERR_NOT_FOUND) {
            *err = none;
            return false;
        }
    }
    if (!d->options.run[0])
        return true;
    if (d->engine.state == STATE_PAUSED)
        command = (struct command){.kind = COMMAND_RESUME};
    else {
        command = (struct command){.kind = COMMAND_TRAIN, .yes = d->options.yes};
        if (!read_recipe(d, &command.u.train.recipe, err))
            return false;
    }
    return engine_execute(&d->engine, &command, &result, err);
}

static int serve(struct daemon *d, struct err *err)
{
    if (!first_commands(d, err)) {
        if (d->comm.rank == 0)
            report(err);
        return exit_status(err);
    }
    engine_ready(&d->engine); /* before it is said: who reads it and asks finds it so */
    if (d->comm.rank == 0) {
        char layout[64];
        layout_print(&d->engine_options.layout, layout, sizeof layout);
        fprintf(stderr, "trainerd %s ready: state %s, %d ranks, layout %s, policy %s, %s; %s\n",
                TRAINERD_VERSION, engine_state_name(d->engine.state), d->comm.ranks, layout,
                d->engine.has_body ? d->engine.body.optimizer.policy.name : d->engine_options.policy.name,
                d->device.products, d->engine_options.state_dir);
    }
    return engine_loop(&d->engine, d->options.run[0] != '\0');
}

/* err: what reading the options said on this rank. */
static int run_daemon(struct daemon *d, struct err err)
{
    int status = EXIT_REFUSED;
    meet_kin(d);
    if (!comm_agree(&d->comm, &err))
        goto refused;
    comm_broadcast(&d->comm, &d->options,
                   sizeof d->options); /* environments and --config may differ by host */
    if (d->options.dry_run)
        return plan_only(d);
    if (!open_state(d, &err))
        goto refused;
    if (settle_options(d, &err) && open_device(d, &err))
        err_keeps(watch_start(d->comm.rank, d->options.stuck_after, &err));
    if (!comm_agree(&d->comm, &err))
        goto refused;
    err_keeps(start_control(d, &err));
    struct mailbox *mailbox = d->control ? control_mailbox(d->control) : NULL;
    if (comm_agree(&d->comm, &err))
        err_keeps(engine_init(&d->engine, &d->engine_options, &d->comm, &d->device, mailbox, &err));
    if (!comm_agree(&d->comm, &err) || !engine_check_folder(&d->engine, &err))
        goto refused;
    status = serve(d, &err);
    engine_done(&d->engine);
    control_stop(d->control);
    watch_stop();
    kin_part(); /* nobody's process ends before MPI_Finalize, in which all ranks meet */
    device_close(&d->device);
    statedir_close(&d->statedir);
    log_close();
    return status;

refused:
    if (d->comm.rank == 0)
        report(&err);
    status = exit_status(&err);
    control_stop(d->control);
    watch_stop();
    kin_part(); /* nobody's process ends before MPI_Finalize, in which all ranks meet */
    statedir_close(&d->statedir);
    return status;
}

/* --help and --version need no ranks. */
static bool answer_at_once(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--version") == 0)
            return printf("trainerd %s\n", TRAINERD_VERSION) > 0;
        if (strcmp(argv[i], "--help") == 0) {
            options_help();
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    static struct daemon daemon;
    struct err err = ERR_INIT;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is an error of write(), as a full disk is */
    signal(SIGUSR1,
           SIG_IGN); /* mpirun passes it to every rank; rank 0's control thread takes it as a shutdown */
    if (answer_at_once(argc, argv))
        return 0;
    err_keeps(options_read(&daemon.options, argc, argv, &err));
    daemon.cores = host_take_cores(daemon.options.bind == 1, argv);
    last_words_install();
    struct err mpi = ERR_INIT;
    if (!comm_init(&daemon.comm, &argc, &argv, &mpi)) {
        report(&mpi);
        return exit_status(&mpi);
    }
    log_set_rank(daemon.comm.rank);
    if (daemon.comm.rank == 0)
        options_warn();
    int status = run_daemon(&daemon, err);
    comm_done(&daemon.comm);
    return status;
}
