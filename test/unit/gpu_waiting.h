/* gpu_waiting.h - waiting for an operation of a device. */
#ifndef HMMFS_TEST_GPU_WAITING_H
#define HMMFS_TEST_GPU_WAITING_H

#include "gpu/gpu.h"

#include <pthread.h>

struct waiting {
	struct gpu_op op; /* .done = done */
	int status;
	bool is_done;
};
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static inline void done(struct gpu_op *op, int status)
{
	struct waiting *waiting = (struct waiting *)(void *)op;

	pthread_mutex_lock(&mutex);
	waiting->status = status;
	waiting->is_done = true;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&mutex);
}

/* The operation's status. */
static inline int wait_for(struct waiting *waiting)
{
	pthread_mutex_lock(&mutex);
	while (!waiting->is_done)
		pthread_cond_wait(&changed, &mutex);
	pthread_mutex_unlock(&mutex);
	return waiting->status;
}

#endif
