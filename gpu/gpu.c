/* gpu.c - choosing a backend. */
#include "gpu/backends.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int gpu_refuse(char **error, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (vasprintf(error, format, args) < 0)
		*error = NULL;
	va_end(args);
	return err;
}

static int open_auto(const struct gpu_config *config, struct gpu_device **dev, char **error)
{
	static const char *const specs[] = {"cuda", "opencl-gpu", "opencl-cpu"};

	for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++) {
		int err = i == 0 ? cuda_open(config, specs[i], dev, error) : opencl_open(config, specs[i], dev, error);

		if (err == 0)
			return 0;
		free(*error);
		*error = NULL;
	}
	return host_open(config, dev, error);
}

int gpu_open(const struct gpu_config *config, struct gpu_device **dev, char **error)
{
	const char *spec = config->spec == NULL ? "auto" : config->spec;

	*error = NULL;
	if (config->chunk_bytes < 65536 || (config->chunk_bytes & (config->chunk_bytes - 1)) != 0)
		return gpu_refuse(error, -EINVAL, "chunk=%zu: must be a power of two of at least 64K",
				  config->chunk_bytes);
	if (strcmp(spec, "auto") == 0)
		return open_auto(config, dev, error);
	if (strcmp(spec, "host") == 0)
		return host_open(config, dev, error);
	if (strcmp(spec, "opencl") == 0 || strncmp(spec, "opencl:", 7) == 0)
		return opencl_open(config, spec, dev, error);
	if (strcmp(spec, "cuda") == 0 || strncmp(spec, "cuda:", 5) == 0)
		return cuda_open(config, spec, dev, error);
	return gpu_refuse(error, -EINVAL,
			  "device=%s: no such device; use auto, host, opencl, opencl:PLATFORM.DEVICE, cuda or cuda:N", spec);
}

void gpu_close(struct gpu_device *dev)
{
	dev->ops->destroy(dev);
}

int gpu_list(void (*each)(void *user, const struct gpu_info *info, const char *spec), void *user)
{
	struct gpu_info info;

	cuda_list(each, user); /* no CUDA and no OpenCL are no failure */
	opencl_list(each, user);
	host_describe(&info);
	each(user, &info, "host");
	return 0;
}
