#include "dry_run.h"

#include "plan.h"

#include <stdio.h>

static void print_bytes(const char *before, int64_t bytes, const char *after)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    double shown = (double)bytes;
    int unit = 0;
    for (; shown >= 999.5 && unit < 5; unit++)
        shown /= 1000;
    printf("%-22s%18lld  %.3g %s%s\n", before, (long long)bytes, shown, units[unit], after);
}

static void print_plan(const struct plan *plan, const struct engine_options *options)
{
    char layout[64];
    layout_print(&options->layout, layout, sizeof layout);
    printf("%s, %lld parameters\nlayout %s, ZeRO %d, policy %s, %g bytes a parameter%s\n\n", plan->model,
           (long long)plan->parameters, layout, options->zero, options->policy.name,
           policy_bytes_per_parameter(&options->policy), options->recompute ? ", blocks recomputed" : "");
    printf("memory of a rank (the fullest; the rows are audit's kinds)\n");
    for (int32_t i = 0; i < plan->count; i++)
        print_bytes(plan->rows[i].kind, plan->rows[i].bytes, "");
    print_bytes("total", plan->bytes, "");
    if (plan->there >= 0)
        print_bytes("there", plan->there, plan->there >= plan->bytes ? ": it fits" : ": it does not fit");
    if (plan->micro_batches == 0) {
        printf("\nwithout --run RECIPE there are no micro-batches: activations and traffic come on top\n");
        return;
    }
    printf("\n%lld steps of %lld micro-batches a rank, of up to %lld tokens; a rank sends in a step\n",
           (long long)plan->steps, (long long)plan->micro_batches, (long long)plan->micro_batch_tokens);
    for (int w = 0; w < WIRES; w++)
        if (plan->traffic.bytes[w] > 0 || w <= WIRE_REDUCE)
            print_bytes(plan_wire_names[w], plan->traffic.bytes[w], "");
}

bool dry_run(const struct options *options, const struct engine_options *engine_options, struct comm *comm,
             struct device *device, const struct recipe *recipe, struct err *err)
{
    static struct engine engine;
    struct plan plan;
    const char *path = options->model[0] ? options->model : options->init;
    if (!plan_make(&plan, &engine, engine_options, comm, device, path, recipe, err))
        return false;
    if (comm->rank == 0)
        print_plan(&plan, engine_options);
    if (plan.there >= plan.bytes || plan.there < 0)
        return true;
    err_set(err, ERR_MEMORY, "%.3g GB a rank do not fit: %.3g GB are there", (double)plan.bytes * 1e-9,
            (double)plan.there * 1e-9);
    return err_hint(
        err,
        "use more ranks or hosts, a policy with fewer bytes, a smaller micro-batch, or --recompute block");
}
