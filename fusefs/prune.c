/*
 * prune.c - fewer descriptors where an inode can't do without (see descriptor.c): the kernel is asked to drop the names of
 * files that are not open, and forgets the inodes with them.
 *
 * It is asked by a thread of its own, which holds no lock: the call takes the directory's lock in the kernel, under which
 * requests of that directory wait for us. Directories are left alone: without its name one is no working directory.
 */
#include "fusefs/fusefs.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct pruner {
	struct fusefs *fs;
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t wanted;
	pthread_cond_t freed;        /* n_freed moved on */
	uint64_t n_freed;            /* mutex; descriptors closed so far */
	bool is_wanted, is_stopping; /* mutex */
};

static bool is_prunable(struct inode *inode)
{
	struct cache_file *file = atomic_load(&inode->file);

	return inode->type != S_IFDIR && inode->opens == 0 && inode->lookups > 0 &&
	       (file == NULL || !cache_file_is_active(file));
}

/* The descriptor knows the name. If it was changed meanwhile, nothing of that name is dropped, or something else. */
static void prune(struct inode *inode)
{
	struct fusefs *fs = inode->fs;
	char *path = strdup(inode_name(inode)), *slash = path == NULL ? NULL : strrchr(path, '/');
	struct inode *parent;

	if (slash != NULL && slash != path) {
		*slash = '\0';
		parent = inode_find(fs, AT_FDCWD, path);
		if (parent != NULL) {
			fuse_lowlevel_notify_inval_entry(fs->session, inode_number(parent), slash + 1, strlen(slash + 1));
			inode_unref(parent);
		}
	}
	free(path);
}

/* Until there is room again, or the whole table was looked at. */
static void prune_some(struct fusefs *fs)
{
	size_t n_left = atomic_load(&fs->n_fds);

	while (n_left > 0 && atomic_load(&fs->n_fds) > fs->max_fds - fs->max_fds / 8) {
		struct inode *victims[VICTIMS_MAX];
		size_t n = inodes_choose_victims(fs, is_prunable, victims);

		for (size_t i = 0; i < n; i++) {
			prune(victims[i]);
			inode_unref(victims[i]);
		}
		n_left -= n == 0 || n_left < VICTIMS_MAX ? n_left : VICTIMS_MAX;
	}
}

static void *pruner_main(void *argument)
{
	struct pruner *pruner = argument;

	pthread_mutex_lock(&pruner->mutex);
	while (!pruner->is_stopping) {
		if (!pruner->is_wanted) {
			pthread_cond_wait(&pruner->wanted, &pruner->mutex);
			continue;
		}
		pruner->is_wanted = false;
		pthread_mutex_unlock(&pruner->mutex);
		prune_some(pruner->fs);
		pthread_mutex_lock(&pruner->mutex);
	}
	pthread_mutex_unlock(&pruner->mutex);
	return NULL;
}

int pruner_start(struct fusefs *fs)
{
	struct pruner *pruner = calloc(1, sizeof(*pruner));
	sigset_t all, before;
	int err;

	if (pruner == NULL)
		return -ENOMEM;
	pruner->fs = fs;
	pthread_mutex_init(&pruner->mutex, NULL);
	pthread_cond_init(&pruner->wanted, NULL);
	pthread_cond_init(&pruner->freed, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = -pthread_create(&pruner->thread, NULL, pruner_main, pruner);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err < 0)
		free(pruner);
	else
		fs->pruner = pruner;
	return err;
}

static void wake_locked(struct pruner *pruner)
{
	pruner->is_wanted = true;
	pthread_cond_signal(&pruner->wanted);
}

void pruner_wake(struct pruner *pruner)
{
	pthread_mutex_lock(&pruner->mutex);
	wake_locked(pruner);
	pthread_mutex_unlock(&pruner->mutex);
}

/* The kernel's lock of the directory may be ours meanwhile, and the pruner wait for it. So not for long: inodes of other
 * directories, and those it was asked to forget before, are what this waits for. */
bool pruner_wait(struct pruner *pruner)
{
	struct timespec until;
	uint64_t before;
	bool are_freed;
	int err = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 1;
	pthread_mutex_lock(&pruner->mutex);
	wake_locked(pruner);
	before = pruner->n_freed;
	while (pruner->n_freed == before && err == 0)
		err = pthread_cond_timedwait(&pruner->freed, &pruner->mutex, &until);
	are_freed = pruner->n_freed != before;
	pthread_mutex_unlock(&pruner->mutex);
	return are_freed;
}

void pruner_tell_freed(struct pruner *pruner)
{
	pthread_mutex_lock(&pruner->mutex);
	pruner->n_freed++;
	pthread_cond_broadcast(&pruner->freed);
	pthread_mutex_unlock(&pruner->mutex);
}

void pruner_stop(struct fusefs *fs)
{
	struct pruner *pruner = fs->pruner;

	if (pruner == NULL)
		return;
	pthread_mutex_lock(&pruner->mutex);
	pruner->is_stopping = true;
	pthread_cond_signal(&pruner->wanted);
	pthread_mutex_unlock(&pruner->mutex);
	pthread_join(pruner->thread, NULL);
}

void pruner_destroy(struct pruner *pruner)
{
	pthread_cond_destroy(&pruner->wanted);
	pthread_cond_destroy(&pruner->freed);
	pthread_mutex_destroy(&pruner->mutex);
	free(pruner);
}
