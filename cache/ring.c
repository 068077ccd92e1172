/* ring.c - see ring.h */
#include "cache/ring.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RING_ENTRIES = 256 };

static struct io_uring_sqe *take_sqe(struct ring *ring, struct ring_op *op)
{
	struct io_uring_sqe *sqe;

	while ((sqe = io_uring_get_sqe(&ring->uring)) == NULL)
		io_uring_submit(&ring->uring);
	ring->in_flight++;
	io_uring_sqe_set_data(sqe, op);
	return sqe;
}

static void set_file(struct io_uring_sqe *sqe, struct ring_file file)
{
	if (file.slot < 0)
		return;
	sqe->fd = file.slot;
	sqe->flags |= IOSQE_FIXED_FILE;
}

static void arm_wake(struct ring *ring)
{
	struct io_uring_sqe *sqe = take_sqe(ring, &ring->wake_op);

	io_uring_prep_read(sqe, ring->wake_fd, &ring->wake_value, sizeof(ring->wake_value), 0);
	io_uring_sqe_set_data(sqe, &ring->wake_op);
}

static void on_wake(struct ring_op *op, int result)
{
	(void)result;
	arm_wake((struct ring *)(void *)((char *)op - offsetof(struct ring, wake_op)));
}

int ring_init(struct ring *ring, char *bounce, size_t bounce_bytes, const char **notice)
{
	struct iovec area = {bounce, bounce_bytes};
	int err;

	*notice = NULL;
	*ring = (struct ring){.wake_op.done = on_wake, .bounce = bounce, .bounce_bytes = bounce_bytes};
	err = io_uring_queue_init(RING_ENTRIES, &ring->uring, IORING_SETUP_CLAMP);
	if (err < 0)
		return err;
	ring->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (ring->wake_fd < 0) {
		err = -errno;
		io_uring_queue_exit(&ring->uring);
		return err;
	}
	ring->has_fixed_buffers = io_uring_register_buffers(&ring->uring, &area, 1) == 0;
	ring->has_fixed_files = io_uring_register_files_sparse(&ring->uring, RING_FILES) == 0;
	if (!ring->has_fixed_buffers)
		*notice = "bounce buffers are not registered with io_uring (RLIMIT_MEMLOCK is too low): "
			  "disk I/O costs more CPU time";
	arm_wake(ring);
	return 0;
}

void ring_finish(struct ring *ring)
{
	io_uring_queue_exit(&ring->uring);
	close(ring->wake_fd);
}

struct ring_file ring_file_open(struct ring *ring, int fd)
{
	struct ring_file file = {fd, -1};

	if (!ring->has_fixed_files)
		return file;
	for (int slot = 0; slot < RING_FILES; slot++) {
		uint64_t bit = UINT64_C(1) << (slot % 64);

		if (ring->used_slots[slot / 64] & bit)
			continue;
		if (io_uring_register_files_update(&ring->uring, (unsigned)slot, &fd, 1) == 1) {
			ring->used_slots[slot / 64] |= bit;
			file.slot = slot;
		}
		break;
	}
	return file;
}

void ring_file_close(struct ring *ring, struct ring_file *file)
{
	int none = -1;

	if (file->slot >= 0) {
		io_uring_register_files_update(&ring->uring, (unsigned)file->slot, &none, 1);
		ring->used_slots[file->slot / 64] &= ~(UINT64_C(1) << (file->slot % 64));
	}
	if (file->fd >= 0)
		close(file->fd);
	*file = (struct ring_file){-1, -1};
}

static bool is_bounce(const struct ring *ring, const void *buffer)
{
	const char *p = buffer;

	return ring->has_fixed_buffers && p >= ring->bounce && p < ring->bounce + ring->bounce_bytes;
}

void ring_read(struct ring *ring, struct ring_file file, void *buffer, size_t len, off_t off, struct ring_op *op)
{
	struct io_uring_sqe *sqe = take_sqe(ring, op);

	if (is_bounce(ring, buffer))
		io_uring_prep_read_fixed(sqe, file.fd, buffer, (unsigned)len, (uint64_t)off, 0);
	else
		io_uring_prep_read(sqe, file.fd, buffer, (unsigned)len, (uint64_t)off);
	io_uring_sqe_set_data(sqe, op);
	set_file(sqe, file);
}

void ring_write(struct ring *ring, struct ring_file file, const void *buffer, size_t len, off_t off,
		struct ring_op *op)
{
	struct io_uring_sqe *sqe = take_sqe(ring, op);

	if (is_bounce(ring, buffer))
		io_uring_prep_write_fixed(sqe, file.fd, buffer, (unsigned)len, (uint64_t)off, 0);
	else
		io_uring_prep_write(sqe, file.fd, buffer, (unsigned)len, (uint64_t)off);
	io_uring_sqe_set_data(sqe, op);
	set_file(sqe, file);
}

void ring_fsync(struct ring *ring, struct ring_file file, bool is_datasync, struct ring_op *op)
{
	struct io_uring_sqe *sqe = take_sqe(ring, op);

	io_uring_prep_fsync(sqe, file.fd, is_datasync ? IORING_FSYNC_DATASYNC : 0);
	io_uring_sqe_set_data(sqe, op);
	set_file(sqe, file);
}

void ring_fallocate(struct ring *ring, struct ring_file file, int mode, off_t off, off_t len, struct ring_op *op)
{
	struct io_uring_sqe *sqe = take_sqe(ring, op);

	io_uring_prep_fallocate(sqe, file.fd, mode, off, len);
	io_uring_sqe_set_data(sqe, op);
	set_file(sqe, file);
}

static void complete_all(struct ring *ring)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&ring->uring, &cqe) == 0) {
		struct ring_op *op = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&ring->uring, cqe);
		if (op == NULL)
			continue; /* a time-out of io_uring_submit_and_wait_timeout */
		ring->in_flight--;
		op->done(op, result);
	}
}

void ring_run(struct ring *ring, uint64_t timeout_ns)
{
	struct __kernel_timespec timeout = {.tv_sec = (int64_t)(timeout_ns / 1000000000),
					    .tv_nsec = (int64_t)(timeout_ns % 1000000000)};
	struct io_uring_cqe *cqe;

	if (timeout_ns == 0)
		io_uring_submit(&ring->uring);
	else
		io_uring_submit_and_wait_timeout(&ring->uring, &cqe, 1, timeout_ns == UINT64_MAX ? NULL : &timeout,
						 NULL);
	complete_all(ring);
}

void ring_wake(struct ring *ring)
{
	uint64_t one = 1;
	ssize_t written = write(ring->wake_fd, &one, sizeof(one));

	(void)written; /* EAGAIN would mean a wake-up is pending already */
}
