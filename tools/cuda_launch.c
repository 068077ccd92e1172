/* cuda_launch.c - see cuda_launch.h. */
#include "tools/cuda_launch.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MULTIPROCESSOR_COUNT = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };
enum { JIT_ERROR_LOG_BUFFER = 5, JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6, JIT_LOG_BYTES = 16384 };

static int say(char **log, int err, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int say(char **log, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (vasprintf(log, format, args) < 0)
		*log = NULL;
	va_end(args);
	return err;
}

int cuda_failed(const struct cuda_launch *cuda, const char *call, CUresult result, char **log)
{
	const char *name = NULL;

	if (cuda->error_name(result, &name) != CUDA_SUCCESS || name == NULL)
		name = "an unknown error";
	free(*log);
	return say(log, result == CUDA_ERROR_OUT_OF_MEMORY ? -ENOMEM : -EIO, "%s: %s", call, name);
}

static int load_driver(struct cuda_launch *cuda, char **log)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);

	if (library == NULL)
		return say(log, -ENXIO, "no CUDA driver: %s", dlerror());
#define FIND(member, name, parameters)                                                                                    \
	*(void **)&cuda->member = dlsym(library, #name);                                                                  \
	if (cuda->member == NULL)                                                                                         \
		return say(log, -ENXIO, "the CUDA driver has no %s: it is too old", #name);
	CUDA_LAUNCH_ENTRIES(FIND)
#undef FIND
	return 0;
}

static int find_device(struct cuda_launch *cuda, const uint8_t *wanted, CUdevice *device, char **log)
{
	CUuuid uuid;
	int n = 0;

	for (int i = 0; cuda->device_count(&n) == CUDA_SUCCESS && i < n; i++) {
		if (cuda->device_get(device, i) == CUDA_SUCCESS && cuda->device_uuid(&uuid, *device) == CUDA_SUCCESS &&
		    memcmp(uuid.bytes, wanted, sizeof(uuid.bytes)) == 0)
			return 0;
	}
	return say(log, -ENXIO, "the mount's GPU is not among the %d that this process sees (CUDA_VISIBLE_DEVICES?)", n);
}

static int start(struct cuda_launch *cuda, const struct hmmfs_info *info, char **log)
{
	CUcontext context;
	CUdevice device;
	CUresult result;
	int major = 0, minor = 0;
	int err = load_driver(cuda, log);

	if (err < 0)
		return err;
	result = cuda->init(0);
	if (result != CUDA_SUCCESS)
		return cuda_failed(cuda, "cuInit", result, log);
	err = find_device(cuda, info->device_uuid, &device, log);
	if (err < 0)
		return err;
	cuda->device_attribute(&cuda->multiprocessors, MULTIPROCESSOR_COUNT, device);
	cuda->device_attribute(&major, CAPABILITY_MAJOR, device);
	cuda->device_attribute(&minor, CAPABILITY_MINOR, device);
	cuda->architecture = 10 * major + minor;
	result = cuda->primary_retain(&context, device);
	if (result == CUDA_SUCCESS)
		result = cuda->context_set(context);
	return result == CUDA_SUCCESS ? 0 : cuda_failed(cuda, "cuDevicePrimaryCtxRetain", result, log);
}

int cuda_start(const struct hmmfs_info *info, const struct cuda_launch **out, char **log)
{
	static struct cuda_launch cuda;
	static bool is_started;
	int err = is_started ? 0 : start(&cuda, info, log);

	is_started = err == 0;
	*out = &cuda;
	return err;
}

int cuda_load(const struct cuda_launch *cuda, const char *image, const char *entry, CUfunction *function, char **log)
{
	int options[] = {JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
	char *jit = calloc(1, JIT_LOG_BYTES);
	void *values[] = {jit, (void *)(uintptr_t)JIT_LOG_BYTES};
	const char *name = NULL;
	CUmodule module;
	CUresult result;
	int err = 0;

	if (jit == NULL)
		return -ENOMEM;
	result = cuda->module_load(&module, image, 2, options, values);
	if (result != CUDA_SUCCESS) {
		cuda->error_name(result, &name);
		err = say(log, -ENOEXEC, "%s\ncuModuleLoadDataEx: %s", jit, name == NULL ? "an unknown error" : name);
	} else {
		result = cuda->module_function(function, module, entry);
		if (result != CUDA_SUCCESS)
			err = say(log, -ENOEXEC, "it has no entry %s", entry);
	}
	free(jit);
	return err;
}
