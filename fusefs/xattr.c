/* xattr.c - extended attributes, passed through; user.hmmfs.migrate is checked on the way. */
#include "fusefs/coherent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <time.h>

static void reply_bytes(fuse_req_t req, char *value, ssize_t n, size_t size)
{
	if (n < 0)
		fuse_reply_err(req, errno);
	else if (size == 0)
		fuse_reply_xattr(req, (size_t)n);
	else
		fuse_reply_buf(req, value, (size_t)n);
	free(value);
}

/* What getxattr(2) would say if the file had the mount's policy written down; it is not listed, so that no copy of the
 * file takes it along. */
static ssize_t default_policy(enum fusefs_policy policy, char *value, size_t size)
{
	static const char *const names[] = {[POLICY_AUTO] = "auto", [POLICY_NEVER] = "never", [POLICY_ALWAYS] = "always"};
	size_t n = strlen(names[policy]);

	if (size == 0)
		return (ssize_t)n;
	if (size < n) {
		errno = ERANGE;
		return -1;
	}
	memcpy(value, names[policy], n);
	return (ssize_t)n;
}

/* The kernel asks for security.capability before the first write to a file and before each change of its owner or size. That a
 * file has none is remembered for a second, as its attributes are; a new one has none. */
static unsigned now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (unsigned)now.tv_sec;
}

void inode_has_no_capability(struct inode *inode)
{
	atomic_store(&inode->no_capability_until, now_s() + DEFAULT_TIMEOUT_MS / 1000);
}

void inode_may_have_capability(struct inode *inode)
{
	atomic_store(&inode->no_capability_until, 0);
}

/* Whoever sets one counts that, and takes back what was remembered, afterwards: so one of the two of us does. */
static ssize_t get_capability(struct inode *inode, const char *path, char *value, size_t size)
{
	unsigned own_changes = atomic_load(&inode->own_changes);
	ssize_t n;

	if (now_s() < atomic_load(&inode->no_capability_until)) {
		errno = ENODATA;
		return -1;
	}
	n = getxattr(path, CAPABILITY_XATTR, value, size);
	if (n < 0 && errno == ENODATA) {
		inode_has_no_capability(inode);
		if (atomic_load(&inode->own_changes) != own_changes)
			inode_may_have_capability(inode);
	}
	return n;
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct inode *inode = inode_of(req, ino);
	INODE_FD(at, inode);
	struct proc_path path = proc_path_of(at.fd);
	char *value = size == 0 || at.fd < 0 ? NULL : malloc(size);
	ssize_t n;

	if (at.fd < 0 || (size > 0 && value == NULL)) {
		fuse_reply_err(req, at.fd < 0 ? -at.fd : ENOMEM);
		return;
	}
	n = strcmp(name, CAPABILITY_XATTR) == 0 ? get_capability(inode, path.text, value, size) : getxattr(path.text, name, value, size);
	if (n < 0 && errno == ENODATA && S_ISREG(inode->type) && strcmp(name, POLICY_XATTR) == 0)
		n = default_policy(inode->fs->options->policy, value, size);
	reply_bytes(req, value, n, size);
}

/* The backing names trusted.* to CAP_SYS_ADMIN alone, which is this daemon's and need not be the caller's. */
static ssize_t list_xattrs(fuse_req_t req, const char *path, char *value, size_t size)
{
	bool is_users = fs_of(req)->is_root && fuse_req_ctx(req)->uid != 0;
	ssize_t n;
	int err;

	if (is_users)
		allow_seeing_trusted(false);
	n = listxattr(path, value, size);
	err = errno;
	if (is_users)
		allow_seeing_trusted(true);
	errno = err;
	return n;
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	INODE_FD(at, inode_of(req, ino));
	struct proc_path path = proc_path_of(at.fd);
	char *value = size == 0 || at.fd < 0 ? NULL : malloc(size);

	if (at.fd < 0 || (size > 0 && value == NULL)) {
		fuse_reply_err(req, at.fd < 0 ? -at.fd : ENOMEM);
		return;
	}
	reply_bytes(req, value, list_xattrs(req, path.text, value, size), size);
}

static bool is_policy(const char *value, size_t size)
{
	return (size == 4 && memcmp(value, "auto", 4) == 0) || (size == 5 && memcmp(value, "never", 5) == 0) ||
	       (size == 6 && memcmp(value, "always", 6) == 0);
}

struct eviction {
	struct cache_place place;
	struct inode *inode;
};

/* Not on the engine's thread: the last reference takes the file with it, and that waits for the engine. */
static void end_eviction(void *argument)
{
	struct eviction *eviction = argument;

	inode_unref(eviction->inode);
	free(eviction);
}

static void evicted(struct cache_op *op, int status)
{
	struct eviction *eviction = (struct eviction *)(void *)op; /* place.op comes first */

	(void)status; /* -EBUSY: what is leased goes when its chunks are evicted next */
	repliers_give(eviction->inode->fs->repliers, end_eviction, eviction);
}

/* A file that is never to be on the device leaves it. */
static void start_eviction(struct inode *inode)
{
	struct cache_file *file = inode_ref_cache_file(inode);
	struct eviction *eviction = file == NULL || !cache_file_is_active(file) ? NULL : calloc(1, sizeof(*eviction));

	if (eviction == NULL) {
		if (file != NULL)
			inode_unref(inode);
		return;
	}
	*eviction = (struct eviction){.place = {.op.done = evicted, .file = file, .off = 0, .len = INT64_MAX},
				      .inode = inode};
	cache_evict(&eviction->place);
}

/* An access ACL takes the set-group-id bit from a file whose group its owner is not in; that is the backing's to see, so it
 * has to see the caller, groups and all. */
static int set_xattr(fuse_req_t req, int fd, const char *name, const char *value, size_t size, int flags)
{
	struct proc_path path = proc_path_of(fd);
	bool is_acl = strcmp(name, "system.posix_acl_access") == 0;
	struct credentials credentials = is_acl ? credentials_take_groups(req, true) : (struct credentials){0};
	int err = setxattr(path.text, name, value, size, flags) < 0 ? -errno : 0;

	credentials_restore(&credentials);
	return err;
}

static void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
	struct inode *inode = inode_of(req, ino);
	INODE_FD(at, inode);
	int err;
	bool sets_policy = strcmp(name, POLICY_XATTR) == 0;

	if (sets_policy && !is_policy(value, size)) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	err = at.fd < 0 ? at.fd : set_xattr(req, at.fd, name, value, size, flags);
	if (err < 0) {
		fuse_reply_err(req, -err);
		return;
	}
	inode_own_change(inode);
	inode_may_have_capability(inode);
	if (sets_policy && inode_policy(inode) == POLICY_NEVER)
		start_eviction(inode);
	fuse_reply_err(req, 0);
}

static void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	struct inode *inode = inode_of(req, ino);
	INODE_FD(at, inode);
	struct proc_path path = proc_path_of(at.fd);
	int err = at.fd < 0 ? -at.fd : removexattr(path.text, name) < 0 ? errno : 0;

	inode_own_change(inode);
	fuse_reply_err(req, err);
}

void xattr_operations(struct fuse_lowlevel_ops *ops)
{
	ops->getxattr = op_getxattr;
	ops->listxattr = op_listxattr;
	ops->setxattr = op_setxattr;
	ops->removexattr = op_removexattr;
}
