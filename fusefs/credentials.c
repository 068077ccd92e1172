/*
 * credentials.c - creating things as the caller.
 *
 * The kernel has checked the permissions (default_permissions, or FUSE's own rule that only the mount's owner gets in),
 * but it is the filesystem that gives a new file its owner. These calls change the thread alone, unlike their C library
 * wrappers. Changing the fsuid drops capabilities from the effective set. CAP_DAC_OVERRIDE is raised again because the
 * permission has been checked with the caller's supplementary groups, which this thread does not have, and CAP_FSETID
 * because the kernel has taken the set-group-id bit out of the mode already where those groups do not allow it.
 */
#include "fusefs/fusefs.h"

#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static void raise_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return;
	data[0].effective |= data[0].permitted & (1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH | 1u << CAP_FSETID |
						1u << CAP_MKNOD);
	syscall(SYS_capset, &header, data); /* on failure the call itself reports EACCES */
}

struct credentials credentials_take(fuse_req_t req)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	if (!fs_of(req)->is_root || (ctx->uid == 0 && ctx->gid == 0))
		return (struct credentials){false};
	setfsgid(ctx->gid);
	setfsuid(ctx->uid);
	raise_capabilities();
	return (struct credentials){true};
}

void credentials_restore(struct credentials *credentials)
{
	if (!credentials->is_changed)
		return;
	setfsuid(0);
	setfsgid(0);
}
