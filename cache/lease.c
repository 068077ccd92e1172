/* lease.c - leases: acquires, up to the grant, or to being cancelled. The stages are in lease.h. */
#include "cache/lease.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool has_conflict_ahead(const struct lease *lease)
{
	for (const struct lease *other = lease->file->leases; other != lease; other = other->next) {
		if (other->stage != LEASE_OVER && lease_overlaps(lease, other) &&
		    (lease_is_exclusive(lease) || lease_is_exclusive(other)))
			return true;
	}
	return false;
}

/* ---- ends ---- */

void lease_resume_queued(struct cache_file *file)
{
	struct lease *lease;

	DL_FOREACH(file->leases, lease) {
		if (lease->stage == LEASE_QUEUED && lease->task.on == NULL && !has_conflict_ahead(lease))
			engine_ready(file->cache, &lease->task);
	}
}

static void lease_unpin(struct lease *lease)
{
	if (!lease->is_pinned)
		return;
	lease->is_pinned = false;
	for (size_t i = 0; i < lease->public->n_chunks; i++)
		chunk_send(lease->chunks[i], EVENT_UNPIN);
}

void lease_free(struct lease *lease)
{
	struct cache_file *file = lease->file;
	struct gpu_device *dev = file->cache->dev;

	for (size_t i = 0; i < lease->public->n_chunks; i++) {
		if (lease->memory[i].is_own)
			dev->ops->chunk_destroy(dev, lease->memory[i].chunk);
	}
	lease_unpin(lease);
	for (size_t i = 0; i < lease->public->n_chunks; i++) {
		struct chunk *chunk = lease->memory[i].is_shared_with_holder ? chunk_find(file, lease->public->first_chunk + i) : NULL;

		if (chunk != NULL && chunk->memory == lease->memory[i].chunk)
			chunk_send(chunk, EVENT_LEAVE);
	}
	free(lease->memory);
	lease->public->internal = NULL;
	free(lease->chunks);
	free(lease->is_prepared);
	free(lease);
	file_leave(file);
}

/* The acquire ends without a lease. */
static void lease_fail(struct lease *lease, int status)
{
	struct cache_file *file = lease->file;
	struct cache_lease *public = lease->public;

	if (lease->is_pinned && lease_is_exclusive(lease)) {
		for (size_t i = 0; i < public->n_chunks; i++)
			chunk_send(lease->chunks[i], EVENT_UNCLAIM);
	}
	DL_DELETE(file->leases, lease);
	lease_resume_queued(file);
	lease_free(lease);
	admission_check(file->cache);
	public->op.done(&public->op, status);
}

/* ---- stages of an acquire ---- */

static void lease_reserved(struct cache_file *file, void *user, int status)
{
	struct lease *lease = user;

	lease->is_busy = false;
	if (status < 0) {
		lease_fail(lease, status);
		return;
	}
	for (size_t i = 0; i < lease->public->n_chunks; i++)
		chunk_send(lease->chunks[i], EVENT_RESERVED);
	lease->stage = LEASE_LOADING;
	engine_ready(file->cache, &lease->task);
}

static void lease_reserve(struct lease *lease)
{
	struct cache *cache = lease->file->cache;

	lease->stage = LEASE_RESERVING;
	lease->is_busy = true;
	backing_reserve(lease->file, (off_t)(lease->public->first_chunk << cache->chunk_shift),
			(off_t)(lease->public->n_chunks << cache->chunk_shift), false, lease_reserved, lease);
}

static void lease_admit(struct lease *lease);

/* Starts as many fills as there is memory for. True: all chunks are resident; otherwise parked, or failed. */
static bool lease_load(struct lease *lease)
{
	struct cache *cache = lease->file->cache;
	struct chunk *first_waiting = NULL;

	for (size_t i = lease->n_loaded; i < lease->public->n_chunks; i++) {
		struct chunk *chunk = lease->chunks[i];
		enum coherence_action action;
		int err = 0;

		if (chunk->fill_error < 0) {
			lease_fail(lease, chunk->fill_error);
			return false;
		}
		if (chunk->memory == NULL)
			err = chunk_take_memory(chunk);
		if (err == -EAGAIN) {
			task_list_append(&cache->memory_waiters, &lease->task);
			return false;
		}
		if (err == -ENOBUFS) {
			lease_unpin(lease);
			lease->n_loaded = 0;
			lease_admit(lease);
			return false;
		}
		if (err < 0) {
			lease_fail(lease, err);
			return false;
		}
		action = chunk_send(chunk, EVENT_WANT_RESIDENT);
		if (action == DO_FILL) {
			lease->public->fill_bytes += cache->chunk_bytes;
			cache->stats.misses++;
			chunk_fill(chunk);
		}
		if (action == DO_NOTHING && first_waiting == NULL)
			lease->n_loaded = i + 1;
		else if (action != DO_NOTHING && first_waiting == NULL)
			first_waiting = chunk;
	}
	if (first_waiting == NULL)
		return true;
	chunk_park(first_waiting, &lease->task);
	return false;
}

