/* From a command line to a call, from an error to an exit code, and the connection between. */
#include "call.h"

#include "address.h"
#include "help.h"
#include "json.h"
#include "optimizer_settings.h"
#include "recipe.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct key *call_keys(enum keys_of keys, size_t *count, const char **prefix)
{
    *prefix = keys == KEYS_SCHEDULE ? "schedule." : "";
    *count = 0;
    return keys == KEYS_NONE ? NULL : keys == KEYS_OPTIMIZER ? optimizer_keys(count) : recipe_keys(count);
}

/* "warmup-ratio" is warmup_ratio. */
static void key_spelling(char *name, size_t name_bytes, const char *flag)
{
    snprintf(name, name_bytes, "%s", flag);
    for (char *at = name; *at; at++)
        *at = *at == '-' ? '_' : *at;
}

static const char *last_component(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

bool call_key_find(enum keys_of keys, const char *flag, const struct key **key, struct err *err)
{
    char name[LIMIT_NAME_BYTES];
    const char *prefix, *first = NULL;
    size_t count;
    const struct key *table = call_keys(keys, &count, &prefix);
    const struct key *found = NULL;
    key_spelling(name, sizeof name, flag);
    for (size_t i = 0; i < count; i++) {
        if (strncmp(table[i].name, prefix, strlen(prefix)) != 0)
            continue;
        if (strcmp(table[i].name, name) == 0 || strcmp(table[i].name + strlen(prefix), name) == 0) {
            *key = &table[i];
            return true;
        }
        if (strcmp(last_component(table[i].name), name) != 0)
            continue;
        if (found) {
            err_set(err, ERR_INVALID, "--%s could be --%s or --%s", flag, first, table[i].name);
            return err_hint(err, "write it whole");
        }
        found = &table[i];
        first = found->name;
    }
    if (!found)
        return false; /* err is not set: the caller knows what else it could have been */
    *key = found;
    return true;
}

const char *call_option(const struct call *call, const char *name)
{
    for (int i = 0; i < CALL_OPTIONS && call->command->options[i].name; i++)
        if (strcmp(call->command->options[i].name, name) == 0)
            return call->values[i];
    return NULL;
}

bool call_integer(const struct call *call, const char *name, int64_t least, int64_t most, int64_t *value,
                  struct err *err)
{
    const char *text = call_option(call, name);
    char *end;
    if (!text)
        return true;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end || number < least || number > most) {
        if (most == INT64_MAX)
            err_set(err, ERR_INVALID, "--%s %s is no whole number from %lld up", name, text,
                    (long long)least);
        else
            err_set(err, ERR_INVALID, "--%s %s is no whole number from %lld to %lld", name, text,
                    (long long)least, (long long)most);
        return err_hint(err, "see trainctl %s --help", call->command->name);
    }
    *value = number;
    return true;
}

/* argv as it is read: where, and what is left. */
struct reader {
    int count, at;
    char **words;
    bool no_more_options; /* after "--" */
};

/* The value of an option: after '=' or the next word. */
static bool take_value(struct reader *reader, const char *name, const char *attached, const char **value,
                       struct err *err)
{
    if (attached) {
        *value = attached;
        return true;
    }
    if (reader->at >= reader->count) {
        err_set(err, ERR_INVALID, "%s%s needs a value", strlen(name) == 1 ? "-" : "--", name);
        return err_hint(err, "trainctl COMMAND --help says which");
    }
    *value = reader->words[reader->at++];
    return true;
}

static bool set_output(struct call *call, const char *text, struct err *err)
{
    static const char *const names[] = {"table", "json", "csv"};
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            call->output = (enum output)i;
            return true;
        }
    err_set(err, ERR_INVALID, "there is no output \"%s\"", text);
    return err_hint(err, "-o is table, json or csv");
}

static bool set_timeout(struct call *call, const char *text, struct err *err)
{
    char *end;
    double seconds = strtod(text, &end);
    if (end == text || *end || !(seconds > 0) || seconds > 1e9) {
        err_set(err, ERR_INVALID, "--timeout %s is no number of seconds above 0", text);
        return err_hint(err, "leave it out to wait for ever");
    }
    call->timeout_s = seconds;
    return true;
}

