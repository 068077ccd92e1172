/*
 * read.c - READs of the CPU: from the backing, from the device copy, or held.
 *
 * A READ looks at all its chunks first and takes part only when each of them lets it; otherwise it is parked on the one
 * in its way and looks again when that is resumed. While parked it is on file->held_reads: its pages are locked in the
 * kernel, and invalidations must go around them (R2).
 *
 * R3: if an invalidation that was under way when the READ came may be waiting for its pages, the READ is answered
 * after a millisecond (twice as long with each round of the same invalidation, so that a call that waits for nothing
 * else is sure to end first), and the chunks it read from count as having kernel copies again.
 *
 * A READ that an exclusive lease holds up is answered from a snapshot after read_timeout, for a reason: its pages are
 * locked, a write(2) of another process may be waiting for them with the inode's lock, and the holder of the lease for that
 * lock in an fsync(2) or ftruncate(2). The kernel shows us nothing of it. The pages are removed when the lease ends.
 */
#include "cache/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HOLD_NS = 1000000, HOLD_ROUNDS_MAX = 7, AUTO_MIGRATE_READS = 2 };

struct read_request {
	struct task task; /* posted, parked, waiting for a buffer */
	struct read_request *prev, *next; /* file->held_reads, while held */
	struct cache_io *io;
	struct cache_file *file;
	size_t len; /* before the end of file */
	bool is_held;
	bool is_overdue;
	bool has_tried_migration;
	char *buffer;
	unsigned outstanding;
	int status;
	struct read_request *all_prev, *all_next; /* cache->held, for the clock */
};

struct read_segment {
	struct read_request *request;
	struct chunk *chunk; /* NULL: from the backing */
	size_t at, len, done;
	off_t off;
	struct ring_op ring_op;
	struct device_op device_op;
};

static void read_unhold(struct read_request *request)
{
	if (!request->is_held)
		return;
	request->is_held = false;
	DL_DELETE(request->file->held_reads, request);
	DL_DELETE2(request->file->cache->overdue, request, all_prev, all_next);
}

static void read_hold(struct read_request *request, struct task_list *list)
{
	struct cache *cache = request->file->cache;

	if (!request->is_held) {
		request->is_held = true;
		cache->stats.held_reads++;
		DL_APPEND(request->file->held_reads, request);
		DL_APPEND2(cache->overdue, request, all_prev, all_next);
		if (request->io->held_since_ns == 0)
			request->io->held_since_ns = now_ns();
	}
	task_list_append(list, &request->task);
}

static void give_back(struct cache *cache, char *buffer)
{
	struct task *next = bounce_give(&cache->bounce, buffer);

	if (next != NULL)
		engine_ready(cache, next);
}

static void read_end(struct read_request *request, int status)
{
	struct cache_io *io = request->io;

	if (status < 0 && request->buffer != NULL)
		give_back(request->file->cache, request->buffer);
	io->data = status < 0 ? NULL : request->buffer;
	io->done_bytes = status < 0 ? 0 : request->len;
	io->internal = NULL;
	if (status == 0 && request->buffer != NULL) {
		io->internal = request; /* until cache_read_free */
		io->op.done(&io->op, 0);
		return;
	}
	io->op.done(&io->op, status);
	file_leave(request->file);
	free(request);
}

static void read_free_task(struct cache *cache, struct task *task)
{
	struct read_request *request = CONTAINER_OF(task, struct read_request, task);

	give_back(cache, request->buffer);
	file_leave(request->file);
	free(request);
}

void cache_read_free(struct cache_io *io)
{
	struct read_request *request = io->internal;

	if (request == NULL)
		return;
	io->internal = NULL;
	request->task = (struct task){.run = read_free_task};
	engine_post(request->file->cache, &request->task);
}

static void segment_end(struct read_segment *segment, int status)
{
	struct read_request *request = segment->request;

	if (segment->chunk != NULL)
		chunk_send(segment->chunk, EVENT_READ_DONE);
	if (status < 0)
		request->status = status;
	free(segment);
	if (--request->outstanding == 0)
		read_end(request, request->status);
}

static void segment_read(struct read_segment *segment);

static void segment_device_done(struct device_op *op, int status)
{
	struct read_segment *segment = CONTAINER_OF(op, struct read_segment, device_op);

	/* The device has lost it. What is CLEAN is in the backing too. */
	if (status == -ENODEV && segment->chunk->coherence.state == CHUNK_CLEAN)
		segment_read(segment);
	else
		segment_end(segment, status == -ENODEV ? -EIO : status);
}

static void segment_read_done(struct ring_op *op, int result)
{
	struct read_segment *segment = CONTAINER_OF(op, struct read_segment, ring_op);

	if (result == -EINTR || result == -EAGAIN) {
		segment_read(segment);
		return;
	}
	if (result > 0) {
		segment->done += (size_t)result;
		if (segment->done < segment->len) {
			segment_read(segment);
			return;
		}
	}
	if (result == 0) /* the file shrank behind our back */
		memset(segment->request->buffer + segment->at + segment->done, 0, segment->len - segment->done);
	segment_end(segment, result < 0 ? result : 0);
}

