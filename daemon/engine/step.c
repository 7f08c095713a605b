/* One step, on every rank: micro-batches forward and backward, the norm, the update, the event. Evaluation is
 * the same line without its second half. */
#include "pipeline.h"

#include "clock.h"
#include "log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The fixed binary tree over leaves first … first+count-1, count a power of two; absent leaves are skipped.
 */
static double tree_loss(const double *leaves, const bool *present, int64_t total, int64_t first,
                        int64_t count, bool *any)
{
    if (first >= total) {
        *any = false;
        return 0;
    }
    if (count == 1) {
        *any = present[first];
        return leaves[first];
    }
    bool left_any, right_any;
    double left = tree_loss(leaves, present, total, first, count / 2, &left_any);
    double right = tree_loss(leaves, present, total, first + count / 2, count / 2, &right_any);
    *any = left_any || right_any;
    return left_any && right_any ? left + right : left_any ? left : right;
}

/* Minus the summed log-probability of the global batch, the same bits on every rank and for every d
 * under lanes. */
static double batch_nll(struct engine *engine, struct workspace *w, const struct batch_plan *plan)
{
    int32_t d = engine->groups.layout.d, c = engine->groups.layout.c;
    int64_t groups = plan->rounds * plan->lanes / d, leaves = groups * d;
    double *mine = w->nll, *by_rank = malloc((size_t)(leaves * c) * sizeof *by_rank);
    bool *present = malloc((size_t)leaves * sizeof *present), any;
    INVARIANT(by_rank && present);
    device_copy_out(w->device, mine, w->device_nll, (size_t)groups * sizeof(double));
    comm_all_gather_host(&engine->groups.shard, by_rank, mine, (size_t)groups * sizeof(double));
    for (int64_t leaf = 0; leaf < leaves; leaf++) {
        w->nll[leaf] = 0;
        for (int64_t part = 0; part < c; part++)
            w->nll[leaf] += by_rank[(leaf % d * c + part) * groups + leaf / d];
        present[leaf] = batch_plan_micro(plan, leaf / plan->lanes, leaf % plan->lanes)->count > 0;
    }
    int64_t width = 1;
    while (width < leaves)
        width *= 2;
    double nll = -tree_loss(w->nll, present, leaves, 0, width, &any);
    pipeline_tell(engine, &nll, sizeof nll);
    free(by_rank);
    free(present);
    return nll;
}

static double squared_lengths(const struct data_source *source, const struct batch_plan *plan)
{
    double sum = 0;
    for (int64_t i = 0; i < plan->samples; i++) {
        int64_t length = dataset_row_length(&source->dataset, plan->dataset_rows[i]);
        length = length < source->order.cutoff ? length : source->order.cutoff;
        sum += (double)length * (double)length;
    }
    return sum;
}

/* All ranks' measures, merged in rank order for every tensor, then in table order. */
static struct update_measures merge_measures(struct engine *engine, const struct update_measures *mine)
{
    size_t tensors = (size_t)engine->body.model.params.count;
    comm_all_gather_host(engine->comm, engine->measures_ranks, mine, tensors * sizeof *mine);
    struct update_measures all = {0};
    for (size_t t = 0; t < tensors; t++) {
        engine->measures[t] = (struct update_measures){0};
        for (size_t r = 0; r < (size_t)engine->comm->ranks; r++)
            measures_merge(&engine->measures[t], &engine->measures_ranks[r * tensors + t]);
        measures_merge(&all, &engine->measures[t]);
    }
    return all;
}

