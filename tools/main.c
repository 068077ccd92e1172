/* main.c - the hmmfs command: picks the subcommand. */
#include "tools/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *summary;
} commands[] = {
	{"mount", command_mount, "mount SOURCE MOUNTPOINT [-o OPTIONS] [-f]: serve a directory"},
	{"umount", command_umount, "umount MOUNTPOINT: unmount, and wait until everything is on the disk"},
	{"run", command_run, "run KERNEL FILE...: compute on files in device memory"},
	{"exec", command_exec, "exec -- PROGRAM...: run a CUDA program whose copies of mapped files come from device memory"},
	{"status", command_status, "status MOUNTPOINT [--json]: what is on the device, and counters"},
	{"map", command_map, "map FILE... [--json]: the state of each chunk of a file"},
	{"prefetch", command_prefetch, "prefetch FILE...: load files into device memory"},
	{"evict", command_evict, "evict FILE...: write files back and free their device memory"},
	{"sync", command_sync, "sync MOUNTPOINT|FILE...: write everything back to the disk"},
	{"devices", command_devices, "devices [--json]: what a mount could use"},
};

static void print_line(const char *format, va_list args) __attribute__((format(printf, 1, 0)));

static void print_line(const char *format, va_list args)
{
	fputs("hmmfs: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
}

int misuse(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print_line(format, args);
	va_end(args);
	return EXIT_MISUSE;
}

int fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print_line(format, args);
	va_end(args);
	return EXIT_FAILED;
}

const char *explain(int err)
{
	switch (-err) {
	case ENOTTY: return "not on an hmmfs mount";
	case ENOMEM: return "larger than the device's capacity, or out of memory";
	case EOPNOTSUPP: return "its policy user.hmmfs.migrate is never, or the device can't do this";
	case ENOSPC: return "no space left on the disk for what may be written; nothing was changed";
	case ECONNRESET: return "the daemon ended the session";
	case EPERM: return "only the mount's owner may run kernels of their own (mount option allow_kernels=all lets everyone)";
	case EBUSY: return "in use by others";
	case ETIMEDOUT: return "the time limit was reached";
	case EFAULT: return "the kernel crashed";
	case ENODEV: return "the device is lost";
	case ENXIO: return "no CUDA context of the mount's GPU can be had here";
	case EXDEV: return "the CUDA context is one of another GPU than the mount's";
	default: return strerror(-err);
	}
}

int open_session(const char *path, int flags, int *fd, struct hmmfs_session **session)
{
	int err;

	*fd = open(path, flags | O_CLOEXEC | O_NONBLOCK); /* a fifo is told of as what it is, not waited for */
	if (*fd < 0)
		return misuse("%s: %s", path, strerror(errno));
	err = hmmfs_open_fd(*fd, session);
	if (err < 0) {
		close(*fd);
		return err == -ENOTTY ? misuse("%s: %s; name a file below a mount point of hmmfs", path, explain(err))
				      : fail("%s: %s", path, explain(err));
	}
	return 0;
}

void parse_arguments(const struct argp *argp, int argc, char **argv, void *input)
{
	argp_err_exit_status = EXIT_MISUSE;
	argp_parse(argp, argc, argv, 0, NULL, input);
}

void print_json(json_t *json)
{
	json_dumpf(json, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(json);
}

static void print_help(FILE *to)
{
	fputs("Usage: hmmfs COMMAND ...\n\nA filesystem whose page cache lives in GPU memory.\n\n", to);
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		fprintf(to, "  %s\n", commands[i].summary);
	fputs("\nhmmfs COMMAND --help tells more.\n", to);
}

int main(int argc, char **argv)
{
	const char *called = argc > 0 ? basename(argv[0]) : "";

	if (strcmp(called, "mount.fuse.hmmfs") == 0)
		return mount_helper(argc, argv);
	if (argc < 2) {
		print_help(stderr);
		return EXIT_MISUSE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0 || strcmp(argv[1], "-h") == 0) {
		print_help(stdout);
		return 0;
	}
	if (strcmp(argv[1], "--version") == 0) {
		puts("hmmfs " HMMFS_VERSION);
		return 0;
	}
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		static char name[64];

		if (strcmp(argv[1], commands[i].name) != 0)
			continue;
		snprintf(name, sizeof(name), "hmmfs %s", commands[i].name);
		argv[1] = name; /* what argp calls the program in its messages */
		return commands[i].run(argc - 1, argv + 1);
	}
	/* mount -t fuse.hmmfs where our helper is not installed, through mount.fuse3(8): hmmfs SOURCE MOUNTPOINT -o OPTIONS */
	if (argc > 2 && argv[1][0] == '/')
		return command_mount(argc, argv);
	return misuse("%s: no such command; see hmmfs --help", argv[1]);
}
