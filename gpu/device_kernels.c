/*
 * device_kernels.c - the built-in kernels on the device, chunk by chunk, in place; and staging of private chunks.
 *
 * Each run has a thread and a command queue of its own, so that copies go on beside it. A few work items share a chunk, each
 * with a partial result of its own: in blocks on CPUs, interleaved (STRIDED) elsewhere, as their memories like it.
 */
#include "gpu/device_server.h"

#include "gpu/fdpass.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { HISTOGRAM_BYTES = 256 };

static const char source[] =
	"#ifdef STRIDED\n"
	"#define EACH(i, len) for (ulong i = get_global_id(0); i < (len); i += get_global_size(0))\n"
	"#else\n"
	"#define PER(len) (((len) + get_global_size(0) - 1) / get_global_size(0))\n"
	"#define EACH(i, len) for (ulong i = get_global_id(0) * PER(len), to = min(i + PER(len), (ulong)(len)); i < to; i++)\n"
	"#endif\n"
	"__kernel void sum(__global const uchar *d, ulong off, ulong len, __global ulong *partial)\n"
	"{ ulong s = 0; d += off; EACH(i, len) s += d[i]; partial[get_global_id(0)] += s; }\n"
	"__kernel void histogram(__global const uchar *d, ulong off, ulong len, __global ulong *partial)\n"
	"{ __global ulong *t = partial + get_global_id(0) * 256; d += off; EACH(i, len) t[d[i]]++; }\n"
	"__kernel void count(__global const uchar *d, ulong off, ulong len, __global ulong *partial,\n"
	"                    __global const uchar *next, ulong next_len, __global const uchar *pattern, uint n)\n"
	"{ ulong c = 0; d += off;\n"
	"  EACH(i, len) {\n"
	"    uint k = 0;\n"
	"    if (i + n > len + next_len) continue;\n"
	"    while (k < n && (i + k < len ? d[i + k] : next[i + k - len]) == pattern[k]) k++;\n"
	"    c += k == n; }\n"
	"  partial[get_global_id(0)] += c; }\n"
	"__kernel void xor_byte(__global uchar *d, ulong off, ulong len, uchar b)\n"
	"{ d += off; EACH(i, len) d[i] ^= b; }\n"
	"__kernel void fill_byte(__global uchar *d, ulong off, ulong len, uchar b)\n"
	"{ d += off; EACH(i, len) d[i] = b; }\n";

static const char *const names[] = {"sum", "histogram", "count", "xor_byte", "fill_byte"};

struct device_run {
	struct device_server *server;
	struct device_request request;
	int fds[2];
	struct device_chunk **chunks;
	cl_command_queue queue;
	cl_kernel kernel;
	cl_mem partial, pattern;
	size_t items;
};

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static cl_program program_of(struct device_server *server)
{
	const char *text = source;
	const char *options = opencl_uses_host_memory(&server->choice) ? "" : "-DSTRIDED";
	cl_program program;

	pthread_mutex_lock(&server->program_mutex);
	if (server->program == NULL) {
		program = clCreateProgramWithSource(server->context, 1, &text, NULL, NULL);
		if (program != NULL && clBuildProgram(program, 1, &server->choice.device, options, NULL, NULL) == CL_SUCCESS)
			server->program = program;
	}
	program = server->program;
	pthread_mutex_unlock(&server->program_mutex);
	return program;
}

static size_t partial_bytes(const struct device_run *run)
{
	return run->items * sizeof(cl_ulong) * (run->request.kernel == GPU_KERNEL_HISTOGRAM ? HISTOGRAM_BYTES : 1);
}