/* The options every command has. *taken says whether it was one. */
static bool global_option(struct call *call, struct reader *reader, const char *name, const char *attached,
                          bool *taken, struct err *err)
{
    const char *value = NULL;
    *taken = true;
    if (strcmp(name, "connect") == 0)
        return take_value(reader, name, attached, &call->connect, err);
    if (strcmp(name, "o") == 0 || strcmp(name, "output") == 0)
        return take_value(reader, name, attached, &value, err) && set_output(call, value, err);
    if (strcmp(name, "timeout") == 0)
        return take_value(reader, name, attached, &value, err) && set_timeout(call, value, err);
    if (strcmp(name, "q") == 0 || strcmp(name, "quiet") == 0) {
        call->quiet = true;
        return true;
    }
    *taken = false;
    return true;
}

bool call_add_setting(struct call *call, const char *name, const char *value, struct err *err)
{
    if (call->setting_count == CALL_SETTINGS)
        return err_set(err, ERR_INVALID, "more than %d settings", CALL_SETTINGS);
    size_t bytes = strlen(name) + strlen(value) + 2;
    char *setting = malloc(bytes);
    if (!setting)
        return err_set(err, ERR_MEMORY, "no memory for a setting");
    snprintf(setting, bytes, "%s=%s", name, value);
    call->settings[call->setting_count++] = setting;
    return true;
}

static bool add_setting(struct call *call, struct reader *reader, const struct key *key, const char *name,
                        const char *attached, struct err *err)
{
    const char *value = "true", *prefix;
    size_t count;
    if (key->type != KEY_BOOL || attached) {
        if (!take_value(reader, name, attached, &value, err))
            return false;
    }
    call_keys(call->command->keys, &count, &prefix);
    return call_add_setting(call, key->name + strlen(prefix), value, err);
}

static bool unknown_option(const struct call *call, const char *name, struct err *err)
{
    const char *candidates[256];
    char flags[128][LIMIT_NAME_BYTES];
    size_t count = 0, key_count, flag_count = 0;
    static const char *const global[] = {"connect", "output", "timeout", "quiet", "help", "version"};
    const char *prefix;
    for (size_t i = 0; i < sizeof global / sizeof global[0]; i++)
        candidates[count++] = global[i];
    for (int i = 0; call->command && i < CALL_OPTIONS && call->command->options[i].name; i++)
        candidates[count++] = call->command->options[i].name;
    const struct key *keys = call_keys(call->command ? call->command->keys : KEYS_NONE, &key_count, &prefix);
    for (size_t i = 0; i < key_count && flag_count < 128; i++) {
        if (strncmp(keys[i].name, prefix, strlen(prefix)) != 0)
            continue;
        help_flag_name(flags[flag_count], call->command->keys, &keys[i]);
        candidates[count++] = flags[flag_count++];
    }
    const char *near = err_nearest(name, candidates, count);
    err_set(err, ERR_INVALID, "there is no option %s%s", strlen(name) == 1 ? "-" : "--", name);
    if (strcmp(name, "json") == 0 || strcmp(name, "csv") == 0)
        return err_hint(err, "did you mean -o %s?", name);
    if (near)
        return err_hint(err, "did you mean --%s? trainctl %s%s--help lists them", near,
                        call->command ? call->command->name : "", call->command ? " " : "");
    return err_hint(err, "trainctl %s%s--help lists them", call->command ? call->command->name : "",
                    call->command ? " " : "");
}

/* A command's own option, then a key of its table, then a global one. */
static bool option(struct call *call, struct reader *reader, const char *name, const char *attached,
                   struct err *err)
{
    const struct command *command = call->command;
    const struct key *key;
    bool taken;
    for (int i = 0; command && i < CALL_OPTIONS && command->options[i].name; i++) {
        if (strcmp(command->options[i].name, name) != 0)
            continue;
        call->values[i] = "";
        return !command->options[i].argument || take_value(reader, name, attached, &call->values[i], err);
    }
    if (command && command->keys != KEYS_NONE && call_key_find(command->keys, name, &key, err))
        return add_setting(call, reader, key, name, attached, err);
    if (err->code != ERR_OK || !global_option(call, reader, name, attached, &taken, err))
        return false;
    return taken || unknown_option(call, name, err);
}

/* "checkpoint save" is two words; the longest name that fits is meant. */
static bool find_command(struct call *call, struct reader *reader, const char *word, struct err *err)
{
    char two[LIMIT_NAME_BYTES];
    const char *next = reader->at < reader->count ? reader->words[reader->at] : "";
    snprintf(two, sizeof two, "%.60s %.60s", word, next);
    for (int i = 0; i < command_count; i++)
        if (strcmp(commands[i].name, two) == 0) {
            reader->at++;
            call->command = &commands[i];
            return true;
        }
    for (int i = 0; i < command_count; i++)
        if (strcmp(commands[i].name, word) == 0) {
            call->command = &commands[i];
            return true;
        }
    return help_no_command(word, next, err);
}

