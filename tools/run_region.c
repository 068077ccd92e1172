/*
 * run_region.c - one kernel on one region.
 *
 * A device that runs kernels is asked to. On those that do not (host; cuda: run_cuda.c) the region is mapped here: a built-in
 * runs in this process, a user's own in a child (run_child.c).
 */
#include "tools/run_child.h"

#include "gpu/gpu.h"

#include <errno.h>
#include <string.h>
#include <time.h>

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

static size_t out_bytes(const struct run_arguments *arguments)
{
	size_t n = 0;

	for (size_t i = 0; i < arguments->n_args; i++)
		n += arguments->args[i].is_out ? arguments->args[i].out_bytes : 0;
	return n;
}

struct source_job {
	struct gpu_run *run;
	uint8_t *data;
};

static void take(struct gpu_run *run, struct run_outcome *outcome)
{
	outcome->kernel_ns = run->kernel_ns;
	outcome->result = run->result;
	outcome->result_bytes = run->result == NULL ? 0 : run->result_bytes;
	outcome->log = run->log;
}

static int run_source(const void *argument, struct run_outcome *outcome)
{
	const struct source_job *job = argument;
	int err = gpu_run_source_on_cpu(job->run, job->data);

	take(job->run, outcome);
	return err;
}

static int run_source_here(struct gpu_run *run, const struct run_arguments *arguments, uint8_t *data, struct run_outcome *outcome)
{
	struct source_job job = {run, data};
	struct run_outcome of_child = {.bytes = 0};
	int err = run_child(run_source, &job, out_bytes(arguments), run->timeout_ms, &of_child);

	outcome->kernel_ns = of_child.kernel_ns;
	outcome->result = of_child.result;
	outcome->result_bytes = of_child.result_bytes;
	outcome->log = of_child.log;
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
	if (arguments->kernel == HMMFS_SOURCE)
		return run_source_here(&run, arguments, data, outcome);
	err = gpu_run_builtin_on_cpu(&run, data);
	take(&run, outcome);
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
	*outcome = (struct run_outcome){.bytes = len};
	if (arguments->kernel == HMMFS_SOURCE && (arguments->language != RUN_OPENCL_C) != hmmfs_info(session)->is_cuda)
		return -EMEDIUMTYPE;
	if (hmmfs_info(session)->is_cuda)
		return run_on_cuda(session, fd, arguments, off, len, outcome);
	if (hmmfs_info(session)->can_run)
		return run_on_device(session, arguments, off, len, outcome);
	return run_here(session, fd, arguments, off, len, outcome);
}
