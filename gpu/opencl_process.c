/*
 * opencl_process.c - hmmfs-device, from the daemon's side.
 *
 * The program is looked for in HMMFS_DEVICE_PROGRAM, beside the daemon's own binary, in the build tree, and where it was
 * installed.
 */
#include "gpu/opencl_process.h"

#include "gpu/backends.h"
#include "gpu/device_wire.h"
#include "gpu/fdpass.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static const char *find_program(char *buffer, size_t size)
{
	static const char *const places[] = {"hmmfs-device", "../gpu/hmmfs-device", "../libexec/hmmfs/hmmfs-device"};
	const char *named = getenv("HMMFS_DEVICE_PROGRAM");
	char self[3072], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (named != NULL)
		return named;
	self[n < 0 ? 0 : n] = '\0';
	slash = strrchr(self, '/');
	for (size_t i = 0; slash != NULL && i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(buffer, size, "%.*s/%s", (int)(slash - self), self, places[i]);
		if (access(buffer, X_OK) == 0)
			return buffer;
	}
	return HMMFS_LIBEXECDIR "/hmmfs-device";
}

pid_t opencl_process_start(const char *mode, bool is_background, int *socket)
{
	char path[4096];
	const char *program = find_program(path, sizeof(path));
	char *const argv[] = {(char *)"hmmfs-device", (char *)(uintptr_t)mode, NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none, pipe_set;
	int sockets[2], err;
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
		return -errno;
	sigemptyset(&none);
	sigemptyset(&pipe_set);
	sigaddset(&pipe_set, SIGPIPE);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, sockets[1], DEVICE_SOCKET); /* the rest is close-on-exec */
	for (int fd = STDIN_FILENO; is_background && fd <= STDERR_FILENO; fd++)
		posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &pipe_set);
	posix_spawnattr_setpgroup(&attributes, 0); /* a terminal's Ctrl-C is the daemon's to handle */
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
	err = posix_spawn(&pid, program, &actions, &attributes, argv, environ);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	close(sockets[1]);
	if (err != 0) {
		close(sockets[0]);
		return -err;
	}
	*socket = sockets[0];
	return pid;
}

