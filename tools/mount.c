/* mount.c - hmmfs mount: checks its arguments, goes to the background, and returns when the mount is there. */
#include "tools/commands.h"

#include "fusefs/serve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LISTS_MAX = 64 };

struct mount_arguments {
	const char *source, *mountpoint;
	const char *lists[LISTS_MAX];
	size_t n_lists;
	bool is_foreground, is_debug;
};

static const struct argp_option options[] = {
	{NULL, 'o', "OPTIONS", 0, "mount options, separated by commas", 0},
	{"foreground", 'f', NULL, 0, "stay in the foreground, log to stderr", 0},
	{"debug", 'd', NULL, 0, "show every request (implies -f)", 0},
	{0}};

static const char doc[] =
	"Serve the directory SOURCE at MOUNTPOINT, with hot pages of its files in device memory.\v"
	"Mount options:\n"
	"  device=auto|cuda[:N]|opencl[:P.D]|host\n"
	"                                  where pages live (auto: cuda, an OpenCL GPU, an OpenCL CPU, host)\n"
	"  capacity=auto|SIZE              device memory to use (auto: half of the device's; on cuda never the last sixteenth)\n"
	"  chunk=SIZE                      unit of residency, a power of two (2M)\n"
	"  bounce=SIZE                     pinned host memory for transfers (64M)\n"
	"  cpu_access=copy|migrate|auto    a CPU read of a resident page: a copy of it, bring the chunk back, or\n"
	"                                  copy until the CPU keeps reading it (auto)\n"
	"  migrate=auto|never|always       policy of files without the attribute user.hmmfs.migrate (auto)\n"
	"  migrate_min=SIZE                smaller files are on the device for as long as they are leased, no longer, and the\n"
	"                                  kernel reads and writes them by itself (1M; 0: no such files)\n"
	"  writeback_interval=TIME         how often dirty chunks are written back (5s; 0: only when asked)\n"
	"  read_timeout=TIME               when a CPU read that a lease holds up gets a snapshot (1s; 0: never)\n"
	"  lease_timeout=TIME              when a lease that others wait for is revoked (30s; 0: never)\n"
	"  allow_kernels=owner|all         whose own kernels may run (owner)\n"
	"  transport=auto|uring|dev        how requests come: FUSE over io_uring, or /dev/fuse (auto: uring where it is on)\n"
	"  allow_other, ro                 as in fuse(8)\n"
	"Exit status: 0 mounted (with -f: unmounted), 1 failure, 2 misuse.";

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct mount_arguments *arguments = state->input;

	switch (key) {
	case 'o':
		if (arguments->n_lists == LISTS_MAX)
			argp_error(state, "-o given more than %d times", LISTS_MAX);
		arguments->lists[arguments->n_lists++] = arg;
		return 0;
	case 'f': arguments->is_foreground = true; return 0;
	case 'd': arguments->is_debug = arguments->is_foreground = true; return 0;
	case ARGP_KEY_ARG:
		if (state->arg_num == 0)
			arguments->source = arg;
		else if (state->arg_num == 1)
			arguments->mountpoint = arg;
		else
			argp_error(state, "%s: one SOURCE and one MOUNTPOINT, no more", arg);
		return 0;
	case ARGP_KEY_END:
		if (arguments->mountpoint == NULL)
			argp_error(state, "SOURCE and MOUNTPOINT are needed");
		return 0;
	default: return ARGP_ERR_UNKNOWN;
	}
}

/* The child's word to the parent: a byte that says whether the mount is ready, and a line for the user. */
struct teller {
	int fd; /* -1: in the foreground */
	bool has_failed;
};

static void to_background(void)
{
	int null = open("/dev/null", O_RDWR);

	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
		if (null > STDERR_FILENO)
			close(null);
	}
}

static void tell(void *user, bool is_ready, const char *line)
{
	struct teller *teller = user;

	teller->has_failed = !is_ready;
	if (teller->fd < 0) {
		if (!is_ready) /* otherwise the log has it, on stderr */
			fprintf(stderr, "hmmfs: %s\n", line);
		return;
	}
	dprintf(teller->fd, "%c%s", is_ready ? '+' : '-', line);
	if (is_ready)
		to_background();
	close(teller->fd);
	teller->fd = -1;
}

static int wait_for_child(int fd)
{
	char line[9216]; /* two paths, and words */
	size_t n = 0;
	ssize_t got;

	while (n < sizeof(line) - 1 && (got = read(fd, line + n, sizeof(line) - 1 - n)) > 0)
		n += (size_t)got;
	line[n] = '\0';
	if (n == 0)
		return fail("the daemon died before the mount was ready");
	if (line[0] == '-')
		return misuse("%s", line + 1);
	printf("hmmfs: %s\n", line + 1);
	return 0;
}

static int in_background(const struct fusefs_options *mount_options)
{
	struct teller teller;
	int pipe_fds[2];
	pid_t child;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return fail("pipe: %s", strerror(errno));
	child = fork();
	if (child < 0)
		return fail("fork: %s", strerror(errno));
	if (child > 0) {
		close(pipe_fds[1]);
		return wait_for_child(pipe_fds[0]);
	}
	close(pipe_fds[0]);
	setsid();
	if (chdir("/") < 0)
		return EXIT_FAILED;
	teller = (struct teller){.fd = pipe_fds[1]};
	log_open(false);
	fusefs_serve(mount_options, tell, &teller);
	_exit(0);
}

int command_mount(int argc, char **argv)
{
	static const struct argp argp = {options, parse, "SOURCE MOUNTPOINT", doc, NULL, NULL, NULL};
	struct mount_arguments arguments = {0};
	struct fusefs_options mount_options = {0};
	struct teller teller = {.fd = -1};
	char *error;
	int status = 0, err;

	parse_arguments(&argp, argc, argv, &arguments);
	if (fusefs_options_parse(&mount_options, arguments.source, arguments.mountpoint, arguments.lists, arguments.n_lists,
				 &error) < 0) {
		status = misuse("%s", error != NULL ? error : "out of memory");
		free(error);
		fusefs_options_finish(&mount_options);
		return status;
	}
	mount_options.is_foreground = arguments.is_foreground;
	mount_options.is_debug = arguments.is_debug;
	if (arguments.is_foreground) {
		log_open(true);
		err = fusefs_serve(&mount_options, tell, &teller);
		status = teller.has_failed ? EXIT_MISUSE : err < 0 ? EXIT_FAILED : 0;
	} else {
		status = in_background(&mount_options);
	}
	fusefs_options_finish(&mount_options);
	return status;
}
