/*
 * transfer.c - bytes of one chunk between backing and device, through bounce buffers.
 *
 * A transfer is cut into pieces of at most BOUNCE_BYTES. Each piece goes its way alone:
 *
 *     load:   take a buffer -> read the backing -> zero behind the end of file -> copy to the device -> give it back
 *             (a piece that is all hole: fill on the device)
 *     store:  take a buffer -> copy from the device -> write the backing -> give it back
 *
 * so that disk, bus and device work at the same time, as deep as the pool has buffers. No byte is copied by the CPU,
 * but for the last block of a file whose length is no multiple of the disk's: that one is written through the page
 * cache, since O_DIRECT would have to write its padding too.
 */
#include "cache/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct transfer {
	struct chunk *chunk;
	bool is_load;
	enum gpu_queue queue;
	unsigned outstanding;
	int status;
	void (*done)(struct chunk *chunk, void *user, int status);
	void *user;
	struct task done_task; /* a transfer of nothing, too, ends only after whoever started it knows that it began */
	/* load of a sparse file: where the data is, from SEEK_DATA and SEEK_HOLE; beyond the last extent all is data */
	struct job scout;
	int scout_fd;
	off_t from, to;
};

struct piece {
	struct transfer *transfer;
	off_t off;     /* in the file */
	size_t len;    /* in the chunk */
	size_t n_file; /* of these, before the end of file */
	size_t n_done; /* read or written so far */
	char *buffer;
	bool is_direct;   /* the read or write in flight */
	struct task task; /* waits for a buffer */
	struct ring_op ring_op;
	struct device_op device_op;
};

static void transfer_done(struct cache *cache, struct task *task)
{
	struct transfer *transfer = CONTAINER_OF(task, struct transfer, done_task);

	(void)cache;
	transfer->done(transfer->chunk, transfer->user, transfer->status);
	free(transfer);
}

static void transfer_end(struct transfer *transfer)
{
	if (--transfer->outstanding > 0)
		return;
	transfer->done_task.run = transfer_done;
	/* Posted, so that completions come in between: of a transfer of nothing the next may be started at once, again and
	 * again, until one of them does. */
	engine_post(transfer->chunk->file->cache, &transfer->done_task);
}

static void piece_end(struct piece *piece, int status)
{
	struct transfer *transfer = piece->transfer;
	struct cache *cache = transfer->chunk->file->cache;

	if (piece->buffer != NULL) {
		struct task *next = bounce_give(&cache->bounce, piece->buffer);

		if (next != NULL)
			engine_ready(cache, next);
	}
	if (status < 0 && transfer->status == 0)
		transfer->status = status;
	free(piece);
	transfer_end(transfer);
}

static void piece_device_done(struct device_op *op, int status)
{
	piece_end(CONTAINER_OF(op, struct piece, device_op), status);
}

static size_t piece_chunk_offset(const struct piece *piece)
{
	return (size_t)(piece->off - chunk_offset(piece->transfer->chunk));
}

static bool can_be_direct(const struct backing *backing, off_t off, size_t buffer_off)
{
	return backing->direct.fd >= 0 && (((uint64_t)off | buffer_off) & (backing->direct_align - 1)) == 0;
}

/* Whether the operation is to be tried again: interrupted, or refused by a filesystem that opens O_DIRECT but does
 * not do it (then no more of it on this file). */
static bool is_to_repeat(struct piece *piece, int result)
{
	struct cache_file *file = piece->transfer->chunk->file;

	if (result == -EINTR || result == -EAGAIN)
		return true;
	if (result != -EINVAL || !piece->is_direct)
		return false;
	if (file->backing.direct.fd >= 0) /* or another piece found out first */
		file_give_up_direct(file);
	return true;
}

/* ---- load ---- */

static void piece_to_device(struct piece *piece)
{
	struct transfer *transfer = piece->transfer;
	struct cache *cache = transfer->chunk->file->cache;

	memset(piece->buffer + piece->n_done, 0, piece->len - piece->n_done);
	cache->dev->ops->copy_to_device(cache->dev, transfer->queue, transfer->chunk->memory, piece_chunk_offset(piece),
					bounce_offset(&cache->bounce, piece->buffer), piece->len,
					device_op_init(&piece->device_op, cache, piece_device_done));
}

