/* file.c - open files: create, open, flush, release, fsync, lseek, ioctl. */
#include "fusefs/fusefs.h"

#include "fusefs/control.h"
#include "fusefs/passed_ioctl.h"
#include "fusefs/passthrough.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

/* ---- has the backing been changed behind our back? ---- */

/* True: what the kernel and the device have of the file is still right. Our own changes move the generation or the count
 * on, and the attributes are simply taken anew then. Of a file without chunks, only the kernel's pages are at stake: they
 * are cheap to read again, and are kept only if nothing at all has changed. *st: what the backing is now, zeros if unknown. */
static bool is_unchanged(struct inode *inode, struct cache_file *file, int fd, struct stat *st)
{
	uint64_t generation = cache_file_write_generation(file);
	unsigned own_changes = atomic_load(&inode->own_changes);
	bool is_active = cache_file_is_active(file);
	bool is_known, is_ours, is_same, is_doubtful;

	*st = (struct stat){0};
	if (fstat(fd, st) < 0)
		return false;
	pthread_mutex_lock(inode_lock(inode));
	is_known = inode->seen.is_known;
	is_ours = inode->seen.write_generation != generation || (is_active && inode->seen.own_changes != own_changes);
	is_doubtful = inode->seen.is_adopted;
	is_same = is_as_seen(inode, st);
	inode->seen.is_known = true;
	inode->seen.is_adopted = false;
	inode->seen.size = st->st_size;
	inode->seen.mtime = st->st_mtim;
	inode->seen.ctime = st->st_ctim;
	inode->seen.write_generation = generation;
	inode->seen.own_changes = own_changes;
	pthread_mutex_unlock(inode_lock(inode));
	if (is_known && !is_same && !is_ours && is_active)
		cache_file_backing_changed(file);
	return is_known && !is_doubtful && (is_same || is_ours);
}

static void forget_seen(struct inode *inode)
{
	pthread_mutex_lock(inode_lock(inode));
	inode->seen.is_known = false;
	pthread_mutex_unlock(inode_lock(inode));
}

/* ---- open ---- */

static bool is_writing(int flags)
{
	return (flags & O_ACCMODE) != O_RDONLY;
}

/* The backing's descriptor: without O_APPEND (the kernel gives the offset) and O_DIRECT (our buffers are not aligned). */
static int backing_flags(int flags)
{
	return flags & ~(O_APPEND | O_DIRECT | O_TRUNC | O_NOFOLLOW);
}

/* NULL: no memory. */
static struct handle *handle_create(struct inode *inode, int fd, int flags)
{
	struct handle *handle = calloc(1, sizeof(*handle));
	struct cache_file *file = handle == NULL ? NULL : inode_open_file(inode);

	if (file == NULL) {
		free(handle);
		return NULL;
	}
	if (is_writing(flags))
		cache_file_add_writer(file);
	*handle = (struct handle){.inode = inode, .fd = fd, .is_writer = is_writing(flags),
				  .id = atomic_fetch_add(&inode->fs->n_handles, 1) + 1,
				  .error_sample = cache_file_error_sample(file)};
	pthread_mutex_init(&handle->lock, NULL);
	return handle;
}

static void handle_destroy(struct handle *handle)
{
	if (handle->is_writer)
		cache_file_remove_writer(inode_cache_file(handle->inode));
	close(handle->fd);
	if (atomic_load(&handle->direct_fd) > 0)
		close(handle->direct_fd);
	inode_close_file(handle->inode);
	pthread_mutex_destroy(&handle->lock);
	free(handle);
}

/* A file that has no business on the device. Not an empty one: it was just made, or truncated, to be written. Nor one with
 * set-id bits: a passed write takes them whoever writes (passthrough.c). */
static bool is_never_resident(const struct fusefs *fs, enum fusefs_policy policy, const struct stat *st)
{
	if (fs->options->is_read_only || policy == POLICY_NEVER)
		return true;
	return policy != POLICY_ALWAYS && st->st_size > 0 && !(st->st_mode & (S_ISUID | S_ISGID)) &&
	       (uint64_t)st->st_size < fs->options->migrate_min_bytes;
}

/* Counts the open, and says in fi what kind it is. handle_close, not handle_destroy, ends it. */
static int handle_open(struct handle *handle, struct fuse_file_info *fi, enum fusefs_policy policy)
{
	struct inode *inode = handle->inode;
	struct stat st;
	bool keeps_cache = is_unchanged(inode, inode_cache_file(inode), handle->fd, &st);
	int backing_id;
	int err = passthrough_open(inode->fs->passthrough, handle, is_never_resident(inode->fs, policy, &st), &backing_id);

	if (err < 0)
		return err;
	fi->fh = (uintptr_t)handle;
	fi->noflush = !handle->is_writer; /* nothing of it can be dirty */
	if (handle->is_passed) {
		fi->backing_id = backing_id;
		forget_seen(inode); /* pages that the kernel has of it get old unseen */
	} else {
		fi->keep_cache = keeps_cache;
		fi->parallel_direct_writes = 1;
	}
	return 0;
}