static bool wants_help(const struct reader *reader, int *at)
{
    for (int i = 1; i < reader->count && strcmp(reader->words[i], "--") != 0; i++)
        if (strcmp(reader->words[i], "--help") == 0 || strcmp(reader->words[i], "-h") == 0) {
            *at = i;
            return true;
        }
    return false;
}

/* --help anywhere: of the command that is named before it, else of all. `trainctl help COMMAND` is the same,
 * but a command that is none is an error there. */
static bool print_help(struct call *call, struct reader *reader, struct err *err)
{
    char group[LIMIT_NAME_BYTES] = "";
    for (reader->at = 1; reader->at < reader->count && !call->command;) {
        const char *word = reader->words[reader->at++];
        struct err none = ERR_INIT;
        bool asked = reader->at == 2 && strcmp(word, "help") == 0;
        if (word[0] == '-' || asked || find_command(call, reader, word, &none))
            continue;
        if (help_is_group(word) && !group[0])
            snprintf(group, sizeof group, "%s", word);
        else if (strcmp(reader->words[1], "help") == 0 && err->code == ERR_OK)
            *err = none;
    }
    if (call->command)
        help_command(stdout, call->command);
    else if (err->code == ERR_OK)
        help_all(stdout, group);
    return false;
}

static bool check_arguments(const struct call *call, struct err *err)
{
    const struct command *command = call->command;
    if (call->argument_count >= command->least && call->argument_count <= command->most)
        return true;
    if (call->argument_count < command->least)
        err_set(err, ERR_INVALID, "trainctl %s needs %s", command->name, command->arguments);
    else
        err_set(err, ERR_INVALID, "trainctl %s does not take \"%s\"", command->name,
                call->arguments[command->most]);
    bool options = command->options[0].name || command->keys != KEYS_NONE;
    return err_hint(err, "usage: trainctl %s%s%s%s; trainctl %s --help says more", command->name,
                    command->arguments[0] ? " " : "", command->arguments, options ? " [options]" : "",
                    command->name);
}

static bool one_word(struct call *call, struct reader *reader, struct err *err)
{
    const char *word = reader->words[reader->at++];
    char name[LIMIT_NAME_BYTES];
    if (reader->no_more_options || word[0] != '-' || !word[1]) {
        if (!call->command)
            return find_command(call, reader, word, err);
        if (call->argument_count == CALL_ARGUMENTS)
            return err_set(err, ERR_INVALID, "more than %d arguments", CALL_ARGUMENTS);
        call->arguments[call->argument_count++] = word;
        return true;
    }
    if (strcmp(word, "--") == 0) {
        reader->no_more_options = true;
        return true;
    }
    if (word[1] != '-') { /* -o json, -ojson */
        snprintf(name, sizeof name, "%c", word[1]);
        return option(call, reader, name, word[2] ? word + 2 : NULL, err);
    }
    const char *equals = strchr(word, '=');
    snprintf(name, sizeof name, "%.*s", (int)(equals ? equals - word - 2 : (long)sizeof name - 1), word + 2);
    return option(call, reader, name, equals ? equals + 1 : NULL, err);
}

bool call_parse(struct call *call, int argc, char **argv, struct err *err)
{
    struct reader reader = {.count = argc, .at = 1, .words = argv};
    int at;
    if (wants_help(&reader, &at) || (argc > 1 && strcmp(argv[1], "help") == 0))
        return print_help(call, &reader, err);
    while (reader.at < reader.count) {
        bool version = strcmp(reader.words[reader.at], "--version") == 0 ||
                       strcmp(reader.words[reader.at], "version") == 0;
        if (!call->command && version) {
            printf("trainctl %s\n", TRAINERD_VERSION);
            return false;
        }
        if (!one_word(call, &reader, err))
            return false;
    }
    if (!call->command) {
        err_set(err, ERR_INVALID, "no command was given");
        return err_hint(err, "trainctl --help lists them; trainctl status is a good first one");
    }
    return check_arguments(call, err);
}

void call_done(struct call *call)
{
    for (int i = 0; i < call->setting_count; i++)
        free(call->settings[i]);
    if (call->connected)
        client_close(&call->client);
    call->connected = false;
    call->setting_count = 0;
}

static void sentence(const char *text, const char *before)
{
    size_t bytes = strlen(text);
    if (bytes > 0)
        fprintf(stderr, "%s%s%s\n", before, text, strchr(".?!", text[bytes - 1]) ? "" : ".");
}

