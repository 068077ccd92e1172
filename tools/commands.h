/* commands.h - the subcommands of hmmfs, and what they share. Each takes its own argv and returns the exit status. */
#ifndef HMMFS_COMMANDS_H
#define HMMFS_COMMANDS_H

#include "client/hmmfs.h"

#include <argp.h>
#include <jansson.h>

enum { EXIT_FAILED = 1, EXIT_MISUSE = 2 };

int command_mount(int argc, char **argv);
int command_umount(int argc, char **argv);
int mount_helper(int argc, char **argv);
int command_run(int argc, char **argv);
int command_exec(int argc, char **argv);
int command_status(int argc, char **argv);
int command_map(int argc, char **argv);
int command_prefetch(int argc, char **argv);
int command_evict(int argc, char **argv);
int command_sync(int argc, char **argv);
int command_devices(int argc, char **argv);

/* One line on stderr; returns EXIT_MISUSE or EXIT_FAILED. */
int misuse(const char *format, ...) __attribute__((format(printf, 1, 2)));
int fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What an errno of libhmmfs means to a user. */
const char *explain(int err);
/* Opens a file or directory and a session for it. *fd stays open and is the caller's. On failure says why and returns an
 * exit status; 0 otherwise. */
int open_session(const char *path, int flags, int *fd, struct hmmfs_session **session);
/* Parses with argp; options of all commands are checked the same way: a wrong one is one line and exit status 2. */
void parse_arguments(const struct argp *argp, int argc, char **argv, void *input);
void print_json(json_t *json);

#endif
