/* lease_end.c - leases that were granted: their end, and being revoked when they are in the way of others for too long. */
#include "cache/lease.h"

#include <stdlib.h>
#include <syslog.h>

/* How often leases are looked at that others may be waiting for. */
#define LEASE_CHECK_NS UINT64_C(100000000)

/* ---- ending ---- */

static void lease_over(struct lease *lease)
{
	struct cache_file *file = lease->file;
	struct cache_lease *public = lease->public;
	bool is_release_wanted = lease->is_release_wanted;

	DL_DELETE(file->leases, lease);
	lease->stage = LEASE_OVER;
	file->cache->n_leases--;
	lease_resume_queued(file);
	/* Also to a holder that was releasing it already: its last stores may have gone to memory taken from it. */
	if (lease->is_revoked && public->revoked != NULL)
		public->revoked(public);
	if (is_release_wanted) {
		lease_free(lease);
		public->op.done(&public->op, 0);
	}
}

void lease_end_step(struct lease *lease)
{
	struct invalidation_list list = {0};
	struct chunk *waits_for = NULL;

	for (size_t i = 0; i < lease->public->n_chunks; i++) {
		struct chunk *chunk = lease->chunks[i];

		if (!lease_is_exclusive(lease) && !lease->has_ended_shared)
			chunk_send(chunk, EVENT_END_SHARED);
		if (chunk->coherence.exclusive == EXCLUSIVE_HELD && lease_is_exclusive(lease) &&
		    chunk_send(chunk, EVENT_END_EXCLUSIVE) == DO_INVALIDATE && invalidation_add(&list, chunk) < 0)
			abort(); /* the state says that it is being invalidated */
		if (lease_is_exclusive(lease) && chunk->coherence.exclusive != EXCLUSIVE_NONE)
			waits_for = chunk;
	}
	lease->has_ended_shared = true;
	if (list.n > 0)
		invalidation_start(lease->file, &list, 0, &lease->task);
	else if (waits_for != NULL)
		chunk_park(waits_for, &lease->task);
	else
		lease_over(lease);
}

static void lease_end(struct lease *lease)
{
	lease->stage = LEASE_ENDING;
	lease_end_step(lease);
}

static void replaced(struct cache_file *file, void *user)
{
	struct lease *lease = user;

	(void)file;
	for (size_t i = 0; i < lease->public->n_chunks; i++) {
		lease->memory[i].is_own = lease->memory[i].chunk != lease->chunks[i]->memory;
		lease->memory[i].is_shared_with_holder = !lease->memory[i].is_own;
	}
	lease_end(lease);
}

/* The holder may go on storing to the memory that it mapped: the chunks get other memory before anyone else uses
 * them. What it maps is its own from now on, and is never used for anything again. */
static void lease_take_away(struct lease *lease)
{
	struct cache *cache = lease->file->cache;

	if (!lease_is_exclusive(lease) || !cache->dev->info.can_export) {
		lease_end(lease);
		return;
	}
	lease->stage = LEASE_REPLACING;
	mutation_replace_memory(lease->file, lease->public->first_chunk, lease->public->n_chunks, replaced, lease);
}

static void release_task(struct cache *cache, struct task *task)
{
	struct lease *lease = CONTAINER_OF(task, struct lease, release_task);
	struct cache_lease *public = lease->public;

	(void)cache;
	switch (lease->stage) {
	case LEASE_OVER:
		lease_free(lease);
		public->op.done(&public->op, 0);
		return;
	case LEASE_GRANTED:
		lease->is_release_wanted = true;
		if (public->is_abandoned)
			lease_take_away(lease);
		else
			lease_end(lease);
		return;
	default: /* being revoked */
		lease->is_release_wanted = true;
		return;
	}
}

void cache_release(struct cache_lease *public)
{
	struct lease *lease = public->internal;

	lease->release_task = (struct task){.run = release_task};
	engine_post(public->file->cache, &lease->release_task);
}

struct gpu_chunk *cache_lease_chunk(struct cache_lease *public, size_t i, uint64_t *generation)
{
	const struct lease *lease = public->internal;

	*generation = lease->memory[i].generation;
	return lease->memory[i].chunk;
}

/* ---- revoking ---- */

static bool is_in_the_way(const struct lease *lease)
{
	const struct lease *other;

	for (other = lease->next; other != NULL; other = other->next) {
		if (lease_overlaps(lease, other) && (lease_is_exclusive(lease) || lease_is_exclusive(other)))
			return true;
	}
	if (!lease_is_exclusive(lease))
		return false;
	for (size_t i = 0; i < lease->public->n_chunks; i++) {
		if (lease->chunks[i]->parked.head != NULL)
			return true;
	}
	return false;
}

static struct lease *find_overdue(struct cache_file *file, uint64_t now, uint64_t timeout_ns)
{
	struct lease *lease;

	DL_FOREACH(file->leases, lease) {
		if (lease->stage != LEASE_GRANTED)
			continue;
		if (!is_in_the_way(lease))
			lease->in_the_way_ns = 0;
		else if (lease->in_the_way_ns == 0)
			lease->in_the_way_ns = now;
		else if (now - lease->in_the_way_ns >= timeout_ns)
			return lease;
	}
	return NULL;
}

static void lease_revoke(struct lease *lease)
{
	struct cache *cache = lease->file->cache;

	lease->is_revoked = true;
	cache->stats.revocations++;
	cache_log(cache, LOG_WARNING, "%s: a lease that others have waited %u ms for is revoked", file_name(lease->file),
		  cache->config.lease_timeout_ms);
	lease_take_away(lease);
}

void leases_check_timeouts(struct cache *cache, uint64_t now)
{
	uint64_t timeout_ns = (uint64_t)cache->config.lease_timeout_ms * 1000000;
	struct cache_file *file;
	struct lease *lease = NULL;

	cache->next_lease_check_ns = UINT64_MAX;
	if (timeout_ns == 0 || cache->n_leases == 0)
		return;
	cache->next_lease_check_ns = now + (timeout_ns < LEASE_CHECK_NS ? timeout_ns : LEASE_CHECK_NS);
	pthread_mutex_lock(&cache->files_lock);
	DL_FOREACH(cache->files, file) {
		lease = find_overdue(file, now, timeout_ns);
		if (lease != NULL)
			break;
	}
	pthread_mutex_unlock(&cache->files_lock);
	if (lease != NULL)
		lease_revoke(lease); /* the others at the next look */
}
