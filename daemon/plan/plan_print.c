#include "plan_print.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static void scaled(char text[16], double value)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    int unit = 0;
    for (; value >= 999.5 && unit < 5; unit++)
        value /= 1000;
    snprintf(text, 16, "%.3g %s", value, units[unit]);
}

static void print_bytes(const char *before, int64_t bytes, const char *after)
{
    char text[16];
    scaled(text, (double)bytes);
    printf("%-22s%18lld  %s%s\n", before, (long long)bytes, text, after);
}

/* Stages hold different things. */
static void print_stages(const struct plan *plan)
{
    int32_t stages = plan->layout.p < PLAN_STAGES ? plan->layout.p : PLAN_STAGES;
    char text[16];
    if (stages == 1)
        return;
    printf("%-22s", "total, by stage");
    for (int32_t s = 0; s < stages; s++) {
        scaled(text, (double)plan->stage_bytes[s]);
        printf("%s%s", s > 0 ? ", " : "", text);
    }
    printf("\n");
}

/* The parts of a step's time, by name. */
static const struct {
    const char *key, *label;
    size_t offset;
} parts[] = {
    {"products", "products", offsetof(struct estimate, products)},
    {"attention", "attention", offsetof(struct estimate, attention)},
    {"streaming", "bound by memory", offsetof(struct estimate, streaming)},
    {"update", "update", offsetof(struct estimate, update)},
    {"exchange", "t, c, p messages", offsetof(struct estimate, exchange)},
    {"exposed", "weights, gradients", offsetof(struct estimate, exposed)},
    {"bubble", "other stages", offsetof(struct estimate, bubble)},
    {"step", "a step", offsetof(struct estimate, step)},
};
enum { PARTS = sizeof parts / sizeof parts[0] };

static double part_of(const struct estimate *time, int i)
{
    return *(const double *)(const void *)((const char *)time + parts[i].offset);
}

static void print_time(const struct plan *plan, const struct machine *machine)
{
    if (plan->time.step == 0) {
        printf("\nhow long a step takes is not known%s\n",
               machine ? ": rates are those of bf16 products"
                       : ": name a --machine (cpu: this host, once trainctl doctor has measured it)");
        return;
    }
    printf("\nseconds of a step, of the slowest rank: %s\n", machine->title);
    for (int i = 0; i < PARTS; i++)
        if (part_of(&plan->time, i) > 0)
            printf("%-22s%18.3g\n", parts[i].label, part_of(&plan->time, i));
    printf("%-22s%18.3g\n%-22s%18.3f\n", "tokens a second", plan->time.tokens_per_second, "utilization",
           plan->time.utilization);
    printf(
        "(taken: %.0f %% of the products' peak, %.0f and %.0f %% in attention forward and back, %.0f %% of "
        "memory's rate, %.0f %% of wires'; weights and gradients %s)\n",
        100 * machine->products, 100 * machine->attention_forward, 100 * machine->attention_backward,
        100 * machine->streaming, 100 * machine->links,
        machine->overlaps ? "travel beside computing" : "are waited for");
}

void plan_print(const struct plan *plan, const struct engine_options *options, const struct machine *machine)
{
    char layout[64];
    layout_print(&plan->layout, layout, sizeof layout);
    printf("%s, %lld parameters\nlayout %s, ZeRO %d, policy %s, %g bytes a parameter%s\n\n", plan->model,
           (long long)plan->parameters, layout, plan->zero, options->policy.name,
           policy_bytes_per_parameter(&options->policy), options->recompute ? ", blocks recomputed" : "");
    printf("memory of a rank (the fullest; the rows are audit's kinds)\n");
    for (int32_t i = 0; i < plan->count; i++)
        print_bytes(plan->rows[i].kind, plan->rows[i].bytes, "");
    print_bytes("total", plan->bytes, "");
    print_stages(plan);
    if (plan->there >= 0)
        print_bytes("there", plan->there, plan_fits(plan) ? ": it fits" : ": it does not fit");
    if (plan->micro_batches == 0) {
        printf("\nwithout --run RECIPE or --sequence N there are no micro-batches: activations and traffic "
               "come on top\n");
        return;
    }
    printf("\n");
    if (plan->steps > 0)
        printf("%lld steps of ", (long long)plan->steps);
    printf("%lld micro-batches a rank, of up to %lld tokens; a rank sends in a step\n",
           (long long)plan->micro_batches, (long long)plan->micro_batch_tokens);
    for (int w = 0; w < WIRES; w++)
        if (plan->traffic.bytes[w] > 0 || w <= WIRE_REDUCE)
            print_bytes(plan_wires[w].label, plan->traffic.bytes[w], "");
    print_time(plan, machine);
}

