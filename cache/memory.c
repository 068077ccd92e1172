/*
 * memory.c - which chunks have device memory: the capacity, and the second-chance order of eviction.
 *
 * The resident list is the clock: the head is looked at first; a chunk used since it was last looked at gets a second
 * chance at the tail. Source: Corbato's CLOCK, as in any operating systems textbook.
 *
 * Acquires are admitted only while all pinned and leased chunks fit in the capacity (lease.c), so that whoever waits for
 * memory waits for a chunk that can leave: never for another client. If the capacity shrank since (capacity.c), -ENOBUFS sends
 * them back to be admitted anew.
 */
#include "cache/internal.h"

#include <errno.h>
#include <string.h>
#include <syslog.h>

static int create_memory(struct chunk *chunk)
{
	struct cache *cache = chunk->file->cache;
	int err = cache->dev->ops->chunk_create(cache->dev, &chunk->memory);

	if (err < 0)
		return err;
	chunk->generation = ++cache->next_generation;
	chunk->is_referenced = true;
	DL_APPEND2(cache->resident, chunk, prev, next);
	cache->n_resident++;
	return 0;
}

void chunk_free_memory(struct chunk *chunk)
{
	struct cache *cache = chunk->file->cache;

	if (chunk->memory == NULL)
		return;
	cache->dev->ops->chunk_destroy(cache->dev, chunk->memory);
	chunk->memory = NULL;
	chunk->cpu_bytes = 0;
	DL_DELETE2(cache->resident, chunk, prev, next);
	cache->n_resident--;
	memory_resume_waiters(cache);
}

void memory_resume_waiters(struct cache *cache)
{
	struct task *task;

	while ((task = task_list_take(&cache->memory_waiters)) != NULL)
		engine_ready(cache, task);
}

/* Looks at each chunk once or, if all were used, twice. True: one has left, or is leaving (then *is_leaving). Chunks
 * whose writeback failed are left to the timer's next try. */
bool memory_evict_one(struct cache *cache, bool *is_leaving)
{
	size_t looks = 2 * cache->n_resident;

	cache->n_stuck = 0;

	while (looks-- > 0) {
		struct chunk *chunk = cache->resident;
		size_t before = cache->n_resident;

		DL_DELETE2(cache->resident, chunk, prev, next);
		DL_APPEND2(cache->resident, chunk, prev, next);
		if (chunk->coherence.has_error) {
			cache->n_stuck++;
			cache->stuck_error = atomic_load(&chunk->file->error);
			continue;
		}
		if (chunk->is_referenced || chunk->coherence.is_leaving) {
			chunk->is_referenced = false;
			continue;
		}
		switch (chunk_send(chunk, EVENT_LEAVE)) {
		case DO_DROP:
		case DO_SNAPSHOT:
		case DO_WAIT:
			cache->stats.evictions++;
			*is_leaving = cache->n_resident == before;
			return true;
		default:
			break;
		}
	}
	return false;
}

static int why_none_leaves(const struct cache *cache)
{
	if (cache->n_leaving > 0)
		return -EAGAIN;
	if (cache->n_stuck > 0)
		return cache->stuck_error;
	return cache->n_pinned > cache->capacity_chunks ? -ENOBUFS : -EAGAIN;
}

int chunk_take_memory(struct chunk *chunk)
{
	struct cache *cache = chunk->file->cache;
	bool is_leaving = false;
	int err = -ENOMEM;

	if (chunk->memory != NULL)
		return 0;
	if (cache->n_resident < cache->capacity_chunks) {
		err = create_memory(chunk);
		if (err != -ENOMEM || !capacity_exhausted(cache))
			return err;
	}
	while (cache->n_resident >= cache->capacity_chunks) {
		if (!memory_evict_one(cache, &is_leaving))
			return why_none_leaves(cache);
		if (is_leaving)
			return -EAGAIN;
	}
	return create_memory(chunk);
}

/* ---- filling ---- */

static void filled(struct chunk *chunk, void *user, int status)
{
	struct cache *cache = chunk->file->cache;

	(void)user;
	if (status < 0) {
		cache_log(cache, LOG_ERR, "%s: reading bytes %lld..%lld to the device failed: %s", file_name(chunk->file),
			  (long long)chunk_offset(chunk), (long long)chunk_end(chunk), strerror(-status));
		chunk->fill_error = status;
	} else {
		cache->stats.fills++;
		cache->stats.fill_bytes += cache->chunk_bytes;
	}
	chunk_send(chunk, status < 0 ? EVENT_FILL_FAILED : EVENT_FILLED);
	if (status == -ENOMEM && capacity_exhausted(cache))
		chunk->fill_error = 0; /* whoever wants it tries again, in what memory there is */
	if (chunk->coherence.pins == 0)
		memory_resume_waiters(cache); /* whoever wanted it gave up: it can be evicted now */
}

void chunk_fill(struct chunk *chunk)
{
	chunk_load(chunk, chunk_offset(chunk), chunk_end(chunk), filled, NULL);
}
