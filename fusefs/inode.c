/* inode.c - the inode table. See fusefs.h for lives and locks. */
#include "fusefs/fusefs.h"

#include "fusefs/coherent.h"
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

/* SOURCE's own numbers as they are, others with the volume's index in bits that file systems hardly use. */
ino_t inode_shown_number(const struct volume *volume, ino_t ino)
{
	return ino ^ (ino_t)volume->index << 48;
}

const char *inode_name(struct inode *inode)
{
	static _Thread_local char name[4096];
	INODE_FD(at, inode);
	struct proc_path path = proc_path_of(at.fd);
	ssize_t n = at.fd < 0 ? -1 : readlink(path.text, name, sizeof(name) - 1);

	if (n < 0)
		snprintf(name, sizeof(name), "inode %ju", (uintmax_t)inode->key.ino);
	else
		name[n] = '\0';
	return name;
}

static void inode_drop(struct inode *inode, uint64_t lookups, unsigned refs);

/* nfs_export: the inode of a number that comes from a file handle. */
struct exported {
	fuse_ino_t number;
	struct inode *inode;
	UT_hash_handle hh; /* table_lock */
};

/* ---- finding and making ---- */

static struct inode *find_locked(struct fusefs *fs, struct volume *volume, ino_t ino)
{
	struct inode_key key;
	struct inode *inode;

	memset(&key, 0, sizeof(key));
	key.volume = volume;
	key.ino = ino;
	HASH_FIND(hh, fs->inodes, &key, sizeof(key), inode);
	return inode;
}

static void add_locked(struct inode *inode, struct volume *volume, ino_t ino)
{
	memset(&inode->key, 0, sizeof(inode->key));
	inode->key.volume = volume;
	inode->key.ino = ino;
	HASH_ADD(hh, inode->fs->inodes, key, sizeof(inode->key), inode);
	inode->is_hashed = true;
}

static void remove_locked(struct inode *inode)
{
	struct fusefs *fs = inode->fs;

	if (fs->next_victim == inode)
		fs->next_victim = inode->hh.next;
	HASH_DEL(fs->inodes, inode);
	inode->is_hashed = false;
}

static void ref_locked(struct inode *inode)
{
	inode->refs++;
	inode->fs->n_refs++;
}

static void export_locked(struct exported *exported, struct inode *inode)
{
	exported->number = inode_number(inode);
	exported->inode = inode;
	HASH_ADD(hh, inode->fs->exported, number, sizeof(exported->number), exported);
}

static void unexport_locked(struct inode *inode)
{
	fuse_ino_t number = inode_number(inode);
	struct exported *exported;

	HASH_FIND(hh, inode->fs->exported, &number, sizeof(number), exported);
	if (exported == NULL)
		return;
	HASH_DEL(inode->fs->exported, exported);
	free(exported);
}

static bool has_fd(struct inode *inode)
{
	bool has;

	pthread_mutex_lock(inode_lock(inode));
	has = inode->fd >= 0;
	pthread_mutex_unlock(inode_lock(inode));
	return has;
}

/* Under a number that no file has: the inode's own was used again by the backing, and the kernel has yet to forget it. */
static void leave_number(struct inode *inode)
{
	struct fusefs *fs = inode->fs;

	pthread_mutex_lock(&fs->table_lock);
	if (inode->key.volume != NULL) {
		remove_locked(inode);
		add_locked(inode, NULL, (ino_t)(uintptr_t)inode);
	}
	pthread_mutex_unlock(&fs->table_lock);
}

static struct inode *inode_create(struct fusefs *fs, struct volume *volume, int fd, mode_t mode)
{
	struct inode *inode = calloc(1, sizeof(*inode));

	if (inode == NULL)
		return NULL;
	inode->fs = fs;
	inode->volume = volume;
	inode->fd = fd;
	inode->type = mode & S_IFMT;
	return inode;
}

/* Finds the inode, with a reference, or makes it, with the descriptor. NULL: no memory. */
static struct inode *find_or_make(struct fusefs *fs, struct volume *volume, int fd, const struct stat *st, bool *is_made)
{
	struct inode *fresh = inode_create(fs, volume, fd, st->st_mode), *inode;
	struct exported *exported = fs->options->nfs_export ? calloc(1, sizeof(*exported)) : NULL;

