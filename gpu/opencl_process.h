/* opencl_process.h - starting hmmfs-device, and running one kernel in one. */
#ifndef HMMFS_OPENCL_PROCESS_H
#define HMMFS_OPENCL_PROCESS_H

#include "gpu/gpu.h"

#include <fcntl.h>
#include <sys/types.h>

/* Starts hmmfs-device in a mode; *socket is this end of its socket. is_background: as in gpu_config. Its pid, or negative
 * errno. */
pid_t opencl_process_start(const char *mode, bool is_background, int *socket);
/* Kills and reaps it, closes the socket. Returns what waitpid(2) said of it. */
int opencl_process_end(pid_t pid, int socket);
/* Runs run->source in a process of its own on memfds of chunk_bytes each. Blocks until it is done, has crashed (-EFAULT, with
 * a log), run->timeout_ms have passed (-ETIMEDOUT) or cancel_fd gets readable (-ECANCELED). */
int opencl_process_run(struct gpu_run *run, const char *spec, bool is_shared, size_t chunk_bytes, const int *memfds, size_t n,
		       int cancel_fd);

#endif
