/*
 * run_cuda.c - one kernel on one region of a mount with device=cuda: in this process, in a CUDA context of its own, on the very
 * memory that the daemon holds.
 *
 * Built-in kernels run in this process. A user's own runs in a child, which starts CUDA itself: a context does not survive fork.
 */
#include "tools/cuda_launch.h"
#include "tools/nvrtc.h"
#include "tools/run_child.h"

#include "tools/kernels.h" /* kernels_source and kernels_ptx, made from kernels.cu */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 256, BLOCKS_PER_MULTIPROCESSOR = 8, PARAMETERS_MAX = 2 + 16 };

struct job {
	struct hmmfs_session *session;
	int fd;
	const struct run_arguments *arguments;
	uint64_t off, len;
};

/* What a launch is given, and where its results are. */
struct launch {
	CUfunction function;
	unsigned blocks;
	CUdeviceptr data, out[16], pattern;
	uint64_t len, out_bytes[16];
	size_t n_out, n_parameters;
	uint32_t pattern_bytes;
	void *parameters[PARAMETERS_MAX];
};

static const char *const names[] = {"hmmfs_sum", "hmmfs_histogram", "hmmfs_count", "hmmfs_xor", "hmmfs_fill"};

/* ---- finding the kernel ---- */

static int compile(const struct cuda_launch *cuda, const char *source, const char *entry, CUfunction *function, char **log)
{
	char *ptx, *lowered;
	int err = nvrtc_compile(source, entry, cuda->architecture, &ptx, &lowered, log);

	if (err == 0) {
		free(*log);
		*log = NULL;
		err = cuda_load(cuda, ptx, lowered, function, log);
	}
	free(ptx);
	free(lowered);
	if (err == -ENOENT)
		*log = strdup("compiling takes NVRTC (libnvrtc.so, part of the CUDA toolkit), which is not installed");
	return err;
}

/* The PTX of the build, if there is one that this driver takes; else compiled now. */
static int find_builtin(const struct cuda_launch *cuda, enum hmmfs_kernel kernel, CUfunction *function, char **log)
{
	static CUfunction found[HMMFS_SOURCE];
	int err = -ENOEXEC;

	if (found[kernel] == NULL) {
		if (kernels_ptx != NULL)
			err = cuda_load(cuda, kernels_ptx, names[kernel], &found[kernel], log);
		if (err < 0) {
			free(*log);
			*log = NULL;
			err = compile(cuda, kernels_source, names[kernel], &found[kernel], log);
		}
		if (err < 0)
			return err;
	}
	*function = found[kernel];
	return 0;
}

static int find_function(const struct cuda_launch *cuda, const struct run_arguments *arguments, CUfunction *function, char **log)
{
	if (arguments->kernel != HMMFS_SOURCE)
		return find_builtin(cuda, arguments->kernel, function, log);
	if (arguments->language == RUN_CUDA_C)
		return compile(cuda, arguments->source, arguments->entry, function, log);
	return cuda_load(cuda, arguments->source, arguments->entry, function, log);
}

/* ---- its parameters ---- */

static void add_parameter(struct launch *launch, const void *value)
{
	launch->parameters[launch->n_parameters++] = (void *)(uintptr_t)value;
}

static int add_out(const struct cuda_launch *cuda, struct launch *launch, uint64_t bytes, char **log)
{
	CUdeviceptr *address = &launch->out[launch->n_out];
	CUresult result = cuda->alloc(address, bytes);

	if (result != CUDA_SUCCESS)
		return cuda_failed(cuda, "cuMemAlloc", result, log);
	launch->out_bytes[launch->n_out++] = bytes;
	add_parameter(launch, address);
	result = cuda->set_bytes(*address, 0, bytes);
	return result == CUDA_SUCCESS ? 0 : cuda_failed(cuda, "cuMemsetD8", result, log);
}

static int add_pattern(const struct cuda_launch *cuda, struct launch *launch, const char *pattern, char **log)
{
	CUresult result;

	launch->pattern_bytes = (uint32_t)strlen(pattern);
	result = cuda->alloc(&launch->pattern, launch->pattern_bytes);
	if (result == CUDA_SUCCESS)
		result = cuda->copy_to(launch->pattern, pattern, launch->pattern_bytes);
	add_parameter(launch, &launch->pattern);
	add_parameter(launch, &launch->pattern_bytes);
	return result == CUDA_SUCCESS ? 0 : cuda_failed(cuda, "cuMemAlloc", result, log);
}

