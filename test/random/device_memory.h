/* device_memory.h - how the tester gets at a region's bytes: by address, or on cuda by copies on a stream of its own. */
#ifndef HMMFS_RANDOM_DEVICE_MEMORY_H
#define HMMFS_RANDOM_DEVICE_MEMORY_H

#include "client/hmmfs.h"

/* Once a process, before the first region. buffer: where bytes of cuda's are taken to, pinned. NULL, or what is wrong. */
const char *device_memory_start(const struct hmmfs_info *info, void *buffer, size_t bytes);
/* The region's bytes, under a lease: its own memory or a copy in the buffer. NULL: they can't be had. */
void *device_memory_load(struct hmmfs_region *region, size_t len);
/* Stores what is at `from` in the memory that load gave; on cuda by a copy, which is still under way when it returns. 0 or -1 */
int device_memory_store(struct hmmfs_region *region, size_t from, size_t len);
/* Ends the lease when all that is stored. */
int device_memory_end(struct hmmfs_region *region);

#endif
