/*
 * hmmfs_device.c - the program that OpenCL lives in: the device process (--serve), the run process (--run) and the list of
 * devices (--list). Speaks on descriptor 3 to the daemon that started it (device_wire.h), and ends when that does.
 */
#include "gpu/device_server.h"
#include "gpu/device_wire.h"
#include "gpu/fdpass.h"
#include "gpu/opencl_device.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

/* ---- --list ---- */

static void send_choice(void *user, const struct opencl_choice *choice)
{
	struct device_setup_reply reply = {.is_shared = opencl_uses_host_memory(choice), .memory_bytes = choice->memory_bytes};

	(void)user;
	memcpy(reply.name, choice->name, sizeof(reply.name));
	memcpy(reply.spec, choice->spec, sizeof(reply.spec));
	fdpass_send(DEVICE_SOCKET, &reply, sizeof(reply), NULL, 0, 0);
}

/* ---- --run ---- */

/* A kernel may loop for ever: the process must end with its daemon all the same. */
static void *end_with_daemon(void *argument)
{
	struct pollfd polled = {.fd = DEVICE_SOCKET, .events = POLLRDHUP};

	(void)argument;
	while (poll(&polled, 1, -1) < 0)
		;
	_exit(1);
}

static uint8_t *map_chunks(const struct run_job *job)
{
	size_t bytes = job->n_chunks * job->chunk_bytes;
	uint8_t *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int fds[DEVICE_FDS_MAX];

	for (size_t done = 0; base != MAP_FAILED && done < job->n_chunks;) {
		size_t n = DEVICE_FDS_MAX;
		char byte;

		if (fdpass_receive(DEVICE_SOCKET, &byte, 1, fds, &n) != 1 || n == 0)
			return NULL;
		for (size_t i = 0; i < n; i++, done++) {
			if (mmap(base + done * job->chunk_bytes, job->chunk_bytes, PROT_READ | (job->writes ? PROT_WRITE : 0),
				 MAP_SHARED | MAP_FIXED, fds[i], 0) == MAP_FAILED)
				return NULL;
			close(fds[i]);
		}
	}
	return base == MAP_FAILED ? NULL : base;
}

static void send_result(const struct gpu_run *run, int status, int result_fd)
{
	struct run_reply reply = {.status = status, .kernel_ns = run->kernel_ns};
	size_t log_bytes = run->log == NULL ? 0 : strnlen(run->log, RUN_LOG_MAX);
	size_t out_bytes = 0;

	for (size_t i = 0; i < run->n_args; i++)
		out_bytes += run->args[i].kind == GPU_ARG_OUT ? run->args[i].out_bytes : 0;
	if (status == 0 && run->result != NULL && pwrite(result_fd, run->result, run->result_bytes, 0) != (ssize_t)run->result_bytes)
		reply.status = -ENOSPC;
	if (log_bytes > 0 && pwrite(result_fd, run->log, log_bytes, (off_t)out_bytes) == (ssize_t)log_bytes)
		reply.log_bytes = log_bytes;
	fdpass_send(DEVICE_SOCKET, &reply, sizeof(reply), NULL, 0, 0);
}

static int run_job(void)
{
	struct run_job job;
	struct opencl_choice choice;
	struct gpu_run run;
	char error[256], *source;
	int fds[2];
	size_t n_fds = 2;
	uint8_t *base;
	pthread_t watcher;
	int status;

	if (fdpass_receive(DEVICE_SOCKET, &job, sizeof(job), fds, &n_fds) != sizeof(job) || n_fds != 2)
		return 1;
	base = map_chunks(&job);
	source = calloc(1, job.source_bytes + 1);
	if (base == NULL || source == NULL || pread(fds[0], source, job.source_bytes, 0) != (ssize_t)job.source_bytes ||
	    pthread_create(&watcher, NULL, end_with_daemon, NULL) != 0)
		return 1;
	run = (struct gpu_run){.range = {.len = job.len}, .kind = GPU_KERNEL_SOURCE, .writes = job.writes, .source = source,
			       .entry = job.entry, .args = job.args, .n_args = job.n_args, .items = job.items};
	status = opencl_choose(job.spec, &choice, error);
	if (status == 0)
		status = opencl_run_source(&choice, job.is_shared, &run, base + job.offset);
	send_result(&run, status, fds[1]);
	return 0;
}

int main(int argc, char **argv)
{
	struct rlimit no_core = {0, 0};
	const char *mode = argc == 2 ? argv[1] : "";

	setenv("PATH", "/usr/local/bin:/usr/bin:/bin", 0); /* PoCL runs a linker; mount(8) starts us without */
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	setrlimit(RLIMIT_CORE, &no_core);
	close_range(DEVICE_SOCKET + 1, ~0U, 0);
	if (strcmp(mode, "--list") == 0) {
		opencl_each(send_choice, NULL);
		return 0;
	}
	if (strcmp(mode, "--run") == 0)
		_exit(run_job()); /* a driver's exit handlers may hang after a kernel went wrong */
	if (strcmp(mode, "--serve") == 0)
		_exit(device_serve());
	fputs("hmmfs-device: started by hmmfs mount, not by hand\n", stderr);
	return 2;
}
