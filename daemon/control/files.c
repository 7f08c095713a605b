/* Answers made from files, on libuv's thread pool: the control thread never waits for a disk. The worker has
 * its own copies of what it needs and makes the packed reply; the session is looked up again when it is done.
 */
#include "server.h"

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

void answer_checkpoints(struct session *session, uint64_t id)
{
    struct err err = ERR_INIT;
    err_set(&err, ERR_UNSUPPORTED, "checkpoint list is not built yet");
    reply_error(session, id, &err);
}
