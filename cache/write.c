/*
 * write.c - WRITEs of the CPU: to the device copy where there is one, else to the backing (R1).
 *
 * Each chunk's part goes its own way; the WRITE is answered when all have arrived. A WRITE past the end of file first
 * extends the backing (its size is always the true one) and reserves the blocks, so that ENOSPC is told to the writer
 * and not to a later writeback.
 *
 * write(2) changes pages and lets go of them before it sends their WRITE. If an invalidation drops one in between, and it is READ
 * again before the WRITE comes, the kernel keeps what was there before. So a WRITE of pages that were READ since such an
 * invalidation has them invalidated again. It is the only WRITE for which that may be needed, since write(2) holds the inode's
 * lock; the next one fills its pages after this one was answered.
 */
#include "cache/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct write_request {
	struct task task;
	struct write_request *prev, *next; /* file->writes */
	struct cache_io *io;
	struct cache_file *file;
	unsigned outstanding; /* segments, and one for the step that starts them */
	void (*then)(struct write_request *request); /* when they are done: what comes next, or the end */
	bool is_listed;
	int status;
};

struct write_segment {
	struct write_request *request;
	struct chunk *chunk;
	size_t at, len, done;
	off_t off;
	char *buffer;
	bool is_gap; /* zeros between the old end of file and the new one, in a chunk that is on the device */
	struct task task;
	struct ring_op ring_op;
	struct device_op device_op;
};

static off_t segment_file_offset(const struct write_segment *segment)
{
	return segment->off + (off_t)segment->done;
}

static void write_end(struct write_request *request)
{
	struct cache_io *io = request->io;
	struct cache_file *file = request->file;
	struct task *reader;

	invalidations_outlive(file, request);
	DL_DELETE(file->writes, request);
	if (file->writes == NULL && file->is_to_be_measured) {
		file->is_to_be_measured = false;
		file_measure(file);
	}
	while ((reader = task_list_take(&file->write_waiters)) != NULL)
		engine_ready(file->cache, reader);
	io->done_bytes = request->status < 0 ? 0 : io->len;
	io->op.done(&io->op, request->status);
	file_leave(file);
	free(request);
}

static void write_count_down(struct write_request *request)
{
	if (--request->outstanding == 0)
		request->then(request);
}

struct write_request *write_of_call(struct cache_file *file)
{
	struct write_request *request;

	DL_FOREACH(file->writes, request) {
		if (!request->io->is_writepage && !request->io->is_direct)
			return request;
	}
	return NULL;
}

/* The WRITE of a write(2) has come. */
static void settle(struct write_request *request)
{
	struct cache_file *file = request->file;
	off_t off = request->io->off, end = off + (off_t)request->io->len;
	bool may_be_old = off < file->reread_end && end > file->reread;

	if (file->invalidations == NULL) {
		file->is_unsettled = false;
		file->reread = file->reread_end = 0;
	}
	if (may_be_old)
		invalidation_start_again(file, off, end);
}

bool write_overlaps(struct cache_file *file, off_t off, off_t end)
{
	struct write_request *request;

	DL_FOREACH(file->writes, request) {
		if (request->io->off < end && request->io->off + (off_t)request->io->len > off)
			return true;
	}
	return false;
}

static void give_buffer_back(struct write_segment *segment)
{
	struct cache *cache = segment->request->file->cache;
	struct task *next = segment->buffer == NULL ? NULL : bounce_give(&cache->bounce, segment->buffer);

	if (next != NULL)
		engine_ready(cache, next);
	segment->buffer = NULL;
}

static void segment_end(struct write_segment *segment, int status)
{
	struct write_request *request = segment->request;

	give_buffer_back(segment);
	if (status < 0)
		request->status = status;
	free(segment);
	write_count_down(request);
}

/* ---- to the backing ---- */

static void segment_write(struct write_segment *segment);

static void segment_written(struct ring_op *op, int result)
{
	struct write_segment *segment = CONTAINER_OF(op, struct write_segment, ring_op);
	struct cache_file *file = segment->request->file;

	if (result == -EINTR || result == -EAGAIN) {
		segment_write(segment);
		return;
	}
	if (result > 0) {
		segment->done += (size_t)result;
		if (segment->done < segment->len) {
			segment_write(segment);
			return;
		}
	}
	if (result > 0 && file->size < segment->off + (off_t)segment->len)
		file->size = segment->off + (off_t)segment->len;
	atomic_fetch_add(&file->write_generation, 1);
	chunk_send(segment->chunk, EVENT_HOST_WRITTEN);
	segment_end(segment, result == 0 ? -EIO : result < 0 ? result : 0);
}

