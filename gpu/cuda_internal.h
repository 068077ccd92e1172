/*
 * cuda_internal.h - the cuda backend's own structures. See cuda.c for how they work together. Private to gpu/cuda*.c.
 *
 * Threads: one for each queue; they alone call the driver once the device is open, and so can be stopped as one when the
 * context has to be rebuilt. Everything marked "mutex" is guarded by dev->mutex, a leaf; waits are on the two conditions.
 */
#ifndef HMMFS_CUDA_INTERNAL_H
#define HMMFS_CUDA_INTERNAL_H

#include "gpu/backends.h"
#include "gpu/cuda_api.h"

#include <pthread.h>

enum { CUDA_DEPTH = 32, CUDA_TRIES_ALONE = 2, CUDA_REBUILDS_MAX = 5 };

enum memory_state {
	MEMORY_NONE,     /* of the driver's nothing yet */
	MEMORY_UNMAPPED, /* handle and descriptor; no mapping in this context */
	MEMORY_MAPPED,
	MEMORY_BUSY, /* a queue's thread is changing it */
	MEMORY_LOST,
};

struct gpu_chunk {
	struct gpu_chunk *prev, *next; /* mutex; dev->doomed */
	enum memory_state state;       /* mutex */
	/* Belong to whoever made it MEMORY_BUSY, and are read by the queues while it is MEMORY_MAPPED. */
	CUmemGenericAllocationHandle handle;
	CUdeviceptr address; /* 0: not mapped */
	int fd;              /* -1: none */
};

struct cuda_op {
	struct cuda_op *prev, *next;
	enum cuda_op_kind { CUDA_TO_DEVICE, CUDA_FROM_DEVICE, CUDA_FILL, CUDA_COPY, CUDA_MEASURE } kind;
	struct gpu_chunk *chunk, *from;
	size_t chunk_off, bounce_off, len;
	uint8_t byte;
	uint64_t *free_bytes; /* CUDA_MEASURE */
	struct gpu_op *op;
	bool is_repeat; /* was in flight when the context broke; counted in dev->n_repeats */
	unsigned n_failed_alone;
};

struct cuda_queue {
	struct cuda_device *dev;
	enum gpu_queue kind;
	pthread_t thread;
	bool has_thread;
	pthread_cond_t has_work; /* pending, dev->doomed, is_broken, is_stopping */
	struct cuda_op *pending; /* mutex */
	/* the thread's own; built anew with the context */
	struct cuda_op *in_flight;
	unsigned n_in_flight;
	CUstream stream;
	CUevent events[CUDA_DEPTH];
	unsigned next_event, oldest_event;
};

struct cuda_device {
	struct gpu_device base;
	struct cuda_api api;
	struct gpu_bounce bounce;
	char spec[32];
	int ordinal;
	void (*lost)(void *user);
	void (*log)(void *user, int priority, const char *line);
	void *user;

	/* Changed while no queue runs. */
	CUdevice device;
	CUmemAllocationProp prop; /* of every chunk */
	CUcontext context;
	CUstream zero_stream;
	CUdeviceptr range; /* n_slots chunks of addresses */
	size_t n_slots;
	struct cuda_queue queues[GPU_QUEUE_COUNT];

	pthread_mutex_t mutex;
	pthread_cond_t changed;    /* a chunk is no longer busy or doomed; a queue stopped, or may go on; is_alone_taken */
	struct gpu_chunk **slots;  /* mutex; which chunk is mapped in each slot of the range; NULL: free */
	struct gpu_chunk stuck;    /* stands in slots that can't be unmapped */
	size_t next_slot;          /* mutex; where the search for a free one begins */
	struct gpu_chunk *doomed;  /* mutex; destroyed by their owner, not yet by us */
	unsigned n_being_freed;    /* mutex */
	uint64_t n_freed;          /* mutex; counts them */
	bool is_stopping;          /* mutex */
	bool is_broken;            /* mutex; queues stop for the context to be rebuilt */
	bool is_dead;              /* mutex; it can't be */
	unsigned n_stopped;        /* mutex; queues */
	unsigned rebuild;          /* mutex; counts them */
	unsigned n_rebuilt_in_vain; /* mutex; since an operation last succeeded */
	size_t n_repeats;          /* mutex; while there are any, operations are done one at a time */
	bool is_alone_taken;       /* mutex */
	CUresult failure;          /* mutex; what broke it */
	const char *failed_call;   /* mutex */
};

/* ---- cuda_context.c: what has to be built anew when the context broke. Called while no queue runs. ---- */
/* On failure *call names the entry point; what was built stays for cuda_context_tear_down. */
CUresult cuda_context_build(struct cuda_device *dev, const char **call);
/* Errors are ignored: the context may be broken. Chunks are MEMORY_UNMAPPED afterwards. */
void cuda_context_tear_down(struct cuda_device *dev, bool is_broken);

/* ---- cuda_chunk.c ---- */
/* Sees to it that the chunk is MEMORY_MAPPED, with zeros if it is new. 0; -ENOMEM, -EMFILE: no memory, no descriptor; -ENODEV:
 * lost; -EAGAIN: the context is broken (cuda_break has been called). On a queue's thread; may wait for the driver. */
int cuda_chunk_map(struct cuda_device *dev, struct gpu_chunk *chunk);
/* Gives the memory of one doomed chunk back. False: there is none. On a queue's thread. */
bool cuda_chunk_free_doomed(struct cuda_device *dev);
void cuda_chunk_mark_lost(struct cuda_device *dev, struct gpu_chunk *chunk);

/* ---- cuda_queue.c ---- */
int cuda_queues_start(struct cuda_device *dev);
void cuda_queues_stop(struct cuda_device *dev);
/* Takes the operation over, and op->done with it. */
void cuda_queue_submit(struct cuda_device *dev, enum gpu_queue queue, const struct cuda_op *op);
/* A call failed that does not fail while the context is sound: all queues stop, and it is built anew. Any queue's thread. */
void cuda_break(struct cuda_device *dev, CUresult result, const char *call);

#endif
