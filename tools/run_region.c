/*
 * run_region.c - one kernel on one region.
 *
 * A device that runs kernels is asked to. On one that does not (host) the region is mapped here: a built-in runs in this
 * process, a user's own in a child, which a time limit, a crash or Ctrl-C ends without harm to anything else.
 */
#include "tools/run.h"

#include "gpu/gpu.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static int run_on_device(struct hmmfs_session *session, const struct run_arguments *arguments, uint64_t off, uint64_t len,
			 struct run_outcome *outcome)
{
	struct hmmfs_run run = {.kernel = arguments->kernel,
				.writes = run_writes(arguments),
				.byte = arguments->byte,
				.pattern = (const uint8_t *)arguments->pattern,
				.pattern_bytes = arguments->pattern == NULL ? 0 : strlen(arguments->pattern),
				.source = arguments->source,
				.entry = arguments->entry,
				.args = arguments->args,
				.n_args = arguments->n_args,
				.items = arguments->items,
				.timeout_ms = arguments->timeout_ms};
	int err = hmmfs_run(session, (off_t)off, len, &run);

	*outcome = (struct run_outcome){run.times, run.kernel_ns, run.release_ns, len, run.result, run.result_bytes, run.log};
	return err;
}

/* ---- here ---- */

/* A child's answer, in memory shared with it. */
struct child_answer {
	int status;
	uint64_t kernel_ns;
	size_t result_bytes, log_bytes;
	char bytes[]; /* the result, then the log */
};
enum { LOG_MAX = 64 << 10 };

static size_t out_bytes(const struct run_arguments *arguments)
{
	size_t n = 0;

	for (size_t i = 0; i < arguments->n_args; i++)
		n += arguments->args[i].is_out ? arguments->args[i].out_bytes : 0;
	return n;
}

static void run_in_child(struct gpu_run *run, uint8_t *data, struct child_answer *answer)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	answer->status = gpu_run_source_on_cpu(run, data);
	answer->kernel_ns = run->kernel_ns;
	if (run->result != NULL) {
		answer->result_bytes = run->result_bytes;
		memcpy(answer->bytes, run->result, run->result_bytes);
	}
	if (run->log != NULL) {
		answer->log_bytes = strnlen(run->log, LOG_MAX);
		memcpy(answer->bytes + answer->result_bytes, run->log, answer->log_bytes);
	}
	_exit(0);
}

/* True: the child ended by itself in time. */
static bool wait_for_child(pid_t child, unsigned timeout_ms, int *wait_status)
{
	struct pollfd polled = {.fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN};
	bool is_in_time = polled.fd < 0 || poll(&polled, 1, timeout_ms == 0 ? -1 : (int)timeout_ms) > 0;

	if (!is_in_time)
		kill(child, SIGKILL);
	while (waitpid(child, wait_status, 0) < 0 && errno == EINTR)
		;
	if (polled.fd >= 0)
		close(polled.fd);
	return is_in_time;
}

static int take_answer(const struct child_answer *answer, struct gpu_run *run)
{
	run->kernel_ns = answer->kernel_ns;
	run->result_bytes = answer->result_bytes;
	if (answer->result_bytes > 0) {
		run->result = malloc(answer->result_bytes);
		if (run->result == NULL)
			return -ENOMEM;
		memcpy(run->result, answer->bytes, answer->result_bytes);
	}
	if (answer->log_bytes > 0)
		run->log = strndup(answer->bytes + answer->result_bytes, answer->log_bytes);
	return answer->status;
}

static int run_source_here(struct gpu_run *run, const struct run_arguments *arguments, uint8_t *data)
{
	size_t bytes = sizeof(struct child_answer) + out_bytes(arguments) + LOG_MAX;
	struct child_answer *answer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child;
	int wait_status = 0, err;

	if (answer == MAP_FAILED)
		return -ENOMEM;
	answer->status = -EFAULT; /* until it says otherwise: a child that ends without a word has crashed */
	fflush(NULL);
	child = fork();
	if (child == 0)
		run_in_child(run, data, answer);
	if (child < 0)
		err = -errno;
	else if (!wait_for_child(child, run->timeout_ms, &wait_status))
		err = -ETIMEDOUT;
	else if (WIFSIGNALED(wait_status))
		err = -EFAULT;
	else
		err = take_answer(answer, run);
	if (err == -EFAULT && WIFSIGNALED(wait_status) && asprintf(&run->log, "the kernel was ended by signal %d (%s)", WTERMSIG(wait_status),
				       strsignal(WTERMSIG(wait_status))) < 0)
		run->log = NULL;
	munmap(answer, bytes);
	return err;
}

static int compute_here(struct hmmfs_region *region, const struct run_arguments *arguments, uint64_t len,
			struct run_outcome *outcome)
{
	struct gpu_arg args[16];
	struct gpu_run run = {.range.len = len,
			      .kind = (enum gpu_kernel_kind)arguments->kernel,
			      .writes = run_writes(arguments),
			      .byte = arguments->byte,
			      .pattern = (const uint8_t *)arguments->pattern,
			      .pattern_bytes = arguments->pattern == NULL ? 0 : strlen(arguments->pattern),
			      .source = arguments->source,
			      .entry = arguments->entry,
			      .args = args,
			      .n_args = arguments->n_args,
			      .items = arguments->items,
			      .timeout_ms = arguments->timeout_ms};
	uint8_t *data = hmmfs_data(region);
	int err;

	if (data == NULL)
		return -EOPNOTSUPP;
	for (size_t i = 0; i < arguments->n_args; i++) {
		args[i] = (struct gpu_arg){.kind = arguments->args[i].is_out ? GPU_ARG_OUT : GPU_ARG_SCALAR,
					   .bytes = arguments->args[i].bytes, .out_bytes = arguments->args[i].out_bytes};
		memcpy(args[i].scalar, arguments->args[i].scalar, sizeof(args[i].scalar));
	}
	err = arguments->kernel == HMMFS_SOURCE ? run_source_here(&run, arguments, data) : gpu_run_builtin_on_cpu(&run, data);
	outcome->kernel_ns = run.kernel_ns;
	outcome->result = run.result;
	outcome->result_bytes = run.result == NULL ? 0 : run.result_bytes;
	outcome->log = run.log;
	return err;
}

static int run_here(struct hmmfs_session *session, int fd, const struct run_arguments *arguments, uint64_t off, uint64_t len,
		    struct run_outcome *outcome)
{
	struct hmmfs_region *region;
	uint64_t start;
	int err = 0, end_err;

	*outcome = (struct run_outcome){.bytes = len};
	if (arguments->kernel == HMMFS_SOURCE)
		err = hmmfs_sync(session); /* what was dirty before a kernel of one's own is safe */
	if (err == 0)
		err = hmmfs_map_fd(fd, (off_t)off, len, &region);
	if (err < 0)
		return err;
	err = hmmfs_begin(region, run_writes(arguments) ? HMMFS_EXCLUSIVE : HMMFS_SHARED, 0);
	if (err == 0) {
		outcome->times = hmmfs_times(region);
		err = compute_here(region, arguments, len, outcome);
		start = clock_ns();
		end_err = hmmfs_end(region);
		outcome->release_ns = clock_ns() - start;
		err = err < 0 ? err : end_err;
	}
	hmmfs_unmap(region);
	return err;
}

int run_region(struct hmmfs_session *session, int fd, const struct run_arguments *arguments, uint64_t off, uint64_t len,
	       struct run_outcome *outcome)
{
	if (hmmfs_info(session)->can_run)
		return run_on_device(session, arguments, off, len, outcome);
	return run_here(session, fd, arguments, off, len, outcome);
}
