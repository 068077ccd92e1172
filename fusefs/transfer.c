/*
 * transfer.c - see transfer.h
 *
 * No thread that takes requests waits for the disk when another request could be waiting for it. A transfer is started in the ring
 * of the thread that took the request, if that is a queue of FUSE-over-io_uring, else in the ring of fs->loop; whoever sees it
 * complete answers.
 *
 * What is cheaper than a change of threads is done on the spot:
 *   - over /dev/fuse, bytes that are in the backing's page cache (RWF_NOWAIT), and the one transfer when nothing else is
 *     under way: there is another thread at least to take the next request;
 *   - over io_uring, a WRITE into the page cache, which is a copy (io_uring would hand it to a kernel thread); but a part of a page may have to
 *     be read first, and a large copy holds others up: those go through the ring.
 *
 * Requests of an application's O_DIRECT descriptor use one on the backing. So do large READs of others that the backing's page
 * cache does not have: the kernel keeps their pages for the mount already, and nothing is copied on the way. What is not
 * aligned as the backing wants it goes through its page cache. Large WRITEs do too: the disk would be waited for.
 */
#include "fusefs/transfer.h"

#include "fusefs/loop.h"
#include "fusefs/uring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ALIGNMENT = 4096, SPOT_WRITE_MAX = 64 << 10, LARGE_READ = 128 << 10, SMALL_BUFFER = 64 << 10, BUFFERS_KEPT = 16 };
enum { CACHESTAT = 451 }; /* the system call: on all architectures, and not in every libc's headers */

struct transfer {
	struct loop_op op;
	fuse_req_t req;
	struct inode *inode;
	struct handle *handle;
	bool is_write;
	bool is_ours;  /* buffer */
	bool is_counted; /* in fs->n_transfers */
	int fd;
	char *buffer;
	size_t len, done;
	off_t off;
};

/* ---- descriptors ---- */

static int open_direct(struct handle *handle)
{
	int none = 0, fd = inode_reopen(handle->inode, (handle->is_writer ? O_RDWR : O_RDONLY) | O_DIRECT);

	if (fd < 0)
		fd = -1;
	if (!atomic_compare_exchange_strong(&handle->direct_fd, &none, fd)) { /* another request was faster */
		if (fd >= 0)
			close(fd);
		return none;
	}
	return fd;
}

static bool is_aligned(const struct transfer *transfer)
{
	return (((uintptr_t)transfer->buffer | transfer->len | (uint64_t)transfer->off) & (ALIGNMENT - 1)) == 0;
}

/* Whether most of the range is in the backing's page cache. True where the kernel can't tell, or won't. */
static bool is_mostly_cached(const struct transfer *transfer)
{
	struct {
		uint64_t off, len;
	} range = {(uint64_t)transfer->off, transfer->len};
	struct {
		uint64_t cached, dirty, writeback, evicted, recently_evicted; /* pages */
	} found;

	return syscall(CACHESTAT, transfer->handle->fd, &range, &found, 0) < 0 ||
	       found.cached * (uint64_t)sysconf(_SC_PAGESIZE) * 2 > transfer->len;
}

/* The descriptor for a transfer whose other fields are set. */
static int choose_fd(const struct transfer *transfer, bool is_direct)
{
	bool is_readahead = !is_direct && !transfer->is_write && transfer->len >= LARGE_READ;
	int fd;

	if ((!is_direct && !is_readahead) || !is_aligned(transfer) || (is_readahead && is_mostly_cached(transfer)))
		return transfer->handle->fd;
	fd = atomic_load(&transfer->handle->direct_fd);
	if (fd == 0)
		fd = open_direct(transfer->handle);
	return fd > 0 ? fd : transfer->handle->fd;
}

/* ---- buffers ---- */

/* Large ones are kept: the memory of a new one comes page by page, and zeroed. */
static struct buffer_pool {
	pthread_mutex_t lock;
	unsigned n;                   /* lock */
	char *buffers[BUFFERS_KEPT]; /* lock */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static char *buffer_take(size_t bytes)
{
	char *buffer = NULL;

	if (bytes <= SMALL_BUFFER)
		return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1));
	pthread_mutex_lock(&pool.lock);
	if (pool.n > 0)
		buffer = pool.buffers[--pool.n];
	pthread_mutex_unlock(&pool.lock);
	return buffer != NULL ? buffer : aligned_alloc(ALIGNMENT, CACHE_IO_MAX);
}

static void buffer_give(char *buffer, size_t bytes)
{
	pthread_mutex_lock(&pool.lock);
	if (bytes > SMALL_BUFFER && pool.n < BUFFERS_KEPT) {
		pool.buffers[pool.n++] = buffer;
		buffer = NULL;
	}
	pthread_mutex_unlock(&pool.lock);
	free(buffer);
}

/* ---- the transfer ---- */

static void transfer_end(struct transfer *transfer, int err)
{
	struct fusefs *fs = transfer->inode->fs;

	if (transfer->is_counted)
		atomic_fetch_sub(&fs->n_transfers, 1);
	if (transfer->is_write) {
		inode_own_change(transfer->inode);
		cache_file_leave_write(inode_cache_file(transfer->inode)); /* before the answer: after it the file may be gone */
	}
	if (transfer->done == 0 && err < 0)
		fuse_reply_err(transfer->req, -err);
	else if (transfer->is_write)
		fuse_reply_write(transfer->req, transfer->done);
	else
		fuse_reply_buf(transfer->req, transfer->buffer, transfer->done);
	if (transfer->is_ours)
		buffer_give(transfer->buffer, transfer->len);
}

