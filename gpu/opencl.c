#include "gpu/backends.h"
#include <errno.h>
int opencl_open(const struct gpu_config *config, const char *spec, struct gpu_device **dev, char **error)
{ (void)config; (void)dev; return gpu_refuse(error, -ENODEV, "device=%s: not yet", spec); }
int opencl_list(void (*each)(void *user, const struct gpu_info *info, const char *spec), void *user)
{ (void)each; (void)user; return 0; }
int gpu_run_source_on_cpu(struct gpu_run *run, uint8_t *data) { (void)run; (void)data; return -ENODEV; }
