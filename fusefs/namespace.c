/* namespace.c - names: lookup, and everything that makes, moves or removes one. */
#include "fusefs/coherent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

void fill_entry(struct inode *inode, struct fuse_entry_param *entry)
{
	entry->ino = inode_number(inode);
	entry->generation = inode->generation;
	entry->attr.st_ino = inode_shown_number(inode->volume, entry->attr.st_ino);
	entry->attr_timeout = entry->entry_timeout = attr_timeout(inode->fs, &entry->attr);
}

double attr_timeout(const struct fusefs *fs, const struct stat *st)
{
	unsigned timeout_ms = atomic_load(&fs->timeout_ms);

	if (st->st_nlink > 1 && !S_ISDIR(st->st_mode) && timeout_ms > DEFAULT_TIMEOUT_MS)
		timeout_ms = DEFAULT_TIMEOUT_MS;
	return timeout_ms / 1000.0;
}

/* Of a known inode the attributes are all that is to be got: its descriptor keeps the number from being used again. */
static struct inode *look_up_known(struct fusefs *fs, int parent_fd, const char *name, struct stat *st, int *err)
{
	uint64_t n_made = atomic_load(&fs->n_made);

	*err = fstatat(parent_fd, name, st, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
	return *err < 0 ? NULL : inode_look_up_known(fs, st, n_made);
}

static struct inode *look_up_any(struct fusefs *fs, int parent_fd, const char *name, struct stat *st, int *err)
{
	struct inode *inode;
	int fd;