int opencl_process_end(pid_t pid, int socket)
{
	int status = 0;

	close(socket);
	kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

/* ---- one run ---- */

static int write_source(const struct gpu_run *run)
{
	size_t bytes = strlen(run->source);
	int fd = memfd_create("hmmfs-source", MFD_CLOEXEC);

	if (fd >= 0 && pwrite(fd, run->source, bytes, 0) != (ssize_t)bytes) {
		close(fd);
		return -ENOSPC;
	}
	return fd < 0 ? -errno : fd;
}

static int send_job(const struct gpu_run *run, const char *spec, bool is_shared, size_t chunk_bytes, const int *memfds, size_t n,
		    int socket, int result_fd)
{
	struct run_job job = {.chunk_bytes = chunk_bytes, .n_chunks = n, .offset = run->range.offset, .len = run->range.len,
			      .source_bytes = strlen(run->source), .items = run->items, .n_args = (uint32_t)run->n_args,
			      .writes = run->writes, .is_shared = is_shared};
	int fds[2] = {write_source(run), result_fd};
	int err = fds[0] < 0 ? fds[0] : 0;

	snprintf(job.spec, sizeof(job.spec), "%s", spec);
	snprintf(job.entry, sizeof(job.entry), "%s", run->entry);
	if (run->n_args > 0)
		memcpy(job.args, run->args, run->n_args * sizeof(run->args[0]));
	if (err == 0) {
		err = fdpass_send(socket, &job, sizeof(job), fds, 2, 0);
		close(fds[0]);
	}
	for (size_t i = 0; i < n && err == 0; i += DEVICE_FDS_MAX)
		err = fdpass_send(socket, "", 1, memfds + i, n - i < DEVICE_FDS_MAX ? n - i : DEVICE_FDS_MAX, 0);
	return err;
}

static int take_result(struct gpu_run *run, const struct run_reply *reply, int result_fd)
{
	size_t bytes = 0;

	run->kernel_ns = reply->kernel_ns;
	for (size_t i = 0; i < run->n_args; i++)
		bytes += run->args[i].kind == GPU_ARG_OUT ? run->args[i].out_bytes : 0;
	if (reply->status == 0 && bytes > 0) {
		run->result = malloc(bytes);
		if (run->result == NULL || pread(result_fd, run->result, bytes, 0) != (ssize_t)bytes)
			return -EIO;
		run->result_bytes = bytes;
	}
	if (reply->log_bytes > 0 && reply->log_bytes <= RUN_LOG_MAX) {
		run->log = calloc(1, reply->log_bytes + 1);
		if (run->log == NULL || pread(result_fd, run->log, reply->log_bytes, (off_t)bytes) != (ssize_t)reply->log_bytes)
			return -EIO;
	}
	return reply->status;
}

/* 0: the process answered or ended; else why it is to be killed. */
static int wait_for_answer(int socket, unsigned timeout_ms, int cancel_fd)
{
	struct pollfd polled[2] = {{.fd = socket, .events = POLLIN}, {.fd = cancel_fd, .events = POLLIN}};
	int n;

	do
		n = poll(polled, 2, timeout_ms == 0 ? -1 : (int)timeout_ms);
	while (n < 0 && errno == EINTR);
	if (n == 0)
		return -ETIMEDOUT;
	return polled[0].revents == 0 ? -ECANCELED : 0;
}

static int describe_end(struct gpu_run *run, int wait_status)
{
	if (WIFSIGNALED(wait_status) && asprintf(&run->log, "the kernel's process was ended by signal %d (%s)",
						 WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status))) < 0)
		run->log = NULL;
	return -EFAULT;
}

int opencl_process_run(struct gpu_run *run, const char *spec, bool is_shared, size_t chunk_bytes, const int *memfds, size_t n,
		       int cancel_fd)
{
	struct run_reply reply;
	size_t n_fds = 0;
	int result_fd = memfd_create("hmmfs-result", MFD_CLOEXEC);
	int socket, err, status;
	bool has_answered = false;
	pid_t pid;

	if (result_fd < 0)
		return -errno;
	pid = opencl_process_start("--run", false, &socket);
	if (pid < 0) {
		close(result_fd);
		return (int)pid;
	}
	err = send_job(run, spec, is_shared, chunk_bytes, memfds, n, socket, result_fd);
	if (err == 0)
		err = wait_for_answer(socket, run->timeout_ms, cancel_fd);
	if (err == 0) {
		has_answered = fdpass_receive(socket, &reply, sizeof(reply), NULL, &n_fds) == sizeof(reply);
		if (has_answered)
			err = take_result(run, &reply, result_fd);
	}
	if (err == 0 && !has_answered) { /* it is ending by itself: its own signal is told, not ours */
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		close(socket);
		err = describe_end(run, status);
	} else {
		opencl_process_end(pid, socket);
	}
	close(result_fd);
	return err;
}

/* ---- the list ---- */

int opencl_list(void (*each)(void *user, const struct gpu_info *info, const char *spec), void *user)
{
	int socket;
	pid_t pid = opencl_process_start("--list", false, &socket);
	struct device_setup_reply reply;
	size_t n_fds = 0;

	if (pid < 0)
		return (int)pid;
	while (fdpass_receive(socket, &reply, sizeof(reply), NULL, &n_fds) == sizeof(reply)) {
		struct gpu_info info = {.backend = "opencl", .memory_bytes = reply.memory_bytes, .granularity = 65536,
					.can_export = reply.is_shared, .can_run = true};

		memcpy(info.name, reply.name, sizeof(info.name));
		each(user, &info, reply.spec);
		n_fds = 0;
	}
	opencl_process_end(pid, socket);
	return 0;
}
