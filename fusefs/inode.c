/* inode.c - the inode table. See fusefs.h for lives and locks. */
#include "fusefs/fusefs.h"

#include "fusefs/passthrough.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

struct fusefs *fs_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

struct inode *inode_of(fuse_req_t req, fuse_ino_t ino)
{
	return ino == FUSE_ROOT_ID ? &fs_of(req)->root : (struct inode *)(uintptr_t)ino;
}

fuse_ino_t inode_number(struct inode *inode)
{
	return inode == &inode->fs->root ? FUSE_ROOT_ID : (fuse_ino_t)(uintptr_t)inode;
}

struct proc_path inode_proc_path(const struct inode *inode)
{
	struct proc_path path;

	snprintf(path.text, sizeof(path.text), "/proc/self/fd/%d", inode->fd);
	return path;
}

int inode_reopen(struct inode *inode, int flags)
{
	struct proc_path path = inode_proc_path(inode);
	int fd = open(path.text, (flags & ~(O_NOFOLLOW | O_CREAT | O_EXCL | O_TRUNC)) | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

const char *inode_name(struct inode *inode)
{
	static _Thread_local char name[4096];
	struct proc_path path = inode_proc_path(inode);
	ssize_t n = readlink(path.text, name, sizeof(name) - 1);

	if (n < 0)
		snprintf(name, sizeof(name), "inode %ju", (uintmax_t)inode->key.ino);
	else
		name[n] = '\0';
	return name;
}

struct inode *inode_look_up(struct fusefs *fs, int fd, const struct stat *st)
{
	struct inode_key key;
	struct inode *inode, *fresh;

	memset(&key, 0, sizeof(key));
	key.dev = st->st_dev;
	key.ino = st->st_ino;
	fresh = calloc(1, sizeof(*fresh));
	pthread_mutex_lock(&fs->table_lock);
	HASH_FIND(hh, fs->inodes, &key, sizeof(key), inode);
	if (inode == NULL && fresh != NULL) {
		inode = fresh;
		fresh = NULL;
		inode->fs = fs;
		inode->key = key;
		inode->fd = fd;
		inode->type = st->st_mode & S_IFMT;
		inode->is_hashed = true;
		pthread_mutex_init(&inode->lock, NULL);
		HASH_ADD(hh, fs->inodes, key, sizeof(inode->key), inode);
		fs->n_inodes++;
		fd = -1;
	}
	if (inode != NULL)
		inode->lookups++;
	pthread_mutex_unlock(&fs->table_lock);
	free(fresh);
	if (fd >= 0)
		close(fd);
	if (inode == NULL)
		errno = ENOMEM;
	return inode;
}

struct inode *inode_find(struct fusefs *fs, struct inode *parent, const char *name)
{
	struct inode_key key;
	struct inode *inode;
	struct stat st;

	if (fstatat(parent->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return NULL;
	memset(&key, 0, sizeof(key));
	key.dev = st.st_dev;
	key.ino = st.st_ino;
	pthread_mutex_lock(&fs->table_lock);
	HASH_FIND(hh, fs->inodes, &key, sizeof(key), inode);
	if (inode != NULL) {
		inode->refs++;
		fs->n_refs++;
	}
	pthread_mutex_unlock(&fs->table_lock);
	return inode;
}

static void inode_destroy(struct inode *inode)
{
	struct cache_file *file = atomic_load(&inode->file);

	if (file != NULL)
		cache_file_destroy(file);
	passthrough_forget(inode->fs->passthrough, inode);
	close(inode->fd);
	pthread_mutex_destroy(&inode->lock);
	free(inode);
}

static bool is_gone_from_backing(const struct inode *inode)
{
	struct stat st;

	return fstat(inode->fd, &st) == 0 && st.st_nlink == 0;
}

/* Whether the inode has no user left; then it is out of the hash, and the caller destroys it. */
static bool leave_table_locked(struct inode *inode, bool is_gone)
{
	struct cache_file *file = atomic_load(&inode->file);

	if (!inode->is_hashed || inode == &inode->fs->root || inode->lookups > 0 || inode->refs > 0)
		return false;
	if (file != NULL && !is_gone && cache_file_is_active(file))
		return false; /* stays for what is on the device; inode_idle comes back to it */
	HASH_DEL(inode->fs->inodes, inode);
	inode->fs->n_inodes--;
	inode->is_hashed = false;
	return true;
}

static void drop(struct inode *inode, uint64_t lookups, unsigned refs)
{
	struct fusefs *fs = inode->fs;
	bool is_last, is_free, is_gone;

	pthread_mutex_lock(&fs->table_lock);
	inode->lookups -= lookups;
	is_last = inode->lookups == 0 && inode->refs == refs;
	if (!is_last)
		inode->refs -= refs;
	else
		inode->refs = 1; /* ours, while we look at the backing */
	pthread_mutex_unlock(&fs->table_lock);
	if (!is_last)
		return;
	is_gone = is_gone_from_backing(inode);
	pthread_mutex_lock(&fs->table_lock);
	inode->refs--;
	is_free = leave_table_locked(inode, is_gone);
	pthread_mutex_unlock(&fs->table_lock);
	if (is_free)
		inode_destroy(inode);
}

static void inode_drop(struct inode *inode, uint64_t lookups, unsigned refs)
{
	struct fusefs *fs = inode->fs;

	drop(inode, lookups, refs);
	if (refs == 0)
		return;
	pthread_mutex_lock(&fs->table_lock);
	fs->n_refs -= refs;
	if (fs->n_refs == 0)
		pthread_cond_broadcast(&fs->refs_are_gone);
	pthread_mutex_unlock(&fs->table_lock);
}

void inodes_wait(struct fusefs *fs)
{
	pthread_mutex_lock(&fs->table_lock);
	while (fs->n_refs > 0)
		pthread_cond_wait(&fs->refs_are_gone, &fs->table_lock);
	pthread_mutex_unlock(&fs->table_lock);
}

void inode_forget(struct inode *inode, uint64_t lookups)
{
	if (inode != &inode->fs->root)
		inode_drop(inode, lookups, 0);
}

void inode_ref(struct inode *inode)
{
	pthread_mutex_lock(&inode->fs->table_lock);
	inode->refs++;
	inode->fs->n_refs++;
	pthread_mutex_unlock(&inode->fs->table_lock);
}

void inode_unref(struct inode *inode)
{
	inode_drop(inode, 0, 1);
}

void inode_idle(void *user, void *owner)
{
	struct fusefs *fs = user;
	struct inode *inode = owner;
	bool is_free;

	pthread_mutex_lock(&fs->table_lock);
	is_free = leave_table_locked(inode, false);
	pthread_mutex_unlock(&fs->table_lock);
	if (is_free)
		inode_destroy(inode);
}

struct cache_file *inode_cache_file(struct inode *inode)
{
	struct cache_file *file = atomic_load(&inode->file), *fresh;

	if (file != NULL)
		return file;
	if (cache_file_create(inode->fs->cache, inode, &fresh) < 0)
		return NULL;
	if (atomic_compare_exchange_strong(&inode->file, &file, fresh))
		return fresh;
	cache_file_destroy(fresh);
	return file;
}

enum fusefs_policy inode_policy(struct inode *inode)
{
	struct proc_path path = inode_proc_path(inode);
	char value[16];
	ssize_t n = getxattr(path.text, "user.hmmfs.migrate", value, sizeof(value));

	if (n == 4 && memcmp(value, "auto", 4) == 0)
		return POLICY_AUTO;
	if (n == 5 && memcmp(value, "never", 5) == 0)
		return POLICY_NEVER;
	if (n == 6 && memcmp(value, "always", 6) == 0)
		return POLICY_ALWAYS;
	return inode->fs->options->policy;
}

void inodes_destroy(struct fusefs *fs)
{
	struct inode *inode, *next;

	HASH_ITER(hh, fs->inodes, inode, next) {
		HASH_DEL(fs->inodes, inode);
		inode_destroy(inode);
	}
}
