/* opencl_device.h - choosing an OpenCL device, and running a user's source on one. For processes that may crash. */
#ifndef HMMFS_OPENCL_DEVICE_H
#define HMMFS_OPENCL_DEVICE_H

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include "gpu/gpu.h"

struct opencl_choice {
	cl_platform_id platform;
	cl_device_id device;
	cl_device_type type;
	char spec[32];
	char name[128];
	uint64_t memory_bytes;
};

/* spec as in struct device_setup. On failure error (of 256 bytes) is a line for the user. */
int opencl_choose(const char *spec, struct opencl_choice *choice, char *error);
int opencl_each(void (*each)(void *user, const struct opencl_choice *choice), void *user);
bool opencl_uses_host_memory(const struct opencl_choice *choice);
/* Compiles and runs run->source on len bytes at data (in place if uses_host_memory, else copied there and back). */
int opencl_run_source(const struct opencl_choice *choice, bool uses_host_memory, struct gpu_run *run, uint8_t *data);
int opencl_errno(cl_int error);

#endif