void plan_print_table(const struct plan *plans, int32_t count, const struct engine_options *options,
                      const struct machine *machine)
{
    printf("%s, %lld parameters, policy %s%s%s%s\n\n", plans->model, (long long)plans->parameters,
           options->policy.name, options->recompute ? ", blocks recomputed" : "", machine ? "; " : "",
           machine ? machine->title : "");
    printf("%-14s%5s%14s%8s%12s%12s%14s%13s\n", "layout", "zero", "memory", "fits", "sends", "step s",
           "tokens/s", "utilization");
    for (int32_t i = 0; i < count; i++) {
        const struct plan *p = &plans[i];
        char layout[64], memory[16], wire[16];
        double sent = 0;
        for (int w = 0; w < WIRES; w++)
            sent += (double)p->traffic.bytes[w];
        layout_print(&p->layout, layout, sizeof layout);
        scaled(memory, (double)p->bytes);
        if (p->micro_batches > 0)
            scaled(wire, sent);
        else
            snprintf(wire, sizeof wire, "-");
        printf("%-14s%5d%14s%8s%12s", layout, p->zero, memory,
               p->there < 0   ? "-"
               : plan_fits(p) ? "yes"
                              : "no",
               wire);
        if (p->time.step > 0)
            printf("%12.3g%14.4g%13.3f\n", p->time.step, p->time.tokens_per_second, p->time.utilization);
        else
            printf("%12s%14s%13s\n", "-", "-", "-");
    }
}

static json_t *to_json(const struct plan *plan)
{
    char layout[64];
    layout_print(&plan->layout, layout, sizeof layout);
    json_t *stages = json_array();
    for (int32_t s = 0; s < plan->layout.p && s < PLAN_STAGES; s++)
        json_array_append_new(stages, json_integer(plan->stage_bytes[s]));
    json_t *memory = json_object(), *wire = json_object(), *seconds = json_object();
    for (int32_t i = 0; i < plan->count; i++)
        json_object_set_new(memory, plan->rows[i].kind, json_integer(plan->rows[i].bytes));
    int64_t sent = 0;
    for (int w = 0; w < WIRES; w++) {
        json_object_set_new(wire, plan_wires[w].key, json_integer(plan->traffic.bytes[w]));
        sent += plan->traffic.bytes[w];
    }
    for (int i = 0; i < PARTS; i++)
        json_object_set_new(seconds, parts[i].key, json_real(part_of(&plan->time, i)));
    bool known = plan->time.step > 0, there = plan->there >= 0;
    return json_pack("{ss, si, so, sI, so, so, so, sI, sI, sI, so, so, so, so, so}", "layout", layout, "zero",
                     plan->zero, "memory", memory, "memory_bytes", (json_int_t)plan->bytes,
                     "memory_bytes_by_stage", stages, "memory_there",
                     there ? json_integer(plan->there) : json_null(), "fits",
                     there ? json_boolean(plan_fits(plan)) : json_null(), "steps", (json_int_t)plan->steps,
                     "micro_batches", (json_int_t)plan->micro_batches, "micro_batch_tokens",
                     (json_int_t)plan->micro_batch_tokens, "wire_bytes",
                     plan->micro_batches > 0 ? json_integer(sent) : json_null(), "wire", wire, "seconds",
                     known ? seconds : (json_decref(seconds), json_null()), "tokens_per_second",
                     known ? json_real(plan->time.tokens_per_second) : json_null(), "model_flops_utilization",
                     known ? json_real(plan->time.utilization) : json_null());
}

bool plan_print_json(const struct plan *plans, int32_t count, bool comparison,
                     const struct engine_options *options, const struct machine *machine, struct err *err)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < count; i++)
        json_array_append_new(list, to_json(&plans[i]));
    json_t *whole = comparison ? json_object() : json_incref(json_array_get(list, 0));
    json_object_set_new(whole, "machine", machine ? json_string(machine->title) : json_null());
    json_object_set_new(whole, "architecture", json_string(plans->model));
    json_object_set_new(whole, "parameters", json_integer(plans->parameters));
    json_object_set_new(whole, "policy", json_string(options->policy.name));
    json_object_set_new(whole, "recompute", json_string(options->recompute ? "block" : "none"));
    if (comparison)
        json_object_set(whole, "plans", list);
    char *text = json_dumps(whole, JSON_COMPACT);
    if (text)
        puts(text);
    else
        err_set(err, ERR_MEMORY, "no memory for the plan as JSON");
    free(text);
    json_decref(whole);
    json_decref(list);
    return err->code == ERR_OK;
}
