#include "dry_run.h"

#include "host.h"
#include "plan_print.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYOUTS_MAX = 4096 };

/* Whose rates and memory, for so many ranks. elsewhere: they are not the ranks that run. */
static bool choose_machine(struct machine *machine, const char *name, int32_t ranks, bool elsewhere,
                           struct comm *comm, const struct machine **chosen, int64_t *there, struct err *err)
{
    struct err unmeasured = ERR_INIT;
    *chosen = NULL;
    *there = -1;
    if (!name[0] && elsewhere)
        return true;
    if (name[0] && strcmp(name, "cpu") != 0) {
        if (!machine_find(machine, name, err))
            return false;
        *chosen = machine;
        *there = machine->memory_bytes / 100 * 95;
        return true;
    }
    int32_t here = elsewhere ? ranks : comm->local_ranks;
    *there = host_memory_available(here);
    if (machine_here(machine, here, &unmeasured)) /* else memory is planned, and no time */
        *chosen = machine;
    return true;
}

/* Those that fit come first, quick before slow, small before large. */
static int better(const void *left, const void *right)
{
    const struct plan *a = left, *b = right;
    if (plan_fits(a) != plan_fits(b))
        return plan_fits(a) ? -1 : 1;
    if (plan_fits(a) && a->time.step != b->time.step)
        return a->time.step < b->time.step ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

struct comparison {
    struct plan *plans;
    int32_t count, refused;
    struct err last_refusal;
};

/* One layout of a comparison; what does not suit the model or the batch is left out. */
static bool try_layout(struct comparison *all, const struct layout *layout, const struct dry_run *what,
                       struct engine_options *options, struct comm *comm, struct device *device,
                       const struct plan_request *request, struct err *err)
{
    static struct engine engine;
    struct err refusal = ERR_INIT;
    options->zero = what->zero ? what->zero : layout_zero(layout);
    char text[64];
    layout_print(layout, text, sizeof text);
    bool idle = request->sequence > 0 && layout->d > request->global_batch;
    if (!idle && layout_parse(&options->layout, text, what->ranks, &refusal) &&
        engine_lanes_fit(options->lanes, layout, &refusal) &&
        plan_make(&all->plans[all->count], &engine, options, comm, device, request, &refusal)) {
        all->count++;
        return true;
    }
    all->refused++;
    if (!idle)
        all->last_refusal = refusal;
    if (refusal.code == ERR_OK || refusal.code == ERR_INVALID || refusal.code == ERR_UNSUPPORTED)
        return true;
    *err = refusal;
    return false;
}

static bool compare(const struct dry_run *what, const struct engine_options *engine_options,
                    struct comm *comm, struct device *device, const struct plan_request *request,
                    struct err *err)
{
    struct engine_options options = *engine_options;
    struct comparison all = {.plans = calloc(LAYOUTS_MAX, sizeof *all.plans)};
    INVARIANT(all.plans != NULL);
    bool going = true;
    int32_t n = what->ranks;
    for (int32_t t = 1; t <= n && going; t++)
        for (int32_t p = 1; n % t == 0 && p <= n / t && going; p++)
            for (int32_t c = 1; n / t % p == 0 && c <= n / t / p && going && all.count < LAYOUTS_MAX; c++)
                if (n / t / p % c == 0)
                    going = try_layout(&all, &(struct layout){n / t / p / c, t, p, c}, what, &options, comm,
                                       device, request, err);
    qsort(all.plans, (size_t)all.count, sizeof *all.plans, better);
    if (going && all.count == 0)
        *err = all.last_refusal;
    else if (going && what->json)
        going = plan_print_json(all.plans, all.count, true, &options, request->machine, err);
    else if (going)
        plan_print_table(all.plans, all.count, &options, request->machine);
    if (going && all.count > 0 && all.refused > 0 && !what->json)
        printf("\nleft out: %d that do not suit the model or the batch\n", all.refused);
    if (going && all.count > 0 && !plan_fits(all.plans)) {
        err_set(err, ERR_MEMORY, "no layout of %d ranks fits", n);
        err_hint(err, "use more ranks, a policy with fewer bytes, or --recompute block");
    }
    free(all.plans);
    return err->code == ERR_OK;
}

static bool plan_one(const struct dry_run *what, const struct engine_options *options, struct comm *comm,
                     struct device *device, const struct plan_request *request, struct err *err)
{
    static struct engine engine;
    struct plan plan;
    if (!plan_make(&plan, &engine, options, comm, device, request, err))
        return false;
    if (comm->rank == 0 && what->json)
        err_keeps(plan_print_json(&plan, 1, false, options, request->machine, err));
    else if (comm->rank == 0)
        plan_print(&plan, options, request->machine);
    if (plan_fits(&plan))
        return err->code == ERR_OK;
    err_set(err, ERR_MEMORY, "%.3g GB a rank do not fit: %.3g GB are there", (double)plan.bytes * 1e-9,
            (double)plan.there * 1e-9);
    return err_hint(
        err,
        "use more ranks or hosts, a policy with fewer bytes, a smaller micro-batch, or --recompute block");
}

bool dry_run(const struct dry_run *what, const struct engine_options *options, struct comm *comm,
             struct device *device, struct err *err)
{
    const struct layout *l = &options->layout;
    struct machine machine;
    struct plan_request request = {.model = what->model,
                                   .recipe = what->recipe,
                                   .sequence = what->sequence,
                                   .global_batch = what->global_batch};
    int32_t ranks = what->ranks ? what->ranks : l->d * l->t * l->p * l->c;
    if (what->ranks && comm->ranks > 1)
        return err_set(err, ERR_INVALID,
                       "--ranks plans for other ranks: start trainerd alone, without mpirun");
    if (!choose_machine(&machine, what->machine, ranks, ranks != comm->ranks, comm, &request.machine,
                        &request.there, err))
        return false;
    return what->ranks ? compare(what, options, comm, device, &request, err)
                       : plan_one(what, options, comm, device, &request, err);
}