static int prepare(struct device_run *run)
{
	struct device_server *server = run->server;
	cl_program program = program_of(server);
	const cl_uchar nothing = 0;
	cl_uint units = 1;
	cl_int error;

	if (program == NULL || run->request.kernel >= sizeof(names) / sizeof(names[0]))
		return -EINVAL;
	clGetDeviceInfo(server->choice.device, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(units), &units, NULL);
	run->items = (size_t)units * (opencl_uses_host_memory(&server->choice) ? 1 : 256);
	run->kernel = clCreateKernel(program, names[run->request.kernel], &error);
	if (error == CL_SUCCESS)
		run->partial = clCreateBuffer(server->context, CL_MEM_READ_WRITE, partial_bytes(run), NULL, &error);
	if (error == CL_SUCCESS)
		error = clEnqueueFillBuffer(run->queue, run->partial, &nothing, 1, 0, partial_bytes(run), 0, NULL, NULL);
	if (error == CL_SUCCESS && run->request.kernel == GPU_KERNEL_COUNT)
		run->pattern = clCreateBuffer(server->context, CL_MEM_READ_ONLY | CL_MEM_COPY_HOST_PTR, run->request.pattern_bytes,
					      run->request.pattern, &error);
	return opencl_errno(error);
}

static cl_int set_arguments(struct device_run *run, cl_mem data, cl_ulong off, cl_ulong len, cl_mem next, cl_ulong next_len)
{
	cl_int error = clSetKernelArg(run->kernel, 0, sizeof(cl_mem), &data);
	cl_uchar byte = (cl_uchar)run->request.byte;
	cl_uint pattern_bytes = run->request.pattern_bytes;

	error |= clSetKernelArg(run->kernel, 1, sizeof(off), &off);
	error |= clSetKernelArg(run->kernel, 2, sizeof(len), &len);
	if (run->request.kernel == GPU_KERNEL_XOR || run->request.kernel == GPU_KERNEL_FILL)
		return error | clSetKernelArg(run->kernel, 3, sizeof(byte), &byte);
	error |= clSetKernelArg(run->kernel, 3, sizeof(cl_mem), &run->partial);
	if (run->request.kernel != GPU_KERNEL_COUNT)
		return error;
	error |= clSetKernelArg(run->kernel, 4, sizeof(cl_mem), &next);
	error |= clSetKernelArg(run->kernel, 5, sizeof(next_len), &next_len);
	error |= clSetKernelArg(run->kernel, 6, sizeof(cl_mem), &run->pattern);
	return error | clSetKernelArg(run->kernel, 7, sizeof(pattern_bytes), &pattern_bytes);
}

/* Launches on each chunk's part of the range; the queue is in order, so that partial results add up. */
static int launch_all(struct device_run *run)
{
	size_t chunk_bytes = run->server->setup.chunk_bytes;
	uint64_t left = run->request.len;
	size_t off = run->request.chunk_off;

	for (size_t i = 0; i < run->request.n_chunks; i++) {
		uint64_t len = left < chunk_bytes - off ? left : chunk_bytes - off;
		uint64_t after = left - len;
		bool has_next = i + 1 < run->request.n_chunks;
		cl_mem next = has_next ? run->chunks[i + 1]->mem : run->chunks[i]->mem;
		cl_int error = set_arguments(run, run->chunks[i]->mem, off, len, next, has_next ? after : 0);

		if (error == CL_SUCCESS)
			error = clEnqueueNDRangeKernel(run->queue, run->kernel, 1, NULL, &run->items, NULL, 0, NULL, NULL);
		if (error == CL_SUCCESS)
			error = clFinish(run->queue);
		if (error != CL_SUCCESS)
			return opencl_errno(error);
		left -= len;
		off = 0;
	}
	return 0;
}

static int collect(struct device_run *run, struct device_reply *reply)
{
	size_t width = run->request.kernel == GPU_KERNEL_HISTOGRAM ? HISTOGRAM_BYTES : 1;
	uint64_t total[HISTOGRAM_BYTES] = {0};
	cl_ulong *partial;

	if (run->request.kernel == GPU_KERNEL_XOR || run->request.kernel == GPU_KERNEL_FILL)
		return 0;
	partial = malloc(partial_bytes(run));
	if (partial == NULL)
		return -ENOMEM;
	if (clEnqueueReadBuffer(run->queue, run->partial, CL_TRUE, 0, partial_bytes(run), partial, 0, NULL, NULL) != CL_SUCCESS) {
		free(partial);
		return -EIO;
	}
	for (size_t item = 0; item < run->items; item++) {
		for (size_t k = 0; k < width; k++)
			total[k] += partial[item * width + k];
	}
	free(partial);
	reply->result_bytes = (uint32_t)(width * sizeof(uint64_t));
	memcpy(reply->result, total, reply->result_bytes);
	return 0;
}

