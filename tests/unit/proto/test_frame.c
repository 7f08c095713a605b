/* Frames: whatever the pieces they come in, and whatever a hostile peer sends. */
#include "bounds.h"
#include "check.h"
#include "frame.h"
#include "trainerd.pb-c.h"

#include <stdlib.h>

static unsigned char *sample(size_t *count)
{
    Trainerd__Request request = TRAINERD__REQUEST__INIT;
    Trainerd__TrainRequest train = TRAINERD__TRAIN_REQUEST__INIT;
    char *overrides[] = {(char *)"steps=3", (char *)"optimizer.lr=1e-4"};
    train.recipe = (char *)"data: /tmp/data\nglobal_batch: 8\n";
    train.overrides = overrides;
    train.n_overrides = 2;
    request.id = 300;
    request.command_case = TRAINERD__REQUEST__COMMAND_TRAIN;
    request.train = &train;
    unsigned char *bytes = frame_pack(&request.base, count);
    assert_non_null(bytes);
    return bytes;
}

static void check_sample(const unsigned char *frame, size_t count)
{
    struct err err = ERR_INIT;
    ProtobufCMessage *message;
    check_ok(frame_unpack(&message, &trainerd__request__descriptor, frame, count, frame_budget(count), &err),
             &err);
    Trainerd__Request *request = (Trainerd__Request *)message;
    assert_int_equal(request->id, 300);
    assert_int_equal(request->command_case, TRAINERD__REQUEST__COMMAND_TRAIN);
    assert_int_equal(request->train->n_overrides, 2);
    assert_string_equal(request->train->overrides[1], "optimizer.lr=1e-4");
    trainerd__request__free_unpacked(request, NULL);
}

/* Cut into pieces of every size, two frames in a row come out whole, each once. */
static void test_any_cut_gives_the_same_frames(void **state)
{
    (void)state;
    size_t one;
    unsigned char *bytes = sample(&one);
    size_t count = 2 * one;
    unsigned char *stream = malloc(count);
    memcpy(stream, bytes, one);
    memcpy(stream + one, bytes, one);
    for (size_t piece = 1; piece <= count; piece++) {
        struct frame_reader reader;
        frame_reader_init(&reader, LIMIT_OBSERVER_BYTES);
        int frames = 0;
        for (size_t at = 0; at < count;) {
            struct err err = ERR_INIT;
            const unsigned char *frame;
            size_t used, frame_bytes, left = count - at < piece ? count - at : piece;
            check_ok(frame_reader_feed(&reader, stream + at, left, &used, &frame, &frame_bytes, &err), &err);
            assert_true(used > 0 && used <= left);
            if (frame) {
                check_sample(frame, frame_bytes);
                frames++;
            }
            at += used;
        }
        assert_int_equal(frames, 2);
        frame_reader_done(&reader);
    }
    free(stream);
    free(bytes);
}

/* A stream that ends anywhere gives no frame and no error: more may come. Decoding the cut message never
 * succeeds with another meaning than a prefix of fields, and never crashes. */
static void test_truncation_at_each_byte(void **state)
{
    (void)state;
    size_t count;
    unsigned char *bytes = sample(&count);
    for (size_t cut = 0; cut < count; cut++) {
        struct err err = ERR_INIT;
        struct frame_reader reader;
        frame_reader_init(&reader, LIMIT_OBSERVER_BYTES);
        const unsigned char *frame;
        size_t used, frame_bytes;
        check_ok(frame_reader_feed(&reader, bytes, cut, &used, &frame, &frame_bytes, &err), &err);
        assert_null(frame);
        assert_int_equal(used, cut);
        frame_reader_done(&reader);

        ProtobufCMessage *message = NULL;
        if (cut >= 2 &&
            frame_unpack(&message, &trainerd__request__descriptor, bytes + 2, cut - 2, 1 << 20, &err))
            protobuf_c_message_free_unpacked(message, NULL);
    }
    free(bytes);
}

static void test_an_empty_frame_is_a_frame(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct frame_reader reader;
    frame_reader_init(&reader, LIMIT_OBSERVER_BYTES);
    const unsigned char zeros[3] = {0}, *frame;
    size_t used, frame_bytes = 1;
    for (int i = 0; i < 3; i++) {
        check_ok(frame_reader_feed(&reader, zeros + i, 1, &used, &frame, &frame_bytes, &err), &err);
        assert_non_null(frame);
        assert_int_equal(used, 1);
        assert_int_equal(frame_bytes, 0);
    }
    frame_reader_done(&reader);
}