static void segment_write(struct write_segment *segment)
{
	struct cache_file *file = segment->request->file;

	segment->ring_op.done = segment_written;
	ring_write(&file->cache->ring, file->backing.buffered,
		   (const char *)segment->request->io->data + segment->at + segment->done, segment->len - segment->done,
		   segment_file_offset(segment), &segment->ring_op);
}

/* ---- to the device ---- */

static void segment_dispatch(struct cache *cache, struct task *task);

static void segment_copied(struct device_op *op, int status)
{
	struct write_segment *segment = CONTAINER_OF(op, struct write_segment, device_op);

	if (status != -ENODEV) {
		chunk_send(segment->chunk, EVENT_WRITE_DONE);
		segment_end(segment, status);
		return;
	}
	if (chunk_send(segment->chunk, EVENT_WRITE_LOST) == DO_REFUSE) {
		segment_end(segment, -EIO);
		return;
	}
	give_buffer_back(segment);
	segment->task.run = segment_dispatch;
	if (chunk_lose(segment->chunk)) /* it goes to the backing, then */
		engine_ready(segment->request->file->cache, &segment->task);
	else
		chunk_park(segment->chunk, &segment->task);
}

static void segment_copy(struct cache *cache, struct task *task)
{
	struct write_segment *segment = CONTAINER_OF(task, struct write_segment, task);

	segment->buffer = bounce_take(&cache->bounce, BOUNCE_FOR_WRITE, task);
	if (segment->buffer == NULL)
		return;
	memcpy(segment->buffer, (const char *)segment->request->io->data + segment->at, segment->len);
	cache->stats.device_write_bytes += segment->len;
	cache->stats.hits++;
	segment->chunk->is_referenced = true;
	cache->dev->ops->copy_to_device(cache->dev, GPU_QUEUE_CPU, segment->chunk->memory,
					(size_t)(segment->off - chunk_offset(segment->chunk)),
					bounce_offset(&cache->bounce, segment->buffer), segment->len,
					device_op_init(&segment->device_op, cache, segment_copied));
}

static void segment_to_device(struct write_segment *segment)
{
	struct chunk *chunk = segment->chunk;
	struct cache *cache = chunk->file->cache;

	if (segment->is_gap) {
		cache->dev->ops->fill(cache->dev, GPU_QUEUE_CPU, chunk->memory,
				      (size_t)(segment->off - chunk_offset(chunk)), segment->len, 0,
				      device_op_init(&segment->device_op, cache, segment_copied));
		return;
	}
	segment->task.run = segment_copy;
	segment_copy(cache, &segment->task);
}

/* ---- which way ---- */

static void segment_reserved(struct cache_file *file, void *user, int status)
{
	struct write_segment *segment = user;

	if (status < 0) {
		chunk_send(segment->chunk, EVENT_UNPIN);
		segment_end(segment, status);
		return;
	}
	chunk_send(segment->chunk, EVENT_RESERVED);
	chunk_send(segment->chunk, EVENT_UNPIN);
	segment_dispatch(file->cache, &segment->task);
}

static void segment_dispatch(struct cache *cache, struct task *task)
{
	struct write_segment *segment = CONTAINER_OF(task, struct write_segment, task);
	struct write_request *request = segment->request;
	struct chunk *chunk = chunk_get(request->file, (uint64_t)segment->off >> cache->chunk_shift);

	if (chunk == NULL) {
		segment_end(segment, -ENOMEM);
		return;
	}
	segment->chunk = chunk;
	switch (chunk_send(chunk, request->io->is_writepage ? EVENT_WRITEPAGE : EVENT_WRITE)) {
	case DO_WAIT:
		chunk_park(chunk, task);
		break;
	case DO_RESERVE:
		chunk_send(chunk, EVENT_PIN); /* it stays while we ask */
		backing_reserve(request->file, chunk_offset(chunk), (off_t)cache->chunk_bytes, false, segment_reserved,
				segment);
		break;
	case DO_BACKING:
		if (segment->is_gap) { /* the chunk has left the device meanwhile; the backing has zeros there */
			chunk_send(chunk, EVENT_HOST_WRITTEN);
			segment_end(segment, 0);
			break;
		}
		segment_write(segment);
		break;
	default:
		segment_to_device(segment);
		break;
	}
}

