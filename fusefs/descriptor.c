/*
 * descriptor.c - the descriptors of inodes, and what there is instead when they run short.
 *
 * An inode starts with an O_PATH descriptor. When there are more than max_fds of them, half of what the process may have,
 * those that nobody uses at the moment are given up, the oldest first:
 *
 *   with file handles (root, and a filesystem that has them): the inode gets a handle, from which a descriptor is opened
 *   when it is needed next. A file without a name keeps its descriptor: it is there only as long as that is.
 *   without: the kernel is asked to forget files that are not open, by the pruner's thread; the descriptor goes with the
 *   inode. A path would do as well as a handle only as long as nobody renames anything.
 *
 * fd_users keeps a descriptor open under a system call; it and fd change under the inode's lock.
 */
#include "fusefs/fusefs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

enum { SCAN_MAX = 4096 };

struct proc_path proc_path_of(int fd)
{
	struct proc_path path;

	snprintf(path.text, sizeof(path.text), "/proc/self/fd/%d", fd);
	return path;
}

struct proc_name proc_name_of(int fd)
{
	struct proc_name name;

	snprintf(name.text, sizeof(name.text), "%d", fd);
	return name;
}

/* ---- handles ---- */

/* NULL: errno. */
static struct file_handle *make_handle(int fd)
{
	struct file_handle *handle = malloc(sizeof(*handle) + MAX_HANDLE_SZ), *fitting;
	int mount_id;

	if (handle == NULL)
		return NULL;
	handle->handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(fd, "", handle, &mount_id, AT_EMPTY_PATH) < 0) {
		int err = errno;

		free(handle);
		errno = err;
		return NULL;
	}
	fitting = realloc(handle, sizeof(*handle) + handle->handle_bytes);
	return fitting != NULL ? fitting : handle;
}

static bool is_same_handle(const struct file_handle *a, const struct file_handle *b)
{
	return a->handle_type == b->handle_type && a->handle_bytes == b->handle_bytes &&
	       memcmp(a->f_handle, b->f_handle, a->handle_bytes) == 0;
}

bool inode_is_behind(struct inode *inode, int fd)
{
	struct file_handle *handle = make_handle(fd);
	bool is_same = handle != NULL && is_same_handle(handle, inode->handle);

	free(handle);
	return is_same;
}

static bool handles_work(int mount_fd, int fd)
{
	struct file_handle *handle = make_handle(fd);
	int opened = handle == NULL ? -1 : open_by_handle_at(mount_fd, handle, O_PATH | O_CLOEXEC);

	free(handle);
	if (opened >= 0)
		close(opened);
	return opened >= 0;
}

/* ---- volumes ---- */

/* open_by_handle_at takes no O_PATH descriptor, and only a directory may be opened just so. */
static void find_mount_fd(struct volume *volume, int fd)
{
	int none = -1, mount_fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (mount_fd < 0)
		return;
	if (!handles_work(mount_fd, fd) || !atomic_compare_exchange_strong(&volume->mount_fd, &none, mount_fd))
		close(mount_fd);
}

static struct volume *find_volume(struct fusefs *fs, dev_t dev)
{
	struct volume *volume = atomic_load(&fs->volumes);

	while (volume != NULL && volume->dev != dev)
		volume = volume->next;
	return volume;
}

static struct volume *add_volume(struct fusefs *fs, dev_t dev)
{
	struct volume *fresh = calloc(1, sizeof(*fresh)), *volume;

	pthread_mutex_lock(&fs->table_lock);
	volume = find_volume(fs, dev);
	if (volume == NULL && fresh != NULL) {
		struct volume *newest = atomic_load(&fs->volumes);

		volume = fresh;
		fresh = NULL;
		volume->dev = dev;
		volume->index = newest == NULL ? 0 : newest->index + 1;
		volume->next = newest;
		atomic_store(&volume->mount_fd, -1);
		atomic_store(&fs->volumes, volume);
	}
	pthread_mutex_unlock(&fs->table_lock);
	free(fresh);
	return volume;
}

struct volume *volume_of(struct fusefs *fs, dev_t dev, int fd)
{
	struct volume *volume = find_volume(fs, dev);

	if (volume == NULL)
		volume = add_volume(fs, dev);
	if (volume != NULL && fd >= 0 && fs->is_root && !atomic_load(&volume->was_tried)) {
		struct stat st;

		if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
			find_mount_fd(volume, fd);
			atomic_store(&volume->was_tried, true);
		}
	}
	return volume;
}

void volumes_destroy(struct fusefs *fs)
{
	struct volume *volume = atomic_load(&fs->volumes), *next;

	for (; volume != NULL; volume = next) {
		next = volume->next;
		if (volume->mount_fd >= 0)
			close(volume->mount_fd);
		free(volume);
	}
}

/* ---- giving up ---- */

static bool has_spare_fd(struct inode *inode)
{
	bool has;

	pthread_mutex_lock(inode_lock(inode));
	has = inode->fd >= 0 && inode->fd_users == 0;
	pthread_mutex_unlock(inode_lock(inode));
	return has;
}

size_t inodes_choose_victims(struct fusefs *fs, bool (*is_good)(struct inode *inode), struct inode *victims[VICTIMS_MAX])
{
	size_t n = 0, n_seen = 0;

	pthread_mutex_lock(&fs->table_lock);
	while (n < VICTIMS_MAX && n_seen < SCAN_MAX && n_seen < HASH_COUNT(fs->inodes)) {
		struct inode *inode = fs->next_victim != NULL ? fs->next_victim : fs->inodes;

		fs->next_victim = inode->hh.next;
		n_seen++;
		if (inode == &fs->root || inode->refs > 0 || !is_good(inode))
			continue;
		inode->refs++;
		fs->n_refs++;
		victims[n++] = inode;
	}
	pthread_mutex_unlock(&fs->table_lock);
	return n;
}