static void handle_close(struct handle *handle)
{
	passthrough_close(handle->inode->fs->passthrough, handle);
	handle_destroy(handle);
}

struct prefetch {
	struct cache_place place;
	struct inode *inode;
	struct passthrough_lease pass;
	int status;
};

/* Each waits with two descriptors open for room on the device. Beyond this many an open goes without: where files are opened
 * faster than the device takes them in, they would push each other out anyway. */
enum { PREFETCHES_MAX = 64 };

/* Not on the engine's thread: the last reference takes the file with it, and that waits for the engine. */
static void end_prefetch(void *argument)
{
	struct prefetch *prefetch = argument;

	atomic_fetch_sub(&prefetch->inode->fs->n_prefetches, 1);
	if (prefetch->status < 0)
		log_line(LOG_WARNING, "%s: prefetch (policy always) failed: %s", inode_name(prefetch->inode),
			 strerror(-prefetch->status));
	passthrough_lease_end(prefetch->inode->fs->passthrough, prefetch->inode, &prefetch->pass);
	inode_unref(prefetch->inode);
	free(prefetch);
}

static void prefetched(struct cache_op *op, int status)
{
	struct prefetch *prefetch = (struct prefetch *)(void *)op;

	prefetch->status = status;
	repliers_give(prefetch->inode->fs->repliers, end_prefetch, prefetch);
}

static void start_prefetch(struct inode *inode)
{
	struct prefetch *prefetch;

	prefetch = atomic_fetch_add(&inode->fs->n_prefetches, 1) < PREFETCHES_MAX ? calloc(1, sizeof(*prefetch)) : NULL;
	if (prefetch == NULL || passthrough_lease_begin(inode->fs->passthrough, inode, 0, false, &prefetch->pass) < 0) {
		atomic_fetch_sub(&inode->fs->n_prefetches, 1);
		free(prefetch);
		return;
	}
	inode_ref(inode);
	*prefetch = (struct prefetch){.place = {.op.done = prefetched, .file = inode_cache_file(inode), .off = 0,
						.len = INT64_MAX},
				      .inode = inode, .pass = prefetch->pass};
	cache_prefetch(&prefetch->place);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct inode *inode = inode_of(req, ino);
	enum fusefs_policy policy;
	struct handle *handle;
	int fd, err;

	passthrough_settle(inode->fs->passthrough, inode);
	fd = inode_reopen(inode, backing_flags(fi->flags));
	if (fd == -EPERM && (fi->flags & O_APPEND)) /* chattr +a: it grows at its end only, wherever a write is to go */
		fd = inode_reopen(inode, backing_flags(fi->flags) | O_APPEND);
	if (fd < 0) {
		fuse_reply_err(req, -fd);
		return;
	}
	handle = handle_create(inode, fd, fi->flags);
	if (handle == NULL) {
		close(fd);
		fuse_reply_err(req, ENOMEM);
		return;
	}
	policy = policy_of_descriptor(inode->fs, fd);
	err = handle_open(handle, fi, policy);
	if (err < 0) {
		handle_destroy(handle);
		fuse_reply_err(req, -err);
		return;
	}
	if (policy == POLICY_ALWAYS && !handle->is_passed)
		start_prefetch(inode);
	if (fuse_reply_open(req, fi) == -ENOENT) /* interrupted: there will be no release */
		handle_close(handle);
}

static void reply_created(fuse_req_t req, struct inode *inode, int fd, struct fuse_file_info *fi,
			  const struct fuse_entry_param *entry)
{
	struct handle *handle = handle_create(inode, fd, fi->flags);
	int err = handle == NULL ? -ENOMEM : handle_open(handle, fi, policy_of_descriptor(inode->fs, fd));

	if (err < 0) {
		if (handle != NULL)
			handle_destroy(handle);
		else
			close(fd);
		inode_forget(inode, 1);
		fuse_reply_err(req, -err);
		return;
	}
	if (fuse_reply_create(req, entry, fi) == -ENOENT) {
		handle_close(handle);
		inode_forget(inode, 1);
	}
}

/* What the name means, if it is still the file of the descriptor, which keeps the number. -1: it is not, or is not to be had. */
static int open_path_by_name(int parent_fd, const char *name, const struct stat *wanted)
{
	struct stat st;
	int fd = openat(parent_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0 || (fstat(fd, &st) == 0 && st.st_ino == wanted->st_ino && st.st_dev == wanted->st_dev))
		return fd;
	close(fd);
	return -1;
}

