/*
 * cuda_mapping.h - a region's chunks, back to back in one range of this process's device addresses. Private to client/.
 *
 *     cuda_mapping_prepare   each begin: is there a context, on the right device? The first time the range is reserved
 *     cuda_mapping_put       each descriptor that comes: imported, mapped in its place, the handle released: the mapping alone
 *                            keeps the memory, also when the daemon has given it up
 *     cuda_mapping_allow     before begin returns: what the lease allows, where that has changed
 *
 * Addresses are the process's, not a context's: any context of the device may use them.
 */
#ifndef HMMFS_CLIENT_CUDA_MAPPING_H
#define HMMFS_CLIENT_CUDA_MAPPING_H

#include "client/cuda_driver.h"
#include "client/hmmfs.h"

struct cuda_mapping {
	const struct cuda_driver *driver;
	CUdevice device;
	CUdeviceptr base; /* 0: nothing is reserved */
	size_t chunk_bytes, n_chunks;
	unsigned char *rights; /* of each chunk: enum in cuda_mapping.c */
	bool has_no_read_only; /* the driver refuses it: shared leases are mapped writable */
};

/* -ENXIO: no driver is loaded, or no context is current; -EXDEV: it is on another device. */
int cuda_mapping_prepare(struct cuda_mapping *mapping, const struct hmmfs_info *info, size_t n_chunks);
int cuda_mapping_put(struct cuda_mapping *mapping, size_t index, int fd); /* -EPROTO: no handle of CUDA's; or cuda_errno */
int cuda_mapping_allow(struct cuda_mapping *mapping, bool is_writable);
void cuda_mapping_finish(struct cuda_mapping *mapping);

#endif
