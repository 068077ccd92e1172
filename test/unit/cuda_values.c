/* cuda_values.c - the CUDA ABI in numbers, by cuda.h or by our own cuda_abi.h: compiled twice for test_cuda_abi.c. */
#include "gpu/cuda_api.h"
#include "test/unit/cuda_values.h"

#include <stddef.h>

#define OFFSET(type, member) {#type "." #member, offsetof(type, member)}
#define SIZE(type) {"sizeof " #type, sizeof(type)}
#define VALUE(name) {#name, (long)name}

const struct cuda_value CUDA_VALUES[] = {
	SIZE(CUdevice), SIZE(CUdeviceptr), SIZE(CUmemGenericAllocationHandle), SIZE(CUcontext), SIZE(CUstream), SIZE(CUevent),
	SIZE(CUuuid), SIZE(CUresult), SIZE(CUdevice_attribute), SIZE(CUmemAllocationHandleType),
	SIZE(CUmemAllocationGranularity_flags), SIZE(CUdriverProcAddressQueryResult),
	SIZE(CUmemLocation), OFFSET(CUmemLocation, type), OFFSET(CUmemLocation, id),
	SIZE(CUmemAllocationProp), OFFSET(CUmemAllocationProp, type), OFFSET(CUmemAllocationProp, requestedHandleTypes),
	OFFSET(CUmemAllocationProp, location), OFFSET(CUmemAllocationProp, win32HandleMetaData),
	OFFSET(CUmemAllocationProp, allocFlags),
	SIZE(CUmemAccessDesc), OFFSET(CUmemAccessDesc, location), OFFSET(CUmemAccessDesc, flags),
	VALUE(CUDA_SUCCESS), VALUE(CUDA_ERROR_OUT_OF_MEMORY), VALUE(CUDA_ERROR_NO_DEVICE),
	VALUE(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED), VALUE(CUDA_ERROR_UNKNOWN),
	VALUE(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED),
	VALUE(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED), VALUE(CU_MEM_ALLOCATION_TYPE_PINNED),
	VALUE(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), VALUE(CU_MEM_LOCATION_TYPE_DEVICE), VALUE(CU_MEM_ALLOC_GRANULARITY_MINIMUM),
	VALUE(CU_MEM_ACCESS_FLAGS_PROT_READ), VALUE(CU_MEM_ACCESS_FLAGS_PROT_READWRITE), VALUE(CU_STREAM_NON_BLOCKING),
	VALUE(CU_EVENT_BLOCKING_SYNC), VALUE(CU_EVENT_DISABLE_TIMING), VALUE(CU_MEMHOSTREGISTER_PORTABLE),
	VALUE(CU_GET_PROC_ADDRESS_SUCCESS),
	{NULL, 0},
};
