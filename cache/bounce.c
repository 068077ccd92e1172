/* bounce.c - see bounce.h */
#include "cache/bounce.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static const size_t kept[BOUNCE_USE_COUNT] = {0, BOUNCE_KEPT_FOR_WRITE, BOUNCE_KEPT_FOR_CPU};

int bounce_pool_init(struct bounce_pool *pool, size_t bytes)
{
	int err;

	*pool = (struct bounce_pool){.memfd = -1, .base = MAP_FAILED, .n_buffers = bytes / BOUNCE_BYTES};
	pool->bytes = pool->n_buffers * BOUNCE_BYTES;
	pool->free = calloc(pool->n_buffers, sizeof(*pool->free));
	pool->memfd = memfd_create("hmmfs-bounce", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (pool->free == NULL || pool->memfd < 0 || ftruncate(pool->memfd, (off_t)pool->bytes) < 0)
		goto fail;
	pool->base = mmap(NULL, pool->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pool->memfd, 0);
	if (pool->base == MAP_FAILED)
		goto fail;
	while (pool->n_free < pool->n_buffers) {
		pool->free[pool->n_free] = (uint32_t)pool->n_free;
		pool->n_free++;
	}
	return 0;
fail:
	err = pool->free == NULL ? -ENOMEM : -errno;
	bounce_pool_finish(pool);
	return err;
}

void bounce_pool_finish(struct bounce_pool *pool)
{
	if (pool->base != MAP_FAILED && pool->base != NULL)
		munmap(pool->base, pool->bytes);
	if (pool->memfd >= 0)
		close(pool->memfd);
	free(pool->free);
	*pool = (struct bounce_pool){.memfd = -1};
}

char *bounce_take(struct bounce_pool *pool, enum bounce_use use, struct task *task)
{
	if (pool->n_free <= kept[use]) {
		task_list_append(&pool->waiters[use], task);
		return NULL;
	}
	return pool->base + (size_t)pool->free[--pool->n_free] * BOUNCE_BYTES;
}

struct task *bounce_give(struct bounce_pool *pool, char *buffer)
{
	pool->free[pool->n_free++] = (uint32_t)(bounce_offset(pool, buffer) / BOUNCE_BYTES);
	for (int use = 0; use < BOUNCE_USE_COUNT; use++) {
		if (pool->waiters[use].head != NULL && pool->n_free > kept[use])
			return task_list_take(&pool->waiters[use]);
	}
	return NULL;
}
