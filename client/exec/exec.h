/*
 * exec.h - the library that hmmfs exec preloads: copies of a mapped file to a GPU come from the device cache. Private to
 * client/exec.
 *
 *     hooks.c   what the program calls instead of the driver, and the three ways by which it may have come to the driver's
 *               entry points: linked, dlsym, cuGetProcAddress (that of the CUDA runtime)
 *     find.c    is that address in a mapping of an hmmfs mount's file, with the file's own bytes?
 *     copy.c    the copy: lease, device to device, wait, end
 *
 * Whatever is not as it should be, at any step, leads to the driver's own call with the arguments as they were: then the
 * program gets the bytes, and the errors, that it would have had.
 */
#ifndef HMMFS_EXEC_H
#define HMMFS_EXEC_H

#include "gpu/cuda_abi.h"

#include <stdbool.h>
#include <stddef.h>

/* True: dst has the bytes, and nothing is left to do. stream: NULL for the default one; is_per_thread: of each thread's own. */
bool exec_copy(CUdeviceptr dst, const void *src, size_t bytes, CUstream stream, bool is_per_thread);
/* Are [address, address+bytes) bytes of a file on an hmmfs mount, as the file has them? */
bool exec_is_mapped_file(const void *address, size_t bytes);
/* libcuda's own; NULL: it is not loaded, or has it not. */
void *exec_driver_symbol(const char *name);

#endif