	do
		fd = openat(parent_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	while (fd < 0 && descriptors_freed(fs));
	if (fd < 0 || fstat(fd, st) < 0) {
		*err = -errno;
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	inode = inode_look_up(fs, fd, st);
	*err = inode == NULL ? -errno : 0;
	return inode;
}

int look_up(struct inode *parent, int parent_fd, const char *name, bool is_known, struct fuse_entry_param *entry)
{
	struct inode *inode = NULL;
	int err = 0;

	*entry = (struct fuse_entry_param){.entry_timeout = atomic_load(&parent->fs->timeout_ms) / 1000.0};
	if (is_known)
		inode = look_up_known(parent->fs, parent_fd, name, &entry->attr, &err);
	if (inode == NULL && err == 0)
		inode = look_up_any(parent->fs, parent_fd, name, &entry->attr, &err);
	if (inode == NULL)
		return err;
	fill_entry(inode, entry);
	return 0;
}

/* ---- lookup ---- */

/* "." of a number that comes from a file handle, which may be out of date. */
static void look_up_self(fuse_req_t req, fuse_ino_t ino)
{
	struct inode *inode = inode_look_up_number(fs_of(req), ino);
	struct fuse_entry_param entry = {0};
	int err = inode == NULL ? -ESTALE : inode_stat(inode, &entry.attr);

	if (err == 0 && entry.attr.st_nlink == 0)
		err = -ESTALE;
	if (err < 0) {
		if (inode != NULL)
			inode_forget(inode, 1);
		fuse_reply_err(req, -err);
		return;
	}
	fill_entry(inode, &entry);
	fuse_reply_entry(req, &entry);
}

/* Someone may have moved the directory out of SOURCE, where nothing is ours to show. */
static bool is_below_root(struct fusefs *fs, int fd)
{
	struct stat st, up, root;
	bool is_found = false, is_over = false;
	int at = openat(fd, ".", O_PATH | O_CLOEXEC);

	if (inode_stat(&fs->root, &root) < 0)
		is_over = true;
	while (!is_over && at >= 0 && fstat(at, &st) == 0) {
		int next;

		is_found = st.st_dev == root.st_dev && st.st_ino == root.st_ino;
		next = is_found ? -1 : openat(at, "..", O_PATH | O_CLOEXEC);
		is_over = next < 0 || fstat(next, &up) < 0 || (up.st_dev == st.st_dev && up.st_ino == st.st_ino);
		close(at);
		at = next;
	}
	if (at >= 0)
		close(at);
	return is_found;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry;
	int err;

	if (strcmp(name, ".") == 0) {
		look_up_self(req, parent);
		return;
	}
	INODE_FD(at, inode_of(req, parent));
	if (at.fd < 0)
		err = at.fd;
	else if (strcmp(name, "..") == 0 && (parent == FUSE_ROOT_ID || !is_below_root(fs_of(req), at.fd)))
		err = -ESTALE;
	else
		err = look_up(at.inode, at.fd, name, true, &entry);
	if (err == -ENOENT) {
		entry.ino = 0; /* a negative entry, for as long as a positive one */
		fuse_reply_entry(req, &entry);
	} else if (err < 0) {
		fuse_reply_err(req, -err);
	} else {
		reply_looked_up(req, &entry);
	}
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t lookups)
{
	inode_forget(inode_of(req, ino), lookups);
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		inode_forget(inode_of(req, forgets[i].ino), forgets[i].nlookup);
	fuse_reply_none(req);
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	INODE_FD(at, inode_of(req, ino));
	char target[PATH_MAX + 1];
	ssize_t n = readlinkat(at.fd, "", target, sizeof(target));

	if (n < 0) {
		fuse_reply_err(req, at.fd < 0 ? -at.fd : errno);
	} else if (n == sizeof(target)) {
		fuse_reply_err(req, ENAMETOOLONG);
	} else {
		target[n] = '\0';
		fuse_reply_readlink(req, target);
	}
}

/* ---- making ---- */

static void reply_made(fuse_req_t req, struct inode_fd *at, const char *name, bool is_known, int err)
{
	struct fuse_entry_param entry;

	if (err == 0)
		err = look_up(at->inode, at->fd, name, is_known, &entry);
	if (err < 0)
		fuse_reply_err(req, -err);
	else
		fuse_reply_entry(req, &entry);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	INODE_FD(at, inode_of(req, parent));
	struct credentials credentials = credentials_take(req, &mode);
	int err = at.fd < 0 ? at.fd : mknodat(at.fd, name, mode, rdev) < 0 ? -errno : 0;

	credentials_restore(&credentials);
	reply_made(req, &at, name, false, err);
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	INODE_FD(at, inode_of(req, parent));
	struct credentials credentials = credentials_take(req, &mode);
	int err = at.fd < 0 ? at.fd : mkdirat(at.fd, name, mode) < 0 ? -errno : 0;

	credentials_restore(&credentials);
	reply_made(req, &at, name, false, err);
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	INODE_FD(at, inode_of(req, parent));
	struct credentials credentials = credentials_take(req, NULL);
	int err = at.fd < 0 ? at.fd : symlinkat(target, at.fd, name) < 0 ? -errno : 0;

	credentials_restore(&credentials);
	reply_made(req, &at, name, false, err);
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	struct inode *inode = inode_of(req, ino);
	INODE_FD(at, inode_of(req, parent));
	INODE_FD(from, inode);
	struct proc_path path = proc_path_of(from.fd);
	int err = at.fd < 0 ? at.fd : from.fd < 0 ? from.fd : 0;

	if (err == 0 && linkat(AT_FDCWD, path.text, at.fd, name, AT_SYMLINK_FOLLOW) < 0)
		err = -errno;
	inode_own_change(inode);
	reply_made(req, &at, name, true, err);
}

/* ---- removing and moving ---- */

/* A file that is about to lose a name, perhaps its last: it needs a descriptor from now on. NULL: nobody knows it. */
struct loser {
	struct inode *inode;
	struct inode_fd fd;
};

static struct loser loser_find(struct fusefs *fs, int parent_fd, const char *name)
{
	struct loser loser = {.inode = inode_find(fs, parent_fd, name)};

	if (loser.inode != NULL)
		loser.fd = inode_fd_take(loser.inode);
	return loser;
}

/* Losing or changing a name moves the ctime of the file. */
static void loser_finish(struct loser *loser)
{
	if (loser->inode == NULL)
		return;
	inode_own_change(loser->inode);
	inode_fd_give(&loser->fd);
	inode_unref(loser->inode);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	INODE_FD(at, inode_of(req, parent));
	struct loser loser = {0};
	int err = at.fd;

	if (at.fd >= 0) {
		loser = loser_find(fs_of(req), at.fd, name);
		err = unlinkat(at.fd, name, 0) < 0 ? -errno : 0;
		loser_finish(&loser);
	}
	fuse_reply_err(req, -err);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	INODE_FD(at, inode_of(req, parent));
	struct loser loser = {0};
	int err = at.fd;

	if (at.fd >= 0) {
		loser = loser_find(fs_of(req), at.fd, name);
		err = unlinkat(at.fd, name, AT_REMOVEDIR) < 0 ? -errno : 0;
		loser_finish(&loser);
	}
	fuse_reply_err(req, -err);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
		      unsigned int flags)
{
	INODE_FD(from, inode_of(req, parent));
	INODE_FD(to, inode_of(req, new_parent));
	int err = from.fd < 0 ? from.fd : to.fd < 0 ? to.fd : 0;

	if (err == 0) {
		struct loser moved = loser_find(fs_of(req), from.fd, name);
		struct loser victim = loser_find(fs_of(req), to.fd, new_name);
		/* RENAME_WHITEOUT makes a device node, which is the caller's */
		struct credentials credentials = flags & RENAME_WHITEOUT ? credentials_take(req, NULL)
									  : (struct credentials){0};

		if (syscall(SYS_renameat2, from.fd, name, to.fd, new_name, flags) < 0)
			err = -errno;
		credentials_restore(&credentials);
		loser_finish(&moved);
		loser_finish(&victim);
	}
	fuse_reply_err(req, -err);
}

void namespace_operations(struct fuse_lowlevel_ops *ops)
{
	ops->lookup = op_lookup;
	ops->forget = op_forget;
	ops->forget_multi = op_forget_multi;
	ops->readlink = op_readlink;
	ops->mknod = op_mknod;
	ops->mkdir = op_mkdir;
	ops->symlink = op_symlink;
	ops->link = op_link;
	ops->unlink = op_unlink;
	ops->rmdir = op_rmdir;
	ops->rename = op_rename;
}
