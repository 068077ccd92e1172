/* umount.c - hmmfs umount: returns when everything is on the disk and the daemon is gone, or says why the mount is still there. */
#include "tools/commands.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BUSY_TRIES = 50, BUSY_WAIT_MS = 20 };

static error_t parse(int key, char *arg, struct argp_state *state)
{
	const char **path = state->input;

	switch (key) {
	case ARGP_KEY_ARG:
		if (state->arg_num > 0)
			argp_error(state, "%s: one MOUNTPOINT, no more", arg);
		*path = arg;
		return 0;
	case ARGP_KEY_END:
		if (*path == NULL)
			argp_error(state, "MOUNTPOINT is needed");
		return 0;
	default: return ARGP_ERR_UNKNOWN;
	}
}

/* ---- who is using it ---- */

/* Without asking a filesystem: another mount may hang. */
static bool is_on(const char *link, dev_t dev)
{
	struct statx st;

	return statx(AT_FDCWD, link, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &st) == 0 &&
	       makedev(st.stx_dev_major, st.stx_dev_minor) == dev;
}

static bool has_open_file(const char *pid, dev_t dev)
{
	char path[600];
	DIR *directory;
	struct dirent *entry;
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%.16s/fd", pid);
	directory = opendir(path);
	while (directory != NULL && !found && (entry = readdir(directory)) != NULL) {
		snprintf(path, sizeof(path), "/proc/%.16s/fd/%.255s", pid, entry->d_name);
		found = is_on(path, dev);
	}
	if (directory != NULL)
		closedir(directory);
	return found;
}

static bool has_mapping(const char *pid, dev_t dev)
{
	char path[64], line[4608], wanted[32];
	FILE *maps;
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%.16s/maps", pid);
	snprintf(wanted, sizeof(wanted), " %02x:%02x ", major(dev), minor(dev));
	maps = fopen(path, "re");
	while (maps != NULL && !found && fgets(line, sizeof(line), maps) != NULL)
		found = strstr(line, wanted) != NULL;
	if (maps != NULL)
		fclose(maps);
	return found;
}

static const char *how_used(const char *pid, dev_t dev)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%.16s/cwd", pid);
	if (is_on(path, dev))
		return "works in it";
	if (has_open_file(pid, dev))
		return "has a file of it open";
	if (has_mapping(pid, dev))
		return "has a file of it mapped";
	return NULL;
}

/* Says who uses the mount. Returns how many they are. */
static unsigned name_users(dev_t dev, const char *path)
{
	DIR *processes = opendir("/proc");
	struct dirent *entry;
	unsigned n = 0;

	while (processes != NULL && (entry = readdir(processes)) != NULL) {
		char comm_path[64], command[64] = "?";
		const char *how = isdigit((unsigned char)entry->d_name[0]) ? how_used(entry->d_name, dev) : NULL;
		FILE *comm;

		if (how == NULL || atoi(entry->d_name) == getpid())
			continue;
		snprintf(comm_path, sizeof(comm_path), "/proc/%.16s/comm", entry->d_name);
		comm = fopen(comm_path, "re");
		if (comm != NULL && fgets(command, sizeof(command), comm) != NULL)
			command[strcspn(command, "\n")] = '\0';
		if (comm != NULL)
			fclose(comm);
		if (n++ == 0)
			fail("%s: in use; end these first:", path);
		fprintf(stderr, "hmmfs:   process %s (%s) %s\n", entry->d_name, command, how);
	}
	if (processes != NULL)
		closedir(processes);
	return n;
}

/* ---- unmounting ---- */

static int unmount(const char *path)
{
	char *const argv[] = {"fusermount3", "-u", "-q", (char *)(uintptr_t)path, NULL};
	extern char **environ;
	pid_t child;
	int status;

	if (umount2(path, UMOUNT_NOFOLLOW) == 0)
		return 0;
	if (errno != EPERM)
		return -errno;
	if (posix_spawnp(&child, "fusermount3", NULL, NULL, argv, environ) != 0 || waitpid(child, &status, 0) < 0)
		return -ENOENT;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

int command_umount(int argc, char **argv)
{
	static const struct argp argp = {NULL, parse, "MOUNTPOINT",
					 "Unmount, and wait until everything is on the disk. A mount in use is left alone, and its users are named; "
					 "so is one whose dirty data can't be written back.",
					 NULL, NULL, NULL};
	const char *path = NULL;
	struct hmmfs_session *session;
	struct stat st;
	int fd, err, daemon, status;
	unsigned n_users = 0;

	parse_arguments(&argp, argc, argv, &path);
	status = open_session(path, O_RDONLY | O_DIRECTORY, &fd, &session);
	if (status != 0)
		return status;
	fstat(fd, &st);
	close(fd); /* our own use of it */
	daemon = (int)syscall(SYS_pidfd_open, hmmfs_info(session)->daemon, 0);
	err = hmmfs_sync(session);
	if (err < 0) { /* what can't be written is lost with the mount (R6) */
		hmmfs_close(session);
		return fail("%s: left mounted: writing back failed: %s; free or repair the disk, or give the bytes up with fusermount3 -u",
			    path, strerror(-err));
	}
	err = unmount(path);
	/* Busy with nobody: somebody looked at a descriptor of it through /proc just now (as name_users does). */
	for (int i = 0; err == -EBUSY && (n_users = name_users(st.st_dev, path)) == 0 && i < BUSY_TRIES; i++) {
		poll(NULL, 0, BUSY_WAIT_MS);
		err = unmount(path);
	}
	if (err == -EBUSY && n_users == 0) {
		status = fail("%s: in use, by a process that can't be seen from here", path);
	} else if (err == -EBUSY) {
		status = EXIT_FAILED;
	} else if (err < 0) {
		status = fail("%s: %s", path, strerror(-err));
	} else if (daemon >= 0) {
		struct pollfd polled = {.fd = daemon, .events = POLLIN};

		while (poll(&polled, 1, -1) < 0 && errno == EINTR)
			;
	}
	hmmfs_close(session);
	return status;
}