/* The way through /proc takes twice as long as the one by the name. */
static int entry_of_descriptor(struct inode *parent, int parent_fd, const char *name, int fd, struct fuse_entry_param *entry)
{
	struct fusefs *fs = parent->fs;
	struct proc_name proc_name = proc_name_of(fd);
	struct inode *inode;
	int path_fd;

	*entry = (struct fuse_entry_param){0};
	if (fstat(fd, &entry->attr) < 0)
		return -errno;
	path_fd = open_path_by_name(parent_fd, name, &entry->attr);
	while (path_fd < 0) {
		path_fd = openat(fs->proc_fd, proc_name.text, O_PATH | O_CLOEXEC);
		if (path_fd < 0 && !descriptors_freed(fs))
			return -errno;
	}
	inode = inode_look_up(fs, path_fd, &entry->attr);
	if (inode == NULL)
		return -ENOMEM;
	fill_entry(inode, entry);
	return 0;
}

/* By the descriptor, not by the name alone: that may be another file's by now. */
static void create_at(fuse_req_t req, struct inode *parent, const char *name, mode_t mode, int flags,
		      struct fuse_file_info *fi)
{
	INODE_FD(at, parent);
	struct credentials credentials = credentials_take(req, &mode);
	struct fuse_entry_param entry;
	struct stat st;
	int err, fd;

	do
		fd = at.fd < 0 ? -1 : openat(at.fd, name, flags | O_CLOEXEC, mode);
	while (at.fd >= 0 && fd < 0 && descriptors_freed(fs_of(req)));
	err = at.fd < 0 ? at.fd : fd < 0 ? -errno : 0;
	credentials_restore(&credentials);
	if (err == 0 && (fi->flags & O_TRUNC) && fstat(fd, &st) == 0 && st.st_size > 0)
		err = -ESTALE; /* see op_create */
	if (err == 0)
		err = entry_of_descriptor(at.inode, at.fd, name, fd, &entry);
	if (err < 0) {
		if (fd >= 0)
			close(fd);
		fuse_reply_err(req, -err);
		return;
	}
	if (flags & O_EXCL)
		inode_has_no_capability(inode_of(req, entry.ino));
	reply_created(req, inode_of(req, entry.ino), fd, fi, &entry);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	/* The kernel sends CREATE for a name that it believes to be free. If that turns out to be a file to be
	 * truncated, ESTALE makes it look again, and truncate through SETATTR and so through the cache. */
	create_at(req, inode_of(req, parent), name, mode, (backing_flags(fi->flags) | O_CREAT) | O_NOFOLLOW, fi);
}

static void op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi)
{
	create_at(req, inode_of(req, parent), ".", mode, backing_flags(fi->flags) | O_TMPFILE, fi);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	handle_close(handle_of(fi));
	fuse_reply_err(req, 0);
}

/* ---- flush and fsync ---- */

struct flush {
	struct cache_sync sync;
	struct inode *inode;
	int status;
	void (*then)(void *user, int status);
	void *user;
};

static void flush_answer(void *argument)
{
	struct flush *flush = argument;

	flush->then(flush->user, flush->status);
	inode_unref(flush->inode);
	free(flush);
}

static void flush_done(struct cache_op *op, int status)
{
	struct flush *flush = (struct flush *)(void *)op;

	flush->status = status;
	repliers_give(flush->inode->fs->repliers, flush_answer, flush);
}

void flush_device(struct inode *inode, void (*then)(void *user, int status), void *user)
{
	struct cache_file *file = inode_ref_cache_file(inode);
	struct flush *flush = NULL;
	bool is_active = file != NULL && cache_file_is_active(file);

	if (is_active)
		flush = calloc(1, sizeof(*flush));
	if (flush == NULL) {
		if (file != NULL)
			inode_unref(inode);
		then(user, is_active ? -ENOMEM : 0);
		return;
	}
	*flush = (struct flush){.sync = {.op.done = flush_done, .file = file, .is_flush = true}, .inode = inode,
				.then = then, .user = user};
	cache_sync(&flush->sync);
}

struct file_sync {
	fuse_req_t req;
	struct handle *handle;
	bool is_flush, is_datasync;
};

/* Each descriptor is told of an error once: the sample is its own. A flush tells and does not count: it may be a child's
 * that closes its copies before exec, and nobody looks at what that close returned. */
