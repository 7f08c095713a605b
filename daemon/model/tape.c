/* Values, records and open units; see tape_ops.h for the rules. */
#include "tape_ops.h"

#include <stdlib.h>

/* Of one block with some room; what stands outside of blocks needs less than one block. */
#define VALUES_A_BLOCK  20
#define RECORDS_A_BLOCK 20

bool tape_init(struct tape **tape, int64_t layers, struct err *err)
{
    struct tape *made = calloc(1, sizeof *made);
    size_t blocks = (size_t)layers + 1;
    if (made) {
        made->value_limit = (int32_t)blocks * VALUES_A_BLOCK;
        made->record_limit = (int32_t)blocks * RECORDS_A_BLOCK;
        made->values = calloc(blocks * VALUES_A_BLOCK, sizeof *made->values);
        made->records = calloc(blocks * RECORDS_A_BLOCK, sizeof *made->records);
        made->marks = calloc(blocks, sizeof *made->marks);
        made->inputs = calloc(blocks, sizeof *made->inputs);
    }
    if (!made || !made->values || !made->records || !made->marks || !made->inputs) {
        tape_done(made);
        return err_set(err, ERR_MEMORY, "no memory for the records of %zu blocks", blocks);
    }
    *tape = made;
    return true;
}

void tape_done(struct tape *tape)
{
    if (!tape)
        return;
    free(tape->values);
    free(tape->records);
    free(tape->marks);
    free(tape->inputs);
    free(tape);
}

void tape_unit_open(struct tape *tape, int32_t unit, int32_t slot, bool gather, bool gradient)
{
    const struct tape_host *host = tape->host;
    INVARIANT(tape->open_count < TAPE_UNITS_OPEN);
    tape->open[tape->open_count++] = (struct tape_unit){
        .unit = unit,
        .slot = slot,
        .weights = gather ? host->unit_gather(host->context, unit) : NULL,
        .gradient = gradient ? host->unit_gradient(host->context, unit, slot) : NULL,
    };
}

/* The gaps between tensors: every element of a finished leaf is defined. */
static void zero_gaps(struct tape *tape, const struct tape_unit *open)
{
    const struct param_table *table = &tape->model->params;
    const struct param_unit *unit = &table->units[open->unit];
    if (tape->planning)
        return;
    for (int32_t i = 0; i < unit->count; i++) {
        const struct param *param = &table->params[unit->first + i];
        int64_t from = param->unit_offset + param->elements;
        int64_t to = i + 1 < unit->count ? param[1].unit_offset : unit->elements;
        if (to > from)
            device_zero(tape->model->device, open->gradient + from, (size_t)(to - from) * sizeof(float));
    }
}

void tape_unit_close(struct tape *tape)
{
    const struct tape_host *host = tape->host;
    INVARIANT(tape->open_count > 0);
    const struct tape_unit *open = &tape->open[--tape->open_count];
    if (open->gradient) {
        zero_gaps(tape, open);
        host->unit_reduce(host->context, open->unit, open->slot);
    }
    if (open->weights)
        host->unit_release(host->context, open->unit);
}

static const struct tape_unit *find_open(const struct tape *tape, const struct param *param)
{
    int32_t i = 0;
    while (i < tape->open_count && tape->open[i].unit != param->unit)
        i++;
    INVARIANT(i < tape->open_count);
    return &tape->open[i];
}

const void *tape_weight(const struct tape *tape, const struct param *param)
{
    const struct tape_unit *open = find_open(tape, param);
    INVARIANT(open->weights != NULL);
    return open->weights + (size_t)param->unit_offset * dtype_bytes(tape->model->compute);
}

float *tape_weight_gradient(const struct tape *tape, const struct param *param)
{
    const struct tape_unit *open = find_open(tape, param);
    INVARIANT(open->gradient != NULL);
    return open->gradient + param->unit_offset;
}

static struct value *add_value(struct tape *tape, struct value value)
{
    INVARIANT(tape->value_count < tape->value_limit);
    struct value *place = &tape->values[tape->value_count++];
    *place = value;
    return place;
}

struct value *tape_value(struct tape *tape, int64_t rows, int64_t columns, enum tape_life life)
{
    struct arena *arena = life == TAPE_KEPT ? tape->activations : tape->gradients;
    return add_value(tape, (struct value){
                               .data = arena_take(arena, tape_bytes(tape, rows, columns)),
                               .rows = rows,
                               .columns = columns,
                           });
}

struct value *tape_stream_at(struct tape *tape, void *data)
{
    return add_value(tape, (struct value){
                               .data = data,
                               .gradient = tape->stream_gradient,
                               .rows = tape_rows(tape),
                               .columns = tape->model->config.hidden,
                               .stream = true,
                           });
}

struct value *tape_stream(struct tape *tape)
{
    size_t bytes = tape_bytes(tape, tape_rows(tape), tape->model->config.hidden);
    return tape_stream_at(tape, arena_take(tape->activations, bytes));
}

struct value *tape_block_output(struct tape *tape)
{
    if (tape->training)
        return tape_stream(tape);
    tape->turn = !tape->turn;
    return tape_stream_at(tape, tape->turns[tape->turn]);
}

void *tape_gradient(struct tape *tape, struct value *value, bool *add)
{
    if (!value->gradient)
        value->gradient = arena_take(tape->gradients, tape_bytes(tape, value->rows, value->columns));
    *add = value->written;
    value->written = true;
    return value->gradient;
}

void tape_gradients_reset(struct tape *tape)
{
    arena_reset(tape->gradients, tape->stream_mark);
    tape->whole = (struct tape_whole){0};
}

void tape_record(struct tape *tape, struct record record)
{
    if (!tape->recording)
        return;
    INVARIANT(tape->record_count < tape->record_limit);
    tape->records[tape->record_count++] = record;
}

struct tape_mark tape_mark(const struct tape *tape)
{
    return (struct tape_mark){arena_mark(tape->activations), tape->value_count, tape->record_count};
}

void tape_forget(struct tape *tape, struct tape_mark mark)
{
    INVARIANT(mark.values <= tape->value_count && mark.records <= tape->record_count);
    arena_reset(tape->activations, mark.activations);
    tape->value_count = mark.values;
    tape->record_count = mark.records;
}

void tape_play(struct tape *tape, int32_t first)
{
    while (tape->record_count > first) {
        const struct record *record = &tape->records[--tape->record_count];
        record->backward(tape, record);
    }
}

void *tape_scratch(struct tape *tape, size_t bytes, size_t *mark)
{
    *mark = arena_mark(tape->gradients);
    return bytes > 0 ? arena_take(tape->gradients, bytes) : NULL;
}
