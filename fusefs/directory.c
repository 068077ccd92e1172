/* directory.c - reading directories. Offsets are the backing's, so that entries may come and go meanwhile. */
#include "fusefs/coherent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct directory {
	DIR *stream;
	off_t off;            /* of the next entry */
	struct dirent *entry; /* read, but did not fit into the last answer */
	pthread_mutex_t lock; /* two threads may read one open directory; held over reading the backing's directory,
				 which waits for nothing of ours */
};

static struct directory *directory_of(const struct fuse_file_info *fi)
{
	return (struct directory *)(uintptr_t)fi->fh;
}

int directory_fd(const struct fuse_file_info *fi)
{
	return dirfd(directory_of(fi)->stream);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct directory *directory = calloc(1, sizeof(*directory));
	int fd = inode_reopen(inode_of(req, ino), O_RDONLY | O_DIRECTORY);
	int err;

	if (directory == NULL || fd < 0) {
		err = fd < 0 ? -fd : ENOMEM;
		goto fail;
	}
	directory->stream = fdopendir(fd);
	if (directory->stream == NULL) {
		err = errno;
		goto fail;
	}
	pthread_mutex_init(&directory->lock, NULL);
	fi->fh = (uintptr_t)directory;
	/* The kernel may keep a listing while it is told of others' changes. Otherwise its names, which it trusts for no longer than
	 * the listing, come cheaper with the listing. */
	fi->cache_readdir = fi->keep_cache = atomic_load(&fs_of(req)->timeout_ms) == COHERENT_TIMEOUT_MS;
	if (fuse_reply_open(req, fi) == -ENOENT) { /* interrupted: there will be no releasedir */
		closedir(directory->stream);
		free(directory);
	}
	return;
fail:
	if (fd >= 0)
		close(fd);
	free(directory);
	fuse_reply_err(req, err);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct directory *directory = directory_of(fi);

	(void)ino;
	closedir(directory->stream);
	pthread_mutex_destroy(&directory->lock);
	free(directory);
	fuse_reply_err(req, 0);
}

static bool is_dot(const char *name)
{
	return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* False: it is listed without attributes. It is gone, or "..", or others have changed what the kernel has pages of. */
static bool look_up_entry(struct inode *parent, int fd, const struct dirent *dirent, struct fuse_entry_param *entry)
{
	bool is_known = inode_number_is_known(parent->fs, parent->volume, dirent->d_ino);
	struct inode *inode;

	if (is_dot(dirent->d_name) || look_up(parent, fd, dirent->d_name, is_known, entry) < 0)
		return false;
	inode = (struct inode *)(uintptr_t)entry->ino; /* the root is nobody's entry */
	if (!others_changed(inode, &entry->attr))
		return true;
	inode_forget(inode, 1);
	return false;
}

/* Adds one entry; returns the bytes it took, more than left if it does not fit. */
static size_t add_entry(fuse_req_t req, struct inode *parent, int fd, const struct dirent *dirent, char *buffer, size_t left,
			bool is_plus)
{
	struct fuse_entry_param plain = {.attr = {.st_ino = inode_shown_number(parent->volume, dirent->d_ino),
						  .st_mode = (mode_t)dirent->d_type << 12}};
	struct fuse_entry_param entry;
	size_t taken;

	if (!is_plus)
		return fuse_add_direntry(req, buffer, left, dirent->d_name, &plain.attr, dirent->d_off);
	if (!look_up_entry(parent, fd, dirent, &entry))
		entry = plain;
	taken = fuse_add_direntry_plus(req, buffer, left, dirent->d_name, &entry, dirent->d_off);
	if (taken > left && entry.ino != 0)
		inode_forget(inode_of(req, entry.ino), 1);
	return taken;
}

static void read_directory(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi, bool is_plus)
{
	struct directory *directory = directory_of(fi);
	char *buffer = malloc(size);
	size_t used = 0;
	int err = 0;

	if (buffer == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	pthread_mutex_lock(&directory->lock);
	if (off != directory->off) {
		seekdir(directory->stream, off);
		directory->entry = NULL;
		directory->off = off;
	}
	for (;;) {
		size_t taken;

		if (directory->entry == NULL) {
			errno = 0;
			directory->entry = readdir(directory->stream);
			if (directory->entry == NULL) {
				err = errno;
				break;
			}
		}
		taken = add_entry(req, inode_of(req, ino), dirfd(directory->stream), directory->entry, buffer + used,
				  size - used, is_plus);
		if (taken > size - used)
			break;
		used += taken;
		directory->off = directory->entry->d_off;
		directory->entry = NULL;
	}
	pthread_mutex_unlock(&directory->lock);
	if (err != 0 && used == 0)
		fuse_reply_err(req, err);
	else
		fuse_reply_buf(req, buffer, used);
	free(buffer);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	read_directory(req, ino, size, off, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	read_directory(req, ino, size, off, fi, true);
}

struct directory_sync {
	fuse_req_t req;
	int fd;
	bool is_datasync;
};

static void sync_now(void *argument)
{
	struct directory_sync *sync = argument;
	int result = sync->is_datasync ? fdatasync(sync->fd) : fsync(sync->fd);

	fuse_reply_err(sync->req, result < 0 ? errno : 0);
	free(sync);
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int is_datasync, struct fuse_file_info *fi)
{
	struct directory_sync *sync = malloc(sizeof(*sync));

	(void)ino;
	if (sync == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	*sync = (struct directory_sync){req, directory_fd(fi), is_datasync != 0};
	repliers_give(fs_of(req)->disk_workers, sync_now, sync); /* who takes requests must not wait for a disk */
}

void directory_operations(struct fuse_lowlevel_ops *ops)
{
	ops->opendir = op_opendir;
	ops->releasedir = op_releasedir;
	ops->readdir = op_readdir;
	ops->readdirplus = op_readdirplus;
	ops->fsyncdir = op_fsyncdir;
}
