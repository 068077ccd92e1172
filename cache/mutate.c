/*
 * mutate.c - changes of a backing file behind the device's back: truncate, fallocate, copy_file_range.
 *
 *   FREEZING    no fill, writeback or CPU request is under way in the range, and none starts
 *   STORING     what is DIRTY is written to the backing, unless the mutation discards it
 *   APPLYING    the system call, on a worker
 *   RELOADING   chunks that are leased, or DIRTY again: the range is loaded from the backing again; others are dropped
 *
 * One at a time for each file, in the order they came, and not while a sync batch runs. READs and WRITEs of frozen chunks
 * wait, for disk and device alone. None of it waits for an invalidation: see on_freeze in coherence.c.
 *
 * Giving chunks other memory (a lease was revoked) needs the same quiet, and so goes the same way.
 */
#include "cache/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <syslog.h>

enum mutation_stage { MUTATION_FREEZING, MUTATION_STORING, MUTATION_APPLYING, MUTATION_RELOADING };

struct mutation {
	struct task task;
	struct mutation *prev, *next; /* file->mutations */
	struct cache_file *file;
	enum mutation_stage stage;
	off_t off, end;
	int status;
	unsigned outstanding; /* loads and copies */
	struct cache_mutation *public; /* NULL: memory is to be replaced */
	struct job job;
	void (*replaced)(struct cache_file *file, void *user);
	void *user;
};

static bool is_inside(const struct mutation *mutation, const struct chunk *chunk)
{
	return chunk_offset(chunk) >= mutation->off && chunk_end(chunk) <= mutation->end;
}

static bool is_touched(const struct mutation *mutation, const struct chunk *chunk)
{
	return chunk_offset(chunk) < mutation->end && chunk_end(chunk) > mutation->off;
}

bool mutation_covers(struct cache_file *file, uint64_t index)
{
	unsigned shift = file->cache->chunk_shift;

	/* Once it ends, a chunk that comes to be is not in its way, and nobody would thaw it. */
	if (!file->is_mutating || file->mutations->stage == MUTATION_RELOADING)
		return false;
	return (off_t)(index << shift) < file->mutations->end &&
	       (off_t)((index + 1) << shift) > file->mutations->off;
}

static void mutation_finish(struct mutation *mutation)
{
	struct cache_file *file = mutation->file;
	struct cache *cache = file->cache;

	assert(file->mutations == mutation);
	DL_DELETE(file->mutations, mutation);
	file->is_mutating = false;
	if (mutation->public != NULL)
		mutation->public->op.done(&mutation->public->op, mutation->status);
	else
		mutation->replaced(file, mutation->user);
	free(mutation);
	memory_resume_waiters(cache);
	sync_kick(file);
	mutation_kick(file);
	file_leave(file);
}

/* ---- reloading ---- */

static void thaw(struct chunk *chunk)
{
	chunk_send(chunk, EVENT_THAW);
}

static void count_down(struct mutation *mutation)
{
	if (--mutation->outstanding == 0)
		mutation_finish(mutation);
}

static void reloaded(struct chunk *chunk, void *user, int status)
{
	struct mutation *mutation = user;

	if (status < 0)
		mutation->status = status;
	thaw(chunk);
	count_down(mutation);
}

static bool is_in_use(const struct chunk *chunk)
{
	const struct coherence *c = &chunk->coherence;

	return c->shared > 0 || c->exclusive != EXCLUSIVE_NONE || c->pins > 0;
}

static bool is_discarded(const struct mutation *mutation, const struct chunk *chunk)
{
	return mutation->public != NULL && mutation->public->discards && is_inside(mutation, chunk);
}

