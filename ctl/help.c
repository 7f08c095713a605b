#include "help.h"

#include <string.h>

bool help_is_group(const char *word)
{
    size_t bytes = strlen(word);
    for (int i = 0; bytes > 0 && i < command_count; i++)
        if (strncmp(commands[i].name, word, bytes) == 0 && commands[i].name[bytes] == ' ')
            return true;
    return false;
}

/* "save, load, list, verify, delete" */
static void list_group(const char *group, char *text, size_t text_bytes)
{
    size_t bytes = strlen(group), used = 0;
    text[0] = '\0';
    for (int i = 0; i < command_count && used < text_bytes; i++)
        if (strncmp(commands[i].name, group, bytes) == 0 && commands[i].name[bytes] == ' ')
            used += (size_t)snprintf(text + used, text_bytes - used, "%s%s", used ? ", " : "",
                                     commands[i].name + bytes + 1);
}

bool help_no_command(const char *word, const char *next, struct err *err)
{
    const char *names[128];
    char two[LIMIT_NAME_BYTES], list[256];
    size_t count = command_count < 128 ? (size_t)command_count : 128;
    for (size_t i = 0; i < count; i++)
        names[i] = commands[i].name;
    snprintf(two, sizeof two, "%.60s %.60s", word, next);
    if (help_is_group(word) && (!next[0] || next[0] == '-')) {
        list_group(word, list, sizeof list);
        err_set(err, ERR_INVALID, "%s alone is no command", word);
        return err_hint(err, "its commands are %s; trainctl %s --help says more", list, word);
    }
    const char *near = help_is_group(word) ? NULL : err_nearest(word, names, count);
    if (!near && next[0] && next[0] != '-')
        near = err_nearest(two, names, count);
    err_set(err, ERR_INVALID, "there is no command \"%s\"", help_is_group(word) ? two : word);
    if (near)
        return err_hint(err, "did you mean \"%s\"? trainctl --help lists all", near);
    return err_hint(err, "trainctl --help lists them");
}

void help_flag_name(char flag[LIMIT_NAME_BYTES], enum keys_of keys, const struct key *key)
{
    const char *dot = strrchr(key->name, '.'), *prefix;
    const struct key *found = NULL;
    struct err err = ERR_INIT;
    size_t count;
    call_keys(keys, &count, &prefix);
    const char *name = key->name + (strncmp(key->name, prefix, strlen(prefix)) == 0 ? strlen(prefix) : 0);
    if (dot && call_key_find(keys, dot + 1, &found, &err) && found == key)
        name = dot + 1;
    snprintf(flag, LIMIT_NAME_BYTES, "%s", name);
    for (char *at = flag; *at; at++)
        *at = *at == '_' ? '-' : *at;
}

static void usage_line(FILE *out, const struct command *command)
{
    char usage[LIMIT_NAME_BYTES];
    snprintf(usage, sizeof usage, "%s%s%s", command->name, command->arguments[0] ? " " : "",
             command->arguments);
    int wide = 0; /* … is three bytes and one character */
    for (const char *at = usage; *at; at++)
        wide += ((unsigned char)*at & 0xc0) == 0x80;
    fprintf(out, "  %-*s %s%s\n", 34 + wide, usage, command->help, command->run ? "" : " (not built yet)");
}

void help_all(FILE *out, const char *group)
{
    size_t bytes = strlen(group);
    fprintf(out, "trainctl [--connect ADDR] [-o table|json|csv] [-q] [--timeout S] COMMAND …\n\n");
    for (int i = 0; i < command_count; i++)
        if (bytes == 0 || (strncmp(commands[i].name, group, bytes) == 0 && commands[i].name[bytes] == ' '))
            usage_line(out, &commands[i]);
    fprintf(
        out,
        "\nOptions of every command:\n"
        "  --connect ADDR        the daemon's socket, unix:PATH (else $TRAINERD_CONNECT, else trainerd.sock "
        "in\n"
        "                        $XDG_STATE_HOME/trainerd or ~/.local/state/trainerd)\n"
        "  -o, --output FORM     table, json (the protocol's field names) or csv\n"
        "  -q, --quiet           no notes on stderr\n"
        "  --timeout S           give up after so many seconds (exit 4)\n"
        "  --help, --version     also trainctl help [COMMAND]\n\n"
        "Exit: 0 done, 1 refused or failed, 2 wrong usage or not built yet, 3 no daemon there, 4 timed out,\n"
        "5 the run ended short of its target, 130 left by Ctrl-C. trainctl COMMAND --help says more.\n");
}