static void lease_grant(struct lease *lease)
{
	struct cache_lease *public = lease->public;
	uint64_t now = now_ns();

	for (size_t i = 0; i < public->n_chunks; i++) {
		struct chunk *chunk = lease->chunks[i];

		chunk_send(chunk, lease_is_exclusive(lease) ? EVENT_GRANT_EXCLUSIVE : EVENT_GRANT_SHARED);
		chunk->is_referenced = true;
		chunk->cpu_bytes = 0;
		lease->memory[i] = (struct lease_memory){chunk->memory, chunk->generation, false};
	}
	lease->stage = LEASE_GRANTED;
	lease->file->cache->n_leases++;
	if (public->fill_bytes == 0)
		lease->file->cache->stats.hits++;
	public->acquire_ns = now - lease->start_ns;
	public->fill_ns = lease->load_ns;
	public->op.done(&public->op, 0);
}

static void lease_claim(struct lease *lease)
{
	struct coherence_context context = {.has_writers = atomic_load(&lease->file->writers) > 0};
	struct invalidation_list list = {0};
	struct chunk *waits_for = NULL;

	for (size_t i = 0; i < lease->public->n_chunks; i++) {
		struct chunk *chunk = lease->chunks[i];

		if (!lease_is_exclusive(lease) && lease->is_prepared[i])
			continue;
		switch (chunk_send_in(chunk, lease_is_exclusive(lease) ? EVENT_WANT_EXCLUSIVE : EVENT_WANT_SHARED, &context)) {
		case DO_NOTHING:
			lease->is_prepared[i] = true;
			break;
		case DO_INVALIDATE:
			lease->is_prepared[i] = true;
			if (invalidation_add(&list, chunk) < 0)
				abort(); /* the state says that it is being invalidated */
			break;
		case DO_RESERVE:
			if (list.n == 0) {
				lease_reserve(lease); /* a hole was punched meanwhile */
				return;
			}
			break; /* found again after the invalidation */
		default:
			waits_for = chunk;
			break;
		}
	}
	if (list.n > 0) {
		lease->is_busy = true;
		invalidation_start(lease->file, &list, lease->rounds++, &lease->task);
	} else if (waits_for != NULL) {
		chunk_park(waits_for, &lease->task);
	} else {
		lease_grant(lease);
	}
}

static int lease_pin(struct lease *lease)
{
	struct cache_lease *public = lease->public;

	for (size_t i = 0; i < public->n_chunks; i++) {
		struct chunk *chunk = chunk_get(lease->file, public->first_chunk + i);

		if (chunk == NULL) {
			while (i-- > 0)
				chunk_send(lease->chunks[i], EVENT_UNPIN);
			return -ENOMEM;
		}
		lease->chunks[i] = chunk;
		if (chunk->coherence.pins == 0)
			chunk->fill_error = 0;
		chunk_send(chunk, EVENT_PIN);
	}
	lease->is_pinned = true;
	return 0;
}

static size_t count_unpinned(const struct lease *lease)
{
	size_t n = 0;

	for (size_t i = 0; i < lease->public->n_chunks; i++) {
		struct chunk *chunk = chunk_find(lease->file, lease->public->first_chunk + i);

		n += chunk == NULL || chunk->coherence.pins == 0;
	}
	return n;
}

void admission_check(struct cache *cache)
{
	if (cache->admission.head != NULL && cache->admission.head->on == &cache->admission)
		engine_ready(cache, task_list_take(&cache->admission));
}