static bool can_have_handle(struct inode *inode)
{
	return atomic_load(&inode->volume->mount_fd) >= 0 && has_spare_fd(inode);
}

static bool give_up_fd(struct inode *inode)
{
	INODE_FD(at, inode);
	struct file_handle *handle = NULL;
	struct stat st;
	int fd = -1;

	if (at.fd < 0 || fstat(at.fd, &st) < 0 || st.st_nlink == 0)
		return false;
	if (inode->handle == NULL)
		handle = make_handle(at.fd);
	pthread_mutex_lock(inode_lock(inode));
	if (inode->handle == NULL) {
		inode->handle = handle;
		handle = NULL;
	}
	if (inode->handle != NULL && inode->fd_users == 1) {
		fd = inode->fd;
		inode->fd = -1;
		inode->fd_users = 0;
		pthread_cond_broadcast(inode_fd_given(inode));
		at.inode = NULL; /* nothing to give back */
	}
	pthread_mutex_unlock(inode_lock(inode));
	free(handle);
	if (fd < 0)
		return false;
	close(fd);
	atomic_fetch_sub(&inode->fs->n_fds, 1);
	return true;
}

static size_t give_up_fds(struct fusefs *fs)
{
	struct inode *victims[VICTIMS_MAX];
	size_t n = inodes_choose_victims(fs, can_have_handle, victims), n_given = 0;

	for (size_t i = 0; i < n; i++) {
		n_given += give_up_fd(victims[i]);
		inode_unref(victims[i]);
	}
	return n_given;
}

bool descriptors_freed(struct fusefs *fs)
{
	int err = errno;
	bool are_freed;

	if (err != EMFILE && err != ENFILE)
		return false;
	are_freed = fs->pruner != NULL ? pruner_wait(fs->pruner) : give_up_fds(fs) > 0;
	errno = ENFILE;
	return are_freed;
}

static void check_bound(struct fusefs *fs)
{
	if (atomic_load(&fs->n_fds) <= fs->max_fds)
		return;
	if (fs->pruner != NULL)
		pruner_wake(fs->pruner);
	else
		give_up_fds(fs);
}

/* ---- an inode's descriptor ---- */

void inode_fd_made(struct fusefs *fs)
{
	atomic_fetch_add(&fs->n_fds, 1);
	check_bound(fs);
}

void inode_fd_close(struct inode *inode)
{
	pthread_mutex_lock(inode_lock(inode));
	while (inode->fd_users > 0)
		pthread_cond_wait(inode_fd_given(inode), inode_lock(inode));
	pthread_mutex_unlock(inode_lock(inode));
	if (inode->fd < 0)
		return;
	close(inode->fd);
	inode->fd = -1;
	atomic_fetch_sub(&inode->fs->n_fds, 1);
	if (inode->fs->pruner != NULL)
		pruner_tell_freed(inode->fs->pruner);
}

/* Returns the inode's descriptor, in use if users is 1; fd, or, where another thread was faster, its. */
static int install_fd(struct inode *inode, int fd, unsigned users)
{
	int spare = -1;

	pthread_mutex_lock(inode_lock(inode));
	if (inode->fd >= 0)
		spare = fd;
	else
		inode->fd = fd;
	fd = inode->fd;
	inode->fd_users += users;
	pthread_mutex_unlock(inode_lock(inode));
	if (spare >= 0)
		close(spare);
	else
		inode_fd_made(inode->fs);
	return fd;
}

void inode_adopt_fd(struct inode *inode, int fd)
{
	install_fd(inode, fd, 0);
}

struct inode_fd inode_fd_take(struct inode *inode)
{
	int fd;

	pthread_mutex_lock(inode_lock(inode));
	fd = inode->fd;
	inode->fd_users += fd >= 0;
	pthread_mutex_unlock(inode_lock(inode));
	if (fd >= 0)
		return (struct inode_fd){inode, fd};
	do
		fd = open_by_handle_at(inode->volume->mount_fd, inode->handle, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	while (fd < 0 && descriptors_freed(inode->fs));
	if (fd < 0)
		return (struct inode_fd){NULL, -errno};
	return (struct inode_fd){inode, install_fd(inode, fd, 1)};
}

void inode_fd_give(struct inode_fd *fd)
{
	pthread_mutex_t *lock;

	if (fd->inode == NULL)
		return;
	lock = inode_lock(fd->inode);
	pthread_mutex_lock(lock);
	if (--fd->inode->fd_users == 0)
		pthread_cond_broadcast(inode_fd_given(fd->inode));
	pthread_mutex_unlock(lock); /* the inode may be gone */
}

int inode_stat(struct inode *inode, struct stat *st)
{
	INODE_FD(at, inode);

	if (at.fd < 0)
		return at.fd;
	return fstat(at.fd, st) < 0 ? -errno : 0;
}

int inode_reopen(struct inode *inode, int flags)
{
	INODE_FD(at, inode);
	struct proc_name name = proc_name_of(at.fd);
	int fd;

	if (at.fd < 0)
		return at.fd;
	do
		fd = openat(inode->fs->proc_fd, name.text, (flags & ~(O_NOFOLLOW | O_CREAT | O_EXCL | O_TRUNC)) | O_CLOEXEC);
	while (fd < 0 && descriptors_freed(inode->fs));
	return fd < 0 ? -errno : fd;
}
