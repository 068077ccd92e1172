/*
 * credentials.c - acting as the caller.
 *
 * The kernel has checked the permissions (default_permissions, or FUSE's own rule that only the mount's owner gets in),
 * but it is the filesystem that gives a new file its owner. These calls change the thread alone, unlike their C library
 * wrappers. Changing the fsuid drops capabilities from the effective set. CAP_DAC_OVERRIDE is raised again because the
 * permission has been checked with the caller's supplementary groups, which this thread does not have, and CAP_FSETID
 * because the kernel has taken the set-group-id bit out of the mode already where those groups do not allow it.
 *
 * The umask is the caller's too: whether it counts, or a default ACL of the directory takes its place, the backing knows.
 */
#include "fusefs/fusefs.h"

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { GROUPS_MAX = 65536 };

static const uint32_t creating = 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH | 1u << CAP_FSETID | 1u << CAP_MKNOD;
static const uint32_t changing = 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH | 1u << CAP_FOWNER;

static void change_capabilities(uint32_t raised, uint32_t lowered)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return;
	data[0].effective = (data[0].effective | (data[0].permitted & raised)) & ~lowered;
	syscall(SYS_capset, &header, data); /* on failure the call itself reports EACCES */
}

static void take_umask(fuse_req_t req, mode_t *mode)
{
	static _Thread_local bool is_own; /* the thread's umask is not the process's */
	static _Thread_local mode_t own = (mode_t)-1; /* not known: what the daemon was started with */
	mode_t wanted = fuse_req_ctx(req)->umask;

	if (!is_own)
		is_own = unshare(CLONE_FS) == 0;
	if (!is_own)
		*mode &= ~wanted;
	else if (own != wanted)
		umask(own = wanted);
}

static bool is_other(fuse_req_t req)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	return fs_of(req)->is_root && (ctx->uid != 0 || ctx->gid != 0);
}

struct credentials credentials_take(fuse_req_t req, mode_t *mode)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	if (mode != NULL)
		take_umask(req, mode);
	if (!is_other(req))
		return (struct credentials){0};
	setfsgid(ctx->gid);
	setfsuid(ctx->uid);
	change_capabilities(creating, 0);
	return (struct credentials){.is_changed = true};
}

struct credentials credentials_take_groups(fuse_req_t req, bool is_allowed)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	gid_t *groups;
	int n;

	if (!is_other(req) || ctx->uid == 0)
		return (struct credentials){0};
	groups = malloc(GROUPS_MAX * sizeof(*groups));
	n = groups == NULL ? 0 : fuse_req_getgroups(req, GROUPS_MAX, groups);
	syscall(SYS_setgroups, n > 0 ? (size_t)n : 0, groups);
	free(groups);
	setfsgid(ctx->gid);
	setfsuid(ctx->uid);
	change_capabilities(is_allowed ? changing : changing & ~(1u << CAP_FOWNER), 0);
	return (struct credentials){.is_changed = true, .has_groups = true};
}

void credentials_restore(struct credentials *credentials)
{
	if (!credentials->is_changed)
		return;
	setfsuid(0);
	setfsgid(0);
	if (credentials->has_groups)
		syscall(SYS_setgroups, 0, NULL);
}

/* The kernel tells with most changes of a file whether its caller may keep them; of the others the caller's uid does. */
bool may_keep_set_ids(fuse_req_t req)
{
	return fuse_req_ctx(req)->uid == 0;
}

static void allow(unsigned capability, bool is_allowed)
{
	change_capabilities(is_allowed ? 1u << capability : 0, is_allowed ? 0 : 1u << capability);
}

void allow_keeping_set_ids(bool is_allowed)
{
	allow(CAP_FSETID, is_allowed);
}

void allow_seeing_trusted(bool is_allowed)
{
	allow(CAP_SYS_ADMIN, is_allowed);
}

static bool is_in_group(fuse_req_t req, gid_t gid)
{
	gid_t *groups;
	bool is_in = fuse_req_ctx(req)->gid == gid || may_keep_set_ids(req);
	int n;

	if (is_in)
		return true;
	groups = malloc(GROUPS_MAX * sizeof(*groups));
	n = groups == NULL ? 0 : fuse_req_getgroups(req, GROUPS_MAX, groups);
	for (int i = 0; i < n && i < GROUPS_MAX; i++)
		is_in |= groups[i] == gid;
	free(groups);
	return is_in;
}

/* Set-group-id without the group's x bit marks mandatory locking, once; it goes only with a change from outside the group. */
mode_t set_ids_to_drop(fuse_req_t req, int fd)
{
	struct stat st;
	mode_t bits;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	bits = st.st_mode & (S_ISUID | S_ISGID);
	if ((bits & S_ISGID) && !(st.st_mode & S_IXGRP) && is_in_group(req, st.st_gid))
		bits &= ~(mode_t)S_ISGID;
	return bits;
}

int drop_set_ids(int fd, mode_t bits)
{
	struct proc_path path = proc_path_of(fd);
	struct stat st;

	if (bits == 0)
		return 0;
	if (fstat(fd, &st) < 0)
		return -errno;
	return chmod(path.text, st.st_mode & 07777 & ~bits) < 0 ? -errno : 0;
}
