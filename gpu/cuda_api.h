/*
 * cuda_api.h - the CUDA driver API as hmmfs uses it: its types, and the entry points loaded at run time.
 *
 * The types come from cuda.h where the build found one (HMMFS_HAS_CUDA_H; then the compiler also compares our entry points'
 * types with it), otherwise from the few declarations of the same names in cuda_abi.h: a machine without the toolkit builds
 * the same backend. The ABI is the driver's, and stable; test_cuda_abi compares the two where both can be had.
 */
#ifndef HMMFS_CUDA_API_H
#define HMMFS_CUDA_API_H

#ifdef HMMFS_HAS_CUDA_H
#include <cuda.h>
#else
#include "gpu/cuda_abi.h"
#endif

/* The version whose entry points the code is written for, which is what cuGetProcAddress is asked for. */
#define CUDA_API_VERSION 12000

/* member of struct cuda_api, name in the driver, parameters */
#define CUDA_ENTRY_POINTS(X)                                                                                              \
	X(init, cuInit, (unsigned int flags))                                                                             \
	X(error_name, cuGetErrorName, (CUresult result, const char **name))                                               \
	X(device_count, cuDeviceGetCount, (int *count))                                                                   \
	X(device_get, cuDeviceGet, (CUdevice * device, int ordinal))                                                      \
	X(device_name, cuDeviceGetName, (char *name, int len, CUdevice device))                                           \
	X(device_uuid, cuDeviceGetUuid, (CUuuid * uuid, CUdevice device))                                                 \
	X(device_total_mem, cuDeviceTotalMem, (size_t *bytes, CUdevice device))                                           \
	X(device_attribute, cuDeviceGetAttribute, (int *value, CUdevice_attribute attribute, CUdevice device))            \
	X(primary_retain, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                               \
	X(primary_release, cuDevicePrimaryCtxRelease, (CUdevice device))                                                  \
	X(primary_reset, cuDevicePrimaryCtxReset, (CUdevice device))                                                      \
	X(context_set, cuCtxSetCurrent, (CUcontext context))                                                              \
	X(mem_info, cuMemGetInfo, (size_t *free_bytes, size_t *total_bytes))                                              \
	X(granularity, cuMemGetAllocationGranularity,                                                                     \
	  (size_t *bytes, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option))                      \
	X(mem_create, cuMemCreate,                                                                                        \
	  (CUmemGenericAllocationHandle * handle, size_t bytes, const CUmemAllocationProp *prop, unsigned long long flags)) \
	X(mem_release, cuMemRelease, (CUmemGenericAllocationHandle handle))                                               \
	X(mem_export, cuMemExportToShareableHandle,                                                                       \
	  (void *fd, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type, unsigned long long flags))      \
	X(mem_import, cuMemImportFromShareableHandle,                                                                     \
	  (CUmemGenericAllocationHandle * handle, void *fd, CUmemAllocationHandleType type))                              \
	X(address_reserve, cuMemAddressReserve,                                                                           \
	  (CUdeviceptr * address, size_t bytes, size_t alignment, CUdeviceptr hint, unsigned long long flags))            \
	X(address_free, cuMemAddressFree, (CUdeviceptr address, size_t bytes))                                            \
	X(mem_map, cuMemMap,                                                                                              \
	  (CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags)) \
	X(mem_unmap, cuMemUnmap, (CUdeviceptr address, size_t bytes))                                                     \
	X(set_access, cuMemSetAccess, (CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t n))       \
	X(host_register, cuMemHostRegister, (void *base, size_t bytes, unsigned int flags))                               \
	X(host_unregister, cuMemHostUnregister, (void *base))                                                             \
	X(stream_create, cuStreamCreate, (CUstream * stream, unsigned int flags))                                         \
	X(stream_destroy, cuStreamDestroy, (CUstream stream))                                                             \
	X(stream_synchronize, cuStreamSynchronize, (CUstream stream))                                                     \
	X(event_create, cuEventCreate, (CUevent * event, unsigned int flags))                                             \
	X(event_destroy, cuEventDestroy, (CUevent event))                                                                 \
	X(event_record, cuEventRecord, (CUevent event, CUstream stream))                                                  \
	X(event_synchronize, cuEventSynchronize, (CUevent event))                                                         \
	X(copy_to_device, cuMemcpyHtoDAsync, (CUdeviceptr to, const void *from, size_t bytes, CUstream stream))           \
	X(copy_from_device, cuMemcpyDtoHAsync, (void *to, CUdeviceptr from, size_t bytes, CUstream stream))               \
	X(copy_on_device, cuMemcpyDtoDAsync, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))           \
	X(set_bytes, cuMemsetD8Async, (CUdeviceptr to, unsigned char byte, size_t bytes, CUstream stream))

struct cuda_api {
	void *library;
#define CUDA_MEMBER(member, name, parameters) CUresult(*member) parameters;
	CUDA_ENTRY_POINTS(CUDA_MEMBER)
#undef CUDA_MEMBER
};

/* Loads libcuda.so.1 and initializes it. 0, or -ENODEV with *error a line for the user that begins with "device=<spec>: ". */
int cuda_api_load(struct cuda_api *api, const char *spec, char **error);
/* "CUDA_ERROR_OUT_OF_MEMORY"; static. */
const char *cuda_error_name(const struct cuda_api *api, CUresult result);

#endif
