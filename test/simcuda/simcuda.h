/*
 * simcuda.h - a libcuda.so.1 without a GPU, for tests. Private to test/simcuda.
 *
 * It has the entry points that hmmfs and its tests use, and refuses what the driver refuses: sizes and addresses that are no
 * multiple of the granularity, handles that are not (or no longer) valid, calls without a current context, calls in a forked
 * child. Device memory is a memfd an allocation. What an application is given as a CUdeviceptr is address space that is
 * reserved and PROT_NONE: a CPU that touches it crashes, as it should. Copies and kernels go through a second mapping of the
 * memfd that nobody else knows, after they have looked up who may do what to the range (translate, in memory.c).
 *
 * Streams are threads. Before each operation a stream waits for a while that the seed decides, so that whoever forgets to wait
 * for an event sees wrong bytes. An operation that finds its range unmapped or not accessible when it runs poisons its context,
 * as on the device: from then on each call that needs the context fails with that error, until it is destroyed or reset.
 *
 * Environment:
 *   HMMFS_SIMCUDA_SEED=N          of the delays; 0: none. 1 if not set
 *   HMMFS_SIMCUDA_MEMORY=BYTES    of each device; 8 GiB if not set
 *   HMMFS_SIMCUDA_STATE=FILE      processes that name the same file share the device: cuMemGetInfo and cuMemCreate count what all
 *                                 of them have allocated. The file is made if need be. A process that dies gives back its own
 *   HMMFS_SIMCUDA_GRANULARITY=N   2 MiB if not set, as on every GPU so far
 *   HMMFS_SIMCUDA_DEVICES=N       1 if not set
 *   HMMFS_SIMCUDA_VERSION=N       what cuDriverGetVersion says, 13000 if not set
 *   HMMFS_SIMCUDA_NO_VMM=1        a device without virtual memory management
 *   HMMFS_SIMCUDA_NO_READ_ONLY=1  cuMemSetAccess refuses CU_MEM_ACCESS_FLAGS_PROT_READ
 *   HMMFS_SIMCUDA_FAIL=RULES      see fault.c
 *
 * Locks: one, sim.mutex. Nothing waits or copies bytes while it is held, except on sim.progress.
 */
#ifndef SIMCUDA_H
#define SIMCUDA_H

#include "gpu/cuda_abi.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* What hmmfs itself has no use for. */
enum {
	ERROR_INVALID_VALUE = 1,
	ERROR_NOT_INITIALIZED = 3,
	ERROR_INVALID_DEVICE = 101,
	ERROR_INVALID_IMAGE = 200,
	ERROR_INVALID_CONTEXT = 201,
	ERROR_NO_BINARY_FOR_GPU = 209,
	ERROR_INVALID_PTX = 218,
	ERROR_OPERATING_SYSTEM = 304,
	ERROR_INVALID_HANDLE = 400,
	ERROR_NOT_FOUND = 500,
	ERROR_NOT_READY = 600,
	ERROR_ILLEGAL_ADDRESS = 700,
	ERROR_CONTEXT_IS_DESTROYED = 709,
	ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
	ERROR_HOST_MEMORY_NOT_REGISTERED = 713,
	ERROR_NOT_PERMITTED = 800,
	ERROR_NOT_SUPPORTED = 801,
};

typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;

/* cu.h's names without their cases: cuXxx_v2 are what cuGetProcAddress("cuXxx") finds. */
#define EXPORT __attribute__((visibility("default")))

struct CUctx_st {
	struct CUctx_st *next;
	int device;
	bool is_primary, is_destroyed;
	unsigned retains;      /* of the primary one */
	CUresult sticky;       /* what poisoned it */
	struct CUstream_st *legacy; /* the NULL stream */
};

struct sim_op;

struct CUstream_st {
	struct CUstream_st *next;
	struct CUctx_st *context;
	bool is_non_blocking, is_destroyed;
	pthread_t thread;
	pthread_cond_t has_work;
	struct sim_op *ops;
	uint64_t submitted, completed; /* operations, counted */
	uint64_t random;
};