static void warn_alarm(struct engine *engine)
{
    struct run *run = &engine->run;
    if (run->alarm.level == ALARM_NONE) {
        engine_warn(engine, "update_quality is %.3f again: the alarm is cleared", alarm_mean(&run->alarm));
        return;
    }
    char frozen[160] = "";
    int count = 0;
    for (int32_t t = 0; t < engine->body.model.params.count; t++)
        if (alarm_names_tensor(run->still[t]) && count++ == 0)
            snprintf(frozen, sizeof frozen, "%s", engine->body.model.params.params[t].name);
    engine_warn(engine,
                "%s: update_quality is %.3f over the last ten updates under %s: rounding throws most of each "
                "update away; "
                "tensors standing still: %d%s%s; switch with `trainctl set-optimizer fp32-master`",
                alarm_level_name((enum alarm_level)run->alarm.level), alarm_mean(&run->alarm),
                engine->body.optimizer.policy.name, count, count ? ", the first " : "", frozen);
}

/* The update proper, and what it says about itself. */
static void apply_update(struct engine *engine, double lr, double factor, struct step_event *event)
{
    struct run *run = &engine->run;
    struct update_measures *mine = malloc(sizeof *mine * (size_t)engine->body.model.params.count);
    INVARIANT(mine != NULL);
    struct shard *shard = &engine->body.shard;
    optimizer_update(&engine->body.optimizer, &run->settings, lr, factor, shard->gradients, &shard->copies,
                     mine);
    shard_weights_updated(shard);
    struct update_measures all = merge_measures(engine, mine);
    free(mine);
    engine->weight_version++;
    run->k++;
    log_set_step(run->k); /* before the warnings of this update, whose events say the same step */
    run->skips_in_a_row = 0;
    event->lost_update_share = measures_lost_update_share(&all);
    event->stalled_v_share = measures_stalled_v_share(&all);
    event->update_quality = measures_update_quality(&all);
    if (alarm_counts(lr, run->schedule.lr))
        alarm_observe_tensors(run->still, engine->measures, engine->body.model.params.count);
    if (alarm_observe(&run->alarm, event->update_quality, lr, run->schedule.lr))
        warn_alarm(engine);
}

/* The gradient's squares over all t ranks' pieces, each distinct element once, in rank order; the first that
 * is not finite by its tensor. */
static struct shard_squares gradient_squares(struct engine *engine)
{
    struct comm *tensor = &engine->groups.tensor;
    struct shard_squares mine = pipeline_squares(engine), all = {.bad_rank = -1, .bad_tensor = -1};
    struct shard_squares *parts = malloc((size_t)tensor->ranks * sizeof *parts);
    INVARIANT(parts != NULL);
    comm_all_gather_host(tensor, parts, &mine, sizeof mine);
    for (int32_t r = 0; r < tensor->ranks; r++) {
        all.sum += parts[r].sum;
        if (parts[r].bad_rank < 0 || (all.bad_rank >= 0 && parts[r].bad_tensor >= all.bad_tensor))
            continue;
        all.bad_rank = parts[r].bad_rank;
        all.bad_tensor = parts[r].bad_tensor;
    }
    free(parts);
    return all;
}

static void skip_update(struct engine *engine, int32_t rank, int32_t tensor, struct step_event *event)
{
    struct run *run = &engine->run;
    run->skipped++;
    run->skips_in_a_row++;
    run->bad_rank = rank;
    run->bad_tensor = tensor;
    event->lost_update_share = event->stalled_v_share = 0;
    event->update_quality = 1;
    engine_warn(engine,
                "update skipped: the gradient is not finite, first on rank %d in %s; nothing stored has "
                "changed (%d in a row)",
                rank, tensor >= 0 ? engine->body.model.params.params[tensor].name : "?", run->skips_in_a_row);
}

