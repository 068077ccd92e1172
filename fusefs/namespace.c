/* namespace.c - names: lookup, and everything that makes, moves or removes one. */
#include "fusefs/fusefs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int look_up(struct fusefs *fs, struct inode *parent, const char *name, struct fuse_entry_param *entry)
{
	struct inode *inode;
	int fd = openat(parent->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	int err;

	*entry = (struct fuse_entry_param){.attr_timeout = TIMEOUT_SECONDS, .entry_timeout = TIMEOUT_SECONDS};
	if (fd < 0)
		return -errno;
	if (fstatat(fd, "", &entry->attr, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0) {
		err = -errno;
		close(fd);
		return err;
	}
	inode = inode_look_up(fs, fd, &entry->attr);
	if (inode == NULL)
		return -errno;
	entry->ino = inode_number(inode);
	return 0;
}

int reply_entry_of(fuse_req_t req, struct inode *parent, const char *name)
{
	struct fuse_entry_param entry;
	int err = look_up(fs_of(req), parent, name, &entry);

	if (err < 0)
		fuse_reply_err(req, -err);
	else
		fuse_reply_entry(req, &entry);
	return err;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry;
	int err = look_up(fs_of(req), inode_of(req, parent), name, &entry);

	if (err == -ENOENT) {
		entry.ino = 0; /* a negative entry, for as long as a positive one */
		fuse_reply_entry(req, &entry);
	} else if (err < 0) {
		fuse_reply_err(req, -err);
	} else {
		fuse_reply_entry(req, &entry);
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
	char target[PATH_MAX + 1];
	ssize_t n = readlinkat(inode_of(req, ino)->fd, "", target, sizeof(target));

	if (n < 0) {
		fuse_reply_err(req, errno);
	} else if (n == sizeof(target)) {
		fuse_reply_err(req, ENAMETOOLONG);
	} else {
		target[n] = '\0';
		fuse_reply_readlink(req, target);
	}
}

static void reply_made(fuse_req_t req, fuse_ino_t parent, const char *name, int result, int err)
{
	if (result < 0)
		fuse_reply_err(req, err);
	else
		reply_entry_of(req, inode_of(req, parent), name);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	struct credentials credentials = credentials_take(req);
	int result = mknodat(inode_of(req, parent)->fd, name, mode, rdev);
	int err = errno;

	credentials_restore(&credentials);
	reply_made(req, parent, name, result, err);
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	struct credentials credentials = credentials_take(req);
	int result = mkdirat(inode_of(req, parent)->fd, name, mode);
	int err = errno;

	credentials_restore(&credentials);
	reply_made(req, parent, name, result, err);
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	struct credentials credentials = credentials_take(req);
	int result = symlinkat(target, inode_of(req, parent)->fd, name);
	int err = errno;

	credentials_restore(&credentials);
	reply_made(req, parent, name, result, err);
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	struct inode *inode = inode_of(req, ino);
	struct proc_path path = inode_proc_path(inode);
	int result = linkat(AT_FDCWD, path.text, inode_of(req, parent)->fd, name, AT_SYMLINK_FOLLOW);
	int err = errno;

	inode_own_change(inode);
	reply_made(req, parent, name, result, err);
}

/* Losing or changing a name moves the ctime of the file. */
static void own_change_and_unref(struct inode *inode)
{
	if (inode == NULL)
		return;
	inode_own_change(inode);
	inode_unref(inode);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct inode *inode = inode_find(fs_of(req), inode_of(req, parent), name);
	int result = unlinkat(inode_of(req, parent)->fd, name, 0);
	int err = errno;

	own_change_and_unref(inode);
	fuse_reply_err(req, result < 0 ? err : 0);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	int result = unlinkat(inode_of(req, parent)->fd, name, AT_REMOVEDIR);

	fuse_reply_err(req, result < 0 ? errno : 0);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
		      unsigned int flags)
{
	struct inode *from = inode_of(req, parent), *to = inode_of(req, new_parent);
	struct inode *inode = inode_find(fs_of(req), from, name), *victim = inode_find(fs_of(req), to, new_name);
	long result = syscall(SYS_renameat2, from->fd, name, to->fd, new_name, flags);
	int err = errno;

	own_change_and_unref(inode);
	own_change_and_unref(victim);
	fuse_reply_err(req, result < 0 ? err : 0);
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
