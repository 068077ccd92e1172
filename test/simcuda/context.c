/* context.c - starting the driver; devices; contexts. */
#include "test/simcuda/simcuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct sim sim = {.mutex = PTHREAD_MUTEX_INITIALIZER, .progress = PTHREAD_COND_INITIALIZER};

static void lock(void)
{
	pthread_mutex_lock(&sim.mutex);
}

static void unlock(void)
{
	pthread_mutex_unlock(&sim.mutex);
}

/* A stream's thread may have the mutex when the program forks, and is not there in the child, which is to be told no. */
__attribute__((constructor)) static void keep_the_mutex_over_forks(void)
{
	if (pthread_atfork(lock, unlock, unlock) != 0)
		abort();
}

_Thread_local bool sim_is_in_host_func;
static _Thread_local struct CUctx_st *stack[16];
static _Thread_local unsigned depth;
static _Thread_local pid_t stack_of; /* a forked child has none */

struct CUctx_st *sim_current(void)
{
	return depth > 0 && stack_of == getpid() ? stack[depth - 1] : NULL;
}

bool sim_is_device(int device)
{
	return device >= 0 && device < sim.n_devices;
}

size_t sim_size_of_environment(const char *name, size_t otherwise)
{
	const char *text = getenv(name);
	char *end;
	size_t n;

	if (text == NULL)
		return otherwise;
	n = strtoull(text, &end, 0);
	switch (*end) {
	case 'K': return n << 10;
	case 'M': return n << 20;
	case 'G': return n << 30;
	default: return n;
	}
}