static void fill_event(struct engine *engine, const struct batch_plan *plan, double step_seconds,
                       const struct pass_seconds *seconds, double optimize_s, double flops,
                       struct step_event *event)
{
    struct run *run = &engine->run;
    snprintf(event->run, sizeof event->run, "%s", run->id);
    snprintf(event->policy, sizeof event->policy, "%s", engine->body.optimizer.policy.name);
    event->step = run->k;
    event->total_steps = engine->body.optimizer.total_steps;
    event->tokens = plan->tokens;
    event->labelled_tokens = plan->labelled;
    event->step_seconds = step_seconds;
    event->tokens_per_second = (double)plan->tokens / step_seconds;
    double hosts = (double)engine->comm->ranks / engine->comm->local_ranks;
    event->model_flops_utilization = engine->options.product_flops > 0
                                         ? flops / step_seconds / (engine->options.product_flops * hosts)
                                         : (double)NAN;
    event->seconds_data = seconds->data;
    event->seconds_forward = seconds->forward;
    event->seconds_backward = seconds->backward;
    event->seconds_communicate = engine->comm->wire->seconds;
    event->seconds_optimize = optimize_s;
    event->skipped = run->skipped;
    event->weight_version = engine->weight_version;
    event->memory_bytes = engine->device->allocated_bytes;
}

/* It was checked when the source was opened. What fails now is a file that somebody changed under us, on this
 * rank perhaps alone. */
static void plan_batch(struct engine *engine, struct data_source *source, struct data_cursor cursor,
                       struct batch_plan *plan)
{
    struct err why = ERR_INIT, err = ERR_INIT;
    if (batch_plan_make(&source->loader, cursor, plan, &why))
        return;
    err_set(&err, ERR_CORRUPT, "the dataset was changed while it was in use");
    err_why(&err, "%s", why.what);
    comm_abort(engine->comm, &err);
}

bool engine_step(struct engine *engine)
{
    struct run *run = &engine->run;
    struct batch_plan plan;
    struct pass_seconds seconds = {0};
    struct step_event event = {0};
    double start = clock_s();
    plan_batch(engine, run->source, run->cursor, &plan);
    shard_gradients_begin(&engine->body.shard);
    pass_over_batch(engine, &run->workspace, &run->source->loader, &plan, &seconds);

    double optimize = clock_s();
    double communicated = engine->comm->wire->seconds;
    shard_gradients_finish(&engine->body.shard);
    double nll = batch_nll(engine, &run->workspace, &plan);
    struct shard_squares squares = gradient_squares(engine);
    double norm = sqrt(squares.sum) / (double)plan.labelled;
    event.loss = nll / (double)plan.labelled;
    event.grad_norm = norm;
    event.lr = schedule_lr(&run->schedule, run->k);
    double factor = optimizer_clip_coefficient(&run->settings, norm) / (double)plan.labelled;
    if (isfinite(norm))
        apply_update(engine, event.lr, factor, &event);
    else
        skip_update(engine, squares.bad_rank, squares.bad_tensor, &event);
    run->cursor.samples += plan.samples;
    double end = clock_s();
    double flops =
        model_config_flops(&engine->body.model.config, plan.tokens, squared_lengths(run->source, &plan));
    fill_event(engine, &plan, end - start, &seconds,
               end - optimize - (engine->comm->wire->seconds - communicated), flops, &event);
    engine->last = event;
    engine->has_last = true;
    runlog_step(engine, &event);
    if (engine->mailbox)
        mailbox_post(engine->mailbox,
                     &(struct event){.kind = EVENT_STEP, .step = event, .state = engine->state});
    return run->skips_in_a_row < LIMIT_SKIPS_IN_A_ROW;
}

double engine_evaluate(struct engine *engine, struct data_source *source, struct workspace *workspace,
                       int64_t *labelled)
{
    struct data_cursor cursor = {0};
    struct pass_seconds seconds = {0};
    double nll = 0;
    *labelled = 0;
    while (!order_ended(&source->order, cursor, 1)) {
        struct batch_plan plan;
        plan_batch(engine, source, cursor, &plan);
        pass_over_batch(engine, workspace, &source->loader, &plan, &seconds);
        nll += batch_nll(engine, workspace, &plan);
        *labelled += plan.labelled;
        cursor.samples += plan.samples;
    }
    return nll / (double)*labelled;
}
