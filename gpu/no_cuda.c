/* no_cuda.c - the cuda device in a build without it (-Dcuda=disabled). */
#include "gpu/backends.h"

#include <errno.h>

int cuda_open(const struct gpu_config *config, const char *spec, struct gpu_device **dev, char **error)
{
	(void)config;
	(void)dev;
	return gpu_refuse(error, -ENODEV, "device=%s: this build has no cuda; use device=auto, opencl or host", spec);
}

int cuda_list(void (*each)(void *user, const struct gpu_info *info, const char *spec), void *user)
{
	(void)each;
	(void)user;
	return -ENODEV;
}
