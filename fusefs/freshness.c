/*
 * freshness.c - what others change in the backing, as far as attributes show it.
 *
 * An open looks whether a file is as it was (file.c). In between, the kernel asks for attributes again when it has trusted
 * them for long enough, and gets new ones: a new size, say, over pages of the old file. So attributes that others have
 * changed are given to it only after its pages are gone. They are dropped by a notifier thread, which may wait for the
 * pages; no request of the file that it waits for waits for it in turn, because all this is for files that have nothing on
 * the device. Of others, the device copy is the truth until the next open.
 *
 * Our own changes move the same attributes. They are counted after each is made, and while one is under way nothing is
 * concluded; when the count has moved on, what there is now becomes the yardstick, and the next open does not rely on it.
 */
#include "fusefs/fusefs.h"

#include <errno.h>
#include <stdlib.h>

static bool is_same_time(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

bool is_as_seen(const struct inode *inode, const struct stat *st)
{
	return st->st_size == inode->seen.size && is_same_time(&st->st_mtim, &inode->seen.mtime) &&
	       is_same_time(&st->st_ctim, &inode->seen.ctime);
}

static bool is_busy(struct inode *inode)
{
	struct cache_file *file;
	bool is;

	pthread_mutex_lock(&inode->fs->table_lock); /* keeps the file where it is */
	file = atomic_load(&inode->file);
	is = file != NULL && (cache_file_is_active(file) || cache_file_is_written(file));
	pthread_mutex_unlock(&inode->fs->table_lock);
	return is;
}

/* lock held */
static void adopt_locked(struct inode *inode, const struct stat *st)
{
	inode->seen.size = st->st_size;
	inode->seen.mtime = st->st_mtim;
	inode->seen.ctime = st->st_ctim;
}

bool others_changed(struct inode *inode, const struct stat *st)
{
	bool is_different, is_ours;

	if (inode->type != S_IFREG)
		return false;
	pthread_mutex_lock(inode_lock(inode));
	is_different = inode->seen.is_known && !is_as_seen(inode, st);
	pthread_mutex_unlock(inode_lock(inode));
	if (!is_different || is_busy(inode))
		return false;
	pthread_mutex_lock(inode_lock(inode));
	is_ours = inode->seen.own_changes != atomic_load(&inode->own_changes);
	if (is_ours) {
		adopt_locked(inode, st);
		inode->seen.own_changes = atomic_load(&inode->own_changes);
		inode->seen.is_adopted = true;
	}
	pthread_mutex_unlock(inode_lock(inode));
	return !is_ours;
}

struct drop {
	struct inode *inode;
	struct stat st;
	void (*then)(void *user);
	void *user;
};

static void drop_now(void *argument)
{
	struct drop *drop = argument;
	struct inode *inode = drop->inode;

	fuse_lowlevel_notify_inval_inode(inode->fs->session, inode_number(inode), 0, 0);
	pthread_mutex_lock(inode_lock(inode));
	adopt_locked(inode, &drop->st);
	pthread_mutex_unlock(inode_lock(inode));
	drop->then(drop->user);
	inode_unref(inode);
	free(drop);
}

void drop_kernel_pages(struct inode *inode, const struct stat *st, void (*then)(void *user), void *user)
{
	struct drop *drop = malloc(sizeof(*drop));

	if (drop == NULL) {
		then(user); /* the pages stay until the next open */
		return;
	}
	*drop = (struct drop){.inode = inode, .st = *st, .then = then, .user = user};
	inode_ref(inode);
	repliers_give(inode->fs->notifiers, drop_now, drop);
}

/* ---- LOOKUP ---- */

struct late_entry {
	fuse_req_t req;
	struct fuse_entry_param entry;
};

static void answer_late_entry(void *user)
{
	struct late_entry *late = user;

	fuse_reply_entry(late->req, &late->entry);
	free(late);
}

void reply_looked_up(fuse_req_t req, const struct fuse_entry_param *entry)
{
	struct inode *inode = inode_of(req, entry->ino);
	struct late_entry *late = others_changed(inode, &entry->attr) ? malloc(sizeof(*late)) : NULL;

	if (late == NULL) {
		fuse_reply_entry(req, entry);
		return;
	}
	*late = (struct late_entry){req, *entry};
	drop_kernel_pages(inode, &entry->attr, answer_late_entry, late);
}
