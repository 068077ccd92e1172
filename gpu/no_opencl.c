/* no_opencl.c - in place of opencl_source.c in a build without OpenCL. */
#include "gpu/gpu.h"

#include <errno.h>

int gpu_run_source_on_cpu(struct gpu_run *run, uint8_t *data)
{
	(void)run;
	(void)data;
	return -ENODEV;
}
