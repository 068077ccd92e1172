/* opencl_source.c - a user's OpenCL C: compile it, run it on memory at hand. In processes made for that alone. */
#include "gpu/opencl_device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct source_run {
	struct gpu_run *run;
	cl_context context;
	cl_command_queue queue;
	cl_program program;
	cl_kernel kernel;
	cl_mem data;
	cl_mem outs[GPU_ARGS_MAX];
};

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void keep_log(struct source_run *s, cl_device_id device)
{
	size_t bytes = 0;

	clGetProgramBuildInfo(s->program, device, CL_PROGRAM_BUILD_LOG, 0, NULL, &bytes);
	s->run->log = calloc(1, bytes + 1);
	if (s->run->log != NULL)
		clGetProgramBuildInfo(s->program, device, CL_PROGRAM_BUILD_LOG, bytes, s->run->log, NULL);
}

static int compile(struct source_run *s, cl_device_id device)
{
	const char *source = s->run->source;
	cl_int error;

	s->program = clCreateProgramWithSource(s->context, 1, &source, NULL, &error);
	if (error != CL_SUCCESS)
		return opencl_errno(error);
	if (clBuildProgram(s->program, 1, &device, "", NULL, NULL) != CL_SUCCESS) {
		keep_log(s, device);
		return -ENOEXEC;
	}
	s->kernel = clCreateKernel(s->program, s->run->entry, &error);
	if (error != CL_SUCCESS) {
		if (asprintf(&s->run->log, "%s: the source has no kernel of this name", s->run->entry) < 0)
			s->run->log = NULL;
		return -ENOEXEC;
	}
	return 0;
}

static int set_arguments(struct source_run *s)
{
	cl_ulong len = s->run->range.len;
	cl_uint n_parameters = 0;
	cl_int error = clSetKernelArg(s->kernel, 0, sizeof(cl_mem), &s->data);

	clGetKernelInfo(s->kernel, CL_KERNEL_NUM_ARGS, sizeof(n_parameters), &n_parameters, NULL);
	if (n_parameters != 2 + s->run->n_args) {
		if (asprintf(&s->run->log, "%s takes %u parameters, but there are data, len and %zu --arg", s->run->entry, n_parameters,
			     s->run->n_args) < 0)
			s->run->log = NULL;
		return -ENOEXEC;
	}
	if (error == CL_SUCCESS)
		error = clSetKernelArg(s->kernel, 1, sizeof(len), &len);
	for (size_t i = 0; i < s->run->n_args && error == CL_SUCCESS; i++) {
		const struct gpu_arg *arg = &s->run->args[i];
		const cl_uchar zero = 0;

		if (arg->kind == GPU_ARG_SCALAR) {
			error = clSetKernelArg(s->kernel, (cl_uint)(2 + i), arg->bytes, arg->scalar);
			continue;
		}
		s->outs[i] = clCreateBuffer(s->context, CL_MEM_READ_WRITE, arg->out_bytes, NULL, &error);
		if (error == CL_SUCCESS)
			error = clEnqueueFillBuffer(s->queue, s->outs[i], &zero, 1, 0, arg->out_bytes, 0, NULL, NULL);
		if (error == CL_SUCCESS)
			error = clSetKernelArg(s->kernel, (cl_uint)(2 + i), sizeof(cl_mem), &s->outs[i]);
	}
	if (error == CL_INVALID_ARG_SIZE || error == CL_INVALID_ARG_VALUE) {
		if (asprintf(&s->run->log, "an --arg does not fit the type of its parameter in %s", s->run->entry) < 0)
			s->run->log = NULL;
		return -ENOEXEC;
	}
	return opencl_errno(error);
}

static int collect_outs(struct source_run *s)
{
	struct gpu_run *run = s->run;
	size_t at = 0;

	for (size_t i = 0; i < run->n_args; i++)
		run->result_bytes += run->args[i].kind == GPU_ARG_OUT ? run->args[i].out_bytes : 0;
	if (run->result_bytes == 0)
		return 0;
	run->result = malloc(run->result_bytes);
	if (run->result == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < run->n_args; i++) {
		cl_int error;

		if (run->args[i].kind != GPU_ARG_OUT)
			continue;
		error = clEnqueueReadBuffer(s->queue, s->outs[i], CL_TRUE, 0, run->args[i].out_bytes, (char *)run->result + at, 0,
					    NULL, NULL);
		if (error != CL_SUCCESS)
			return opencl_errno(error);
		at += run->args[i].out_bytes;
	}
	return 0;
}

static int launch(struct source_run *s, bool uses_host_memory, uint8_t *data)
{
	size_t items = s->run->items > 0 ? s->run->items : s->run->range.len;
	uint64_t start = clock_ns();
	cl_int error = clEnqueueNDRangeKernel(s->queue, s->kernel, 1, NULL, &items, NULL, 0, NULL, NULL);

	if (error == CL_SUCCESS)
		error = clFinish(s->queue);
	s->run->kernel_ns = clock_ns() - start;
	if (error != CL_SUCCESS)
		return opencl_errno(error);
	if (uses_host_memory) {
		void *p = clEnqueueMapBuffer(s->queue, s->data, CL_TRUE, CL_MAP_READ, 0, s->run->range.len, 0, NULL, NULL, &error);

		if (p != NULL)
			clEnqueueUnmapMemObject(s->queue, s->data, p, 0, NULL, NULL);
	} else if (s->run->writes) {
		error = clEnqueueReadBuffer(s->queue, s->data, CL_TRUE, 0, s->run->range.len, data, 0, NULL, NULL);
	}
	clFinish(s->queue);
	return opencl_errno(error);
}

static int start(struct source_run *s, const struct opencl_choice *choice, bool uses_host_memory, uint8_t *data)
{
	/* A read-only mapping (a shared lease) is given as it is: a kernel that stores to it crashes, and nothing else. */
	cl_mem_flags flags = uses_host_memory ? CL_MEM_USE_HOST_PTR : CL_MEM_COPY_HOST_PTR;
	cl_int error;

	s->context = clCreateContext(NULL, 1, &choice->device, NULL, NULL, &error);
	if (error == CL_SUCCESS)
		s->queue = clCreateCommandQueue(s->context, choice->device, 0, &error);
	if (error == CL_SUCCESS)
		s->data = clCreateBuffer(s->context, CL_MEM_READ_WRITE | flags, s->run->range.len, data, &error);
	return opencl_errno(error);
}

/* Nothing is released: the process ends after this. */
int opencl_run_source(const struct opencl_choice *choice, bool uses_host_memory, struct gpu_run *run, uint8_t *data)
{
	struct source_run s = {.run = run};
	int err;

	run->result = NULL;
	run->result_bytes = 0;
	run->log = NULL;
	err = start(&s, choice, uses_host_memory, data);
	if (err == 0)
		err = compile(&s, choice->device);
	if (err == 0)
		err = set_arguments(&s);
	if (err == 0)
		err = launch(&s, uses_host_memory, data);
	if (err == 0)
		err = collect_outs(&s);
	return err;
}

int gpu_run_source_on_cpu(struct gpu_run *run, uint8_t *data)
{
	struct opencl_choice choice;
	char error[256];

	if (opencl_choose("opencl-cpu", &choice, error) < 0)
		return -ENODEV;
	return opencl_run_source(&choice, true, run, data);
}