static void reload(struct mutation *mutation, struct chunk *chunk)
{
	bool is_dirty = chunk->coherence.state == CHUNK_DIRTY;

	if (chunk->coherence.state == CHUNK_HOST || mutation->status < 0) {
		thaw(chunk);
	} else if (is_discarded(mutation, chunk) && !is_in_use(chunk)) {
		chunk_send(chunk, EVENT_THAW_DISCARD);
	} else if (is_in_use(chunk) || is_dirty) { /* DIRTY: a lease that has ended stored to it after its snapshot */
		mutation->outstanding++;
		chunk_load(chunk, max_off(mutation->off, chunk_offset(chunk)), min_off(mutation->end, chunk_end(chunk)),
			   reloaded, mutation);
	} else {
		chunk_send(chunk, EVENT_THAW_DROP);
	}
}

/* ---- replacing memory ---- */

struct replacement {
	struct mutation *mutation;
	struct chunk *chunk;
	struct gpu_chunk *memory;
	struct device_op device_op;
};

static void tell_kept(struct chunk *chunk, int err)
{
	cache_log(chunk->file->cache, LOG_WARNING, "%s: no other memory for bytes %lld..%lld, which a revoked client has mapped: they "
		  "leave the device (%s)",
		  file_name(chunk->file), (long long)chunk_offset(chunk), (long long)chunk_end(chunk), strerror(-err));
}

static void memory_copied(struct device_op *op, int status)
{
	struct replacement *replacement = CONTAINER_OF(op, struct replacement, device_op);
	struct mutation *mutation = replacement->mutation;
	struct chunk *chunk = replacement->chunk;
	struct cache *cache = chunk->file->cache;

	if (status == 0) {
		chunk->memory = replacement->memory; /* the old one is the lease's now */
		chunk->generation = ++cache->next_generation;
	} else {
		cache->dev->ops->chunk_destroy(cache->dev, replacement->memory);
		tell_kept(chunk, status);
	}
	free(replacement);
	thaw(chunk);
	count_down(mutation);
}

static void replace_memory(struct mutation *mutation, struct chunk *chunk)
{
	struct cache *cache = chunk->file->cache;
	struct replacement *replacement = calloc(1, sizeof(*replacement));
	int err = replacement == NULL ? -ENOMEM : cache->dev->ops->chunk_create(cache->dev, &replacement->memory);

	if (err < 0) {
		tell_kept(chunk, err);
		free(replacement);
		thaw(chunk);
		return;
	}
	replacement->mutation = mutation;
	replacement->chunk = chunk;
	mutation->outstanding++;
	cache->dev->ops->copy_chunk(cache->dev, GPU_QUEUE_CPU, replacement->memory, chunk->memory,
				    device_op_init(&replacement->device_op, cache, memory_copied));
}

/* ---- the stages ---- */

/* True: every chunk of the range is frozen; otherwise parked. */
static bool freeze(struct mutation *mutation)
{
	struct chunk *chunk, *next;

	HASH_ITER(hh, mutation->file->chunks, chunk, next) {
		if (!is_touched(mutation, chunk) || chunk->coherence.freeze == FREEZE_FROZEN)
			continue;
		chunk->is_stored = false;
		if (chunk_send(chunk, EVENT_FREEZE) == DO_WAIT) {
			chunk_park(chunk, &mutation->task);
			return false;
		}
	}
	return true;
}

static bool needs_storing(const struct mutation *mutation, const struct chunk *chunk)
{
	if (mutation->public == NULL || chunk->is_stored || chunk->coherence.state != CHUNK_DIRTY)
		return false;
	return !is_discarded(mutation, chunk);
}

/* True: all are stored, or the mutation has failed; otherwise parked. */
static bool store(struct mutation *mutation)
{
	struct chunk *chunk, *next, *waits_for = NULL;

	HASH_ITER(hh, mutation->file->chunks, chunk, next) {
		if (!is_touched(mutation, chunk))
			continue;
		if (needs_storing(mutation, chunk)) {
			chunk->is_stored = true;
			chunk_send(chunk, EVENT_SNAPSHOT_FROZEN);
		}
		if (chunk->coherence.is_writeback)
			waits_for = chunk;
		else if (chunk->is_stored && chunk->coherence.has_error)
			mutation->status = atomic_load(&mutation->file->error);
	}
	if (waits_for != NULL)
		chunk_park(waits_for, &mutation->task);
	return waits_for == NULL;
}