/* True: it goes on, from where it is now. */
static bool transfer_advance(struct transfer *transfer, ssize_t result)
{
	if (result == -EINTR || result == -EAGAIN)
		return true;
	if (result == -EINVAL && transfer->fd != transfer->handle->fd) { /* the backing wants it aligned otherwise */
		transfer->fd = transfer->handle->fd;
		return true;
	}
	if (result > 0)
		transfer->done += (size_t)result;
	if (result <= 0 || transfer->done == transfer->len)
		return false;
	return transfer->done % ALIGNMENT == 0 || transfer->fd == transfer->handle->fd; /* else the end of the file */
}

static void transfer_queue(struct transfer *transfer)
{
	struct loop *loop = loop_current();
	struct io_uring_sqe *sqe = loop_prepare(loop);
	char *buffer = transfer->buffer + transfer->done;
	unsigned len = (unsigned)(transfer->len - transfer->done);
	uint64_t off = (uint64_t)transfer->off + transfer->done;

	if (transfer->is_write)
		io_uring_prep_write(sqe, transfer->fd, buffer, len, off);
	else
		io_uring_prep_read(sqe, transfer->fd, buffer, len, off);
	loop_submit(loop, sqe, &transfer->op);
}

static void transfer_completed(struct loop_op *op, int result)
{
	struct transfer *transfer = (struct transfer *)(void *)op;

	if (transfer_advance(transfer, result)) {
		transfer_queue(transfer);
		return;
	}
	transfer_end(transfer, result);
	free(transfer);
}

static void transfer_posted(struct loop_op *op, int result)
{
	struct transfer *transfer = (struct transfer *)(void *)op;

	(void)result;
	op->done = transfer_completed;
	transfer_queue(transfer);
}

/* On the heap from here on. */
static void transfer_start(const struct transfer *from)
{
	struct transfer *transfer = malloc(sizeof(*transfer));

	if (transfer == NULL) {
		struct transfer failed = *from;

		transfer_end(&failed, -ENOMEM);
		return;
	}
	*transfer = *from;
	if (!transfer->is_counted)
		atomic_fetch_add(&transfer->inode->fs->n_transfers, 1);
	transfer->is_counted = true;
	transfer->op.done = transfer_completed;
	if (loop_current() != NULL) {
		transfer_queue(transfer);
		return;
	}
	transfer->op.done = transfer_posted;
	loop_post(transfer->inode->fs->loop, &transfer->op);
}

static void transfer_now(struct transfer *transfer)
{
	ssize_t n;

	do {
		char *buffer = transfer->buffer + transfer->done;
		size_t len = transfer->len - transfer->done;
		off_t off = transfer->off + (off_t)transfer->done;

		n = transfer->is_write ? pwrite(transfer->fd, buffer, len, off) : pread(transfer->fd, buffer, len, off);
		if (n < 0)
			n = -errno;
	} while (transfer_advance(transfer, n));
	transfer_end(transfer, (int)n);
}

/* Over /dev/fuse: whether to do it on the spot, because nothing else is under way. Counts it in if so. */
static bool take_spot(struct transfer *transfer)
{
	unsigned none = 0;

	transfer->is_counted = atomic_compare_exchange_strong(&transfer->inode->fs->n_transfers, &none, 1);
	return transfer->is_counted;
}

/* True: all of it was in the page cache. */
static bool is_cached(struct transfer *transfer)
{
	struct iovec part = {transfer->buffer, transfer->len};
	ssize_t n;

	if (transfer->fd != transfer->handle->fd)
		return false;
	n = preadv2(transfer->fd, &part, 1, transfer->off, RWF_NOWAIT);
	if (n > 0)
		transfer->done = (size_t)n;
	return transfer->done == transfer->len;
}

void transfer_read(fuse_req_t req, struct inode *inode, struct fuse_file_info *fi, size_t size, off_t off)
{
	char *payload = uring_payload();
	struct transfer transfer = {.req = req, .inode = inode, .handle = handle_of(fi), .len = size, .off = off};

	transfer.buffer = payload != NULL ? payload : buffer_take(size);
	transfer.is_ours = payload == NULL;
	transfer.fd = choose_fd(&transfer, (fi->flags & O_DIRECT) != 0);
	if (transfer.buffer == NULL)
		transfer_end(&transfer, -ENOMEM);
	else if (payload != NULL)
		transfer_start(&transfer);
	else if (is_cached(&transfer))
		transfer_end(&transfer, 0);
	else if (take_spot(&transfer))
		transfer_now(&transfer);
	else
		transfer_start(&transfer);
}

static bool is_quick_write(const struct transfer *transfer)
{
	return transfer->fd == transfer->handle->fd && transfer->len <= SPOT_WRITE_MAX &&
	       ((transfer->len | (uint64_t)transfer->off) & (ALIGNMENT - 1)) == 0;
}

void transfer_write(fuse_req_t req, struct inode *inode, struct fuse_file_info *fi, const char *from, size_t size, off_t off)
{
	bool is_payload = from == uring_payload();
	struct transfer transfer = {.req = req, .inode = inode, .handle = handle_of(fi), .is_write = true,
				    .buffer = (char *)from, .len = size, .off = off};

	transfer.fd = choose_fd(&transfer, (fi->flags & O_DIRECT) != 0);
	if (is_payload) {
		if (is_quick_write(&transfer))
			transfer_now(&transfer);
		else
			transfer_start(&transfer);
		return;
	}
	if (take_spot(&transfer)) { /* also into the page cache: a writer may have to wait for the disk there */
		transfer_now(&transfer);
		return;
	}
	transfer.buffer = buffer_take(size);
	transfer.is_ours = true;
	if (transfer.buffer == NULL) {
		transfer_end(&transfer, -ENOMEM);
		return;
	}
	memcpy(transfer.buffer, from, size);
	transfer_start(&transfer);
}
