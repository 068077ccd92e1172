/*
 * writeback.c - DIRTY chunks to the backing, without leaving the device; fsync; errors.
 *
 * A snapshot of the chunk is copied into bounce buffers and written while compute goes on. What is stored meanwhile
 * is not in it: the chunk stays DIRTY then (coherence.c).
 *
 * fsync must cover every store that came before it, so a snapshot in flight is not enough: the chunk needs one that
 * starts after the request. Requests of one file are served in batches: all that wait when a batch starts are
 * answered by it; later ones by the next.
 */
#include "cache/internal.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>

/* The device has lost the bytes: there is nothing to try again. */
static void store_lost(struct chunk *chunk)
{
	struct cache *cache = chunk->file->cache;

	cache->stats.writeback_errors++;
	chunk_send(chunk, EVENT_WRITE_FAILED);
	if (!chunk_lose(chunk)) /* leased, say: it is lost when that is over */
		file_record_error(chunk->file, -EIO);
	memory_resume_waiters(cache);
	sync_chunk_settled(chunk, -EIO);
}

static void stored(struct chunk *chunk, void *user, int status)
{
	struct cache_file *file = chunk->file;
	struct cache *cache = file->cache;

	(void)user;
	if (status == -ENODEV) {
		store_lost(chunk);
		return;
	}
	if (status < 0) {
		cache->stats.writeback_errors++;
		file_record_error(file, status);
		if (chunk->logged_error != status)
			cache_log(cache, LOG_ERR, "%s: writing back bytes %lld..%lld failed, they stay on the device: %s",
				  file_name(file), (long long)chunk_offset(chunk),
				  (long long)min_off(chunk_end(chunk), file->size), strerror(-status));
		chunk->logged_error = status;
	} else {
		off_t bytes = min_off(chunk_end(chunk), file->size) - chunk_offset(chunk);

		chunk->logged_error = 0;
		cache->stats.writebacks++;
		cache->stats.writeback_bytes += bytes > 0 ? (uint64_t)bytes : 0;
		atomic_fetch_add(&file->write_generation, 1);
	}
	chunk_send(chunk, status < 0 ? EVENT_WRITE_FAILED : EVENT_WRITTEN);
	memory_resume_waiters(cache); /* it may be evicted now, or it could not leave */
	sync_chunk_settled(chunk, status);
}

void chunk_writeback(struct chunk *chunk)
{
	chunk_store(chunk, stored, NULL);
}

/* ---- sync ---- */

static void batch_answer(struct cache_file *file)
{
	struct cache_sync *sync = file->sync.running;

	file->sync.running = NULL;
	file->sync.is_running = false;
	while (sync != NULL) {
		struct cache_sync *next = sync->internal;

		sync->op.done(&sync->op, file->sync.error);
		file_leave(file);
		sync = next;
	}
	mutation_kick(file);
	sync_kick(file);
}

static void batch_fsync(struct cache_file *file);

static void fsynced(struct ring_op *op, int result)
{
	struct cache_file *file = CONTAINER_OF(op, struct cache_file, sync.fsync_op);

	if (result == -EINTR || result == -EAGAIN) {
		batch_fsync(file);
		return;
	}
	if (result < 0) {
		cache_log(file->cache, LOG_ERR, "%s: fsync of the backing failed: %s", file_name(file),
			  strerror(-result));
		file_record_error(file, result);
		file->sync.error = result;
	}
	batch_answer(file);
}

static void batch_fsync(struct cache_file *file)
{
	bool is_datasync = true;

	for (struct cache_sync *sync = file->sync.running; sync != NULL; sync = sync->internal)
		is_datasync &= sync->is_datasync;
	file->sync.fsync_op.done = fsynced;
	ring_fsync(&file->cache->ring, file->backing.buffered, is_datasync, &file->sync.fsync_op);
}

static void batch_count_down(struct cache_file *file)
{
	bool needs_fsync = false;

	if (--file->sync.outstanding > 0)
		return;
	for (struct cache_sync *sync = file->sync.running; sync != NULL; sync = sync->internal)
		needs_fsync |= !sync->is_flush;
	if (needs_fsync && file->backing.buffered.fd >= 0)
		batch_fsync(file);
	else
		batch_answer(file);
}

void sync_chunk_settled(struct chunk *chunk, int status)
{
	struct cache_file *file = chunk->file;

	if (!chunk->needs_sync)
		return;
	if (status < 0)
		file->sync.error = status;
	if (status == 0 && chunk->needs_snapshot && chunk->coherence.state == CHUNK_DIRTY) {
		if (chunk->coherence.is_writeback || chunk_send(chunk, EVENT_SNAPSHOT) == DO_SNAPSHOT) {
			chunk->needs_snapshot = false;
			return;
		}
	}
	chunk->needs_sync = false;
	batch_count_down(file);
}

