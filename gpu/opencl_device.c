/* opencl_device.c - choosing an OpenCL device. */
#include "gpu/opencl_device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PLATFORMS_MAX = 16, DEVICES_MAX = 32 };

int opencl_errno(cl_int error)
{
	switch (error) {
	case CL_SUCCESS: return 0;
	case CL_MEM_OBJECT_ALLOCATION_FAILURE:
	case CL_OUT_OF_RESOURCES:
	case CL_OUT_OF_HOST_MEMORY:
	case CL_INVALID_BUFFER_SIZE: return -ENOMEM;
	case CL_DEVICE_NOT_AVAILABLE:
	case CL_DEVICE_NOT_FOUND: return -ENODEV;
	default: return -EIO;
	}
}

int opencl_each(void (*each)(void *user, const struct opencl_choice *choice), void *user)
{
	cl_platform_id platforms[PLATFORMS_MAX];
	cl_uint n_platforms = 0;

	if (clGetPlatformIDs(PLATFORMS_MAX, platforms, &n_platforms) != CL_SUCCESS)
		return -ENODEV;
	for (cl_uint p = 0; p < n_platforms && p < PLATFORMS_MAX; p++) {
		cl_device_id devices[DEVICES_MAX];
		cl_uint n_devices = 0;

		if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, DEVICES_MAX, devices, &n_devices) != CL_SUCCESS)
			continue;
		for (cl_uint d = 0; d < n_devices && d < DEVICES_MAX; d++) {
			struct opencl_choice choice = {.platform = platforms[p], .device = devices[d]};
			cl_ulong memory = 0;

			clGetDeviceInfo(devices[d], CL_DEVICE_TYPE, sizeof(choice.type), &choice.type, NULL);
			clGetDeviceInfo(devices[d], CL_DEVICE_NAME, sizeof(choice.name) - 1, choice.name, NULL);
			clGetDeviceInfo(devices[d], CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(memory), &memory, NULL);
			choice.memory_bytes = memory;
			snprintf(choice.spec, sizeof(choice.spec), "opencl:%u.%u", p, d);
			each(user, &choice);
		}
	}
	return 0;
}

struct search {
	const char *spec;
	struct opencl_choice *found;
	int rank; /* of found; higher is better */
};

static void consider(void *user, const struct opencl_choice *choice)
{
	struct search *search = user;
	bool is_gpu = choice->type & CL_DEVICE_TYPE_GPU, is_cpu = choice->type & CL_DEVICE_TYPE_CPU;
	int rank = 0;

	if (strcmp(search->spec, "opencl-gpu") == 0)
		rank = is_gpu ? 3 : 0;
	else if (strcmp(search->spec, "opencl-cpu") == 0)
		rank = is_cpu ? 3 : 0;
	else if (strcmp(search->spec, "opencl") == 0)
		rank = is_gpu ? 3 : is_cpu ? 2 : 1;
	else
		rank = strcmp(search->spec, choice->spec) == 0 ? 3 : 0;
	if (rank > search->rank) {
		*search->found = *choice;
		search->rank = rank;
	}
}

int opencl_choose(const char *spec, struct opencl_choice *choice, char *error)
{
	struct search search = {.spec = spec, .found = choice};

	opencl_each(consider, &search);
	if (search.rank > 0)
		return 0;
	snprintf(error, 256,
		 "device=%s: no such OpenCL device; hmmfs devices lists what there is (for a CPU, install pocl-opencl-icd)", spec);
	return -ENODEV;
}

bool opencl_uses_host_memory(const struct opencl_choice *choice)
{
	return (choice->type & CL_DEVICE_TYPE_CPU) != 0;
}