static void piece_read(struct piece *piece);

static void piece_read_done(struct ring_op *op, int result)
{
	struct piece *piece = CONTAINER_OF(op, struct piece, ring_op);

	if (is_to_repeat(piece, result)) {
		piece_read(piece);
		return;
	}
	if (result < 0) {
		piece_end(piece, result);
		return;
	}
	piece->n_done += (size_t)result;
	if (piece->n_done > piece->n_file)
		piece->n_done = piece->n_file; /* O_DIRECT read a whole block, or the file grew */
	if (result == 0 || piece->n_done == piece->n_file)
		piece_to_device(piece); /* 0: it shrank behind our back; the rest is zeros */
	else
		piece_read(piece);
}

static void piece_read(struct piece *piece)
{
	struct cache_file *file = piece->transfer->chunk->file;
	struct backing *backing = &file->backing;
	off_t off = piece->off + (off_t)piece->n_done;
	size_t len = piece->n_file - piece->n_done;
	struct ring_file from = backing->buffered;

	piece->is_direct = can_be_direct(backing, off, piece->n_done);
	if (piece->is_direct) {
		from = backing->direct;
		/* The buffer is as long as a piece, and pieces end on a multiple of any disk's block. */
		len = (len + backing->direct_align - 1) & ~((size_t)backing->direct_align - 1);
	}
	ring_read(&file->cache->ring, from, piece->buffer + piece->n_done, len, off, &piece->ring_op);
}

static void piece_start_load(struct cache *cache, struct task *task)
{
	struct piece *piece = CONTAINER_OF(task, struct piece, task);

	piece->buffer = bounce_take(&cache->bounce, BOUNCE_FOR_TRANSFER, task);
	if (piece->buffer == NULL)
		return;
	piece->ring_op.done = piece_read_done;
	piece_read(piece);
}

static void piece_zero(struct piece *piece)
{
	struct transfer *transfer = piece->transfer;
	struct cache *cache = transfer->chunk->file->cache;

	cache->dev->ops->fill(cache->dev, transfer->queue, transfer->chunk->memory, piece_chunk_offset(piece),
			      piece->len, 0, device_op_init(&piece->device_op, cache, piece_device_done));
}

/* ---- store ---- */

static void piece_write(struct piece *piece);

static void piece_write_done(struct ring_op *op, int result)
{
	struct piece *piece = CONTAINER_OF(op, struct piece, ring_op);

	if (is_to_repeat(piece, result)) {
		piece_write(piece);
		return;
	}
	if (result <= 0) {
		piece_end(piece, result == 0 ? -EIO : result);
		return;
	}
	piece->n_done += (size_t)result;
	if (piece->n_done == piece->n_file)
		piece_end(piece, 0);
	else
		piece_write(piece);
}

static void piece_write(struct piece *piece)
{
	struct cache_file *file = piece->transfer->chunk->file;
	struct backing *backing = &file->backing;
	off_t off = piece->off + (off_t)piece->n_done;
	size_t len = piece->n_file - piece->n_done;
	struct ring_file to = backing->buffered;

	piece->is_direct = can_be_direct(backing, off, piece->n_done) && len >= backing->direct_align;
	if (piece->is_direct) {
		to = backing->direct;
		len &= ~((size_t)backing->direct_align - 1);
	}
	ring_write(&file->cache->ring, to, piece->buffer + piece->n_done, len, off, &piece->ring_op);
}

static void piece_from_device_done(struct device_op *op, int status)
{
	struct piece *piece = CONTAINER_OF(op, struct piece, device_op);

	if (status < 0) {
		piece_end(piece, status);
		return;
	}
	piece->ring_op.done = piece_write_done;
	piece_write(piece);
}

static void piece_start_store(struct cache *cache, struct task *task)
{
	struct piece *piece = CONTAINER_OF(task, struct piece, task);
	struct transfer *transfer = piece->transfer;

	piece->buffer = bounce_take(&cache->bounce, BOUNCE_FOR_TRANSFER, task);
	if (piece->buffer == NULL)
		return;
	cache->dev->ops->copy_from_device(cache->dev, transfer->queue, transfer->chunk->memory,
					  piece_chunk_offset(piece), bounce_offset(&cache->bounce, piece->buffer),
					  piece->n_file, device_op_init(&piece->device_op, cache, piece_from_device_done));
}

