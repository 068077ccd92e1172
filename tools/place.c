/* place.c - hmmfs prefetch, evict, sync: moving what is asked for. */
#include "tools/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

struct place_arguments {
	char **paths;
	size_t n;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct place_arguments *arguments = state->input;

	(void)arg;
	switch (key) {
	case ARGP_KEY_ARGS:
		arguments->paths = state->argv + state->next;
		arguments->n = (size_t)(state->argc - state->next);
		state->next = state->argc;
		return 0;
	case ARGP_KEY_NO_ARGS: argp_error(state, "name at least one"); return 0;
	default: return ARGP_ERR_UNKNOWN;
	}
}

static int move(const char *path, const char *word,
		int (*how)(struct hmmfs_session *session, off_t off, off_t len, uint64_t *moved))
{
	struct hmmfs_session *session;
	uint64_t moved = 0;
	int fd, err;
	int status = open_session(path, O_RDONLY, &fd, &session);

	if (status != 0)
		return status;
	err = how(session, 0, INT64_MAX, &moved);
	if (err < 0)
		status = fail("%s: %s", path, err == -EINVAL ? "not a regular file" : explain(err));
	else
		printf("%s: %llu bytes %s%s\n", path, (unsigned long long)moved, word,
		       moved == 0 && how == hmmfs_prefetch ? " (nothing of it is kept there: empty, smaller than migrate_min, or open in passthrough)" : "");
	hmmfs_close(session);
	close(fd);
	return status;
}

static int move_all(int argc, char **argv, const struct argp *argp, const char *word,
		    int (*how)(struct hmmfs_session *session, off_t off, off_t len, uint64_t *moved))
{
	struct place_arguments arguments = {0};
	int worst = 0;

	parse_arguments(argp, argc, argv, &arguments);
	for (size_t i = 0; i < arguments.n; i++) {
		int status = move(arguments.paths[i], word, how);

		worst = status > worst ? status : worst;
	}
	return worst;
}

int command_prefetch(int argc, char **argv)
{
	static const struct argp argp = {NULL, parse, "FILE...", "Load files into device memory, as much as fits.", NULL, NULL, NULL};

	return move_all(argc, argv, &argp, "in device memory", hmmfs_prefetch);
}

int command_evict(int argc, char **argv)
{
	static const struct argp argp = {NULL, parse, "FILE...", "Write files back and free their device memory.", NULL, NULL, NULL};

	return move_all(argc, argv, &argp, "freed", hmmfs_evict);
}

int command_sync(int argc, char **argv)
{
	static const struct argp argp = {
		NULL, parse, "MOUNTPOINT|FILE...", "Write files, or all files of a mount, back to the disk, and wait for it.", NULL, NULL, NULL};
	struct place_arguments arguments = {0};
	int worst = 0;

	parse_arguments(&argp, argc, argv, &arguments);
	for (size_t i = 0; i < arguments.n; i++) {
		struct hmmfs_session *session;
		int fd, err;
		int status = open_session(arguments.paths[i], O_RDONLY, &fd, &session);

		if (status == 0) {
			err = hmmfs_sync(session);
			if (err < 0)
				status = fail("%s: %s", arguments.paths[i], explain(err));
			hmmfs_close(session);
			close(fd);
		}
		worst = status > worst ? status : worst;
	}
	return worst;
}