/* A batch and a mutation take turns: a frozen chunk can't be written back. */
void sync_kick(struct cache_file *file)
{
	struct chunk *chunk, *next;

	if (file->sync.is_running || file->sync.waiting == NULL || file->is_mutating)
		return;
	file->sync.is_running = true;
	file->sync.running = file->sync.waiting;
	file->sync.waiting = NULL;
	file->sync.error = 0;
	file->sync.outstanding = 1;
	HASH_ITER(hh, file->chunks, chunk, next) {
		if (chunk->coherence.state != CHUNK_DIRTY)
			continue;
		chunk->needs_sync = true;
		chunk->needs_snapshot = chunk->coherence.is_writeback;
		file->sync.outstanding++;
		if (!chunk->needs_snapshot && chunk_send(chunk, EVENT_SNAPSHOT) != DO_SNAPSHOT)
			sync_chunk_settled(chunk, 0);
	}
	batch_count_down(file);
}

struct sync_request {
	struct task task;
	struct cache_sync *sync;
};

static void sync_task(struct cache *cache, struct task *task)
{
	struct sync_request *request = CONTAINER_OF(task, struct sync_request, task);
	struct cache_sync *sync = request->sync;
	struct cache_file *file = sync->file;

	(void)cache;
	free(request);
	file_take_descriptors(file);
	sync->internal = file->sync.waiting;
	file->sync.waiting = sync;
	sync_kick(file);
}

void cache_sync(struct cache_sync *sync)
{
	struct sync_request *request = calloc(1, sizeof(*request));
	int err = request == NULL ? -ENOMEM : file_enter(sync->file, false);

	if (err < 0) {
		free(request);
		sync->op.done(&sync->op, err);
		return;
	}
	*request = (struct sync_request){.task.run = sync_task, .sync = sync};
	engine_post(sync->file->cache, &request->task);
}

/* All files: one request for each that is active now. */
struct sync_all {
	struct cache_op *op;
	atomic_uint outstanding;
	atomic_int error;
};

struct sync_part {
	struct cache_sync sync;
	struct sync_all *all;
};

static void sync_all_count_down(struct sync_all *all)
{
	if (atomic_fetch_sub(&all->outstanding, 1) > 1)
		return;
	all->op->done(all->op, atomic_load(&all->error));
	free(all);
}

static void sync_part_done(struct cache_op *op, int status)
{
	struct sync_part *part = CONTAINER_OF(op, struct sync_part, sync.op);

	if (status < 0)
		atomic_store(&part->all->error, status);
	sync_all_count_down(part->all);
	free(part);
}

void cache_sync_all(struct cache_sync *sync)
{
	struct cache *cache = sync->cache;
	struct sync_all *all = calloc(1, sizeof(*all));
	struct sync_part *parts = NULL, *part;
	struct cache_file *file;

	if (all == NULL) {
		sync->op.done(&sync->op, -ENOMEM);
		return;
	}
	all->op = &sync->op;
	atomic_store(&all->outstanding, 1);
	pthread_mutex_lock(&cache->files_lock);
	DL_FOREACH(cache->files, file) {
		if (!cache_file_is_active(file))
			continue;
		part = calloc(1, sizeof(*part));
		if (part == NULL) {
			atomic_store(&all->error, -ENOMEM);
			break;
		}
		pthread_mutex_lock(&file->gate);
		file_count_in_locked(file); /* keeps it active, so that it is still there below */
		pthread_mutex_unlock(&file->gate);
		part->sync = (struct cache_sync){.op.done = sync_part_done, .file = file,
						 .is_datasync = sync->is_datasync, .is_flush = sync->is_flush,
						 .internal = parts};
		part->all = all;
		parts = part;
	}
	pthread_mutex_unlock(&cache->files_lock);
	while ((part = parts) != NULL) {
		struct sync_request *request = calloc(1, sizeof(*request));

		parts = part->sync.internal;
		atomic_fetch_add(&all->outstanding, 1);
		if (request == NULL)
			abort();
		*request = (struct sync_request){.task.run = sync_task, .sync = &part->sync};
		engine_post(cache, &request->task);
	}
	sync_all_count_down(all);
}

/* ---- the timer ---- */

void writeback_timer(struct cache *cache, uint64_t now)
{
	struct chunk *chunk, *next;

	cache->next_writeback_ns = cache->config.writeback_interval_ms == 0
					   ? UINT64_MAX
					   : now + (uint64_t)cache->config.writeback_interval_ms * 1000000;
	DL_FOREACH_SAFE2(cache->resident, chunk, next, next) {
		if (chunk->coherence.state == CHUNK_DIRTY && !chunk->coherence.is_writeback)
			chunk_send(chunk, EVENT_SNAPSHOT);
	}
}
