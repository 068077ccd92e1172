/* cache.c - putting a cache together and taking it apart; waiting for requests. */
#include "cache/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>

enum {
	CHUNK_MIN = 64 << 10,
	CHUNK_MAX = 1 << 30,
	CHUNK_DEFAULT = 2 << 20,
	BOUNCE_DEFAULT = 64 << 20,
	CAPACITY_MIN_CHUNKS = 4,
	NOTIFIER_THREADS = 2,
	WORKER_THREADS = 4,
	TELLER_THREADS = 2,
};
#define CAPACITY_DEFAULT (UINT64_C(1) << 30)
#define LOST_CHECK_NS UINT64_C(100000000)

/* ---- waiting ---- */

struct waiter {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	bool is_done;
	int status;
};

static void waiter_done(struct cache_op *op, int status)
{
	struct waiter *waiter = op->waiter;

	pthread_mutex_lock(&waiter->mutex);
	waiter->is_done = true;
	waiter->status = status;
	pthread_cond_signal(&waiter->cond);
	pthread_mutex_unlock(&waiter->mutex);
}

int cache_wait_for(struct cache_op *op, void (*start)(void *request), void *request)
{
	struct waiter waiter = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

	assert(!engine_is_current); /* it would wait for itself */
	op->done = waiter_done;
	op->waiter = &waiter;
	start(request);
	pthread_mutex_lock(&waiter.mutex);
	while (!waiter.is_done)
		pthread_cond_wait(&waiter.cond, &waiter.mutex);
	pthread_mutex_unlock(&waiter.mutex);
	pthread_mutex_destroy(&waiter.mutex);
	pthread_cond_destroy(&waiter.cond);
	return waiter.status;
}

/* ---- lost memory ---- */

static void lost_task(struct cache *cache, struct task *task)
{
	struct chunk *chunk, *next;

	(void)task;
	atomic_store(&cache->is_lost_posted, false);
	cache->next_lost_check_ns = UINT64_MAX;
	DL_FOREACH_SAFE2(cache->resident, chunk, next, next) {
		if (chunk->memory != NULL && cache->dev->ops->chunk_is_lost(cache->dev, chunk->memory))
			chunk_lose(chunk);
	}
}

bool chunk_lose(struct chunk *chunk)
{
	struct cache *cache = chunk->file->cache;
	enum coherence_action action = chunk_send(chunk, EVENT_LOST);

	if (action == DO_WAIT) { /* something is still under way on it */
		cache->next_lost_check_ns = now_ns() + LOST_CHECK_NS;
		return false;
	}
	if (action == DO_NOTHING)
		return true;
	cache->stats.lost_chunks++;
	if (action == DO_LOSE) {
		file_record_error(chunk->file, -EIO);
		cache_log(cache, LOG_CRIT, "%s: bytes %lld..%lld were lost with the device's memory before they were "
			  "written back",
			  file_name(chunk->file), (long long)chunk_offset(chunk), (long long)chunk_end(chunk));
	}
	return true;
}

void lost_check(struct cache *cache)
{
	lost_task(cache, &cache->lost_task);
}

static void device_lost(void *user)
{
	struct cache *cache = user;

	if (!atomic_exchange(&cache->is_lost_posted, true))
		engine_post(cache, &cache->lost_task);
}

static void device_log(void *user, int priority, const char *line)
{
	struct cache *cache = user;

	cache->callbacks->log(cache->fs, priority, line);
}

/* ---- creation ---- */

