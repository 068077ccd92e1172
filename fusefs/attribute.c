/* attribute.c - getattr, setattr, statfs, access. */
#include "fusefs/fusefs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

static void reply_attr(fuse_req_t req, struct inode *inode)
{
	struct stat st;

	if (fstatat(inode->fd, "", &st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_attr(req, &st, TIMEOUT_SECONDS);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)fi;
	reply_attr(req, inode_of(req, ino));
}

static int set_mode(struct inode *inode, mode_t mode)
{
	struct proc_path path = inode_proc_path(inode);

	return fchmodat(AT_FDCWD, path.text, mode, 0) < 0 ? -errno : 0;
}

static int set_owner(struct inode *inode, const struct stat *attr, int to_set)
{
	uid_t uid = to_set & FUSE_SET_ATTR_UID ? attr->st_uid : (uid_t)-1;
	gid_t gid = to_set & FUSE_SET_ATTR_GID ? attr->st_gid : (gid_t)-1;

	return fchownat(inode->fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

static int set_times(struct inode *inode, const struct stat *attr, int to_set)
{
	struct proc_path path = inode_proc_path(inode);
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};

	if (to_set & FUSE_SET_ATTR_ATIME_NOW)
		times[0].tv_nsec = UTIME_NOW;
	else if (to_set & FUSE_SET_ATTR_ATIME)
		times[0] = attr->st_atim;
	if (to_set & FUSE_SET_ATTR_MTIME_NOW)
		times[1].tv_nsec = UTIME_NOW;
	else if (to_set & FUSE_SET_ATTR_MTIME)
		times[1] = attr->st_mtim;
	return utimensat(AT_FDCWD, path.text, times, 0) < 0 ? -errno : 0;
}

struct setattr {
	fuse_req_t req;
	struct inode *inode;
	struct stat attr;
	int to_set;
};

static void answer(struct setattr *setattr, int status)
{
	inode_own_change(setattr->inode);
	if (status < 0)
		fuse_reply_err(setattr->req, -status);
	else
		reply_attr(setattr->req, setattr->inode);
	free(setattr);
}

static void device_is_flushed(void *user, int status)
{
	struct setattr *setattr = user;

	(void)status; /* the next fsync or close reports it */
	answer(setattr, set_times(setattr->inode, &setattr->attr, setattr->to_set));
}

static void finish(struct setattr *setattr, int status)
{
	int times = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW;

	/* What was written before the times are set must reach the backing before: writeback sets the mtime. */
	if (status == 0 && (setattr->to_set & times))
		flush_device(setattr->inode, device_is_flushed, setattr);
	else
		answer(setattr, status);
}

static void size_is_set(void *user, int status)
{
	finish(user, status);
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	struct inode *inode = inode_of(req, ino);
	struct setattr *setattr = calloc(1, sizeof(*setattr));
	int status = 0;

	if (setattr == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	*setattr = (struct setattr){.req = req, .inode = inode, .attr = *attr, .to_set = to_set};
	if (to_set & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
		status = set_owner(inode, attr, to_set);
	if (status == 0 && (to_set & FUSE_SET_ATTR_MODE))
		status = set_mode(inode, attr->st_mode); /* after the owner, which clears set-id bits */
	if (status == 0 && (to_set & FUSE_SET_ATTR_SIZE))
		set_size(inode, fi != NULL ? handle_of(fi)->fd : -1, attr->st_size, size_is_set, setattr);
	else
		finish(setattr, status);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct statvfs st;

	if (fstatvfs(inode_of(req, ino)->fd, &st) < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_statfs(req, &st);
}

void attribute_operations(struct fuse_lowlevel_ops *ops)
{
	ops->getattr = op_getattr;
	ops->setattr = op_setattr;
	ops->statfs = op_statfs;
}