/* A point in a stream's work. */
struct sim_point {
	struct CUstream_st *stream;
	uint64_t number;
};

struct CUevent_st {
	struct CUevent_st *next;
	struct CUctx_st *context;
	bool is_destroyed;
	struct sim_point recorded;
};

struct sim_op {
	struct sim_op *prev, *next;
	enum { OP_TO_DEVICE, OP_FROM_DEVICE, OP_ON_DEVICE, OP_SET_8, OP_SET_32, OP_HOST_FUNC, OP_KERNEL, OP_NOTHING } kind;
	struct sim_point *after; /* what it has to wait for, besides what is before it in its stream */
	size_t n_after;
	CUdeviceptr to, from;
	void *host;        /* staged: to be freed */
	bool is_staged;
	size_t bytes;
	uint32_t value;
	void (*function)(void *);
	void *argument;
	const struct sim_twin *twin;
	unsigned char *parameters; /* to be freed */
};

/* A kernel in C. */
struct sim_twin {
	const char *name;
	size_t sizes[8]; /* of its parameters */
	CUresult (*run)(const unsigned char *parameters);
};

/* Part of a range of device memory, where this process can touch it. */
struct sim_part {
	char *bytes;
	size_t len;
	struct sim_allocation *allocation;
};

struct sim {
	pthread_mutex_t mutex;
	pthread_cond_t progress; /* an operation is done, a context poisoned, the device lost */
	pid_t initialized_in;
	int n_devices, version;
	size_t granularity, memory_bytes;
	uint64_t seed;
	bool has_vmm, has_read_only;
	CUresult lost; /* every call fails with it */
	struct CUctx_st *contexts;
	struct CUctx_st *primary[16];
};
extern struct sim sim;

enum { SIM_ANY = 0, SIM_INITIALIZED = 1, SIM_CONTEXT = 3 /* one that is current and sound */ };

/* fault.c: each entry point begins with this. Takes sim.mutex. */
CUresult sim_enter(const char *name, int needs);
#define ENTER(name, needs)                                                                                                \
	do {                                                                                                              \
		CUresult enter_result = sim_enter(#name, needs);                                                          \
		if (enter_result != CUDA_SUCCESS)                                                                         \
			return enter_result;                                                                              \
	} while (0)

/* context.c */
extern _Thread_local bool sim_is_in_host_func;
struct CUctx_st *sim_current(void); /* of this thread; NULL: none */
bool sim_is_device(int device);
void sim_poison_locked(struct CUctx_st *context, CUresult result);
size_t sim_size_of_environment(const char *name, size_t otherwise);

/* stream.c */
struct CUstream_st *sim_stream_find_locked(CUstream stream, CUresult *result); /* of the current context; NULL: the legacy one */
struct CUstream_st *sim_stream_create_locked(struct CUctx_st *context, bool is_non_blocking);
CUresult sim_submit_locked(struct CUstream_st *stream, const struct sim_op *op);
CUresult sim_wait_locked(struct sim_point point); /* releases the mutex meanwhile */
CUresult sim_wait_context_locked(struct CUctx_st *context);
void sim_forget_work_locked(struct CUctx_st *context); /* a context goes: its work is not done any more */

/* memory.c */
enum { MAY_READ = 1, MAY_WRITE = 2 };
/* Is all of the range mapped, and may the device do this to it? */
bool sim_may_locked(CUdeviceptr address, size_t bytes, int rights);
/* The first part of a range. False: not mapped, or not allowed. The allocation is held until sim_part_release. */
bool sim_part_take(CUdeviceptr address, size_t bytes, int rights, struct sim_part *part);
void sim_part_release(struct sim_part *part);
bool sim_is_registered_locked(const void *host, size_t bytes);
/* Copies between device and host; false: the range is not accessible any more. */
bool sim_copy(CUdeviceptr device, void *host, size_t bytes, bool is_to_device);
bool sim_fill(CUdeviceptr to, size_t bytes, const void *pattern, size_t pattern_bytes);

/* kernel.c */
CUresult sim_run_kernel(const struct sim_op *op);

#endif
