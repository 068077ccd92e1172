/*
 * chunk.c - the records of chunks, and chunk_send: the one door through which a chunk's coherence changes.
 */
#include "cache/internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <syslog.h>

struct chunk *chunk_find(struct cache_file *file, uint64_t index)
{
	struct chunk *chunk;

	HASH_FIND(hh, file->chunks, &index, sizeof(index), chunk);
	return chunk;
}

struct chunk *chunk_get(struct cache_file *file, uint64_t index)
{
	struct chunk *chunk = chunk_find(file, index);

	if (chunk != NULL)
		return chunk;
	chunk = calloc(1, sizeof(*chunk));
	if (chunk == NULL)
		return NULL;
	coherence_init(&chunk->coherence);
	chunk->index = index;
	chunk->file = file;
	HASH_ADD(hh, file->chunks, index, sizeof(chunk->index), chunk);
	if (mutation_covers(file, index))
		chunk_send(chunk, EVENT_FREEZE); /* with nothing under way it freezes at once */
	return chunk;
}

static void resume_parked(struct chunk *chunk)
{
	struct task *task;

	while ((task = task_list_take(&chunk->parked)) != NULL)
		engine_ready(chunk->file->cache, task);
}

static void list_for_reaping(struct chunk *chunk)
{
	struct cache *cache = chunk->file->cache;

	if (chunk->is_reap_listed || !coherence_is_idle(&chunk->coherence))
		return;
	chunk->is_reap_listed = true;
	chunk->reap_next = cache->reap;
	cache->reap = chunk;
}

static void count_pins(struct chunk *chunk, unsigned before)
{
	struct cache *cache = chunk->file->cache;

	if (before == 0 && chunk->coherence.pins > 0)
		cache->n_pinned++;
	if (before > 0 && chunk->coherence.pins == 0) {
		cache->n_pinned--;
		if (chunk->coherence.state == CHUNK_HOST)
			chunk_free_memory(chunk); /* taken for a fill that nobody wants any more */
		admission_check(cache);
		memory_resume_waiters(cache);
	}
}

static void die_of_illegal_event(struct chunk *chunk, enum coherence_event event, const struct coherence *before)
{
	cache_log(chunk->file->cache, LOG_CRIT, "%s chunk %llu: event %s is illegal in state %s "
		  "(exclusive %u, shared %u, pins %u, freeze %u, writeback %u)",
		  file_name(chunk->file), (unsigned long long)chunk->index, coherence_event_name(event),
		  chunk_state_name(before->state), before->exclusive, before->shared, before->pins, before->freeze,
		  before->is_writeback);
	abort();
}

enum coherence_action chunk_send_in(struct chunk *chunk, enum coherence_event event,
				    const struct coherence_context *context)
{
	struct cache_file *file = chunk->file;
	struct coherence before = chunk->coherence;
	struct coherence_result result = coherence_step(&chunk->coherence, event, context);

	if (result.action == DO_ILLEGAL || !coherence_is_valid(&chunk->coherence))
		die_of_illegal_event(chunk, event, &before);
	if ((before.state == CHUNK_DIRTY) != (chunk->coherence.state == CHUNK_DIRTY))
		file->cache->n_dirty += chunk->coherence.state == CHUNK_DIRTY ? 1 : (size_t)-1;
	if (before.is_leaving != chunk->coherence.is_leaving)
		file->cache->n_leaving += chunk->coherence.is_leaving ? 1 : (size_t)-1;
	count_pins(chunk, before.pins);
	if (result.action == DO_DROP || result.action == DO_LOSE)
		chunk_free_memory(chunk);
	if (result.action == DO_SNAPSHOT)
		chunk_writeback(chunk);
	if (result.resumes)
		resume_parked(chunk);
	list_for_reaping(chunk);
	return result.action;
}

enum coherence_action chunk_send(struct chunk *chunk, enum coherence_event event)
{
	static const struct coherence_context no_context;

	return chunk_send_in(chunk, event, &no_context);
}

void chunk_park(struct chunk *chunk, struct task *task)
{
	task_list_append(&chunk->parked, task);
}

void chunks_reap(struct cache *cache)
{
	struct chunk *chunk;

	while ((chunk = cache->reap) != NULL) {
		struct cache_file *file = chunk->file;

		cache->reap = chunk->reap_next;
		chunk->is_reap_listed = false;
		if (!coherence_is_idle(&chunk->coherence) || chunk->parked.head != NULL || chunk->needs_sync)
			continue;
		assert(chunk->memory == NULL);
		HASH_DELETE(hh, file->chunks, chunk);
		free(chunk);
		if (file->chunks == NULL) {
			unsigned queued;

			pthread_mutex_lock(&file->gate);
			queued = file->queued;
			pthread_mutex_unlock(&file->gate);
			file_settle(file, queued);
		}
	}
}