static void add_segment(struct write_request *request, off_t off, off_t to, bool is_gap)
{
	struct write_segment *segment = calloc(1, sizeof(*segment));

	if (segment == NULL) {
		request->status = -ENOMEM;
		return;
	}
	*segment = (struct write_segment){.request = request, .at = is_gap ? 0 : (size_t)(off - request->io->off),
					  .len = (size_t)(to - off), .off = off, .is_gap = is_gap,
					  .task.run = segment_dispatch};
	request->outstanding++;
	segment_dispatch(request->file->cache, &segment->task);
}

static void write_split(struct write_request *request)
{
	struct cache *cache = request->file->cache;
	off_t off = request->io->off, end = request->io->off + (off_t)request->io->len;

	request->outstanding = 1;
	request->then = write_end;
	while (off < end && request->status == 0) {
		off_t to = min_off(end, (off_t)((((uint64_t)off >> cache->chunk_shift) + 1) << cache->chunk_shift));

		add_segment(request, off, to, false);
		off = to;
	}
	write_count_down(request);
}

/* The end of file moves only now: until then a READ or a snapshot stops before what was zeroed. */
static void end_zeroed(struct write_request *request)
{
	off_t end = request->io->off + (off_t)request->io->len;

	if (request->file->size < end)
		request->file->size = end;
	write_split(request);
}

/* The device copies behind the old end of file may hold anything a client stored there; the file has zeros, until the WRITE's
 * own bytes come. */
static void zero_behind_end(struct write_request *request)
{
	off_t end = request->io->off + (off_t)request->io->len;
	struct chunk *chunk, *next;

	request->outstanding = 1;
	request->then = end_zeroed;
	HASH_ITER(hh, request->file->chunks, chunk, next) {
		off_t from = max_off(request->file->size, chunk_offset(chunk)), to = min_off(end, chunk_end(chunk));

		if (from < to && chunk->coherence.state != CHUNK_HOST && chunk->coherence.state != CHUNK_FILLING)
			add_segment(request, from, to, true);
	}
	write_count_down(request);
}

static void write_extended(struct cache_file *file, void *user, int status)
{
	struct write_request *request = user;

	(void)file;
	if (status < 0) {
		request->status = status;
		write_end(request);
		return;
	}
	zero_behind_end(request);
}

/* Whether part of it, or of the gap between the end of file and it, is on the device. */
static bool touches_device(struct write_request *request)
{
	off_t from = min_off(request->file->size, request->io->off);
	off_t to = request->io->off + (off_t)request->io->len;
	struct chunk *chunk, *next;

	HASH_ITER(hh, request->file->chunks, chunk, next) {
		if (chunk->memory != NULL && chunk_end(chunk) > from && chunk_offset(chunk) < to)
			return true;
	}
	return false;
}

static void write_task(struct cache *cache, struct task *task)
{
	struct write_request *request = CONTAINER_OF(task, struct write_request, task);
	struct cache_file *file = request->file;
	off_t end = request->io->off + (off_t)request->io->len;

	(void)cache;
	if (!request->is_listed) {
		request->is_listed = true;
		DL_APPEND(file->writes, request);
		if (write_of_call(file) == request)
			settle(request);
	}
	if (!file_is_ready(file, task))
		return;
	if (request->io->off > file->size)
		atomic_store(&file->is_sparse, true);
	if (end > file->size && touches_device(request))
		backing_reserve(file, request->io->off, (off_t)request->io->len, true, write_extended, request);
	else
		write_split(request);
}

void cache_write(struct cache_io *io)
{
	struct write_request *request = calloc(1, sizeof(*request));
	int err = request == NULL ? -ENOMEM : io->len == 0 ? -EINVAL : file_enter(io->file, true);

	if (err < 0) {
		free(request);
		io->op.done(&io->op, err);
		return;
	}
	*request = (struct write_request){.task.run = write_task, .io = io, .file = io->file};
	engine_post(io->file->cache, &request->task);
}