static int take_error(struct handle *handle, bool is_flush)
{
	struct cache_file *file = inode_cache_file(handle->inode);
	uint32_t sample;
	int err;

	pthread_mutex_lock(&handle->lock);
	sample = handle->error_sample;
	err = cache_file_error_check(file, &sample);
	if (!is_flush)
		handle->error_sample = sample;
	pthread_mutex_unlock(&handle->lock);
	return err;
}

/* The backing may tell an error to the one descriptor that asked, and forget it (R6). */
static void tell_others(struct handle *handle, int err)
{
	pthread_mutex_lock(&handle->lock);
	cache_file_error_met(inode_cache_file(handle->inode), err, &handle->error_sample);
	pthread_mutex_unlock(&handle->lock);
}

static int sync_backing(const struct file_sync *sync)
{
	int fd, result;

	if (!sync->is_flush) {
		result = sync->is_datasync ? fdatasync(sync->handle->fd) : fsync(sync->handle->fd);
		return result < 0 ? -errno : 0;
	}
	/* Closing a duplicate reports what the backing has to report at close. For want of a descriptor it is not told. */
	do
		fd = fcntl(sync->handle->fd, F_DUPFD_CLOEXEC, 0);
	while (fd < 0 && descriptors_freed(sync->handle->inode->fs));
	return fd >= 0 && close(fd) < 0 ? -errno : 0;
}

/* The status of the writeback itself is among the file's errors, or, if memory ran out, is all there is. */
static void device_is_flushed(void *user, int status)
{
	struct file_sync *sync = user;
	int err = take_error(sync->handle, sync->is_flush);
	int backing_err = sync_backing(sync);

	/* If there was an error already it may be the same one, and the others hear of that. */
	if (err == 0 && backing_err < 0 && !sync->is_flush)
		tell_others(sync->handle, backing_err);
	if (err == 0 && status == -ENOMEM)
		err = status;
	if (err == 0)
		err = backing_err;
	fuse_reply_err(sync->req, -err);
	free(sync);
}

static void sync_of_inactive(void *sync)
{
	device_is_flushed(sync, 0);
}

static void start_sync(fuse_req_t req, struct fuse_file_info *fi, bool is_flush, bool is_datasync)
{
	struct file_sync *sync = calloc(1, sizeof(*sync));

	if (sync == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	*sync = (struct file_sync){.req = req, .handle = handle_of(fi), .is_flush = is_flush, .is_datasync = is_datasync};
	if (is_flush && !sync->handle->is_writer)
		device_is_flushed(sync, 0);
	else if (!is_flush && !cache_file_is_active(inode_cache_file(sync->handle->inode)))
		repliers_give(sync->handle->inode->fs->disk_workers, sync_of_inactive, sync); /* who takes requests must not wait for a disk */
	else
		flush_device(sync->handle->inode, device_is_flushed, sync);
}

static void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	start_sync(req, fi, true, false);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int is_datasync, struct fuse_file_info *fi)
{
	(void)ino;
	start_sync(req, fi, false, is_datasync != 0);
}

/* ---- lseek ---- */

struct seek {
	fuse_req_t req;
	int fd, whence;
	off_t off;
};

static void seek_now(void *user, int status)
{
	struct seek *seek = user;
	off_t off = status < 0 ? -1 : lseek(seek->fd, seek->off, seek->whence);

	if (off < 0)
		fuse_reply_err(seek->req, status < 0 ? -status : errno);
	else
		fuse_reply_lseek(seek->req, off);
	free(seek);
}

static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct seek *seek = calloc(1, sizeof(*seek));

	if (seek == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	*seek = (struct seek){.req = req, .fd = handle_of(fi)->fd, .whence = whence, .off = off};
	flush_device(inode_of(req, ino), seek_now, seek); /* what is data on the device is data */
}

/* ---- ioctl ---- */

static void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg, struct fuse_file_info *fi, unsigned flags,
		     const void *in, size_t in_bytes, size_t out_bytes)
{
	bool is_directory = (flags & FUSE_IOCTL_DIR) != 0;

	(void)arg;
	if (ioctl_is_passed(cmd))
		ioctl_pass(req, inode_of(req, ino), is_directory ? directory_fd(fi) : handle_of(fi)->fd, cmd, in, in_bytes,
			   out_bytes);
	else
		control_ioctl(fs_of(req)->control, req, inode_of(req, ino), is_directory ? NULL : handle_of(fi), cmd, out_bytes);
}

void file_operations(struct fuse_lowlevel_ops *ops)
{
	ops->open = op_open;
	ops->create = op_create;
	ops->tmpfile = op_tmpfile;
	ops->release = op_release;
	ops->flush = op_flush;
	ops->fsync = op_fsync;
	ops->lseek = op_lseek;
	ops->ioctl = op_ioctl;
}
