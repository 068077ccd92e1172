/*
 * range.c - changes of a file's size and bytes other than WRITE: truncate, fallocate, copy_file_range.
 *
 * While nothing of the file is on the device the system call is made at once, inside the same bracket as a WRITE.
 * Otherwise it is a mutation: the cache quiesces the range, makes the call on one of its workers, and sees to the device
 * copies; the request is answered on a replier thread.
 */
#include "fusefs/fusefs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <unistd.h>

struct change {
	struct cache_mutation mutation;
	struct inode *inode;
	int (*call)(struct change *change); /* 0 or negative errno */
	void (*then)(void *user, int status);
	void *user;
	int status;
	/* the call's arguments */
	int fd, from_fd, mode;
	off_t off, from_off, len;
	size_t copied;
	mode_t set_ids; /* to be dropped; the kernel does not see to it for these calls */
};

static int change_apply(struct cache_mutation *mutation)
{
	struct change *change = (struct change *)(void *)mutation;

	return change->call(change);
}

static void change_answer(void *argument)
{
	struct change *change = argument;
	struct inode *inode = change->inode;

	change->then(change->user, change->status);
	inode_unref(inode);
}

static void change_done(struct cache_op *op, int status)
{
	struct change *change = (struct change *)(void *)op;

	change->status = status;
	repliers_give(change->inode->fs->repliers, change_answer, change);
}

/* Makes the call and then calls change->then, which frees the change. */
static void change_start(struct change *change, off_t off, off_t len, bool discards)
{
	struct inode *inode = change->inode;
	struct cache_file *file;

	inode_ref(inode); /* the file may be open nowhere */
	file = inode_cache_file(inode);
	if (file == NULL || cache_file_enter_write(file)) {
		int status = file == NULL ? -ENOMEM : change->call(change);

		if (file != NULL) {
			inode_own_change(inode);
			cache_file_leave_write(file);
		}
		inode_unref(inode);
		change->then(change->user, status);
		return;
	}
	change->mutation = (struct cache_mutation){.op.done = change_done, .file = file, .off = off, .len = len,
						   .discards = discards, .apply = change_apply};
	cache_mutate(&change->mutation);
}

/* ---- size ---- */

struct size_change {
	struct change change;
	void (*then)(void *user, int status);
	void *user;
};

static int call_truncate(struct change *change)
{
	INODE_FD(at, change->inode);
	struct proc_path path = proc_path_of(at.fd);
	int result = change->fd >= 0 ? ftruncate(change->fd, change->off) : truncate(path.text, change->off);

	return result < 0 ? -errno : 0;
}

static void size_changed(void *user, int status)
{
	struct size_change *size_change = user;

	size_change->then(size_change->user, status);
	free(size_change);
}

void set_size(struct inode *inode, int fd, off_t size, void (*then)(void *user, int status), void *user)
{
	struct size_change *change = calloc(1, sizeof(*change));
	struct stat st;
	off_t first;
	int err;

	err = change == NULL ? -ENOMEM : inode_stat(inode, &st);
	if (err < 0) {
		then(user, err);
		free(change);
		return;
	}
	first = size < st.st_size ? size : st.st_size;
	*change = (struct size_change){.change = {.inode = inode, .call = call_truncate, .then = size_changed,
						  .user = change, .fd = fd, .off = size},
				       .then = then, .user = user};
	change_start(&change->change, first, INT64_MAX - first, true);
}

static mode_t set_ids_of(fuse_req_t req, const struct fuse_file_info *fi)
{
	return may_keep_set_ids(req) ? 0 : set_ids_to_drop(req, handle_of(fi)->fd);
}

/* ---- fallocate ---- */

struct request_change {
	struct change change;
	fuse_req_t req;
};

static int call_fallocate(struct change *change)
{
	if (fallocate(change->fd, change->mode, change->off, change->len) < 0)
		return -errno;
	drop_set_ids(change->fd, change->set_ids);
	return 0;
}

static void answer_status(void *user, int status)
{
	struct request_change *change = user;

	fuse_reply_err(change->req, -status);
	free(change);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
	struct request_change *change = calloc(1, sizeof(*change));
	off_t end = len > INT64_MAX - off ? INT64_MAX : off + len;

	if (change == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	*change = (struct request_change){.change = {.inode = inode_of(req, ino), .call = call_fallocate,
						     .then = answer_status, .user = change, .fd = handle_of(fi)->fd,
						     .mode = mode, .off = off, .len = len,
						     .set_ids = set_ids_of(req, fi)},
					  .req = req};
	if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))
		end = INT64_MAX;
	/* A range that reaches past the end of file moves that end: the chunk it lies in is concerned too. */
	if (!(mode & FALLOC_FL_KEEP_SIZE)) {
		struct stat st;

		if (fstat(handle_of(fi)->fd, &st) == 0 && st.st_size < off)
			off = st.st_size;
	}
	change_start(&change->change, off, end - off, false);
}

/* ---- copy_file_range ---- */

static int call_copy(struct change *change)
{
	off_t from_off = change->from_off, off = change->off;
	ssize_t n = copy_file_range(change->from_fd, &from_off, change->fd, &off, (size_t)change->len, 0);

	if (n < 0)
		return -errno;
	change->copied = (size_t)n;
	drop_set_ids(change->fd, change->set_ids);
	return 0;
}

static void answer_copied(void *user, int status)
{
	struct request_change *change = user;

	if (status < 0)
		fuse_reply_err(change->req, -status);
	else
		fuse_reply_write(change->req, change->change.copied);
	free(change);
}

static void copy_now(void *argument)
{
	struct request_change *change = argument;
	struct inode *inode = change->change.inode;
	struct stat st;
	off_t first = change->change.off;

	if (fstat(change->change.fd, &st) == 0 && st.st_size < first)
		first = st.st_size;
	change_start(&change->change, first, change->change.off + change->change.len - first, false);
	inode_unref(inode);
}

enum { SPOT_COPY_MAX = 64 << 10 };

static void source_is_flushed(void *user, int status)
{
	struct request_change *change = user;
	struct fusefs *fs = change->change.inode->fs;
	struct stat st;

	if (status < 0) {
		answer_copied(change, status);
		return;
	}
	inode_ref(change->change.inode); /* copy_now's */
	if (change->change.len > SPOT_COPY_MAX && (fstat(change->change.from_fd, &st) < 0 || st.st_size > SPOT_COPY_MAX))
		repliers_give(fs->disk_workers, copy_now, change); /* who takes requests must not wait for a disk */
	else
		copy_now(change);
}

static void op_copy_file_range(fuse_req_t req, fuse_ino_t from_ino, off_t from_off, struct fuse_file_info *from_fi,
			       fuse_ino_t ino, off_t off, struct fuse_file_info *fi, size_t len, int flags)
{
	struct request_change *change = calloc(1, sizeof(*change));

	(void)flags;
	if (change == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	if (len > (size_t)(INT64_MAX - off))
		len = (size_t)(INT64_MAX - off);
	*change = (struct request_change){.change = {.inode = inode_of(req, ino), .call = call_copy,
						     .then = answer_copied, .user = change, .fd = handle_of(fi)->fd,
						     .from_fd = handle_of(from_fi)->fd, .off = off,
						     .from_off = from_off, .len = (off_t)len,
						     .set_ids = set_ids_of(req, fi)},
					  .req = req};
	flush_device(inode_of(req, from_ino), source_is_flushed, change);
}

void range_operations(struct fuse_lowlevel_ops *ops)
{
	ops->fallocate = op_fallocate;
	ops->copy_file_range = op_copy_file_range;
}