/* First come, first served: a large region is not passed by small ones for ever. */
static void lease_admit(struct lease *lease)
{
	struct cache *cache = lease->file->cache;
	int err;

	if (lease->public->n_chunks > cache->capacity_chunks) {
		lease_fail(lease, -ENOMEM);
		return;
	}
	if (cache->n_pinned + count_unpinned(lease) > cache->capacity_chunks) {
		lease->stage = LEASE_ADMISSION;
		DL_PREPEND(cache->admission.head, &lease->task);
		lease->task.on = &cache->admission;
		return;
	}
	err = lease_pin(lease);
	if (err < 0) {
		lease_fail(lease, err);
		return;
	}
	if (lease_is_exclusive(lease)) {
		lease_reserve(lease);
	} else {
		lease->stage = LEASE_LOADING;
		engine_ready(cache, &lease->task);
	}
	admission_check(cache);
}

static void lease_task(struct cache *cache, struct task *task)
{
	struct lease *lease = CONTAINER_OF(task, struct lease, task);

	lease->is_busy = false;
	if (lease->is_cancelled && lease->stage < LEASE_GRANTED) {
		lease_fail(lease, -ECANCELED);
		return;
	}
	switch (lease->stage) {
	case LEASE_QUEUED:
		if (has_conflict_ahead(lease))
			return; /* resume_queued comes back to it */
		if (!file_activate(lease->file, task))
			return;
		if (cache->admission.head != NULL) { /* behind those that wait for room */
			lease->stage = LEASE_ADMISSION;
			task_list_append(&cache->admission, task);
			admission_check(cache);
			return;
		}
		lease_admit(lease);
		return;
	case LEASE_ADMISSION:
		lease_admit(lease);
		return;
	case LEASE_LOADING: {
		uint64_t now = now_ns();

		if (!lease_load(lease))
			return;
		lease->load_ns = now - lease->start_ns;
		lease->stage = LEASE_CLAIMING;
		lease_claim(lease);
		return;
	}
	case LEASE_CLAIMING:
		lease_claim(lease);
		return;
	case LEASE_ENDING:
		lease_end_step(lease);
		return;
	default:
		assert(!"a lease that waits for nothing was resumed");
	}
}

static void start_task(struct cache *cache, struct task *task)
{
	struct lease *lease = CONTAINER_OF(task, struct lease, start_task);

	DL_APPEND(lease->file->leases, lease);
	lease_task(cache, &lease->task);
}

void cache_acquire(struct cache_lease *public)
{
	struct cache_file *file = public->file;
	struct lease *lease = calloc(1, sizeof(*lease));
	bool *is_prepared = calloc(public->n_chunks, sizeof(bool));
	struct chunk **chunks = calloc(public->n_chunks, sizeof(struct chunk *));
	struct lease_memory *memory = calloc(public->n_chunks, sizeof(*memory));
	int err = -ENOMEM;

	if (lease != NULL && is_prepared != NULL && chunks != NULL && memory != NULL)
		err = file_enter(file, public->mode == CACHE_LEASE_EXCLUSIVE);
	if (err < 0) {
		free(lease);
		free(memory);
		free(chunks);
		free(is_prepared);
		public->op.done(&public->op, err);
		return;
	}
	*lease = (struct lease){.public = public, .file = file, .is_prepared = is_prepared, .chunks = chunks, .memory = memory, .start_ns = now_ns(),
				.task.run = lease_task, .start_task.run = start_task};
	public->internal = lease;
	public->fill_bytes = 0;
	engine_post(file->cache, &lease->start_task);
}

/* ---- cancelling ---- */

struct cancellation {
	struct task task;
	struct cache_file *file;
	struct cache_lease *public;
};

static void cancel_task(struct cache *cache, struct task *task)
{
	struct cancellation *cancellation = CONTAINER_OF(task, struct cancellation, task);
	struct cache_file *file = cancellation->file;
	struct lease *lease;

	(void)cache;
	DL_FOREACH(file->leases, lease) {
		if (lease->public == cancellation->public && lease->stage < LEASE_GRANTED)
			break;
	}
	free(cancellation);
	if (lease != NULL) {
		lease->is_cancelled = true;
		if (!lease->is_busy) {
			task_remove(&lease->task);
			lease_fail(lease, -ECANCELED);
		}
	}
	file_leave(file);
}

void cache_acquire_cancel(struct cache_lease *public)
{
	struct cancellation *cancellation = calloc(1, sizeof(*cancellation));
	struct cache_file *file = public->file;

	if (cancellation == NULL)
		return; /* the acquire goes on to its own end */
	*cancellation = (struct cancellation){.task.run = cancel_task, .file = file, .public = public};
	pthread_mutex_lock(&file->gate);
	file_count_in_locked(file);
	pthread_mutex_unlock(&file->gate);
	engine_post(file->cache, &cancellation->task);
}