/* ---- cutting ---- */

static void add_piece(struct transfer *transfer, off_t off, off_t end, bool is_hole)
{
	struct cache *cache = transfer->chunk->file->cache;
	off_t size = transfer->chunk->file->size;
	struct piece *piece = calloc(1, sizeof(*piece));

	transfer->outstanding++;
	if (piece == NULL) {
		transfer->status = -ENOMEM;
		transfer_end(transfer);
		return;
	}
	piece->transfer = transfer;
	piece->off = off;
	piece->len = (size_t)(end - off);
	piece->n_file = off >= size ? 0 : (size_t)(min_off(end, size) - off);
	piece->task.run = transfer->is_load ? piece_start_load : piece_start_store;
	if (transfer->is_load && (is_hole || piece->n_file == 0))
		piece_zero(piece);
	else if (piece->n_file == 0)
		piece_end(piece, 0); /* nothing before the end of file to store */
	else
		engine_ready(cache, &piece->task);
}

static off_t piece_end_after(const struct chunk *chunk, off_t off, off_t to)
{
	off_t step = min_off(BOUNCE_BYTES, (off_t)chunk->file->cache->chunk_bytes);

	return min_off(to, (off / step + 1) * step);
}

/* On a worker: how far the hole reaches that the range begins with, and nothing else: a range of data and holes
 * mixed is read, and the filesystem gives the zeros. */
static void scout_work(struct job *job)
{
	struct transfer *transfer = CONTAINER_OF(job, struct transfer, scout);
	off_t data = lseek(transfer->scout_fd, transfer->from, SEEK_DATA);

	if (data < 0)
		data = errno == ENXIO ? transfer->to : transfer->from;
	transfer->from = min_off(data, transfer->to);
}

static void cut(struct transfer *transfer, off_t from, off_t data, off_t to)
{
	for (off_t off = from; off < to;) {
		off_t end = piece_end_after(transfer->chunk, off, to);

		add_piece(transfer, off, end, end <= data);
		off = end;
	}
	transfer_end(transfer);
}

static void scout_done(struct cache *cache, struct task *task)
{
	struct transfer *transfer = CONTAINER_OF(task, struct transfer, scout.done);
	struct chunk *chunk = transfer->chunk;

	(void)cache;
	cut(transfer, max_off(chunk_offset(chunk), transfer->to - (off_t)chunk->file->cache->chunk_bytes),
	    transfer->from, transfer->to);
}

static struct transfer *transfer_create(struct chunk *chunk, void (*done)(struct chunk *, void *, int), void *user)
{
	struct transfer *transfer = calloc(1, sizeof(*transfer));

	if (transfer == NULL)
		return NULL;
	transfer->chunk = chunk;
	transfer->done = done;
	transfer->user = user;
	transfer->outstanding = 1;
	return transfer;
}

void chunk_load(struct chunk *chunk, off_t from, off_t to, void (*done)(struct chunk *, void *, int), void *user)
{
	struct cache_file *file = chunk->file;
	struct transfer *transfer = transfer_create(chunk, done, user);

	if (transfer == NULL) {
		done(chunk, user, -ENOMEM);
		return;
	}
	transfer->is_load = true;
	transfer->queue = GPU_QUEUE_FILL;
	if (from == chunk_offset(chunk) && to == chunk_end(chunk) && atomic_load(&file->is_sparse)) {
		transfer->from = from;
		transfer->to = to;
		transfer->scout_fd = file->backing.buffered.fd;
		transfer->scout = (struct job){.work = scout_work, .done.run = scout_done};
		workers_give(&file->cache->workers, &transfer->scout);
		return;
	}
	cut(transfer, from, from, to);
}

void chunk_store(struct chunk *chunk, void (*done)(struct chunk *, void *, int), void *user)
{
	struct transfer *transfer = transfer_create(chunk, done, user);

	if (transfer == NULL) {
		done(chunk, user, -ENOMEM);
		return;
	}
	transfer->queue = GPU_QUEUE_WRITEBACK;
	cut(transfer, chunk_offset(chunk), chunk_offset(chunk), chunk_end(chunk));
}
