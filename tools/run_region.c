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

size_t run_out_bytes(const struct run_arguments *arguments)
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
	int err = run_child(run_source, &job, run_out_bytes(arguments), run->timeout_ms, &of_child);

	outcome->kernel_ns = of_child.kernel_ns;
	outcome->result = of_child.result;
	outcome->result_bytes = of_child.result_bytes;
	outcome->log = of_child.log;
	return err;
}

static int compute_here(const void *user, struct hmmfs_region *region, struct run_outcome *outcome)
{
	const struct run_arguments *arguments = user;
	struct gpu_arg args[16];
	struct gpu_run run = {.range.len = outcome->bytes,
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

int run_leased(int fd, const struct run_arguments *arguments, uint64_t off, uint64_t len, run_compute compute, const void *user,
	       struct run_outcome *outcome)
{
	struct hmmfs_region *region;
	uint64_t start;
	int err = hmmfs_map_fd(fd, (off_t)off, len, &region), end_err;

	if (err < 0)
		return err;
	err = hmmfs_begin(region, run_writes(arguments) ? HMMFS_EXCLUSIVE : HMMFS_SHARED, 0);
	if (err == 0) {
		outcome->times = hmmfs_times(region);
		err = compute(user, region, outcome);
		start = clock_ns();
		end_err = hmmfs_end(region);
		outcome->release_ns = clock_ns() - start;
		err = err < 0 ? err : end_err;
	}
	hmmfs_unmap(region);
	return err;
}

static int run_here(struct hmmfs_session *session, int fd, const struct run_arguments *arguments, uint64_t off, uint64_t len,
		    struct run_outcome *outcome)
{
	int err = 0;

	*outcome = (struct run_outcome){.bytes = len};
	if (arguments->kernel == HMMFS_SOURCE)
		err = hmmfs_sync(session); /* what was dirty before a kernel of one's own is safe */
	return err < 0 ? err : run_leased(fd, arguments, off, len, compute_here, arguments, outcome);
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