/* A length above the limit, one of more than 64 bits, and one without an end are refused before memory is
 * taken. */
static void test_hostile_lengths(void **state)
{
    (void)state;
    static const unsigned char lengths[][11] = {
        {0x81, 0x80, 0x40},                                                 /* 1 MiB + 1 */
        {0xff, 0xff, 0xff, 0xff, 0x0f},                                     /* 4 GiB - 1 */
        {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},       /* 2^64 - 1 */
        {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02},       /* 65 bits */
        {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80}, /* no end */
    };
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct err err = ERR_INIT;
        struct frame_reader reader;
        frame_reader_init(&reader, LIMIT_OBSERVER_BYTES);
        const unsigned char *frame;
        size_t used, frame_bytes;
        check_refused(
            frame_reader_feed(&reader, lengths[i], sizeof lengths[i], &used, &frame, &frame_bytes, &err),
            &err, ERR_INVALID);
        assert_int_equal(reader.capacity, 0);
        frame_reader_done(&reader);
    }
}

/* Memory follows what came: a claim of 100 MB with ten bytes costs a page, not 100 MB. */
static void test_a_claim_costs_nothing(void **state)
{
    (void)state;
    struct err err = ERR_INIT;
    struct frame_reader reader;
    frame_reader_init(&reader, LIMIT_FRAME_BYTES);
    const unsigned char claim[] = {0x80, 0xc2, 0xd7, 0x2f, 1, 2, 3, 4, 5, 6}, *frame; /* 100000000 */
    size_t used, frame_bytes;
    check_ok(frame_reader_feed(&reader, claim, sizeof claim, &used, &frame, &frame_bytes, &err), &err);
    assert_null(frame);
    assert_int_equal(reader.length, 100000000);
    assert_true(reader.capacity <= 4096);
    frame_reader_done(&reader);
}

/* 20000 empty strings weigh two bytes each on the wire and a pointer, a block and its header in memory. */
static void test_decoding_has_a_budget(void **state)
{
    (void)state;
    Trainerd__TrainRequest train = TRAINERD__TRAIN_REQUEST__INIT;
    enum { COUNT = 20000 };
    char **many = malloc(COUNT * sizeof *many);
    for (int i = 0; i < COUNT; i++)
        many[i] = (char *)"";
    train.overrides = many;
    train.n_overrides = COUNT;
    size_t count = trainerd__train_request__get_packed_size(&train);
    unsigned char *bytes = malloc(count);
    trainerd__train_request__pack(&train, bytes);

    struct err err = ERR_INIT;
    ProtobufCMessage *message = NULL;
    check_refused(frame_unpack(&message, &trainerd__train_request__descriptor, bytes, count, 100000, &err),
                  &err, ERR_INVALID);
    assert_null(message);
    err = (struct err)ERR_INIT;
    check_ok(frame_unpack(&message, &trainerd__train_request__descriptor, bytes, count, 4000000, &err), &err);
    protobuf_c_message_free_unpacked(message, NULL);
    free(bytes);
    free(many);
}

/* One flipped byte anywhere in a message: decoded or refused, never a crash (AddressSanitizer watches). */
static void test_flipped_bytes(void **state)
{
    (void)state;
    size_t count;
    unsigned char *bytes = sample(&count);
    for (size_t at = 2; at < count; at++)
        for (unsigned value = 0; value < 256; value += 5) {
            struct err err = ERR_INIT;
            ProtobufCMessage *message;
            unsigned char kept = bytes[at];
            bytes[at] = (unsigned char)value;
            if (frame_unpack(&message, &trainerd__request__descriptor, bytes + 2, count - 2, 1 << 20, &err))
                protobuf_c_message_free_unpacked(message, NULL);
            bytes[at] = kept;
        }
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_cut_gives_the_same_frames),
        cmocka_unit_test(test_truncation_at_each_byte),
        cmocka_unit_test(test_an_empty_frame_is_a_frame),
        cmocka_unit_test(test_hostile_lengths),
        cmocka_unit_test(test_a_claim_costs_nothing),
        cmocka_unit_test(test_decoding_has_a_budget),
        cmocka_unit_test(test_flipped_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
