/* Answers made from files, on libuv's thread pool: the control thread never waits for a disk. The worker has
 * its own copies of what it needs and makes the packed reply; the session is looked up again when it is done.
 */
#include "server.h"

#include "checkpoint_list.h"
#include "records.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct file_work {
    uv_work_t work;
    struct control *control;
    uint64_t session, request;
    struct out *(*make)(struct file_work *work, struct err *err);
    struct out *out;
    struct err err;
    char state_dir[LIMIT_PATH_BYTES], checkpoint_dir[LIMIT_PATH_BYTES];
};

static void in_worker(uv_work_t *work)
{
    struct file_work *job = work->data;
    job->out = job->make(job, &job->err);
}

static void when_made(uv_work_t *work, int status)
{
    struct file_work *job = work->data;
    struct session *session = session_find(job->control, job->session);
    job->control->file_work--;
    if (status != 0)
        err_set(&job->err, ERR_STATE, "the daemon is ending");
    if (!session)
        out_release(job->out);
    else if (job->out)
        session_send(session, job->out);
    else
        reply_error(session, job->request, &job->err);
    if (session)
        session_answered(session);
    free(job);
}

static void start(struct session *session, uint64_t request,
                  struct out *(*make)(struct file_work *, struct err *))
{
    struct control *control = session->control;
    struct file_work *job = calloc(1, sizeof *job);
    if (job) {
        *job = (struct file_work){.work.data = job,
                                  .control = control,
                                  .session = session->id,
                                  .request = request,
                                  .make = make,
                                  .err = ERR_INIT};
        const struct snapshot *snapshot = control->snapshot;
        const char *checkpoints =
            snapshot && snapshot->checkpoint_dir[0] ? snapshot->checkpoint_dir : control->checkpoint_dir;
        memcpy(job->state_dir, control->state_dir, sizeof job->state_dir);
        snprintf(job->checkpoint_dir, sizeof job->checkpoint_dir, "%s", checkpoints);
        if (uv_queue_work(&control->loop, &job->work, in_worker, when_made) == 0) {
            control->file_work++;
            session->pending++;
            return;
        }
        free(job);
    }
    struct err err = ERR_INIT;
    err_set(&err, ERR_MEMORY, "no memory to read files");
    reply_error(session, request, &err);
}

static struct out *pack_ok(Trainerd__Reply *reply, uint64_t id, struct err *err)
{
    Trainerd__Error ok = TRAINERD__ERROR__INIT;
    struct err none = ERR_INIT;
    convert_error(&ok, &none);
    reply->id = id;
    reply->status = &ok;
    struct out *out = out_from_reply(reply);
    if (!out)
        err_set(err, ERR_MEMORY, "no memory for the reply");
    return out;
}

static struct out *make_runs(struct file_work *job, struct err *err)
{
    Trainerd__Reply reply = TRAINERD__REPLY__INIT;
    Trainerd__Runs *runs;
    if (!records_runs(&runs, job->state_dir, err))
        return NULL;
    reply.result_case = TRAINERD__REPLY__RESULT_RUNS;
    reply.runs = runs;
    struct out *out = pack_ok(&reply, job->request, err);
    trainerd__runs__free_unpacked(runs, NULL);
    return out;
}

void answer_runs(struct session *session, uint64_t id)
{
    start(session, id, make_runs);
}

struct checkpoint_texts {
    char path[LIMIT_PATH_BYTES + LIMIT_NAME_BYTES], saved[32];
};

static void fill_checkpoint(Trainerd__Checkpoint *to, struct checkpoint_texts *texts,
                            const struct checkpoint_about *from, const char *folder)
{
    trainerd__checkpoint__init(to);
    snprintf(texts->path, sizeof texts->path, "%s/%s", folder, from->name);
    time_t seconds = (time_t)from->time_s;
    struct tm when;
    if (from->time_s > 0 && gmtime_r(&seconds, &when))
        strftime(texts->saved, sizeof texts->saved, "%Y-%m-%dT%H:%M:%SZ", &when);
    to->name = (char *)(uintptr_t)from->name;
    to->path = texts->path;
    to->step = from->step;
    to->total_steps = from->total_steps;
    to->run = (char *)(uintptr_t)from->run;
    to->policy = (char *)(uintptr_t)from->policy;
    to->health = (char *)(uintptr_t)checkpoint_health_name(from->health);
    to->bytes = from->bytes;
    to->saved = texts->saved;
    to->automatic = from->automatic;
    to->problem = (char *)(uintptr_t)from->problem;
    if (from->problem[0])
        to->damaged = to->problem;
    else if (from->health == CHECKPOINT_CORRUPT)
        to->damaged = (char *)(uintptr_t) "its files are not what was written: it did not verify";
}

static struct out *make_checkpoints(struct file_work *job, struct err *err)
{
    struct checkpoint_list list = {0};
    if (!checkpoint_list_read(&list, job->checkpoint_dir, err))
        return NULL;
    size_t count = (size_t)list.count, room = count ? count : 1;
    Trainerd__Checkpoint *rows = calloc(room, sizeof *rows);
    Trainerd__Checkpoint **pointers = calloc(room, sizeof *pointers);
    struct checkpoint_texts *texts = calloc(room, sizeof *texts);
    struct out *out = NULL;
    if (rows && pointers && texts) {
        for (size_t i = 0; i < count; i++) {
            fill_checkpoint(&rows[i], &texts[i], &list.items[i], job->checkpoint_dir);
            pointers[i] = &rows[i];
        }
        Trainerd__Checkpoints checkpoints = TRAINERD__CHECKPOINTS__INIT;
        checkpoints.n_checkpoints = count;
        checkpoints.checkpoints = pointers;
        checkpoints.checkpoint_dir = job->checkpoint_dir;
        Trainerd__Reply reply = TRAINERD__REPLY__INIT;
        reply.result_case = TRAINERD__REPLY__RESULT_CHECKPOINTS;
        reply.checkpoints = &checkpoints;
        out = pack_ok(&reply, job->request, err);
    } else {
        err_set(err, ERR_MEMORY, "no memory to list %zu checkpoints", count);
    }
    free(rows);
    free(pointers);
    free(texts);
    checkpoint_list_done(&list);
    return out;
}

void answer_checkpoints(struct session *session, uint64_t id)
{
    start(session, id, make_checkpoints);
}
