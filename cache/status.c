/* status.c - what there is on the device, for people and their tools; and what changed behind our back. */
#include "cache/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>

struct question {
	struct task task;
	struct cache_op *op;
	void (*answer)(struct cache *cache, void *argument);
	void *argument;
	struct cache_file *file; /* whose request it counts as, or NULL */
};

static void question_task(struct cache *cache, struct task *task)
{
	struct question *question = CONTAINER_OF(task, struct question, task);
	struct cache_file *file = question->file;
	struct cache_op *op = question->op;

	question->answer(cache, question->argument);
	free(question);
	if (op != NULL)
		op->done(op, 0);
	if (file != NULL)
		file_leave(file);
}

static void ask(struct cache *cache, struct cache_file *file, struct cache_op *op,
		void (*answer)(struct cache *cache, void *argument), void *argument)
{
	struct question *question = calloc(1, sizeof(*question));

	if (question == NULL) {
		if (op != NULL)
			op->done(op, -ENOMEM);
		return;
	}
	*question = (struct question){.task.run = question_task, .op = op, .answer = answer, .argument = argument,
				      .file = file};
	if (file != NULL) {
		pthread_mutex_lock(&file->gate);
		file_count_in_locked(file);
		pthread_mutex_unlock(&file->gate);
	}
	engine_post(cache, &question->task);
}

struct status_request {
	struct cache_op op;
	struct cache *cache;
	struct cache_status *status;
};

static void answer_status(struct cache *cache, void *argument)
{
	struct cache_status *status = argument;

	*status = cache->stats;
	memcpy(status->device_backend, cache->dev->info.backend, sizeof(status->device_backend));
	memcpy(status->device_name, cache->dev->info.name, sizeof(status->device_name));
	status->chunk_bytes = cache->chunk_bytes;
	status->capacity_bytes = cache->capacity_chunks * cache->chunk_bytes;
	status->resident_bytes = cache->n_resident * cache->chunk_bytes;
	status->leases = cache->n_leases;
	status->dirty_bytes = cache->n_dirty * cache->chunk_bytes;
}

static void status_start(void *argument)
{
	struct status_request *request = argument;

	ask(request->cache, NULL, &request->op, answer_status, request->status);
}

void cache_get_status(struct cache *cache, struct cache_status *status)
{
	struct status_request request = {.cache = cache, .status = status};

	*status = (struct cache_status){0};
	CACHE_WAIT(status_start, &request);
}

static int compare_infos(const void *a, const void *b)
{
	const struct cache_chunk_info *x = a, *y = b;

	return (x->index > y->index) - (x->index < y->index);
}

static void describe(const struct chunk *chunk, struct cache_chunk_info *info)
{
	const struct coherence *c = &chunk->coherence;

	*info = (struct cache_chunk_info){.index = chunk->index, .shared_leases = c->shared,
					  .has_exclusive_lease = c->exclusive == EXCLUSIVE_HELD,
					  .has_kernel_copies = c->kernel_copies, .has_error = c->has_error};
	strncpy(info->state, chunk_state_name(c->state), sizeof(info->state) - 1);
}

/* Keeps the max lowest: records come in the hash's order. */
static void answer_map(struct cache *cache, void *argument)
{
	struct cache_map *map = argument;
	struct chunk *chunk, *next;

	(void)cache;
	map->n = 0;
	HASH_ITER(hh, map->file->chunks, chunk, next) {
		if (chunk->index < map->first || map->max == 0)
			continue;
		if (map->n == map->max) {
			if (chunk->index >= map->chunks[map->max - 1].index)
				continue;
			map->n--;
		}
		describe(chunk, &map->chunks[map->n++]);
		if (map->n == map->max)
			qsort(map->chunks, map->n, sizeof(*map->chunks), compare_infos);
	}
	qsort(map->chunks, map->n, sizeof(*map->chunks), compare_infos);
}

void cache_map(struct cache_map *map)
{
	ask(map->file->cache, map->file, &map->op, answer_map, map);
}

static void answer_changed(struct cache *cache, void *argument)
{
	struct cache_file *file = argument;
	struct chunk *chunk, *next;

	if (!cache_file_is_active(file) || file->backing.buffered.fd < 0)
		return;
	file->is_to_be_measured = file->writes != NULL; /* one of them may be about to move the end */
	if (!file->is_to_be_measured)
		file_measure(file);
	HASH_ITER(hh, file->chunks, chunk, next) {
		if (chunk->coherence.state == CHUNK_CLEAN && chunk_send(chunk, EVENT_LEAVE) == DO_DROP)
			continue;
		if (chunk->coherence.state == CHUNK_DIRTY || chunk->coherence.state == CHUNK_CLEAN)
			cache_log(cache, LOG_WARNING,
				  "%s: the backing was changed by someone else; bytes %lld..%lld are kept as they are on "
				  "the device (%s)",
				  file_name(file), (long long)chunk_offset(chunk), (long long)chunk_end(chunk),
				  chunk_state_name(chunk->coherence.state));
	}
}

void cache_file_backing_changed(struct cache_file *file)
{
	ask(file->cache, file, NULL, answer_changed, file);
}
