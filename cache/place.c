/* place.c - prefetch and evict: moving chunks because someone asked. */
#include "cache/internal.h"

#include <errno.h>
#include <stdlib.h>

enum { PREFETCH_WINDOW = 16, EVICT_PASSES = 64 };

struct place {
	struct task task;
	struct cache_place *public;
	struct cache_file *file;
	uint64_t next, end; /* chunks */
	unsigned outstanding;
	unsigned pass;
	int status;
};

struct placing {
	struct task task;
	struct place *place;
	struct chunk *chunk;
	bool is_given_up;
};

static struct place *place_create(struct cache_place *public, void (*run)(struct cache *, struct task *))
{
	struct cache *cache = public->file->cache;
	struct place *place = calloc(1, sizeof(*place));
	off_t end = public->len > INT64_MAX - public->off ? INT64_MAX : public->off + public->len;
	int err = place == NULL ? -ENOMEM : file_enter(public->file, false);

	public->moved_bytes = 0;
	if (err < 0) {
		free(place);
		public->op.done(&public->op, err);
		return NULL;
	}
	*place = (struct place){.task.run = run, .public = public, .file = public->file,
				.next = (uint64_t)public->off >> cache->chunk_shift,
				.end = end <= public->off ? 0 : ((uint64_t)(end - 1) >> cache->chunk_shift) + 1};
	return place;
}

static void place_end(struct place *place)
{
	struct cache_place *public = place->public;

	public->op.done(&public->op, place->status);
	file_leave(place->file);
	free(place);
}

/* ---- prefetch ---- */

static void prefetch_more(struct place *place);

static void placing_end(struct placing *placing, int status)
{
	struct place *place = placing->place;

	chunk_send(placing->chunk, EVENT_UNPIN);
	if (status < 0)
		place->status = status;
	else if (!placing->is_given_up)
		place->public->moved_bytes += place->file->cache->chunk_bytes;
	free(placing);
	place->outstanding--;
	prefetch_more(place);
}

static void placing_task(struct cache *cache, struct task *task)
{
	struct placing *placing = CONTAINER_OF(task, struct placing, task);
	struct chunk *chunk = placing->chunk;
	int err = chunk->fill_error;

	if (err == 0)
		err = chunk_take_memory(chunk);
	if (err == -EAGAIN) {
		task_list_append(&cache->memory_waiters, task);
		return;
	}
	if (err == -ENOBUFS) { /* the capacity shrank: what fits is loaded */
		placing->place->next = placing->place->end;
		placing->is_given_up = true;
		err = 0;
	}
	if (err < 0 || placing->is_given_up) {
		placing_end(placing, err);
		return;
	}
	switch (chunk_send(chunk, EVENT_WANT_RESIDENT)) {
	case DO_NOTHING:
		placing_end(placing, 0);
		return;
	case DO_FILL:
		cache->stats.misses++;
		chunk_fill(chunk);
		break;
	default:
		break;
	}
	chunk_park(chunk, task);
}

static void prefetch_more(struct place *place)
{
	struct cache *cache = place->file->cache;

	while (place->outstanding < PREFETCH_WINDOW && place->next < place->end && place->status == 0) {
		struct chunk *chunk = chunk_get(place->file, place->next);
		struct placing *placing = calloc(1, sizeof(*placing));

		if (chunk == NULL || placing == NULL) {
			free(placing);
			place->status = -ENOMEM;
			break;
		}
		if (chunk->coherence.pins == 0 && cache->n_pinned >= cache->capacity_chunks) {
			free(placing); /* the rest is held by clients: what fits is loaded */
			place->next = place->end;
			break;
		}
		place->next++;
		place->outstanding++;
		if (chunk->coherence.pins == 0)
			chunk->fill_error = 0;
		chunk_send(chunk, EVENT_PIN);
		*placing = (struct placing){.task.run = placing_task, .place = place, .chunk = chunk};
		engine_ready(cache, &placing->task);
	}
	if (place->outstanding == 0)
		place_end(place);
}

static void prefetch_task(struct cache *cache, struct task *task)
{
	struct place *place = CONTAINER_OF(task, struct place, task);
	uint64_t chunks_of_file;

	if (!file_activate(place->file, task))
		return;
	chunks_of_file = ((uint64_t)place->file->size + cache->chunk_bytes - 1) >> cache->chunk_shift;
	if (place->end > chunks_of_file)
		place->end = chunks_of_file;
	if (place->end > place->next + cache->capacity_chunks)
		place->end = place->next + cache->capacity_chunks;
	prefetch_more(place);
}

void cache_prefetch(struct cache_place *public)
{
	struct place *place = place_create(public, prefetch_task);

	if (place != NULL)
		engine_post(public->file->cache, &place->task);
}

/* ---- evict ---- */

static void evict_task(struct cache *cache, struct task *task)
{
	struct place *place = CONTAINER_OF(task, struct place, task);
	struct chunk *chunk, *next, *waits_for = NULL;

	place->pass++;
	HASH_ITER(hh, place->file->chunks, chunk, next) {
		if (chunk->index < place->next || chunk->index >= place->end || chunk->memory == NULL)
			continue;
		if (place->pass > 1 && chunk->coherence.has_error) {
			place->status = atomic_load(&place->file->error);
			continue;
		}
		switch (place->pass > EVICT_PASSES ? DO_REFUSE : chunk_send(chunk, EVENT_LEAVE)) {
		case DO_DROP:
			place->public->moved_bytes += cache->chunk_bytes;
			cache->stats.migrations_back++;
			break;
		case DO_NOTHING: /* has memory, but its fill has not begun: nothing to evict */
			break;
		case DO_REFUSE:
			if (place->status == 0)
				place->status = -EBUSY;
			break;
		default:
			waits_for = chunk;
			break;
		}
	}
	if (waits_for == NULL) {
		place_end(place);
		return;
	}
	place->status = 0; /* it is found again */
	chunk_park(waits_for, task);
}

void cache_evict(struct cache_place *public)
{
	struct place *place = place_create(public, evict_task);

	if (place != NULL)
		engine_post(public->file->cache, &place->task);
}
