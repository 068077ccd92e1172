/* device_memory.c - see device_memory.h. */
#include "test/random/device_memory.h"

#include "gpu/cuda_abi.h"

#include <dlfcn.h>
#include <stdint.h>

static struct {
	CUresult (*init)(unsigned);
	CUresult (*retain)(CUcontext *, CUdevice);
	CUresult (*set)(CUcontext);
	CUresult (*stream_create)(CUstream *, unsigned);
	CUresult (*pin)(void *, size_t, unsigned);
	CUresult (*load)(void *, CUdeviceptr, size_t);
	CUresult (*store)(CUdeviceptr, const void *, size_t, CUstream);
} cuda;
static CUstream stream; /* NULL: not on cuda */
static char *copy;

const char *device_memory_start(const struct hmmfs_info *info, void *buffer, size_t bytes)
{
	static const char *const names[] = {"cuInit",	       "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent",	 "cuStreamCreate",
					    "cuMemHostRegister_v2", "cuMemcpyDtoH_v2",		   "cuMemcpyHtoDAsync_v2"};
	void **entries = (void **)&cuda;
	CUcontext context;
	void *library;

	if (!info->is_cuda)
		return NULL;
	library = dlopen("libcuda.so.1", RTLD_NOW);
	if (library == NULL)
		return dlerror();
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		entries[i] = dlsym(library, names[i]);
		if (entries[i] == NULL)
			return names[i];
	}
	copy = buffer;
	return cuda.init(0) == CUDA_SUCCESS && cuda.retain(&context, 0) == CUDA_SUCCESS && cuda.set(context) == CUDA_SUCCESS &&
			       cuda.stream_create(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS &&
			       cuda.pin(buffer, bytes, 0) == CUDA_SUCCESS
		       ? NULL
		       : "CUDA does not start";
}

void *device_memory_load(struct hmmfs_region *region, size_t len)
{
	if (stream == NULL)
		return hmmfs_data(region);
	return cuda.load(copy, hmmfs_device_pointer(region), len) == CUDA_SUCCESS ? copy : NULL;
}

int device_memory_store(struct hmmfs_region *region, size_t from, size_t len)
{
	if (stream == NULL)
		return 0;
	return cuda.store(hmmfs_device_pointer(region) + from, copy + from, len, stream) == CUDA_SUCCESS ? 0 : -1;
}

int device_memory_end(struct hmmfs_region *region)
{
	int err;

	if (stream == NULL)
		return hmmfs_end(region);
	err = hmmfs_end_stream(region, stream);
	return err < 0 ? err : hmmfs_wait(region);
}
