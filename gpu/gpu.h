/*
 * gpu.h - the device layer: one memory that the CPU can't address.
 *
 * A device is a table of functions (struct gpu_ops) filled in by one backend: host.c (memfds),
 * opencl.c (cl_mem in a device process), cuda.c (cuMemCreate). Its shape is that of CUDA's virtual
 * memory management, the strictest of the three:
 *
 *   - a chunk is one allocation of a fixed size, created, exported as a descriptor, destroyed;
 *   - chunks are mapped back to back into one range by whoever computes on them;
 *   - copies and fills are asynchronous, on queues, and complete by a call to op->done;
 *   - a kernel runs on a range of chunks.
 *
 * Memory: copies go only between a chunk and the bounce memory given to gpu_open(): the one piece of
 * host memory that is pinned for the device. A chunk's memory reads as zero when it is created, and
 * is never handed to another chunk without having been zeroed.
 *
 * Ordering: operations on one queue start in the order submitted. A caller that needs one to be done before another
 * starts waits for done.
 *
 * Threads: every function may be called from any thread; none blocks on the device. done is called
 * on a thread of the backend (or, on failure to submit, on the caller's before the function returns),
 * exactly once for each operation; it must not block and must not call back into the device.
 *
 * chunk_create may put the device's own part of it off to the chunk's first operation, which then ends with -ENOMEM where
 * there is no memory.
 *
 * Errors are negative errno. -ENODEV: the device, or this chunk's memory, is lost.
 */
#ifndef HMMFS_GPU_H
#define HMMFS_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gpu_device;
struct gpu_chunk; /* opaque; owned by the backend */

struct gpu_info {
	char backend[16];      /* "host", "opencl", "cuda" */
	char name[128];        /* of the device, for people */
	uint64_t memory_bytes; /* what the device says it has; 0: unknown */
	size_t granularity;    /* chunk sizes are multiples of this */
	uint64_t free_bytes;   /* of these, free when it was opened; 0: unknown */
	bool can_export;       /* chunk_export works: a client may map chunks */
	bool exports_cuda;     /* what it gives are CUDA's shareable handles, which know no read-only; otherwise memfds */
	uint8_t uuid[16];      /* exports_cuda: which device to import them on */
	bool can_run;          /* gpu_run works; otherwise kernels run in the client */
};

/* One operation in flight. Embedded by the caller; must stay valid until done is called. */
struct gpu_op {
	void (*done)(struct gpu_op *op, int status);
};

enum gpu_queue {
	GPU_QUEUE_FILL,
	GPU_QUEUE_WRITEBACK,
	GPU_QUEUE_CPU, /* serves READ and WRITE requests of the CPU */
	GPU_QUEUE_COUNT,
};

/* The bounce memory: a shared mapping of memfd, page aligned. Owned by the caller of gpu_open, and
 * outlives the device. */
struct gpu_bounce {
	void *base;
	size_t bytes;
	int memfd;
};

struct gpu_config {
	const char *spec;   /* "auto", "host", "opencl", "opencl:P.D", "cuda", "cuda:N" */
	size_t chunk_bytes; /* a power of two */
	struct gpu_bounce bounce;
	/* Called on a thread of the backend when chunks were lost (the device process died, the device
	 * fell off the bus). gpu_chunk_is_lost tells which; their operations complete with -ENODEV.
	 * The device itself stays usable if it could be started again. May be NULL. */
	void (*lost)(void *user);
	/* A line for the log, from any thread. priority as in syslog(3). May be NULL. */
	void (*log)(void *user, int priority, const char *line);
	void *user;
	bool is_background; /* our own standard descriptors belong to a caller who waits for them to be closed */
};

/* Views chunks[0..n) back to back and takes len bytes from offset into the first. */
struct gpu_range {
	struct gpu_chunk **chunks;
	size_t n;
	size_t offset;
	uint64_t len;
};

enum gpu_kernel_kind {
	GPU_KERNEL_SUM,       /* result: one uint64_t, the sum of all bytes */
	GPU_KERNEL_HISTOGRAM, /* result: uint64_t[256] */
	GPU_KERNEL_COUNT,     /* result: one uint64_t, occurrences of pattern, overlapping ones too */
	GPU_KERNEL_XOR,       /* in place with byte */
	GPU_KERNEL_FILL,      /* in place with byte */
	GPU_KERNEL_SOURCE,    /* a user's OpenCL C */
};

/* A further argument of a user's kernel, in the order given. */
struct gpu_arg {
	enum gpu_arg_kind {
		GPU_ARG_SCALAR, /* bytes copied as they are: int, uint, long, ulong, float, double */
		GPU_ARG_OUT,    /* a zeroed __global buffer of out_bytes, copied to the result */
	} kind;
	size_t bytes; /* of scalar, 1..8 */
	uint8_t scalar[8];
	uint64_t out_bytes;
};

