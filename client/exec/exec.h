/*
 * exec.h - the library that hmmfs exec preloads: copies of a mapped file to a GPU come from the device cache. Private to
 * client/exec.
 *
 *     hooks.c   what the program calls instead of the driver, and the three ways by which it may have come to the driver's
 *               entry points: linked, dlsym, cuGetProcAddress (that of the CUDA runtime)
 *     find.c    is that address in a mapping of an hmmfs mount's file, with the file's own bytes?
 *     copy.c    the copy: lease, device to device, wait, end
 *     keep.c    regions between copies: a copy of the same bytes again maps nothing
 *
 * Whatever is not as it should be, at any step, leads to the driver's own call with the arguments as they were: then the
 * program gets the bytes, and the errors, that it would have had.
 */
#ifndef HMMFS_EXEC_H
#define HMMFS_EXEC_H

#include "client/hmmfs.h"
#include "gpu/cuda_abi.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of a file, and where they are mapped. */
struct exec_range {
	uintptr_t address;
	size_t bytes;
	dev_t dev;
	uint64_t inode, offset;
};

/* True: dst has the bytes, and nothing is left to do. stream: NULL for the default one; is_per_thread: of each thread's own. */
bool exec_copy(CUdeviceptr dst, const void *src, size_t bytes, CUstream stream, bool is_per_thread);

/* Are [address, address+bytes) bytes of a file on an hmmfs mount, as the file has them? */
bool exec_find(const void *address, size_t bytes, struct exec_range *range);

/* A region of just these bytes, which is the caller's then; NULL: none was kept. */
struct hmmfs_region *exec_keep_take(const struct exec_range *range, uint64_t *limit);
/* Takes the region over, whose lease has ended. limit: of the bytes of all that are kept. */
void exec_keep_put(const struct exec_range *range, struct hmmfs_region *region, uint64_t limit);
/* The program unmaps [address, address+bytes), or needs memory of the GPU: what is kept for it goes. True: there was something. */
bool exec_keep_drop(uintptr_t address, size_t bytes);
bool exec_keep_drop_all(void);

/* libcuda's own; NULL: it is not loaded, or has it not. */
void *exec_driver_symbol(const char *name);

#endif