static int refuse(char **error, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int refuse(char **error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (vasprintf(error, format, args) < 0)
		*error = NULL;
	va_end(args);
	return -EINVAL;
}

static int check_config(struct cache_config *config, char **error)
{
	if (config->chunk_bytes == 0)
		config->chunk_bytes = CHUNK_DEFAULT;
	if (config->bounce_bytes == 0)
		config->bounce_bytes = BOUNCE_DEFAULT;
	if (config->chunk_bytes < CHUNK_MIN || config->chunk_bytes > CHUNK_MAX ||
	    (config->chunk_bytes & (config->chunk_bytes - 1)) != 0)
		return refuse(error, "chunk=%zu: must be a power of two from 64K to 1G", config->chunk_bytes);
	if (config->bounce_bytes < (size_t)BOUNCE_MIN_BUFFERS * BOUNCE_BYTES)
		return refuse(error, "bounce=%zu: must be at least %dM", config->bounce_bytes,
			      BOUNCE_MIN_BUFFERS * (BOUNCE_BYTES >> 20));
	if (config->capacity_bytes > 0 && config->capacity_bytes < CAPACITY_MIN_CHUNKS * config->chunk_bytes)
		return refuse(error, "capacity=%llu: must be at least %d chunks of %zu bytes (%llu)",
			      (unsigned long long)config->capacity_bytes, CAPACITY_MIN_CHUNKS, config->chunk_bytes,
			      (unsigned long long)CAPACITY_MIN_CHUNKS * config->chunk_bytes);
	return 0;
}

static int choose_capacity(struct cache *cache, char **error)
{
	const struct gpu_info *info = &cache->dev->info;
	uint64_t capacity = cache->config.capacity_bytes;

	if (info->memory_bytes > 0 && capacity > info->memory_bytes)
		return refuse(error, "capacity=%llu: more than the device has (%s, %llu bytes); choose less",
			      (unsigned long long)capacity, info->name, (unsigned long long)info->memory_bytes);
	if (info->free_bytes > 0 && capacity > info->free_bytes)
		return refuse(error, "capacity=%llu: more than is free on the device (%s, %llu bytes); choose less, or auto",
			      (unsigned long long)capacity, info->name, (unsigned long long)info->free_bytes);
	if (capacity == 0) {
		cache->reserve_bytes = capacity_reserve(info);
		capacity = info->memory_bytes > 0 ? capacity_auto(info) : CAPACITY_DEFAULT;
	}
	cache->wanted_chunks = cache->capacity_chunks = capacity / cache->chunk_bytes;
	if (info->can_export && cache->config.max_descriptors > 0 && cache->wanted_chunks > cache->config.max_descriptors) {
		cache_log(cache, LOG_NOTICE, "capacity: %zu chunks, not %zu: each has a file descriptor, and there are no more for them; "
			  "raise the limit (ulimit -n) or choose a larger chunk", cache->config.max_descriptors, cache->wanted_chunks);
		cache->wanted_chunks = cache->capacity_chunks = cache->config.max_descriptors;
	}
	if (cache->capacity_chunks < CAPACITY_MIN_CHUNKS)
		return refuse(error, "chunk=%zu: the device has no memory free for %d of them; choose a smaller chunk",
			      cache->chunk_bytes, CAPACITY_MIN_CHUNKS);
	return 0;
}

int cache_create(const struct cache_config *config, const struct cache_callbacks *callbacks, void *fs,
		 struct cache **out, char **error)
{
	struct cache *cache = calloc(1, sizeof(*cache));
	struct gpu_config gpu_config;
	int err;

	*error = NULL;
	if (cache == NULL)
		return -ENOMEM;
	cache->config = *config;
	cache->callbacks = callbacks;
	cache->fs = fs;
	cache->next_hold_ns = cache->next_lease_check_ns = cache->next_lost_check_ns = UINT64_MAX;
	cache->lost_task.run = lost_task;
	pthread_mutex_init(&cache->post_lock, NULL);
	pthread_mutex_init(&cache->files_lock, NULL);
	err = check_config(&cache->config, error);
	if (err < 0)
		goto fail;
	cache->chunk_bytes = cache->config.chunk_bytes;
	cache->chunk_shift = (unsigned)__builtin_ctzll(cache->chunk_bytes);
	err = bounce_pool_init(&cache->bounce, cache->config.bounce_bytes);
	if (err < 0)
		goto fail;
	cache->is_engine_awake = true; /* until it starts there is nothing to wake */
	gpu_config = (struct gpu_config){.spec = cache->config.device,
					 .chunk_bytes = cache->chunk_bytes,
					 .bounce = {cache->bounce.base, cache->bounce.bytes, cache->bounce.memfd},
					 .lost = device_lost,
					 .log = device_log,
					 .user = cache,
					 .is_background = cache->config.is_background};
	err = gpu_open(&gpu_config, &cache->dev, error);
	if (err < 0)
		goto fail_bounce;
	cache->config.device = NULL; /* the caller's string; not needed any more */
	err = choose_capacity(cache, error);
	if (err < 0)
		goto fail_device;
	*out = cache;
	return 0;
fail_device:
	gpu_close(cache->dev);
fail_bounce:
	bounce_pool_finish(&cache->bounce);
fail:
	pthread_mutex_destroy(&cache->files_lock);
	pthread_mutex_destroy(&cache->post_lock);
	free(cache);
	return err;
}

int cache_start(struct cache *cache)
{
	const char *notice;
	int err = ring_init(&cache->ring, cache->bounce.base, cache->bounce.bytes, &notice);

	if (err < 0)
		return err;
	if (notice != NULL)
		cache_log(cache, LOG_NOTICE, "%s", notice);
	cache->next_writeback_ns = cache->config.writeback_interval_ms == 0
					   ? UINT64_MAX
					   : now_ns() + (uint64_t)cache->config.writeback_interval_ms * 1000000;
	err = workers_start(&cache->workers, cache, WORKER_THREADS, "hmmfs-worker");
	if (err < 0)
		goto fail_ring;
	err = workers_start(&cache->notifiers, cache, NOTIFIER_THREADS, "hmmfs-notifier");
	if (err < 0)
		goto fail_workers;
	err = workers_start(&cache->tellers, cache, TELLER_THREADS, "hmmfs-teller");
	if (err < 0)
		goto fail_notifiers;
	err = engine_start(cache);
	if (err < 0)
		goto fail_tellers;
	return 0;
fail_tellers:
	workers_stop(&cache->tellers);
fail_notifiers:
	workers_stop(&cache->notifiers);
fail_workers:
	workers_stop(&cache->workers);
fail_ring:
	ring_finish(&cache->ring);
	return err;
}

void cache_destroy(struct cache *cache)
{
	bool was_started = cache->has_engine;

	if (cache->has_engine) {
		workers_stop(&cache->tellers); /* they wait for the others */
		workers_stop(&cache->notifiers);
		workers_stop(&cache->workers);
		engine_stop(cache);
	}
	gpu_close(cache->dev); /* its threads may be about to wake the engine: the ring is there until they are gone */
	if (was_started)
		ring_finish(&cache->ring);
	bounce_pool_finish(&cache->bounce);
	pthread_mutex_destroy(&cache->files_lock);
	pthread_mutex_destroy(&cache->post_lock);
	free(cache);
}

struct gpu_device *cache_device(struct cache *cache)
{
	return cache->dev;
}