/*
 * A kernel to run, and what came of it.
 * A user's kernel is called as  entry(__global uchar *data, ulong len, args...)  with `items` work items
 * (0: one a byte). It never runs in this process, nor in one that holds other files' chunks.
 */
struct gpu_run {
	struct gpu_op op;
	struct gpu_range range;
	enum gpu_kernel_kind kind;
	bool writes; /* the range may be stored to (a user's kernel: whether its lease is exclusive) */
	uint8_t byte;
	const uint8_t *pattern; /* 1..GPU_PATTERN_MAX bytes */
	size_t pattern_bytes;
	const char *source; /* with its terminating 0 */
	const char *entry;
	const struct gpu_arg *args;
	size_t n_args;
	uint64_t items;
	unsigned timeout_ms; /* 0: none. Past it, status is -ETIMEDOUT */

	/* Out, valid when done is called. Freed by the caller with free(). */
	void *result; /* the built-in's result, or the out buffers one after the other */
	size_t result_bytes;
	char *log; /* the compiler's log, or NULL. status -ENOEXEC: it did not compile */
	uint64_t kernel_ns;
};
#define GPU_PATTERN_MAX 256
#define GPU_ARGS_MAX 16

struct gpu_ops {
	void (*destroy)(struct gpu_device *dev);
	int (*chunk_create)(struct gpu_device *dev, struct gpu_chunk **chunk);
	void (*chunk_destroy)(struct gpu_device *dev, struct gpu_chunk *chunk);
	bool (*chunk_is_lost)(struct gpu_device *dev, struct gpu_chunk *chunk);
	int (*chunk_export)(struct gpu_device *dev, struct gpu_chunk *chunk, bool is_writable, int *fd);
	void (*copy_to_device)(struct gpu_device *dev, enum gpu_queue queue, struct gpu_chunk *chunk,
			       size_t chunk_off, size_t bounce_off, size_t len, struct gpu_op *op);
	void (*copy_from_device)(struct gpu_device *dev, enum gpu_queue queue, struct gpu_chunk *chunk,
				 size_t chunk_off, size_t bounce_off, size_t len, struct gpu_op *op);
	void (*fill)(struct gpu_device *dev, enum gpu_queue queue, struct gpu_chunk *chunk,
		     size_t chunk_off, size_t len, uint8_t byte, struct gpu_op *op);
	void (*copy_chunk)(struct gpu_device *dev, enum gpu_queue queue, struct gpu_chunk *to,
			   struct gpu_chunk *from, struct gpu_op *op);
	/* Asks how much of the device's memory is free: *free_bytes is set when op ends with 0. NULL: it can't tell. */
	void (*measure)(struct gpu_device *dev, uint64_t *free_bytes, struct gpu_op *op);
	void (*run)(struct gpu_device *dev, struct gpu_run *run);
	void (*run_cancel)(struct gpu_device *dev, struct gpu_run *run);
};

/* Every backend's struct starts with this. */
struct gpu_device {
	const struct gpu_ops *ops;
	struct gpu_info info;
	size_t chunk_bytes;
};

/*
 * Opens the device that config->spec names; "auto" takes the first of cuda, an OpenCL GPU, an OpenCL
 * CPU and host that opens. On failure *error is a line for the user (what is wrong with which value,
 * what to do), to be freed. -EINVAL: spec malformed or chunk size unfit; -ENODEV: no such device.
 */
int gpu_open(const struct gpu_config *config, struct gpu_device **dev, char **error);

/* Destroys the device. All chunks must have been destroyed, all operations be done. */
void gpu_close(struct gpu_device *dev);

/* Calls each(user, info, spec) for every device that gpu_open could take on this machine. */
int gpu_list(void (*each)(void *user, const struct gpu_info *info, const char *spec), void *user);

/* Runs a built-in kernel on memory that the CPU addresses; the twin of the device kernels, used by
 * the host device's clients and by tests. Fills in run->result as gpu_run does; -EINVAL for
 * GPU_KERNEL_SOURCE. Uses run->range.len bytes at data. */
int gpu_run_builtin_on_cpu(struct gpu_run *run, uint8_t *data);

/* Compiles and runs a user's kernel in this process on memory that the CPU addresses, on an OpenCL CPU
 * device, without copying it. data: page aligned base of a mapping. Blocks. -ENODEV: no OpenCL CPU device. */
int gpu_run_source_on_cpu(struct gpu_run *run, uint8_t *data);

#endif
