/* attribute.c - getattr, statx, setattr, statfs. */
#include "fusefs/fusefs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ---- getattr ---- */

struct late_attr {
	fuse_req_t req;
	struct stat st;
	double timeout;
};

static void answer_late_attr(void *user)
{
	struct late_attr *late = user;

	fuse_reply_attr(late->req, &late->st, late->timeout);
	free(late);
}

static void reply_attr(fuse_req_t req, struct inode *inode)
{
	struct late_attr *late;
	struct stat st, shown;
	int err = inode_stat(inode, &st);

	if (err < 0) {
		fuse_reply_err(req, -err);
		return;
	}
	shown = st;
	shown.st_ino = inode_shown_number(inode->volume, st.st_ino);
	late = others_changed(inode, &st) ? malloc(sizeof(*late)) : NULL;
	if (late == NULL) {
		fuse_reply_attr(req, &shown, attr_timeout(inode->fs, &st));
		return;
	}
	*late = (struct late_attr){req, shown, attr_timeout(inode->fs, &st)};
	drop_kernel_pages(inode, &st, answer_late_attr, late);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)fi;
	reply_attr(req, inode_of(req, ino));
}

struct late_statx {
	fuse_req_t req;
	struct statx stx;
	double timeout;
};

static void answer_late_statx(void *user)
{
	struct late_statx *late = user;

	fuse_reply_statx(late->req, 0, &late->stx, late->timeout);
	free(late);
}

/* Asked only for what stat(2) does not have: the time of birth. */
static void op_statx(fuse_req_t req, fuse_ino_t ino, int flags, int mask, struct fuse_file_info *fi)
{
	struct inode *inode = inode_of(req, ino);
	INODE_FD(at, inode);
	struct late_statx *late = malloc(sizeof(*late));
	struct stat st;

	(void)fi;
	if (late == NULL || at.fd < 0 || fstat(at.fd, &st) < 0 ||
	    statx(at.fd, "", (flags & AT_STATX_SYNC_TYPE) | AT_EMPTY_PATH, (unsigned)mask | STATX_BASIC_STATS, &late->stx) < 0) {
		fuse_reply_err(req, late == NULL ? ENOMEM : at.fd < 0 ? -at.fd : errno);
		free(late);
		return;
	}
	late->req = req;
	late->timeout = attr_timeout(inode->fs, &st);
	late->stx.stx_ino = inode_shown_number(inode->volume, st.st_ino);
	if (others_changed(inode, &st))
		drop_kernel_pages(inode, &st, answer_late_statx, late);
	else
		answer_late_statx(late);
}

/* ---- setattr ---- */

enum { FCHMODAT2 = 452 }; /* the system call: on all architectures, and not in every libc's headers */

/* Without the way through /proc, which takes twice as long, where the kernel can (Linux 6.6). */
static int set_mode(const struct fusefs *fs, int fd, mode_t mode)
{
	struct proc_name name = proc_name_of(fd);

	if (syscall(FCHMODAT2, fd, "", mode, AT_EMPTY_PATH) == 0)
		return 0;
	return fchmodat(fs->proc_fd, name.text, mode, 0) < 0 ? -errno : 0;
}

static int set_owner(int fd, const struct stat *attr, int to_set)
{
	uid_t uid = to_set & FUSE_SET_ATTR_UID ? attr->st_uid : (uid_t)-1;
	gid_t gid = to_set & FUSE_SET_ATTR_GID ? attr->st_gid : (gid_t)-1;

	return fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

/* The kernel tells of chown(2) of neither owner nor group, which takes set-id bits all the same, and of a write that will take
 * them, in the same words. So what the backing refuses to a caller who is not the owner is no error: it may be the write. */
static int set_nothing(fuse_req_t req, int fd)
{
	struct credentials credentials = credentials_take_groups(req, false);
	int err = set_owner(fd, NULL, 0);

	credentials_restore(&credentials);
	return err == -EPERM ? 0 : err;
}

static int set_owner_and_mode(fuse_req_t req, struct inode *inode, const struct stat *attr, int to_set)
{
	INODE_FD(at, inode);
	int err = at.fd < 0 ? at.fd : 0;

	if (err == 0 && to_set == 0)
		err = set_nothing(req, at.fd);
	if (err == 0 && (to_set & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)))
		err = set_owner(at.fd, attr, to_set);
	if (err == 0 && (to_set & FUSE_SET_ATTR_KILL_SUID))
		err = drop_set_ids(at.fd, set_ids_to_drop(req, at.fd));
	if (err == 0 && (to_set & FUSE_SET_ATTR_MODE))
		err = set_mode(inode->fs, at.fd, attr->st_mode); /* after the owner, which clears set-id bits */
	return err;
}

static int set_times(struct inode *inode, const struct stat *attr, int to_set)
{
	INODE_FD(at, inode);
	struct proc_name name = proc_name_of(at.fd);
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};

	if (at.fd < 0)
		return at.fd;
	if (to_set & FUSE_SET_ATTR_ATIME_NOW)
		times[0].tv_nsec = UTIME_NOW;
	else if (to_set & FUSE_SET_ATTR_ATIME)
		times[0] = attr->st_atim;
	if (to_set & FUSE_SET_ATTR_MTIME_NOW)
		times[1].tv_nsec = UTIME_NOW;
	else if (to_set & FUSE_SET_ATTR_MTIME)
		times[1] = attr->st_mtim;
	if (utimensat(at.fd, "", times, AT_EMPTY_PATH) == 0) /* Linux 5.8 */
		return 0;
	return utimensat(inode->fs->proc_fd, name.text, times, 0) < 0 ? -errno : 0;
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
	int status;

	if (setattr == NULL) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	*setattr = (struct setattr){.req = req, .inode = inode, .attr = *attr, .to_set = to_set};
	status = set_owner_and_mode(req, inode, attr, to_set);
	if (status == 0 && (to_set & FUSE_SET_ATTR_SIZE))
		set_size(inode, fi != NULL ? handle_of(fi)->fd : -1, attr->st_size, size_is_set, setattr);
	else
		finish(setattr, status);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	INODE_FD(at, inode_of(req, ino));
	struct statvfs st;

	if (at.fd < 0 || fstatvfs(at.fd, &st) < 0)
		fuse_reply_err(req, at.fd < 0 ? -at.fd : errno);
	else
		fuse_reply_statfs(req, &st);
}

void attribute_operations(struct fuse_lowlevel_ops *ops)
{
	ops->getattr = op_getattr;
	ops->statx = op_statx;
	ops->setattr = op_setattr;
	ops->statfs = op_statfs;
}