	*is_made = false;
	if (fresh == NULL || (fs->options->nfs_export && exported == NULL)) {
		free(fresh);
		free(exported);
		return NULL;
	}
	pthread_mutex_lock(&fs->table_lock);
	inode = find_locked(fs, volume, st->st_ino);
	if (inode == NULL) {
		inode = fresh;
		inode->generation = atomic_fetch_add(&fs->n_made, 1) + 1;
		add_locked(inode, volume, st->st_ino);
		if (exported != NULL)
			export_locked(exported, inode);
		*is_made = true;
	}
	inode->lookups++;
	ref_locked(inode);
	pthread_mutex_unlock(&fs->table_lock);
	if (!*is_made) {
		free(fresh);
		free(exported);
	}
	return inode;
}

struct inode *inode_look_up(struct fusefs *fs, int fd, const struct stat *st)
{
	struct volume *volume = volume_of(fs, st->st_dev, fd);
	struct inode *inode = NULL;
	bool is_made = false, is_right = false;

	while (volume != NULL && !is_right) {
		inode = find_or_make(fs, volume, fd, st, &is_made);
		if (inode == NULL)
			break;
		is_right = is_made || has_fd(inode) || inode_is_behind(inode, fd);
		if (!is_right) {
			leave_number(inode);
			inode_drop(inode, 1, 1);
		}
	}
	if (inode == NULL) {
		close(fd);
		errno = ENOMEM;
		return NULL;
	}
	if (is_made && fs->coherent != NULL && inode->type == S_IFDIR)
		coherent_watch(fs->coherent, inode);
	if (is_made)
		inode_fd_made(fs);
	else
		inode_adopt_fd(inode, fd);
	inode_unref(inode);
	return inode;
}

struct inode *inode_look_up_known(struct fusefs *fs, const struct stat *st, uint64_t n_made)
{
	struct volume *volume = volume_of(fs, st->st_dev, -1);
	struct inode *inode = NULL;

	if (volume == NULL)
		return NULL;
	pthread_mutex_lock(&fs->table_lock);
	inode = find_locked(fs, volume, st->st_ino);
	if (inode != NULL && (inode->generation > n_made || !has_fd(inode)))
		inode = NULL;
	if (inode != NULL)
		inode->lookups++;
	pthread_mutex_unlock(&fs->table_lock);
	return inode;
}

bool inode_number_is_known(struct fusefs *fs, struct volume *volume, ino_t ino)
{
	bool is_known;

	pthread_mutex_lock(&fs->table_lock);
	is_known = find_locked(fs, volume, ino) != NULL;
	pthread_mutex_unlock(&fs->table_lock);
	return is_known;
}

struct inode *inode_find(struct fusefs *fs, int parent_fd, const char *name)
{
	struct volume *volume;
	struct inode *inode;
	struct stat st;