static int prepare(const struct cuda_launch *cuda, const struct run_arguments *arguments, struct launch *launch, char **log)
{
	uint64_t blocks = (uint64_t)cuda->multiprocessors * BLOCKS_PER_MULTIPROCESSOR;
	uint64_t items = arguments->items == 0 ? launch->len : arguments->items;
	int err = 0;

	if (arguments->kernel == HMMFS_SOURCE)
		blocks = (items + THREADS - 1) / THREADS;
	if (blocks == 0 || blocks > 0x7fffffff)
		return -E2BIG;
	launch->blocks = (unsigned)blocks;
	add_parameter(launch, &launch->data);
	add_parameter(launch, &launch->len);
	switch (arguments->kernel) {
	case HMMFS_COUNT:
		err = add_pattern(cuda, launch, arguments->pattern, log);
		return err < 0 ? err : add_out(cuda, launch, sizeof(uint64_t), log);
	case HMMFS_SUM: return add_out(cuda, launch, sizeof(uint64_t), log);
	case HMMFS_HISTOGRAM: return add_out(cuda, launch, 256 * sizeof(uint64_t), log);
	case HMMFS_XOR:
	case HMMFS_FILL: add_parameter(launch, &arguments->byte); return 0;
	case HMMFS_SOURCE: break;
	}
	for (size_t i = 0; i < arguments->n_args && err == 0; i++) {
		if (arguments->args[i].is_out)
			err = add_out(cuda, launch, arguments->args[i].out_bytes, log);
		else
			add_parameter(launch, arguments->args[i].scalar);
	}
	return err;
}

static int collect(const struct cuda_launch *cuda, const struct launch *launch, struct run_outcome *outcome)
{
	size_t bytes = 0;

	for (size_t i = 0; i < launch->n_out; i++)
		bytes += launch->out_bytes[i];
	if (bytes == 0)
		return 0;
	outcome->result = malloc(bytes);
	if (outcome->result == NULL)
		return -ENOMEM;
	outcome->result_bytes = bytes;
	bytes = 0;
	for (size_t i = 0; i < launch->n_out; i++) {
		CUresult result = cuda->copy_from((char *)outcome->result + bytes, launch->out[i], launch->out_bytes[i]);

		if (result != CUDA_SUCCESS)
			return cuda_failed(cuda, "cuMemcpyDtoH", result, &outcome->log);
		bytes += launch->out_bytes[i];
	}
	return 0;
}

/* ---- running ---- */

static int launch_and_wait(const struct cuda_launch *cuda, struct launch *launch, struct run_outcome *outcome)
{
	uint64_t start = clock_ns();
	CUresult result = cuda->launch(launch->function, launch->blocks, 1, 1, THREADS, 1, 1, 0, NULL, launch->parameters, NULL);
	const char *call = "cuLaunchKernel";

	if (result == CUDA_SUCCESS) {
		call = "the kernel crashed";
		result = cuda->synchronize();
	}
	outcome->kernel_ns = clock_ns() - start;
	if (result == CUDA_SUCCESS)
		return 0;
	cuda_failed(cuda, call, result, &outcome->log);
	return -EFAULT;
}

struct computation {
	const struct cuda_launch *cuda;
	const struct job *job;
	CUfunction function;
};

static int compute(const void *user, struct hmmfs_region *region, struct run_outcome *outcome)
{
	const struct computation *computation = user;
	const struct cuda_launch *cuda = computation->cuda;
	struct launch launch = {.function = computation->function, .data = hmmfs_device_pointer(region),
				.len = computation->job->len};
	int err = prepare(cuda, computation->job->arguments, &launch, &outcome->log);

	if (err == 0)
		err = launch_and_wait(cuda, &launch, outcome);
	if (err == 0)
		err = collect(cuda, &launch, outcome);
	for (size_t i = 0; i < launch.n_out; i++)
		cuda->free(launch.out[i]);
	if (launch.pattern != 0)
		cuda->free(launch.pattern);
	return err;
}

static int work(const void *argument, struct run_outcome *outcome)
{
	const struct job *job = argument;
	struct computation computation = {.job = job};
	int err = cuda_start(hmmfs_info(job->session), &computation.cuda, &outcome->log);

	outcome->bytes = job->len;
	if (err == 0)
		err = find_function(computation.cuda, job->arguments, &computation.function, &outcome->log);
	if (err == 0)
		err = run_leased(job->fd, job->arguments, job->off, job->len, compute, &computation, outcome);
	return err;
}

int run_on_cuda(struct hmmfs_session *session, int fd, const struct run_arguments *arguments, uint64_t off, uint64_t len,
		struct run_outcome *outcome)
{
	struct job job = {session, fd, arguments, off, len};
	int err;

	*outcome = (struct run_outcome){.bytes = len};
	if (arguments->kernel != HMMFS_SOURCE)
		return work(&job, outcome);
	err = hmmfs_sync(session); /* what was dirty before a kernel of one's own is safe */
	if (err < 0)
		return err;
	return run_child(work, &job, run_out_bytes(arguments), arguments->timeout_ms, outcome);
}
