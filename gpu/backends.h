/* backends.h - what gpu.c knows of the backends, and what they share. Private to gpu/. */
#ifndef HMMFS_GPU_BACKENDS_H
#define HMMFS_GPU_BACKENDS_H

#include "gpu/gpu.h"

/* host.c */
int host_open(const struct gpu_config *config, struct gpu_device **dev, char **error);
void host_describe(struct gpu_info *info);

/* opencl.c. spec: "opencl", "opencl:P.D", or "opencl-gpu" and "opencl-cpu" for auto. */
int opencl_open(const struct gpu_config *config, const char *spec, struct gpu_device **dev, char **error);
int opencl_list(void (*each)(void *user, const struct gpu_info *info, const char *spec), void *user);

/* cuda.c, or no_cuda.c. spec: "cuda", "cuda:N" */
int cuda_open(const struct gpu_config *config, const char *spec, struct gpu_device **dev, char **error);
int cuda_list(void (*each)(void *user, const struct gpu_info *info, const char *spec), void *user);

/* memfd.c: a chunk's memory where the CPU can address it */
int memfd_create_for_chunk(size_t bytes);               /* descriptor or negative errno; size sealed, mode 0600 */
int memfd_export(int memfd, bool is_writable, int *fd); /* 0 or negative errno */

/* Sets *error to a formatted line, or NULL, and returns err. */
int gpu_refuse(char **error, int err, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