static void apply_work(struct job *job)
{
	struct mutation *mutation = CONTAINER_OF(job, struct mutation, job);

	mutation->status = mutation->public->apply(mutation->public);
}

static void end_each(struct mutation *mutation)
{
	struct chunk *chunk, *next;

	mutation->stage = MUTATION_RELOADING;
	mutation->outstanding = 1;
	HASH_ITER(hh, mutation->file->chunks, chunk, next) {
		if (!is_touched(mutation, chunk) || chunk->coherence.freeze != FREEZE_FROZEN)
			continue;
		if (mutation->public == NULL && chunk->coherence.state != CHUNK_HOST)
			replace_memory(mutation, chunk);
		else
			reload(mutation, chunk);
	}
	count_down(mutation);
}

static void applied(struct cache *cache, struct task *task)
{
	struct mutation *mutation = CONTAINER_OF(task, struct mutation, job.done);

	(void)cache;
	if (mutation->file->backing.buffered.fd >= 0)
		file_measure(mutation->file);
	atomic_fetch_add(&mutation->file->write_generation, 1);
	mutation->file->n_mutations++;
	end_each(mutation);
}

static void mutation_task(struct cache *cache, struct task *task)
{
	struct mutation *mutation = CONTAINER_OF(task, struct mutation, task);

	if (mutation->stage == MUTATION_FREEZING) {
		if (!freeze(mutation))
			return;
		mutation->stage = MUTATION_STORING;
	}
	if (!store(mutation))
		return;
	if (mutation->public == NULL || mutation->status < 0) {
		end_each(mutation);
		return;
	}
	mutation->stage = MUTATION_APPLYING;
	mutation->job = (struct job){.work = apply_work, .done.run = applied};
	workers_give(&cache->workers, &mutation->job);
}

void mutation_kick(struct cache_file *file)
{
	if (file->is_mutating || file->sync.is_running || file->mutations == NULL)
		return;
	file->is_mutating = true;
	mutation_task(file->cache, &file->mutations->task);
}

static void enqueue_task(struct cache *cache, struct task *task)
{
	struct mutation *mutation = CONTAINER_OF(task, struct mutation, task);

	(void)cache;
	file_take_descriptors(mutation->file);
	task->run = mutation_task;
	DL_APPEND(mutation->file->mutations, mutation);
	mutation_kick(mutation->file);
}

void cache_mutate(struct cache_mutation *public)
{
	struct mutation *mutation = calloc(1, sizeof(*mutation));
	struct cache_file *file = public->file;

	if (mutation == NULL) {
		public->op.done(&public->op, -ENOMEM);
		return;
	}
	*mutation = (struct mutation){.task.run = enqueue_task, .file = file, .public = public, .off = public->off,
				      .end = public->len > INT64_MAX - public->off ? INT64_MAX
										    : public->off + public->len};
	pthread_mutex_lock(&file->gate);
	file_count_in_locked(file); /* needs no descriptors of ours unless there are chunks, and then they are open */
	pthread_mutex_unlock(&file->gate);
	engine_post(file->cache, &mutation->task);
}

void mutation_replace_memory(struct cache_file *file, uint64_t first, size_t n,
			     void (*done)(struct cache_file *file, void *user), void *user)
{
	struct mutation *mutation = calloc(1, sizeof(*mutation));

	if (mutation == NULL)
		abort(); /* a client would go on storing to memory that others are told is theirs */
	*mutation = (struct mutation){.task.run = mutation_task, .file = file,
				      .off = (off_t)(first << file->cache->chunk_shift),
				      .end = (off_t)((first + n) << file->cache->chunk_shift),
				      .replaced = done, .user = user};
	pthread_mutex_lock(&file->gate);
	file_count_in_locked(file);
	pthread_mutex_unlock(&file->gate);
	DL_APPEND(file->mutations, mutation);
	mutation_kick(file);
}
