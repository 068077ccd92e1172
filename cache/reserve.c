/*
 * reserve.c - blocks in the backing before a byte is dirtied: what page_mkwrite does for the CPU.
 *
 * A hole that is punched (or a truncation) while a reservation is under way may have taken the blocks away again, and nobody
 * would know before the writeback: such a reservation is made again. Once per mutation, so it ends.
 */
#include "cache/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

struct reservation {
	struct cache_file *file;
	off_t off, len;
	off_t wanted;         /* len, before it was cut at the end of file */
	unsigned n_mutations; /* file->n_mutations when it started */
	bool extends;
	void (*done)(struct cache_file *file, void *user, int status);
	void *user;
	struct ring_op ring_op;
	struct job job; /* the filesystem has no fallocate: the size is set by ftruncate */
	int status;
};

static void end(struct reservation *reservation, int status)
{
	atomic_fetch_add(&reservation->file->write_generation, 1); /* the backing's ctime has moved: not by others */
	reservation->done(reservation->file, reservation->user, status);
	free(reservation);
}

static void truncate_work(struct job *job)
{
	struct reservation *reservation = CONTAINER_OF(job, struct reservation, job);
	off_t wanted = reservation->off + reservation->len;

	reservation->status = 0;
	if (reservation->file->size < wanted && ftruncate(reservation->file->backing.buffered.fd, wanted) < 0)
		reservation->status = -errno;
}

static void truncated(struct cache *cache, struct task *task)
{
	struct reservation *reservation = CONTAINER_OF(task, struct reservation, job.done);

	(void)cache;
	end(reservation, reservation->status);
}

static void reserve(struct reservation *reservation)
{
	struct cache_file *file = reservation->file;

	reservation->n_mutations = file->n_mutations;
	if (!reservation->extends)
		reservation->len = min_off(reservation->wanted, file->size - reservation->off);
	if (reservation->len <= 0) {
		end(reservation, 0);
		return;
	}
	ring_fallocate(&file->cache->ring, file->backing.buffered, reservation->extends ? 0 : FALLOC_FL_KEEP_SIZE,
		       reservation->off, reservation->len, &reservation->ring_op);
}

static void allocated(struct ring_op *op, int result)
{
	struct reservation *reservation = CONTAINER_OF(op, struct reservation, ring_op);
	struct cache_file *file = reservation->file;

	/* A WRITE that extends the file is made under the inode's lock: no mutation comes between. */
	if (result == -EINTR || result == -EAGAIN ||
	    (!reservation->extends && reservation->n_mutations != file->n_mutations)) {
		reserve(reservation);
		return;
	}
	if (result != -EOPNOTSUPP && result != -ENOSYS) {
		end(reservation, result);
		return;
	}
	if (!reservation->extends) {
		end(reservation, 0); /* such a filesystem reports ENOSPC at writeback */
		return;
	}
	reservation->job = (struct job){.work = truncate_work, .done.run = truncated};
	workers_give(&file->cache->workers, &reservation->job);
}

void backing_reserve(struct cache_file *file, off_t off, off_t len, bool extends,
		     void (*done)(struct cache_file *file, void *user, int status), void *user)
{
	struct reservation *reservation = calloc(1, sizeof(*reservation));

	if (reservation == NULL) {
		done(file, user, -ENOMEM);
		return;
	}
	*reservation = (struct reservation){.file = file, .off = off, .len = len, .wanted = len, .extends = extends,
					    .done = done, .user = user, .ring_op.done = allocated};
	reserve(reservation);
}