static void segment_read(struct read_segment *segment)
{
	struct cache_file *file = segment->request->file;

	segment->ring_op.done = segment_read_done;
	ring_read(&file->cache->ring, file->backing.buffered,
		  segment->request->buffer + segment->at + segment->done, segment->len - segment->done,
		  segment->off + (off_t)segment->done, &segment->ring_op);
}

static void segment_start(struct read_request *request, struct chunk *chunk, off_t off, size_t len)
{
	struct cache *cache = request->file->cache;
	enum coherence_event event = request->is_overdue ? EVENT_READ_OVERDUE : EVENT_READ;
	struct coherence_context context = {.has_writers = atomic_load(&request->file->writers) > 0};
	enum coherence_action action = chunk == NULL ? DO_BACKING : chunk_send_in(chunk, event, &context);
	struct read_segment *segment = calloc(1, sizeof(*segment));

	request->outstanding++;
	if (segment == NULL) {
		if (action == DO_DEVICE)
			chunk_send(chunk, EVENT_READ_DONE);
		request->status = -ENOMEM;
		request->outstanding--;
		return;
	}
	segment->request = request;
	segment->at = (size_t)(off - request->io->off);
	segment->off = off;
	segment->len = len;
	if (action == DO_BACKING) {
		segment_read(segment);
		return;
	}
	segment->chunk = chunk;
	chunk->cpu_bytes += (uint32_t)len;
	chunk->is_referenced = true;
	cache->stats.device_read_bytes += len;
	cache->stats.hits++;
	cache->dev->ops->copy_from_device(cache->dev, GPU_QUEUE_CPU, chunk->memory,
					  (size_t)(off - chunk_offset(chunk)),
					  bounce_offset(&cache->bounce, request->buffer) + segment->at, len,
					  device_op_init(&segment->device_op, cache, segment_device_done));
}

static bool is_to_migrate(const struct chunk *chunk, const struct read_request *request)
{
	const struct cache *cache = request->file->cache;

	if (request->has_tried_migration)
		return false;
	switch (cache->config.cpu_access) {
	case CACHE_CPU_COPY: return false;
	case CACHE_CPU_MIGRATE: return true;
	case CACHE_CPU_AUTO: return chunk->cpu_bytes >= AUTO_MIGRATE_READS * cache->chunk_bytes;
	}
	return false;
}

/* What the table would say, without doing it. */
static enum coherence_action peek(struct chunk *chunk, struct read_request *request)
{
	struct coherence copy = chunk->coherence;
	struct coherence_context context = {.has_writers = atomic_load(&request->file->writers) > 0,
					    .migrates_on_read = is_to_migrate(chunk, request)};

	return coherence_step(&copy, request->is_overdue ? EVENT_READ_OVERDUE : EVENT_READ, &context).action;
}

/* True: the chunk is on its way back, and the READ held. Once only: if someone keeps storing to the chunk it never
 * gets CLEAN, and the READ is served from the device after all. */
static bool start_migration(struct read_request *request, struct chunk *chunk)
{
	enum coherence_action action = chunk_send(chunk, EVENT_LEAVE);

	request->has_tried_migration = true;
	if (action == DO_REFUSE)
		return false;
	request->file->cache->stats.migrations_back++;
	if (action == DO_DROP || action == DO_NOTHING)
		return false;
	read_hold(request, &chunk->parked);
	return true;
}

/* True: every chunk lets the READ take part now. Otherwise it is parked. */
static bool is_let_in(struct read_request *request)
{
	struct cache *cache = request->file->cache;
	uint64_t last = (uint64_t)(request->io->off + (off_t)request->len - 1) >> cache->chunk_shift;

	/* The kernel may have dropped a page whose WRITE is under way; its READ must not come back with what was before. A
	 * WRITE waits for disk and device alone (R1), and so does this. */
	if (write_overlaps(request->file, request->io->off, request->io->off + (off_t)request->len)) {
		read_hold(request, &request->file->write_waiters);
		return false;
	}
	for (uint64_t index = (uint64_t)request->io->off >> cache->chunk_shift; index <= last; index++) {
		struct chunk *chunk = chunk_find(request->file, index);

		if (chunk == NULL && mutation_covers(request->file, index))
			chunk = chunk_get(request->file, index); /* frozen: to be parked on */
		if (chunk == NULL)
			continue;
		switch (peek(chunk, request)) {
		case DO_LEAVE:
			if (start_migration(request, chunk))
				return false;
			break;
		case DO_WAIT:
			read_hold(request, &chunk->parked);
			return false;
		default:
			break;
		}
	}
	return true;
}

