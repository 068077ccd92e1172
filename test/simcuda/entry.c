/* entry.c - cuGetProcAddress: the entry points by the names that have no version. */
#include "test/simcuda/simcuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { PROC_V2_VERSION = 12000 };

/* The version that a name stands for today, where it is not the first. */
static const char *const second[] = {"cuDeviceGetUuid",	 "cuDeviceTotalMem", "cuDevicePrimaryCtxRelease", "cuDevicePrimaryCtxReset",
				     "cuCtxCreate",	 "cuCtxDestroy",     "cuCtxPushCurrent",	  "cuCtxPopCurrent",
				     "cuMemGetInfo",	 "cuMemAlloc",	     "cuMemFree",		  "cuMemHostRegister",
				     "cuMemcpyHtoD",	 "cuMemcpyDtoH",     "cuMemcpyDtoD",		  "cuMemcpyHtoDAsync",
				     "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync", "cuMemsetD8",		  "cuStreamDestroy",
				     "cuEventDestroy",	 "cuGetProcAddress"};

static void *symbol(const char *name)
{
	Dl_info self;
	void *library, *address;

	/* Through a handle of our own library: it may have been loaded RTLD_LOCAL. */
	if (dladdr((void *)(uintptr_t)symbol, &self) == 0)
		return NULL;
	library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
	if (library == NULL)
		return NULL;
	address = dlsym(library, name);
	dlclose(library);
	return address;
}

static void *find(const char *name, int version)
{
	char full[80];

	snprintf(full, sizeof(full), "%s", name);
	for (size_t i = 0; i < sizeof(second) / sizeof(second[0]); i++) {
		if (strcmp(second[i], name) == 0)
			snprintf(full, sizeof(full), "%s_v2", name);
	}
	return symbol(strcmp(name, "cuGetProcAddress") == 0 && version < PROC_V2_VERSION ? name : full);
}

static CUresult get(const char *name, void **address, int version, unsigned long long flags, CUdriverProcAddressQueryResult *found)
{
	if (flags > 2)
		return (CUresult)ERROR_INVALID_VALUE;
	*address = strncmp(name, "cu", 2) == 0 ? find(name, version) : NULL;
	if (found != NULL)
		*found = (CUdriverProcAddressQueryResult)(*address == NULL ? 1 : 0);
	return *address == NULL ? (CUresult)ERROR_NOT_FOUND : CUDA_SUCCESS;
}

EXPORT CUresult cuGetProcAddress(const char *name, void **address, int version, unsigned long long flags)
{
	return get(name, address, version, flags, NULL);
}

EXPORT CUresult cuGetProcAddress_v2(const char *name, void **address, int version, unsigned long long flags,
				    CUdriverProcAddressQueryResult *found)
{
	return get(name, address, version, flags, found);
}
