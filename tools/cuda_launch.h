/* cuda_launch.h - kernels in this process: the driver, a context, modules. */
#ifndef HMMFS_CUDA_LAUNCH_H
#define HMMFS_CUDA_LAUNCH_H

#include "client/hmmfs.h"
#include "gpu/cuda_abi.h"

typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;

#define CUDA_LAUNCH_ENTRIES(X)                                                                                            \
	X(init, cuInit, (unsigned int flags))                                                                             \
	X(error_name, cuGetErrorName, (CUresult result, const char **name))                                               \
	X(device_count, cuDeviceGetCount, (int *count))                                                                   \
	X(device_get, cuDeviceGet, (CUdevice * device, int ordinal))                                                      \
	X(device_uuid, cuDeviceGetUuid_v2, (CUuuid * uuid, CUdevice device))                                              \
	X(device_attribute, cuDeviceGetAttribute, (int *value, int attribute, CUdevice device))                           \
	X(primary_retain, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                               \
	X(context_set, cuCtxSetCurrent, (CUcontext context))                                                              \
	X(synchronize, cuCtxSynchronize, (void))                                                                          \
	X(alloc, cuMemAlloc_v2, (CUdeviceptr * address, size_t bytes))                                                    \
	X(free, cuMemFree_v2, (CUdeviceptr address))                                                                      \
	X(set_bytes, cuMemsetD8_v2, (CUdeviceptr to, unsigned char byte, size_t bytes))                                   \
	X(copy_to, cuMemcpyHtoD_v2, (CUdeviceptr to, const void *from, size_t bytes))                                     \
	X(copy_from, cuMemcpyDtoH_v2, (void *to, CUdeviceptr from, size_t bytes))                                         \
	X(module_load, cuModuleLoadDataEx, (CUmodule * module, const void *image, unsigned n, int *options, void **values)) \
	X(module_function, cuModuleGetFunction, (CUfunction * function, CUmodule module, const char *name))               \
	X(launch, cuLaunchKernel,                                                                                         \
	  (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,    \
	   unsigned block_z, unsigned shared_bytes, CUstream stream, void **parameters, void **extra))

struct cuda_launch {
#define CUDA_LAUNCH_MEMBER(member, name, parameters) CUresult(*member) parameters;
	CUDA_LAUNCH_ENTRIES(CUDA_LAUNCH_MEMBER)
#undef CUDA_LAUNCH_MEMBER
	int multiprocessors;
	int architecture; /* 75: compute capability 7.5 */
};

/* Loads the driver and makes a context of the mount's GPU current. The same one each time. On failure *log is a line for the
 * user, to be freed. */
int cuda_start(const struct hmmfs_info *info, const struct cuda_launch **cuda, char **log);
/* Sets *log to what failed, and returns a negative errno. */
int cuda_failed(const struct cuda_launch *cuda, const char *call, CUresult result, char **log);
/* A kernel in PTX or a cubin. -ENOEXEC: it does not load (the JIT's log is in *log), or has no such entry. */
int cuda_load(const struct cuda_launch *cuda, const char *image, const char *entry, CUfunction *function, char **log);

#endif
