/* cuda_api.c - finding the CUDA driver at run time: see cuda_api.h. */
#include "gpu/cuda_api.h"

#include "gpu/backends.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

enum { NEEDED_MAJOR = CUDA_API_VERSION / 1000, VMM_VERSION = 10020 };

typedef CUresult (*get_address)(const char *name, void **address, int version, unsigned long long flags,
				CUdriverProcAddressQueryResult *found);

#ifdef HMMFS_HAS_CUDA_H
/* Our entry points are what cuda.h declares. */
#define CHECK_TYPE(member, name, parameters)                                                                              \
	_Static_assert(__builtin_types_compatible_p(CUresult(*) parameters, __typeof__(&name)), #member);
CUDA_ENTRY_POINTS(CHECK_TYPE)
#undef CHECK_TYPE
#endif

/* POSIX has it that a pointer to a function fits into a void *, and C knows no way to say so. */
static void set_pointer(void *pointer, void *address)
{
	*(void **)pointer = address;
}

static int check_version(struct cuda_api *api, const char *spec, char **error)
{
	CUresult (*driver_version)(int *);
	int version = 0;

	set_pointer(&driver_version, dlsym(api->library, "cuDriverGetVersion"));
	if (driver_version == NULL || driver_version(&version) != CUDA_SUCCESS)
		return gpu_refuse(error, -ENODEV, "device=%s: libcuda.so.1 is no CUDA driver: it does not tell its version", spec);
	if (version < VMM_VERSION)
		return gpu_refuse(error, -ENODEV, "device=%s: the driver is too old (CUDA %d.%d): virtual memory management came with "
				  "CUDA 10.2 (driver 440), and hmmfs needs CUDA %d.0 (driver 525) or newer",
				  spec, version / 1000, version % 1000 / 10, NEEDED_MAJOR);
	if (version < CUDA_API_VERSION)
		return gpu_refuse(error, -ENODEV, "device=%s: the driver is too old (CUDA %d.%d): hmmfs needs CUDA %d.0 (driver 525) "
				  "or newer",
				  spec, version / 1000, version % 1000 / 10, NEEDED_MAJOR);
	return 0;
}

static int find_entry_points(struct cuda_api *api, const char *spec, char **error)
{
	CUdriverProcAddressQueryResult found;
	get_address get;
	void *address = NULL;

	set_pointer(&get, dlsym(api->library, "cuGetProcAddress_v2"));
	if (get == NULL)
		return gpu_refuse(error, -ENODEV, "device=%s: the driver has no cuGetProcAddress_v2; reinstall it", spec);
#define FIND(member, name, parameters)                                                                                    \
	if (get(#name, &address, CUDA_API_VERSION, 0, &found) != CUDA_SUCCESS || address == NULL)                         \
		return gpu_refuse(error, -ENODEV, "device=%s: the driver has no %s; reinstall it", spec, #name);          \
	set_pointer(&api->member, address);
	CUDA_ENTRY_POINTS(FIND)
#undef FIND
	return 0;
}

int cuda_api_load(struct cuda_api *api, const char *spec, char **error)
{
	CUresult result;
	int err;

	/* Never unloaded: a driver that has started has threads that run on. */
	*api = (struct cuda_api){.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)};
	if (api->library == NULL)
		return gpu_refuse(error, -ENODEV, "device=%s: no CUDA driver (%s); install NVIDIA's, or use another device", spec,
				  dlerror());
	err = check_version(api, spec, error);
	if (err == 0)
		err = find_entry_points(api, spec, error);
	if (err == 0) {
		result = api->init(0);
		if (result != CUDA_SUCCESS)
			err = gpu_refuse(error, -ENODEV, "device=%s: the CUDA driver does not start: %s; see nvidia-smi", spec,
					 cuda_error_name(api, result));
	}
	return err;
}

const char *cuda_error_name(const struct cuda_api *api, CUresult result)
{
	const char *name;

	return api->error_name(result, &name) == CUDA_SUCCESS ? name : "an unknown CUDA error";
}
