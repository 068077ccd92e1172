/*
 * bounce.h - the pool of bounce buffers: host memory pinned for the device and registered with io_uring.
 *
 * One memfd, mapped once, cut into buffers of BOUNCE_BYTES. Engine thread only.
 *
 * R1: a WRITE must always find a buffer, so the last ones are kept for the more urgent: a fill or writeback leaves
 * BOUNCE_KEPT_FOR_CPU, a READ leaves BOUNCE_KEPT_FOR_WRITE. Every buffer in use comes back by the disk, the device or a
 * reply to the kernel alone, so that whoever waits for one gets it.
 */
#ifndef HMMFS_BOUNCE_H
#define HMMFS_BOUNCE_H

#include "cache/task.h"

#include <stdint.h>

enum { BOUNCE_BYTES = 1 << 20, BOUNCE_MIN_BUFFERS = 8, BOUNCE_KEPT_FOR_CPU = 4, BOUNCE_KEPT_FOR_WRITE = 2 };

enum bounce_use { BOUNCE_FOR_WRITE, BOUNCE_FOR_READ, BOUNCE_FOR_TRANSFER, BOUNCE_USE_COUNT };

struct bounce_pool {
	char *base;
	size_t bytes;
	int memfd;
	uint32_t *free; /* a stack of buffer numbers */
	size_t n_free, n_buffers;
	struct task_list waiters[BOUNCE_USE_COUNT];
};

/* 0 or negative errno. bytes is rounded down to whole buffers. */
int bounce_pool_init(struct bounce_pool *pool, size_t bytes);
void bounce_pool_finish(struct bounce_pool *pool);
/* A buffer, or NULL: then the task, which must retry, is parked. */
char *bounce_take(struct bounce_pool *pool, enum bounce_use use, struct task *task);
/* Returns a task that may now take one, to be made ready, or NULL. */
struct task *bounce_give(struct bounce_pool *pool, char *buffer);
static inline size_t bounce_offset(const struct bounce_pool *pool, const char *buffer)
{
	return (size_t)(buffer - pool->base);
}

#endif
