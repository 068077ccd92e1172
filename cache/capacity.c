/*
 * capacity.c - how many chunks the cache may hold, as the device's memory gets short and comes back.
 *
 *     wanted     what the mount asked for; capacity=auto: half of the device's memory, or what is free but for a reserve
 *     capacity   what is used now, at most wanted
 *
 * It shrinks when an allocation fails, to what there is, and with capacity=auto when less than the reserve is free: somebody
 * else, a client first of all, needs memory. What is over the capacity leaves as in any eviction: CLEAN chunks at once, DIRTY ones
 * when they are written back, and nothing that is leased. It grows again when there is memory. Free memory is measured once
 * a second while something may come of it, on a thread of the device's.
 *
 * Acquires are admitted by the capacity (lease.c). Those that were admitted by a larger one, and find no memory, ask anew.
 */
#include "cache/internal.h"

#include <stdlib.h>
#include <syslog.h>

enum { RESERVE_PART = 16 };
#define MEASURE_NS UINT64_C(1000000000)

uint64_t capacity_reserve(const struct gpu_info *info)
{
	return info->free_bytes > 0 ? info->memory_bytes / RESERVE_PART : 0;
}

uint64_t capacity_auto(const struct gpu_info *info)
{
	uint64_t reserve = capacity_reserve(info), half = info->memory_bytes / 2;
	uint64_t rest = info->free_bytes > reserve ? info->free_bytes - reserve : 0;

	return info->free_bytes == 0 || half < rest ? half : rest;
}

static void shrink(struct cache *cache, size_t chunks)
{
	bool is_leaving;

	if (chunks < 1)
		chunks = 1;
	if (chunks >= cache->capacity_chunks)
		return;
	if (cache->capacity_chunks == cache->wanted_chunks)
		cache_log(cache, LOG_NOTICE, "the device's memory is short: making do with %zu chunks, not %zu, until there is more",
			  chunks, cache->wanted_chunks);
	cache->capacity_chunks = chunks;
	while (cache->n_resident > chunks + cache->n_leaving && memory_evict_one(cache, &is_leaving))
		;
	memory_resume_waiters(cache);
	admission_check(cache);
}

bool capacity_exhausted(struct cache *cache)
{
	shrink(cache, cache->n_resident);
	return cache->n_resident > 0;
}

static void grow(struct cache *cache, size_t room)
{
	size_t chunks = cache->n_resident + room;

	if (chunks <= cache->capacity_chunks)
		return;
	cache->capacity_chunks = chunks < cache->wanted_chunks ? chunks : cache->wanted_chunks;
	if (cache->capacity_chunks == cache->wanted_chunks)
		cache_log(cache, LOG_NOTICE, "the device has memory again for all %zu chunks", cache->wanted_chunks);
	memory_resume_waiters(cache);
	admission_check(cache);
}

static void measured(struct device_op *op, int status)
{
	struct cache *cache = op->cache;
	uint64_t reserve = cache->reserve_bytes, missing;

	cache->is_measuring = false;
	if (status < 0)
		return;
	if (cache->free_bytes < reserve) {
		missing = (reserve - cache->free_bytes + cache->chunk_bytes - 1) / cache->chunk_bytes;
		shrink(cache, cache->n_resident > missing ? cache->n_resident - missing : 0);
	} else if (cache->capacity_chunks < cache->wanted_chunks) {
		grow(cache, (cache->free_bytes - reserve) / cache->chunk_bytes);
	}
}

uint64_t capacity_check(struct cache *cache, uint64_t now)
{
	bool is_wanted = cache->capacity_chunks < cache->wanted_chunks || (cache->reserve_bytes > 0 && cache->n_resident > 0);

	if (cache->dev->ops->measure == NULL || cache->is_measuring || !is_wanted)
		return UINT64_MAX;
	if (now < cache->next_measure_ns)
		return cache->next_measure_ns;
	cache->next_measure_ns = now + MEASURE_NS;
	cache->is_measuring = true;
	cache->dev->ops->measure(cache->dev, &cache->free_bytes, device_op_init(&cache->measure_op, cache, measured));
	return UINT64_MAX; /* until it has answered */
}
