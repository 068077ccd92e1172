/*
 * cuda_driver.h - the CUDA driver that the application has loaded, if it has. Private to client/ and tools/.
 *
 * libhmmfs is not linked with libcuda, and does not load it by itself: a process without CUDA is left without. The entry points
 * are looked up by their exported names, whose ABI is fixed.
 */
#ifndef HMMFS_CLIENT_CUDA_DRIVER_H
#define HMMFS_CLIENT_CUDA_DRIVER_H

#include "gpu/cuda_abi.h"

/* member, exported name, parameters */
#define CUDA_DRIVER_ENTRIES(X)                                                                                            \
	X(error_name, cuGetErrorName, (CUresult result, const char **name))                                               \
	X(context_get, cuCtxGetCurrent, (CUcontext * context))                                                            \
	X(context_set, cuCtxSetCurrent, (CUcontext context))                                                              \
	X(context_device, cuCtxGetDevice, (CUdevice * device))                                                            \
	X(device_uuid, cuDeviceGetUuid_v2, (CUuuid * uuid, CUdevice device))                                              \
	X(mem_import, cuMemImportFromShareableHandle,                                                                     \
	  (CUmemGenericAllocationHandle * handle, void *fd, CUmemAllocationHandleType type))                              \
	X(mem_release, cuMemRelease, (CUmemGenericAllocationHandle handle))                                               \
	X(address_reserve, cuMemAddressReserve,                                                                           \
	  (CUdeviceptr * address, size_t bytes, size_t alignment, CUdeviceptr hint, unsigned long long flags))            \
	X(address_free, cuMemAddressFree, (CUdeviceptr address, size_t bytes))                                            \
	X(mem_map, cuMemMap,                                                                                              \
	  (CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags)) \
	X(mem_unmap, cuMemUnmap, (CUdeviceptr address, size_t bytes))                                                     \
	X(set_access, cuMemSetAccess, (CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t n))       \
	X(event_create, cuEventCreate, (CUevent * event, unsigned int flags))                                             \
	X(event_record, cuEventRecord, (CUevent event, CUstream stream))                                                  \
	X(event_synchronize, cuEventSynchronize, (CUevent event))                                                         \
	X(event_destroy, cuEventDestroy_v2, (CUevent event))

struct cuda_driver {
#define CUDA_DRIVER_MEMBER(member, name, parameters) CUresult(*member) parameters;
	CUDA_DRIVER_ENTRIES(CUDA_DRIVER_MEMBER)
#undef CUDA_DRIVER_MEMBER
};

/* NULL: this process has loaded no driver, or one that is too old. */
const struct cuda_driver *cuda_driver(void);
/* A negative errno for a failure. */
int cuda_errno(CUresult result);

#endif
