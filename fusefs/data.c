/*
 * data.c - READ and WRITE.
 *
 * While nothing of the file is on the device they go to the backing from here. Otherwise they are given to the cache,
 * and answered when it calls back on the engine's thread: short answers there, long ones by a replier.
 */
#include "fusefs/fusefs.h"

#include "fusefs/transfer.h"
#include "fusefs/uring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

enum { LONG_ANSWER = 256 << 10 }; /* below, handing it on costs more than copying it */

struct data_request {
	struct cache_io io;
	fuse_req_t req;
	struct fusefs *fs;
	char data[]; /* WRITE: libfuse's buffer is gone when the handler returns */
};

static void answer_read(void *argument)
{
	struct data_request *request = argument;

	fuse_reply_buf(request->req, request->io.data, request->io.done_bytes);
	cache_read_free(&request->io);
	free(request);
}

static void read_done(struct cache_op *op, int status)
{
	struct data_request *request = (struct data_request *)(void *)op;

	if (status < 0) {
		fuse_reply_err(request->req, -status);
		free(request);
	} else if (request->io.done_bytes >= LONG_ANSWER) {
		repliers_give(request->fs->repliers, answer_read, request);
	} else {
		answer_read(request);
	}
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct inode *inode = inode_of(req, ino);
	struct cache_file *file = inode_cache_file(inode);
	struct data_request *request;

	if (!cache_file_is_active(file)) {
		transfer_read(req, inode, fi, size, off);
		return;
	}
	request = calloc(1, sizeof(*request));
	if (request == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	request->io = (struct cache_io){.op.done = read_done, .file = file, .off = off, .len = size,
					.is_direct = (fi->flags & O_DIRECT) != 0, .must_not_wait = uring_is_crowded()};
	request->req = req;
	request->fs = inode->fs;
	cache_read(&request->io);
}

static void write_done(struct cache_op *op, int status)
{
	struct data_request *request = (struct data_request *)(void *)op;

	if (status < 0)
		fuse_reply_err(request->req, -status);
	else
		fuse_reply_write(request->req, request->io.done_bytes);
	free(request);
}

/* A write moves the mtime when it is made; that the bytes reach the backing later, at writeback, is nobody's business. */
static void touch(struct inode *inode, int fd)
{
	static const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};

	if (futimens(fd, times) == 0) /* or it moves at writeback */
		inode_own_change(inode);
	fremovexattr(fd, CAPABILITY_XATTR);
}

static void op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *from, off_t off, struct fuse_file_info *fi)
{
	struct inode *inode = inode_of(req, ino);
	struct cache_file *file = inode_cache_file(inode);
	size_t size = fuse_buf_size(from);
	struct fuse_bufvec to = FUSE_BUFVEC_INIT(size);
	struct data_request *request;
	ssize_t n;

	if (fi->kill_suidgid) /* the backing can't tell whose write it is */
		drop_set_ids(handle_of(fi)->fd, set_ids_to_drop(req, handle_of(fi)->fd));
	if (cache_file_enter_write(file)) {
		transfer_write(req, inode, fi, from->buf[0].mem, size, off); /* one part, in memory: there is no splicing in */
		return;
	}
	request = malloc(sizeof(*request) + size);
	if (request == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	to.buf[0].mem = request->data;
	n = fuse_buf_copy(&to, from, 0);
	if (n <= 0) {
		free(request);
		fuse_reply_err(req, n < 0 ? (int)-n : EINVAL);
		return;
	}
	request->io = (struct cache_io){.op.done = write_done, .file = file, .off = off, .len = (size_t)n,
					.data = request->data, .is_direct = (fi->flags & O_DIRECT) != 0,
					.is_writepage = fi->writepage};
	request->req = req;
	request->fs = inode->fs;
	touch(inode, handle_of(fi)->fd);
	cache_write(&request->io);
}

void data_operations(struct fuse_lowlevel_ops *ops)
{
	ops->read = op_read;
	ops->write_buf = op_write_buf;
}