static int compute(struct device_run *run, struct device_reply *reply)
{
	uint64_t start;
	int err = prepare(run);

	start = clock_ns();
	if (err == 0)
		err = launch_all(run);
	reply->kernel_ns = clock_ns() - start;
	return err < 0 ? err : collect(run, reply);
}

static int stage(struct device_run *run)
{
	size_t chunk_bytes = run->server->setup.chunk_bytes, bytes = run->request.n_chunks * chunk_bytes;
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, run->fds[1], 0);
	cl_int error = CL_SUCCESS;

	if (memory == MAP_FAILED)
		return -ENOMEM;
	for (size_t i = 0; i < run->request.n_chunks && error == CL_SUCCESS; i++) {
		if (run->request.kind == DEVICE_STAGE_OUT)
			error = clEnqueueReadBuffer(run->queue, run->chunks[i]->mem, CL_TRUE, 0, chunk_bytes, memory + i * chunk_bytes, 0, NULL, NULL);
		else
			error = clEnqueueWriteBuffer(run->queue, run->chunks[i]->mem, CL_TRUE, 0, chunk_bytes, memory + i * chunk_bytes, 0, NULL, NULL);
	}
	munmap(memory, bytes);
	return opencl_errno(error);
}

static int use_chunks(struct device_run *run)
{
	size_t n = run->request.n_chunks;

	run->chunks = calloc(n == 0 ? 1 : n, sizeof(struct device_chunk *));
	if (run->chunks == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		uint64_t id;

		if (pread(run->fds[0], &id, sizeof(id), (off_t)(i * sizeof(id))) != sizeof(id))
			return -EPROTO;
		run->chunks[i] = device_chunk_use(run->server, id);
		if (run->chunks[i] == NULL)
			return -ENOMEM;
	}
	return 0;
}

static void *run_main(void *argument)
{
	struct device_run *run = argument;
	struct device_reply reply = {.cookie = run->request.cookie};
	cl_int error;
	int err = use_chunks(run);

	run->queue = clCreateCommandQueue(run->server->context, run->server->choice.device, 0, &error);
	if (err == 0)
		err = opencl_errno(error);
	if (err == 0)
		err = run->request.kind == DEVICE_RUN ? compute(run, &reply) : stage(run);
	for (size_t i = 0; run->chunks != NULL && i < run->request.n_chunks && run->chunks[i] != NULL; i++)
		device_chunk_unuse(run->server, run->chunks[i]);
	if (run->kernel != NULL)
		clReleaseKernel(run->kernel);
	if (run->partial != NULL)
		clReleaseMemObject(run->partial);
	if (run->pattern != NULL)
		clReleaseMemObject(run->pattern);
	if (run->queue != NULL)
		clReleaseCommandQueue(run->queue);
	for (int i = 0; i < 2; i++) {
		if (run->fds[i] >= 0)
			close(run->fds[i]);
	}
	reply.status = err;
	fdpass_send(DEVICE_SOCKET, &reply, sizeof(reply), NULL, 0, 0);
	free(run->chunks);
	free(run);
	return NULL;
}

void device_run_start(struct device_server *server, const struct device_request *request, const int *fds, size_t n_fds)
{
	struct device_run *run = calloc(1, sizeof(*run));
	pthread_attr_t attributes;
	pthread_t thread;

	if (run == NULL)
		_exit(1);
	*run = (struct device_run){.server = server, .request = *request, .fds = {n_fds > 0 ? fds[0] : -1, n_fds > 1 ? fds[1] : -1}};
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attributes, run_main, run) != 0)
		_exit(1);
	pthread_attr_destroy(&attributes);
}
