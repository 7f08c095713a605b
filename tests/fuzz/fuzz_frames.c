/* The control socket. The first byte says what the other side sent: requests, which become commands, or
 * replies and events, which become JSON. The rest is a stream that arrives in pieces: the second byte's many.
 */
#include "bounds.h"
#include "fuzz.h"
#include "json.h"
#include "server.h"

#include <stdlib.h>
#include <string.h>

static const ProtobufCMessageDescriptor *const kinds[] = {&trainerd__request__descriptor,
                                                          &trainerd__frame__descriptor};

static struct snapshot *snapshot_of_a_run(void)
{
    static struct snapshot snapshot;
    struct err err = ERR_INIT;
    struct schedule_settings settings = schedule_settings_default();
    if (*snapshot.run)
        return &snapshot;
    memcpy(snapshot.run, "run-1", 6);
    snapshot.state = STATE_RUNNING;
    snapshot.settings = optimizer_settings_default();
    snapshot.run_steps = 100;
    CHECK(schedule_resolve(&snapshot.schedule, &settings, 1e-4, 100, &err));
    snapshot.policy = policy_default();
    return &snapshot;
}

static void take_request(const Trainerd__Request *request)
{
    static struct command command;
    struct err err = ERR_INIT;
    memset(&command, 0, sizeof command);
    if (!fuzz_told(convert_command(&command, request, snapshot_of_a_run(), &err), &err))
        return;
    CHECK((unsigned)command.kind < COMMAND_COUNT);
    if (command.kind == COMMAND_TRAIN) {
        CHECK(memchr(command.u.train.recipe.data, '\0', LIMIT_PATH_BYTES));
        (void)fuzz_told(recipe_check(&command.u.train.recipe, &err), &err);
    }
}

static void take_answer(const ProtobufCMessage *message)
{
    json_t *json = json_from_message(message);
    if (!json) /* a text that is not UTF-8 */
        return;
    ProtobufCMessage *back = json_to_message(message->descriptor, json);
    CHECK(back != NULL);
    protobuf_c_message_free_unpacked(back, NULL);
    json_decref(json);
}

static void take_frame(const ProtobufCMessageDescriptor *kind, const unsigned char *frame, size_t bytes)
{
    ProtobufCMessage *message;
    struct err err = ERR_INIT;
    if (!fuzz_told(frame_unpack(&message, kind, frame, bytes, frame_budget(bytes), &err), &err))
        return;
    if (kind == kinds[0])
        take_request((const Trainerd__Request *)message);
    else
        take_answer(message);
    protobuf_c_message_free_unpacked(message, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct frame_reader reader;
    struct err err = ERR_INIT;
    if (size < 2)
        return 0;
    const ProtobufCMessageDescriptor *kind = kinds[data[0] % 2];
    size_t piece = (size_t)data[1] + 1, at = 2;
    frame_reader_init(&reader, LIMIT_OBSERVER_BYTES);
    for (bool good = true; good && at < size;) {
        const unsigned char *frame = NULL;
        size_t used, frame_bytes, count = size - at < piece ? size - at : piece;
        good =
            fuzz_told(frame_reader_feed(&reader, data + at, count, &used, &frame, &frame_bytes, &err), &err);
        CHECK(!good || (used > 0 && used <= count));
        at += good ? used : 0;
        if (good && frame)
            take_frame(kind, frame, frame_bytes);
    }
    frame_reader_done(&reader);
    return 0;
}
