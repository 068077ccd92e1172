/*
 * passed_ioctl.c - ioctls that ask the backing about the file, or set its flags (chattr, project quotas).
 *
 * None of them changes bytes. FICLONE never comes here: the kernel refuses it before it asks a FUSE filesystem; reflinks are
 * made by copy_file_range.
 */
#include "fusefs/passed_ioctl.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

struct passed {
	fuse_req_t req;
	struct inode *inode;
	int fd;
	unsigned int cmd;
	size_t out_bytes;
	union {
		char bytes[64];
		int flags;
		struct fsxattr attributes;
	} argument;
};

bool ioctl_is_passed(unsigned int cmd)
{
	return cmd == FS_IOC_GETFLAGS || cmd == FS_IOC_SETFLAGS || cmd == FS_IOC_FSGETXATTR || cmd == FS_IOC_FSSETXATTR ||
	       cmd == FS_IOC_GETVERSION;
}

static void pass(void *user, int status)
{
	struct passed *passed = user;
	int result;

	(void)status; /* the next fsync or close reports it */
	result = ioctl(passed->fd, passed->cmd, &passed->argument);
	if (result < 0) {
		fuse_reply_err(passed->req, errno);
	} else {
		inode_own_change(passed->inode);
		fuse_reply_ioctl(passed->req, result, &passed->argument, passed->out_bytes);
	}
	free(passed);
}

void ioctl_pass(fuse_req_t req, struct inode *inode, int fd, unsigned int cmd, const void *in, size_t in_bytes, size_t out_bytes)
{
	struct passed *passed = calloc(1, sizeof(*passed));

	int err = passed == NULL ? ENOMEM : in_bytes > sizeof(passed->argument) || out_bytes > sizeof(passed->argument) ? EINVAL : 0;

	if (err != 0) {
		free(passed);
		fuse_reply_err(req, err);
		return;
	}
	*passed = (struct passed){.req = req, .inode = inode, .fd = fd, .cmd = cmd, .out_bytes = out_bytes};
	if (in_bytes > 0)
		memcpy(&passed->argument, in, in_bytes);
	if (cmd == FS_IOC_SETFLAGS || cmd == FS_IOC_FSSETXATTR)
		flush_device(inode, pass, passed); /* into an immutable file nothing can be written back any more */
	else
		pass(passed, 0);
}