EXPORT CUresult cuInit(unsigned int flags)
{
	ENTER(cuInit, SIM_ANY);
	if (flags != 0)
		return (CUresult)ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim.mutex);
	if (sim.initialized_in == 0) {
		sim.granularity = sim_size_of_environment("HMMFS_SIMCUDA_GRANULARITY", 2 << 20);
		sim.memory_bytes = sim_size_of_environment("HMMFS_SIMCUDA_MEMORY", (size_t)8 << 30);
		sim.n_devices = (int)sim_size_of_environment("HMMFS_SIMCUDA_DEVICES", 1);
		sim.seed = sim_size_of_environment("HMMFS_SIMCUDA_SEED", 1);
		sim.has_vmm = getenv("HMMFS_SIMCUDA_NO_VMM") == NULL;
		sim.has_read_only = getenv("HMMFS_SIMCUDA_NO_READ_ONLY") == NULL;
		sim.initialized_in = getpid();
	}
	pthread_mutex_unlock(&sim.mutex);
	if (sim.initialized_in != getpid())
		return (CUresult)ERROR_NOT_INITIALIZED;
	return sim.n_devices == 0 ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int *version)
{
	ENTER(cuDriverGetVersion, SIM_ANY);
	*version = (int)sim_size_of_environment("HMMFS_SIMCUDA_VERSION", 13000);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult result, const char **name)
{
	static const struct {
		int result;
		const char *name;
	} names[] = {{0, "CUDA_SUCCESS"}, {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {3, "CUDA_ERROR_NOT_INITIALIZED"},
		     {46, "CUDA_ERROR_DEVICE_UNAVAILABLE"}, {100, "CUDA_ERROR_NO_DEVICE"}, {101, "CUDA_ERROR_INVALID_DEVICE"},
		     {200, "CUDA_ERROR_INVALID_IMAGE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
		     {214, "CUDA_ERROR_ECC_UNCORRECTABLE"}, {218, "CUDA_ERROR_INVALID_PTX"}, {304, "CUDA_ERROR_OPERATING_SYSTEM"},
		     {400, "CUDA_ERROR_INVALID_HANDLE"}, {500, "CUDA_ERROR_NOT_FOUND"}, {600, "CUDA_ERROR_NOT_READY"},
		     {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
		     {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"}, {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"},
		     {719, "CUDA_ERROR_LAUNCH_FAILED"}, {800, "CUDA_ERROR_NOT_PERMITTED"}, {801, "CUDA_ERROR_NOT_SUPPORTED"},
		     {999, "CUDA_ERROR_UNKNOWN"}};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (names[i].result == (int)result) {
			*name = names[i].name;
			return CUDA_SUCCESS;
		}
	}
	*name = NULL;
	return (CUresult)ERROR_INVALID_VALUE;
}

EXPORT CUresult cuGetErrorString(CUresult result, const char **text)
{
	return cuGetErrorName(result, text);
}

/* ---- devices ---- */

EXPORT CUresult cuDeviceGetCount(int *count)
{
	ENTER(cuDeviceGetCount, SIM_INITIALIZED);
	*count = sim.n_devices;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	ENTER(cuDeviceGet, SIM_INITIALIZED);
	if (!sim_is_device(ordinal))
		return (CUresult)ERROR_INVALID_DEVICE;
	*device = ordinal;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetName(char *name, int len, CUdevice device)
{
	ENTER(cuDeviceGetName, SIM_INITIALIZED);
	if (!sim_is_device(device) || len <= 0)
		return (CUresult)ERROR_INVALID_DEVICE;
	snprintf(name, (size_t)len, "simcuda %d", device);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
	ENTER(cuDeviceGetUuid, SIM_INITIALIZED);
	if (!sim_is_device(device))
		return (CUresult)ERROR_INVALID_DEVICE;
	memcpy(uuid->bytes, "simulated GPU  ", 15);
	uuid->bytes[15] = (char)device;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
	ENTER(cuDeviceTotalMem, SIM_INITIALIZED);
	if (!sim_is_device(device))
		return (CUresult)ERROR_INVALID_DEVICE;
	*bytes = sim.memory_bytes;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
	ENTER(cuDeviceGetAttribute, SIM_INITIALIZED);
	if (!sim_is_device(device))
		return (CUresult)ERROR_INVALID_DEVICE;
	switch ((int)attribute) {
	case 16: *value = 4; break; /* multiprocessors */
	case 75: *value = 9; break; /* compute capability 9.0 */
	case 76: *value = 0; break;
	case 102: /* virtual memory management */
	case 103: *value = sim.has_vmm; break; /* and its handles as descriptors */
	default: *value = 0;
	}
	return CUDA_SUCCESS;
}

/* ---- contexts ---- */

void sim_poison_locked(struct CUctx_st *context, CUresult result)
{
	if (context->sticky == CUDA_SUCCESS)
		context->sticky = result;
	pthread_cond_broadcast(&sim.progress);
}

static struct CUctx_st *create_locked(int device, bool is_primary)
{
	struct CUctx_st *context = calloc(1, sizeof(*context));

	if (context == NULL)
		abort();
	*context = (struct CUctx_st){.next = sim.contexts, .device = device, .is_primary = is_primary};
	sim.contexts = context; /* never freed: a handle that is no longer valid is known as such */
	context->legacy = sim_stream_create_locked(context, false);
	return context;
}

static void destroy_locked(struct CUctx_st *context)
{
	context->is_destroyed = true;
	sim_forget_work_locked(context);
}

static bool is_known_locked(const struct CUctx_st *wanted)
{
	for (const struct CUctx_st *context = sim.contexts; context != NULL; context = context->next) {
		if (context == wanted)
			return !context->is_destroyed;
	}
	return false;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	ENTER(cuDevicePrimaryCtxRetain, SIM_INITIALIZED);
	if (!sim_is_device(device))
		return (CUresult)ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&sim.mutex);
	if (sim.primary[device] == NULL)
		sim.primary[device] = create_locked(device, true);
	sim.primary[device]->retains++;
	*context = sim.primary[device];
	pthread_mutex_unlock(&sim.mutex);
	return CUDA_SUCCESS;
}

static CUresult let_primary_go(CUdevice device, bool is_reset)
{
	struct CUctx_st *context;
	CUresult result = CUDA_SUCCESS;

	if (!sim_is_device(device))
		return (CUresult)ERROR_INVALID_DEVICE;
	pthread_mutex_lock(&sim.mutex);
	context = sim.primary[device];
	if (context == NULL) {
		result = is_reset ? CUDA_SUCCESS : (CUresult)ERROR_INVALID_CONTEXT;
	} else if (is_reset || --context->retains == 0) {
		unsigned retains = context->retains;

		sim.primary[device] = NULL;
		destroy_locked(context);
		/* A reset is no release: who retained it still has to. */
		if (is_reset && retains > 0) {
			sim.primary[device] = create_locked(device, true);
			sim.primary[device]->retains = retains;
		}
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	ENTER(cuDevicePrimaryCtxRelease, SIM_INITIALIZED);
	return let_primary_go(device, false);
}

EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	ENTER(cuDevicePrimaryCtxReset, SIM_INITIALIZED);
	return let_primary_go(device, true);
}

EXPORT CUresult cuCtxCreate_v2(CUcontext *out, unsigned int flags, CUdevice device)
{
	ENTER(cuCtxCreate, SIM_INITIALIZED);
	(void)flags;
	if (!sim_is_device(device))
		return (CUresult)ERROR_INVALID_DEVICE;
	if (depth == sizeof(stack) / sizeof(stack[0]))
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_mutex_lock(&sim.mutex);
	*out = create_locked(device, false);
	pthread_mutex_unlock(&sim.mutex);
	stack_of = getpid();
	stack[depth++] = *out;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxDestroy_v2(CUcontext context)
{
	CUresult result = CUDA_SUCCESS;

	ENTER(cuCtxDestroy, SIM_INITIALIZED);
	pthread_mutex_lock(&sim.mutex);
	if (!is_known_locked(context) || context->is_primary)
		result = (CUresult)ERROR_INVALID_CONTEXT;
	else
		destroy_locked(context);
	pthread_mutex_unlock(&sim.mutex);
	if (result == CUDA_SUCCESS && depth > 0 && stack[depth - 1] == context)
		depth--;
	return result;
}

static CUresult set_current(CUcontext context, bool pushes)
{
	CUresult result = CUDA_SUCCESS;

	pthread_mutex_lock(&sim.mutex);
	if (context != NULL && !is_known_locked(context))
		result = (CUresult)ERROR_INVALID_CONTEXT;
	pthread_mutex_unlock(&sim.mutex);
	if (result != CUDA_SUCCESS)
		return result;
	if (stack_of != getpid())
		depth = 0;
	stack_of = getpid();
	if (!pushes && depth > 0)
		depth--;
	if (context == NULL)
		return CUDA_SUCCESS;
	if (depth == sizeof(stack) / sizeof(stack[0]))
		return CUDA_ERROR_OUT_OF_MEMORY;
	stack[depth++] = context;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context)
{
	ENTER(cuCtxSetCurrent, SIM_INITIALIZED);
	return set_current(context, false);
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context)
{
	ENTER(cuCtxPushCurrent, SIM_INITIALIZED);
	return context == NULL ? (CUresult)ERROR_INVALID_CONTEXT : set_current(context, true);
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
	ENTER(cuCtxPopCurrent, SIM_INITIALIZED);
	if (sim_current() == NULL)
		return (CUresult)ERROR_INVALID_CONTEXT;
	depth--;
	if (context != NULL)
		*context = stack[depth];
	return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context)
{
	ENTER(cuCtxGetCurrent, SIM_INITIALIZED);
	*context = sim_current();
	return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device)
{
	ENTER(cuCtxGetDevice, SIM_INITIALIZED);
	if (sim_current() == NULL)
		return (CUresult)ERROR_INVALID_CONTEXT;
	*device = sim_current()->device;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize(void)
{
	CUresult result;

	ENTER(cuCtxSynchronize, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	result = sim_wait_context_locked(sim_current());
	pthread_mutex_unlock(&sim.mutex);
	return result;
}
