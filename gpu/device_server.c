/*
 * device_server.c - the device process's main loop: requests in, OpenCL commands out, answers from their events.
 *
 * Commands go to one in-order queue for each gpu_queue and end by an event callback, on a thread of the driver's. A chunk is
 * released when the last command that uses it has ended.
 */
#include "gpu/device_server.h"

#include "gpu/fdpass.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void device_reply_send(uint64_t cookie, int status)
{
	struct device_reply reply = {.cookie = cookie, .status = status};

	if (cookie != 0)
		fdpass_send(DEVICE_SOCKET, &reply, sizeof(reply), NULL, 0, 0);
}

/* ---- chunks ---- */

static void chunk_release(struct device_server *server, struct device_chunk *chunk)
{
	clReleaseMemObject(chunk->mem);
	if (chunk->mapping != NULL)
		munmap(chunk->mapping, server->setup.chunk_bytes);
	free(chunk);
}

struct device_chunk *device_chunk_use(struct device_server *server, uint64_t id)
{
	struct device_chunk *chunk;

	pthread_mutex_lock(&server->mutex);
	HASH_FIND(hh, server->chunks, &id, sizeof(id), chunk);
	if (chunk != NULL)
		chunk->users++;
	pthread_mutex_unlock(&server->mutex);
	return chunk;
}

void device_chunk_unuse(struct device_server *server, struct device_chunk *chunk)
{
	bool is_last;

	pthread_mutex_lock(&server->mutex);
	is_last = --chunk->users == 0 && chunk->is_doomed;
	pthread_mutex_unlock(&server->mutex);
	if (is_last)
		chunk_release(server, chunk);
}

static cl_int zero(struct device_server *server, struct device_chunk *chunk)
{
	const cl_uchar nothing = 0;
	cl_int error = clEnqueueFillBuffer(server->queues[GPU_QUEUE_FILL], chunk->mem, &nothing, 1, 0, server->setup.chunk_bytes, 0,
					   NULL, NULL);

	/* Before any other queue may touch it. */
	return error == CL_SUCCESS ? clFinish(server->queues[GPU_QUEUE_FILL]) : error;
}

static void chunk_create(struct device_server *server, const struct device_request *request, int memfd)
{
	struct device_chunk *chunk = calloc(1, sizeof(*chunk));
	size_t bytes = server->setup.chunk_bytes;
	cl_int error = CL_SUCCESS;

	if (chunk == NULL)
		_exit(1); /* out of memory: a new process gets what can be saved */
	chunk->id = request->chunk;
	if (server->is_shared) {
		chunk->mapping = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
		if (memfd < 0 || chunk->mapping == MAP_FAILED)
			_exit(1);
		chunk->mem = clCreateBuffer(server->context, CL_MEM_READ_WRITE | CL_MEM_USE_HOST_PTR, bytes, chunk->mapping, &error);
	} else {
		chunk->mem = clCreateBuffer(server->context, CL_MEM_READ_WRITE, bytes, NULL, &error);
		if (error == CL_SUCCESS)
			error = zero(server, chunk);
	}
	if (error != CL_SUCCESS) { /* its operations end with -ENOMEM: device_chunk_use finds none */
		if (chunk->mapping != NULL)
			munmap(chunk->mapping, bytes);
		free(chunk);
		return;
	}
	pthread_mutex_lock(&server->mutex);
	HASH_ADD(hh, server->chunks, id, sizeof(chunk->id), chunk);
	pthread_mutex_unlock(&server->mutex);
}

static void chunk_destroy(struct device_server *server, uint64_t id)
{
	struct device_chunk *chunk;
	bool is_free = false;

	pthread_mutex_lock(&server->mutex);
	HASH_FIND(hh, server->chunks, &id, sizeof(id), chunk);
	if (chunk != NULL) {
		HASH_DEL(server->chunks, chunk);
		chunk->is_doomed = true;
		is_free = chunk->users == 0;
	}
	pthread_mutex_unlock(&server->mutex);
	if (is_free)
		chunk_release(server, chunk);
}

/* ---- copies ---- */

struct command {
	struct device_server *server;
	struct device_chunk *chunk, *from;
	uint64_t cookie;
};

static void command_end(struct command *command, int status)
{
	uint64_t cookie = command->cookie;

	device_chunk_unuse(command->server, command->chunk);
	if (command->from != NULL)
		device_chunk_unuse(command->server, command->from);
	free(command);
	device_reply_send(cookie, status);
}

static void CL_CALLBACK command_done(cl_event event, cl_int status, void *user)
{
	clReleaseEvent(event);
	command_end(user, status < 0 ? opencl_errno(status) : 0);
}

static bool is_in_bounds(const struct device_server *server, const struct device_request *request)
{
	uint64_t chunk = server->setup.chunk_bytes, bounce = server->setup.bounce_bytes;

	return request->queue < GPU_QUEUE_COUNT && request->len > 0 && request->len <= chunk &&
	       request->chunk_off <= chunk - request->len &&
	       (request->kind == DEVICE_FILL || request->kind == DEVICE_COPY ||
		(request->len <= bounce && request->bounce_off <= bounce - request->len));
}

