/* device_server.h - the device process: chunks in cl_mem, copies, built-in kernels. */
#ifndef HMMFS_DEVICE_SERVER_H
#define HMMFS_DEVICE_SERVER_H

#include "gpu/device_wire.h"
#include "gpu/opencl_device.h"

#include <pthread.h>
#include <uthash.h>

struct device_chunk {
	uint64_t id;
	cl_mem mem;
	void *mapping; /* of its memfd; NULL: private */
	unsigned users; /* mutex; operations under way */
	bool is_doomed; /* mutex; destroyed when users comes to 0 */
	UT_hash_handle hh;
};

struct device_server {
	struct device_setup setup;
	struct opencl_choice choice;
	bool is_shared;
	char *bounce;
	cl_context context;
	cl_command_queue queues[GPU_QUEUE_COUNT];
	pthread_mutex_t mutex;
	struct device_chunk *chunks; /* mutex */
	pthread_mutex_t program_mutex;
	cl_program program; /* program_mutex; built when first needed */
};

int device_serve(void); /* exit status */
void device_reply_send(uint64_t cookie, int status);

struct device_chunk *device_chunk_use(struct device_server *server, uint64_t id);
void device_chunk_unuse(struct device_server *server, struct device_chunk *chunk);

/* device_kernels.c: on a thread of its own; answers when done. Takes the descriptors. */
void device_run_start(struct device_server *server, const struct device_request *request, const int *fds, size_t n_fds);

#endif