/* Whole pages, also those with the end of file in them: a write(2) may be about to move it. */
static void note_reread(struct cache_file *file, const struct cache_io *io)
{
	off_t end = io->off + (off_t)io->len;
	bool is_first = file->reread_end == 0;

	file->reread = is_first ? io->off : min_off(file->reread, io->off);
	file->reread_end = is_first ? end : max_off(file->reread_end, end);
}

static void read_task(struct cache *cache, struct task *task)
{
	struct read_request *request = CONTAINER_OF(task, struct read_request, task);
	off_t off = request->io->off, end;
	off_t size;

	if (!file_is_ready(request->file, task))
		return;
	size = request->file->size;
	if (off >= size) {
		request->len = 0;
		read_unhold(request);
		if (request->buffer != NULL) {
			give_back(cache, request->buffer);
			request->buffer = NULL;
		}
		read_end(request, 0);
		return;
	}
	request->len = (size_t)(min_off(off + (off_t)request->io->len, size) - off);
	if (!is_let_in(request))
		return;
	if (request->buffer == NULL) {
		request->buffer = bounce_take(&cache->bounce, BOUNCE_FOR_READ, &request->task);
		if (request->buffer == NULL)
			return; /* still held, if it was; looks at its chunks again then */
	}
	read_unhold(request);
	end = off + (off_t)request->len;
	if (request->file->is_unsettled)
		note_reread(request->file, request->io);
	request->outstanding = 1;
	while (off < end) {
		struct chunk *chunk = chunk_find(request->file, (uint64_t)off >> cache->chunk_shift);
		off_t to = min_off(end, (off_t)((((uint64_t)off >> cache->chunk_shift) + 1) << cache->chunk_shift));

		segment_start(request, chunk, off, (size_t)(to - off));
		off = to;
	}
	if (--request->outstanding == 0)
		read_end(request, request->status);
}

void cache_read(struct cache_io *io)
{
	struct read_request *request = calloc(1, sizeof(*request));
	int err = request == NULL ? -ENOMEM : file_enter(io->file, false);

	io->held_since_ns = 0;
	if (err < 0) {
		free(request);
		io->op.done(&io->op, err);
		return;
	}
	*request = (struct read_request){.task.run = read_task, .io = io, .file = io->file,
					.is_overdue = io->must_not_wait};
	engine_post(io->file->cache, &request->task);
}

/* ---- held READs and invalidations ---- */

static void read_force(struct read_request *request)
{
	struct cache *cache = request->file->cache;

	request->is_overdue = true;
	if (request->task.on != &cache->ready) {
		task_remove(&request->task);
		engine_ready(cache, &request->task);
	}
}

/* When a held READ is to be answered whatever the lease; UINT64_MAX: when it is let in. */
static uint64_t due_time(const struct read_request *request)
{
	uint64_t limit_ns = (uint64_t)request->file->cache->config.read_timeout_ms * 1000000;
	uint64_t held_since = request->io->held_since_ns;
	uint64_t due = limit_ns == 0 ? UINT64_MAX : held_since + limit_ns;
	uint64_t since, hold;
	unsigned round;

	if (invalidation_may_block_on(request->file, request->io->off, request->io->len, &since, &round)) {
		hold = (since < held_since ? held_since : since) +
		       ((uint64_t)HOLD_NS << (round < HOLD_ROUNDS_MAX ? round : HOLD_ROUNDS_MAX));
		due = hold < due ? hold : due;
	}
	return due;
}

void reads_check_overdue(struct cache *cache, uint64_t now)
{
	struct read_request *request, *next;

	cache->next_hold_ns = UINT64_MAX;
	DL_FOREACH_SAFE2(cache->overdue, request, next, all_next) {
		uint64_t due = request->is_overdue ? UINT64_MAX : due_time(request);

		if (due <= now)
			read_force(request);
		else if (due < cache->next_hold_ns)
			cache->next_hold_ns = due;
	}
}

void reads_force_direct(struct cache_file *file, off_t off, off_t end)
{
	struct read_request *request;

	DL_FOREACH(file->held_reads, request) {
		if (request->io->is_direct && request->io->off < end &&
		    request->io->off + (off_t)request->io->len > off)
			read_force(request);
	}
}

void reads_cut_out(struct cache_file *file, off_t off, off_t end, void (*each)(void *user, off_t off, off_t end),
		   void *user)
{
	while (off < end) {
		struct read_request *request, *first = NULL;

		DL_FOREACH(file->held_reads, request) {
			off_t read_end = request->io->off + (off_t)request->io->len;

			if (request->is_overdue || request->io->is_direct || request->io->off >= end ||
			    read_end <= off)
				continue;
			if (first == NULL || request->io->off < first->io->off)
				first = request;
		}
		if (first == NULL) {
			each(user, off, end);
			return;
		}
		if (first->io->off > off)
			each(user, off, first->io->off);
		off = first->io->off + (off_t)first->io->len;
	}
}