static void key_lines(FILE *out, enum keys_of keys)
{
    size_t count;
    const char *prefix;
    const struct key *table = call_keys(keys, &count, &prefix);
    for (size_t i = 0; i < count; i++) {
        char flag[LIMIT_NAME_BYTES];
        if (strncmp(table[i].name, prefix, strlen(prefix)) != 0)
            continue;
        static const char *const values[] = {
            [KEY_BOOL] = "",        [KEY_INT] = " N",    [KEY_DOUBLE] = " X",
            [KEY_STRING] = " TEXT", [KEY_CHOICE] = " S", [KEY_PAIR] = " A,B"};
        help_flag_name(flag, keys, &table[i]);
        strncat(flag, values[table[i].type], sizeof flag - strlen(flag) - 1);
        fprintf(out, "  --%-20s %s%s%s\n", flag, table[i].choices ? table[i].choices : "",
                table[i].choices ? ": " : "", table[i].help);
    }
}

void help_command(FILE *out, const struct command *command)
{
    fprintf(out, "trainctl %s%s%s\n    %s\n", command->name, command->arguments[0] ? " " : "",
            command->arguments, command->help);
    if (!command->run)
        fprintf(out, "    This is not built yet.\n");
    if (command->more)
        fprintf(out, "\n%s\n", command->more);
    if (command->options[0].name || command->keys != KEYS_NONE)
        fprintf(out, "\nOptions:\n");
    for (int i = 0; i < CALL_OPTIONS && command->options[i].name; i++) {
        const struct option *option = &command->options[i];
        char text[64];
        snprintf(text, sizeof text, "%s%s%s%s", strlen(option->name) == 1 ? "-" : "--", option->name,
                 option->argument ? " " : "", option->argument ? option->argument : "");
        fprintf(out, "  %-22s %s\n", text, option->help);
    }
    if (command->keys == KEYS_RECIPE && command->least > 0)
        fprintf(out, "\nThe recipe's keys, to say them anew; the recipe itself is needed all the same:\n");
    key_lines(out, command->keys);
}

static void completion_flags(FILE *out, const struct command *command)
{
    size_t count;
    const char *prefix;
    const struct key *table = call_keys(command->keys, &count, &prefix);
    for (int i = 0; i < CALL_OPTIONS && command->options[i].name; i++)
        fprintf(out, " %s%s", strlen(command->options[i].name) == 1 ? "-" : "--", command->options[i].name);
    for (size_t i = 0; i < count; i++) {
        char flag[LIMIT_NAME_BYTES];
        if (strncmp(table[i].name, prefix, strlen(prefix)) != 0)
            continue;
        help_flag_name(flag, command->keys, &table[i]);
        fprintf(out, " --%s", flag);
    }
}

void help_completion(FILE *out)
{
    fprintf(out, "# bash completion of trainctl: source <(trainctl completion)\n"
                 "_trainctl() {\n"
                 "    local current=${COMP_WORDS[COMP_CWORD]} said=\" ${COMP_WORDS[*]:1:COMP_CWORD-1} \"\n"
                 "    local words=\"--connect --output --quiet --timeout --help --version\"\n"
                 "    case \"$said\" in\n");
    for (int i = 0; i < command_count; i++) {
        if (!commands[i].run)
            continue;
        fprintf(out, "    *\" %s \"*) words+=\"", commands[i].name);
        completion_flags(out, &commands[i]);
        fprintf(out, "\" ;;\n");
    }
    for (int i = 0; i < command_count; i++) { /* the first word of two leads to the second */
        const char *space = strchr(commands[i].name, ' ');
        bool first = space != NULL;
        for (int j = 0; first && j < i; j++)
            first = strncmp(commands[j].name, commands[i].name, (size_t)(space - commands[i].name) + 1) != 0;
        if (!first)
            continue;
        fprintf(out, "    *\" %.*s \"*) words=\"", (int)(space - commands[i].name), commands[i].name);
        for (int j = i; j < command_count; j++)
            if (strncmp(commands[j].name, commands[i].name, (size_t)(space - commands[i].name) + 1) == 0)
                fprintf(out, "%s ", strchr(commands[j].name, ' ') + 1);
        fprintf(out, "\" ;;\n");
    }
    fprintf(out, "    *) words+=\"");
    for (int i = 0; i < command_count; i++)
        if (commands[i].run)
            fprintf(out, " %.*s", (int)strcspn(commands[i].name, " "), commands[i].name);
    fprintf(
        out,
        "\" ;;\n    esac\n"
        "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\"; compgen -f -- \"$current\")\n"
        "}\n"
        "complete -o filenames -F _trainctl trainctl\n");
}