	if (fstatat(parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return NULL;
	volume = volume_of(fs, st.st_dev, -1);
	if (volume == NULL)
		return NULL;
	pthread_mutex_lock(&fs->table_lock);
	inode = find_locked(fs, volume, st.st_ino);
	if (inode != NULL)
		ref_locked(inode);
	pthread_mutex_unlock(&fs->table_lock);
	return inode;
}

struct inode *inode_look_up_number(struct fusefs *fs, fuse_ino_t ino)
{
	struct exported *exported;
	struct inode *inode = ino == FUSE_ROOT_ID ? &fs->root : NULL;

	pthread_mutex_lock(&fs->table_lock);
	HASH_FIND(hh, fs->exported, &ino, sizeof(ino), exported);
	if (exported != NULL)
		inode = exported->inode;
	if (inode != NULL)
		inode->lookups++;
	pthread_mutex_unlock(&fs->table_lock);
	return inode;
}

int inode_table_init(struct fusefs *fs)
{
	struct stat st;

	pthread_mutex_init(&fs->table_lock, NULL);
	pthread_cond_init(&fs->refs_are_gone, NULL);
	for (size_t i = 0; i < INODE_LOCKS; i++) {
		pthread_mutex_init(&fs->locks[i], NULL);
		pthread_cond_init(&fs->fd_given[i], NULL);
	}
	fs->proc_fd = -1;
	fs->root = (struct inode){.fs = fs, .type = S_IFDIR, .lookups = 1};
	fs->root.fd = open(fs->options->source, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fs->root.fd < 0 || fstat(fs->root.fd, &st) < 0)
		return -errno;
	fs->root.volume = volume_of(fs, st.st_dev, fs->root.fd);
	if (fs->root.volume == NULL)
		return -ENOMEM;
	pthread_mutex_lock(&fs->table_lock);
	add_locked(&fs->root, fs->root.volume, st.st_ino);
	pthread_mutex_unlock(&fs->table_lock);
	return 0;
}

/* ---- letting go ---- */

static void inode_destroy(struct inode *inode)
{
	struct cache_file *file = atomic_load(&inode->file);

	if (file != NULL)
		cache_file_destroy(file);
	passthrough_forget(inode->fs->passthrough, inode);
	if (inode->watch != NULL)
		coherent_unwatch(inode->fs->coherent, inode);
	inode_fd_close(inode);
	free(inode->handle);
	free(inode);
}

static bool is_gone_from_backing(struct inode *inode)
{
	struct stat st;
	int err = inode_stat(inode, &st);

	return err == -ESTALE || (err == 0 && st.st_nlink == 0);
}

/* Whether the inode has no user left; then it is out of the hash, and the caller destroys it. */
static bool leave_table_locked(struct inode *inode, bool is_gone)
{
	struct cache_file *file = atomic_load(&inode->file);

	if (!inode->is_hashed || inode == &inode->fs->root || inode->lookups > 0 || inode->refs > 0)
		return false;
	if (!is_gone && ((file != NULL && cache_file_is_active(file)) || inode->fs->options->nfs_export))
		return false; /* stays for what is on the device, and inode_idle comes back to it; or for NFS handles */
	unexport_locked(inode);
	remove_locked(inode);
	return true;
}

/* The cache's file goes when nobody uses it any more, if destroying it blocks on nothing. */
static struct cache_file *take_unused_file_locked(struct inode *inode)
{
	struct cache_file *file = atomic_load(&inode->file);

	if (file == NULL || inode->refs > 0 || inode->opens > 0 || !cache_file_is_untouched(file))
		return NULL;
	atomic_store(&inode->file, NULL);
	return file;
}

static void drop(struct inode *inode, uint64_t lookups, unsigned refs)
{
	struct fusefs *fs = inode->fs;
	struct cache_file *file, *unused = NULL;
	bool is_last, is_free = false, is_worth_a_look;

	pthread_mutex_lock(&fs->table_lock);
	inode->lookups -= lookups;
	inode->refs -= refs;
	is_last = inode->lookups == 0 && inode->refs == 0;
	file = atomic_load(&inode->file);
	is_worth_a_look = is_last && (fs->options->nfs_export || (file != NULL && cache_file_is_active(file)));
	if (is_worth_a_look)
		inode->refs++; /* ours, while we look at the backing */
	else if (is_last)
		is_free = leave_table_locked(inode, false);
	if (!is_free)
		unused = take_unused_file_locked(inode);
	pthread_mutex_unlock(&fs->table_lock);
	if (is_worth_a_look) {
		bool is_gone = is_gone_from_backing(inode);

		pthread_mutex_lock(&fs->table_lock);
		inode->refs--;
		is_free = leave_table_locked(inode, is_gone);
		pthread_mutex_unlock(&fs->table_lock);
	}
	if (unused != NULL)
		cache_file_destroy(unused);
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
	ref_locked(inode);
	pthread_mutex_unlock(&inode->fs->table_lock);
}

bool inode_ref_if_known(struct inode *inode)
{
	bool is_known;

	pthread_mutex_lock(&inode->fs->table_lock);
	is_known = inode->is_hashed;
	if (is_known)
		ref_locked(inode);
	pthread_mutex_unlock(&inode->fs->table_lock);
	return is_known;
}

void inode_unref(struct inode *inode)
{
	inode_drop(inode, 0, 1);
}

/* ---- the cache's file ---- */

/* Nothing is left of it on the device. On one of the cache's own threads. */
void inode_idle(void *user, void *owner)
{
	struct fusefs *fs = user;
	struct inode *inode = owner;
	struct cache_file *unused = NULL;
	bool is_free;

	pthread_mutex_lock(&fs->table_lock);
	is_free = leave_table_locked(inode, false);
	if (inode->is_hashed && inode->refs == 0 && inode->opens == 0) { /* else whoever destroys it waits for this */
		unused = atomic_exchange(&inode->file, NULL);
		pthread_mutex_lock(inode_lock(inode));
		inode->seen.is_known = false; /* the file's generation goes with it */
		pthread_mutex_unlock(inode_lock(inode));
	}
	pthread_mutex_unlock(&fs->table_lock);
	if (unused != NULL)
		cache_file_destroy(unused);
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

struct cache_file *inode_ref_cache_file(struct inode *inode)
{
	struct cache_file *file;

	pthread_mutex_lock(&inode->fs->table_lock);
	file = atomic_load(&inode->file);
	if (file != NULL)
		ref_locked(inode);
	pthread_mutex_unlock(&inode->fs->table_lock);
	return file;
}

struct cache_file *inode_open_file(struct inode *inode)
{
	struct cache_file *file;

	pthread_mutex_lock(&inode->fs->table_lock);
	inode->opens++;
	pthread_mutex_unlock(&inode->fs->table_lock);
	file = inode_cache_file(inode);
	if (file == NULL)
		inode_close_file(inode);
	return file;
}

void inode_close_file(struct inode *inode)
{
	struct cache_file *unused;

	pthread_mutex_lock(&inode->fs->table_lock);
	inode->opens--;
	unused = take_unused_file_locked(inode);
	pthread_mutex_unlock(&inode->fs->table_lock);
	if (unused != NULL)
		cache_file_destroy(unused);
}

static enum fusefs_policy policy_named(const struct fusefs *fs, const char *value, ssize_t n)
{
	if (n == 4 && memcmp(value, "auto", 4) == 0)
		return POLICY_AUTO;
	if (n == 5 && memcmp(value, "never", 5) == 0)
		return POLICY_NEVER;
	if (n == 6 && memcmp(value, "always", 6) == 0)
		return POLICY_ALWAYS;
	return fs->options->policy;
}

enum fusefs_policy inode_policy(struct inode *inode)
{
	INODE_FD(at, inode);
	struct proc_path path = proc_path_of(at.fd);
	char value[16];

	return policy_named(inode->fs, value, getxattr(path.text, POLICY_XATTR, value, sizeof(value)));
}

enum fusefs_policy policy_of_descriptor(const struct fusefs *fs, int fd)
{
	char value[16];

	return policy_named(fs, value, fgetxattr(fd, POLICY_XATTR, value, sizeof(value)));
}

size_t inodes_count(struct fusefs *fs)
{
	size_t n;

	pthread_mutex_lock(&fs->table_lock);
	n = HASH_COUNT(fs->inodes);
	pthread_mutex_unlock(&fs->table_lock);
	return n;
}

void inodes_destroy(struct fusefs *fs)
{
	struct inode *inode, *next;

	HASH_ITER(hh, fs->inodes, inode, next) {
		pthread_mutex_lock(&fs->table_lock);
		unexport_locked(inode);
		remove_locked(inode);
		pthread_mutex_unlock(&fs->table_lock);
		if (inode != &fs->root)
			inode_destroy(inode);
	}
	if (fs->root.watch != NULL)
		coherent_unwatch(fs->coherent, &fs->root);
	if (fs->root.fd >= 0)
		close(fs->root.fd);
	if (fs->proc_fd >= 0)
		close(fs->proc_fd);
	free(fs->root.handle);
	volumes_destroy(fs);
}