int call_fail(const struct call *call, const struct err *err)
{
    fflush(stdout);
    fputs("trainctl: ", stderr);
    if (err->rank > 0) /* what rank 0 says, it says for all */
        fprintf(stderr, "rank %d: ", err->rank);
    sentence(err->what, "");
    sentence(err->why, "  ");
    sentence(err->hint, "  ");
    if (err->code == ERR_UNSUPPORTED)
        return EXIT_USAGE;
    if (err->code == ERR_TIMEOUT)
        return EXIT_TIMED_OUT;
    if (call->no_daemon)
        return EXIT_NO_DAEMON;
    return err->code == ERR_INVALID && !call->client.refused ? EXIT_USAGE : EXIT_REFUSED;
}

/* What a command waits for that has had no answer yet. */
static void say_waiting(const Trainerd__Status *status)
{
    if (status->waiting[0])
        fprintf(stderr, "trainctl: %s waits for the end of step %lld: %lld of %lld micro-batches are done\n",
                status->waiting, (long long)status->step + 1, (long long)status->micro_batch,
                (long long)status->micro_batches);
    else if (status->activity[0])
        fprintf(stderr, "trainctl: the daemon is busy: %s\n", status->activity);
}

bool call_connect(struct call *call, struct err *err)
{
    if (!call->connected)
        call->connected = client_open(&call->client, call->connect, call->timeout_s, err);
    call->client.waiting = call->quiet ? NULL : say_waiting;
    call->no_daemon = !call->connected && err->code == ERR_NOT_FOUND;
    return call->connected;
}

bool call_ask(struct call *call, Trainerd__Request *request, Trainerd__Reply **reply, struct err *err)
{
    if (!call_connect(call, err))
        return false;
    if (client_request(&call->client, request, reply, err))
        return true;
    call->no_daemon = !call->client.refused && err->code == ERR_NOT_FOUND;
    return false;
}

static json_t *result_of(const Trainerd__Reply *reply)
{
    const ProtobufCMessageDescriptor *descriptor = reply->base.descriptor;
    for (unsigned i = 0; i < descriptor->n_fields; i++)
        if ((descriptor->fields[i].flags & PROTOBUF_C_FIELD_FLAG_ONEOF) &&
            descriptor->fields[i].id == (uint32_t)reply->result_case)
            return json_from_field(&reply->base, &descriptor->fields[i]);
    return json_object();
}

bool call_ask_json(struct call *call, Trainerd__Request *request, json_t **result, struct err *err)
{
    Trainerd__Reply *reply;
    if (!call_ask(call, request, &reply, err))
        return false;
    *result = result_of(reply);
    trainerd__reply__free_unpacked(reply, NULL);
    return *result || err_set(err, ERR_MEMORY, "no memory for the reply");
}

bool call_state_folder(struct call *call, char path[LIMIT_PATH_BYTES], struct err *err)
{
    struct err none = ERR_INIT;
    REQUEST(status, STATUS, StatusRequest, status);
    json_t *state = NULL;
    char socket[LIMIT_SOCKET_PATH_BYTES + 1];
    if (call_ask_json(call, &status, &state, &none)) {
        snprintf(path, LIMIT_PATH_BYTES, "%s", json_string_value(json_object_get(state, "state_dir")));
        json_decref(state);
        return true;
    }
    bool named = call->connect || getenv("TRAINERD_CONNECT");
    if (!named)
        return address_state_folder(path, err);
    if (!client_path(socket, call->connect, err))
        return false;
    char *slash = strrchr(socket, '/');
    *(slash ? slash : socket) = '\0';
    snprintf(path, LIMIT_PATH_BYTES, "%s", socket[0] ? socket : ".");
    return true;
}

bool call_absolute(char absolute[LIMIT_PATH_BYTES], const char *path, struct err *err)
{
    char here[LIMIT_PATH_BYTES] = "";
    if (path[0] != '/' && !getcwd(here, sizeof here))
        return err_errno(err, "cannot tell the present folder");
    int wrote = snprintf(absolute, LIMIT_PATH_BYTES, "%s%s%s", here, here[0] ? "/" : "", path);
    if (wrote < 0 || wrote >= LIMIT_PATH_BYTES)
        return err_set(err, ERR_INVALID, "the path is longer than %d bytes: %.100s…", LIMIT_PATH_BYTES - 1,
                       path);
    return true;
}

void call_note(const struct call *call, const char *format, ...)
{
    va_list arguments;
    if (call->quiet)
        return;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}