static cl_int enqueue(struct command *command, const struct device_request *request, cl_event *event)
{
	struct device_server *server = command->server;
	cl_command_queue queue = server->queues[request->queue];
	cl_mem mem = command->chunk->mem;
	cl_uchar byte = (cl_uchar)request->byte;

	switch (request->kind) {
	case DEVICE_TO:
		return clEnqueueWriteBuffer(queue, mem, CL_FALSE, request->chunk_off, request->len,
					    server->bounce + request->bounce_off, 0, NULL, event);
	case DEVICE_FROM:
		return clEnqueueReadBuffer(queue, mem, CL_FALSE, request->chunk_off, request->len,
					   server->bounce + request->bounce_off, 0, NULL, event);
	case DEVICE_FILL:
		return clEnqueueFillBuffer(queue, mem, &byte, 1, request->chunk_off, request->len, 0, NULL, event);
	default: return clEnqueueCopyBuffer(queue, command->from->mem, mem, 0, 0, request->len, 0, NULL, event);
	}
}

static void start_command(struct device_server *server, const struct device_request *request)
{
	struct command *command = calloc(1, sizeof(*command));
	cl_event event;
	cl_int error;

	if (command == NULL || !is_in_bounds(server, request)) {
		free(command);
		device_reply_send(request->cookie, command == NULL ? -ENOMEM : -EINVAL);
		return;
	}
	*command = (struct command){.server = server, .cookie = request->cookie,
				    .chunk = device_chunk_use(server, request->chunk)};
	if (command->chunk == NULL) {
		free(command);
		device_reply_send(request->cookie, -ENOMEM);
		return;
	}
	if (request->kind == DEVICE_COPY) {
		command->from = device_chunk_use(server, request->from);
		if (command->from == NULL) {
			command_end(command, -ENOMEM);
			return;
		}
	}
	error = enqueue(command, request, &event);
	if (error == CL_SUCCESS)
		error = clSetEventCallback(event, CL_COMPLETE, command_done, command);
	if (error != CL_SUCCESS)
		command_end(command, opencl_errno(error));
	clFlush(server->queues[request->queue]);
}

/* ---- setting up ---- */

static int open_device(struct device_server *server, struct device_setup_reply *reply)
{
	cl_int error;
	int err = opencl_choose(server->setup.spec, &server->choice, reply->error);

	if (err < 0)
		return err;
	server->context = clCreateContext(NULL, 1, &server->choice.device, NULL, NULL, &error);
	for (int i = 0; i < GPU_QUEUE_COUNT && error == CL_SUCCESS; i++)
		server->queues[i] = clCreateCommandQueue(server->context, server->choice.device, 0, &error);
	if (error != CL_SUCCESS) {
		snprintf(reply->error, sizeof(reply->error), "device=%s: OpenCL error %d when it was opened", server->choice.spec, error);
		return opencl_errno(error);
	}
	server->is_shared = opencl_uses_host_memory(&server->choice) && !server->setup.is_private;
	reply->is_shared = server->is_shared;
	reply->memory_bytes = server->choice.memory_bytes;
	memcpy(reply->name, server->choice.name, sizeof(reply->name));
	memcpy(reply->spec, server->choice.spec, sizeof(reply->spec));
	return 0;
}

static int set_up(struct device_server *server)
{
	struct device_setup_reply reply = {.error = ""};
	size_t n_fds = 1;
	int fd = -1;

	if (fdpass_receive(DEVICE_SOCKET, &server->setup, sizeof(server->setup), &fd, &n_fds) != sizeof(server->setup) || n_fds != 1)
		return -EPROTO;
	server->bounce = mmap(NULL, server->setup.bounce_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (server->bounce == MAP_FAILED)
		return -ENOMEM;
	reply.status = open_device(server, &reply);
	fdpass_send(DEVICE_SOCKET, &reply, sizeof(reply), NULL, 0, 0);
	return reply.status;
}

int device_serve(void)
{
	static struct device_server server = {.mutex = PTHREAD_MUTEX_INITIALIZER, .program_mutex = PTHREAD_MUTEX_INITIALIZER};

	if (set_up(&server) < 0)
		return 1;
	for (;;) {
		struct device_request request;
		int fds[2] = {-1, -1};
		size_t n_fds = 2;

		if (fdpass_receive(DEVICE_SOCKET, &request, sizeof(request), fds, &n_fds) != sizeof(request))
			return 0; /* the daemon is gone */
		switch (request.kind) {
		case DEVICE_CREATE: chunk_create(&server, &request, fds[0]); break;
		case DEVICE_DESTROY: chunk_destroy(&server, request.chunk); break;
		case DEVICE_RUN:
		case DEVICE_STAGE_OUT:
		case DEVICE_STAGE_IN: device_run_start(&server, &request, fds, n_fds); continue; /* it has the descriptors */
		default: start_command(&server, &request); break;
		}
		for (size_t i = 0; i < n_fds; i++)
			close(fds[i]);
	}
}
