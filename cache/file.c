/*
 * file.c - cache_file: its gate between WRITEs outside of the engine and the engine, its descriptors, its errors.
 *
 * inactive: no chunk has a record; READs and WRITEs go to the backing without the engine. active: they go through it.
 * The engine makes a file active when something is to be loaded, and waits then for the WRITEs that are under way
 * outside (they depend on the backing alone); nothing is loaded before, so that a fill can't miss a WRITE.
 */
#include "cache/internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <syslog.h>
#include <threads.h>
#include <unistd.h>

/* fstat of an open file on a local filesystem looks into memory: it does not block the engine. */
void file_measure(struct cache_file *file)
{
	struct stat st;

	if (fstat(file->backing.buffered.fd, &st) < 0)
		return;
	atomic_store(&file->size, st.st_size);
	atomic_store(&file->is_sparse, (off_t)st.st_blocks * 512 < st.st_size);
}

static void drained(struct cache *cache, struct task *task)
{
	struct cache_file *file = CONTAINER_OF(task, struct cache_file, drained_task);
	struct task *waiter;

	pthread_mutex_lock(&file->gate);
	file->is_drained_posted = false;
	pthread_mutex_unlock(&file->gate);
	file->is_draining = false;
	file_take_descriptors(file);
	file_measure(file); /* only now: the WRITEs outside may have moved the end */
	while ((waiter = task_list_take(&file->drain_waiters)) != NULL)
		engine_ready(cache, waiter);
	file_leave(file);
}

int cache_file_create(struct cache *cache, void *owner, struct cache_file **out)
{
	struct cache_file *file = calloc(1, sizeof(*file));

	if (file == NULL)
		return -ENOMEM;
	file->cache = cache;
	file->owner = owner;
	file->fd_buffered = file->fd_direct = -1;
	file->backing.buffered = file->backing.direct = (struct ring_file){-1, -1};
	file->drained_task.run = drained;
	pthread_mutex_init(&file->gate, NULL);
	pthread_cond_init(&file->idle_told, NULL);
	pthread_mutex_lock(&cache->files_lock);
	DL_APPEND(cache->files, file);
	pthread_mutex_unlock(&cache->files_lock);
	*out = file;
	return 0;
}

bool cache_file_is_active(struct cache_file *file)
{
	return atomic_load(&file->is_active);
}

bool cache_file_is_untouched(struct cache_file *file)
{
	bool is_untouched;

	pthread_mutex_lock(&file->gate);
	is_untouched = !file->was_counted_in;
	pthread_mutex_unlock(&file->gate);
	return is_untouched;
}

bool cache_file_is_written(struct cache_file *file)
{
	bool is_written;

	pthread_mutex_lock(&file->gate);
	is_written = file->direct_writes > 0 || file->queued > 0;
	pthread_mutex_unlock(&file->gate);
	return is_written;
}

/* ---- descriptors ---- */

struct opened {
	int buffered, direct;
	uint32_t align;
	bool is_writable;
};

static void opened_close(struct opened *opened)
{
	if (opened->buffered >= 0)
		close(opened->buffered);
	if (opened->direct >= 0)
		close(opened->direct);
}

/* What O_DIRECT needs of offsets, lengths and memory; 0: the filesystem can't do it. */
static uint32_t direct_alignment(int fd)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 && (st.stx_mask & STATX_DIOALIGN)) {
		uint32_t align = st.stx_dio_offset_align;

		if (align == 0)
			return 0;
		return st.stx_dio_mem_align > align ? st.stx_dio_mem_align : align;
	}
	return 4096; /* an older kernel does not tell */
}

static int open_backing(struct cache_file *file, struct opened *opened)
{
	const struct cache_callbacks *callbacks = file->cache->callbacks;
	void *fs = file->cache->fs;
	int mode = O_RDWR;
	int fd = callbacks->open_backing(fs, file->owner, O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		mode = O_RDONLY;
		fd = callbacks->open_backing(fs, file->owner, O_RDONLY | O_CLOEXEC);
	}
	if (fd < 0)
		return fd;
	*opened = (struct opened){.buffered = fd, .direct = -1, .is_writable = mode == O_RDWR};
	opened->align = direct_alignment(fd);
	if (opened->align > 0 && opened->align <= 65536)
		opened->direct = callbacks->open_backing(fs, file->owner, mode | O_DIRECT | O_CLOEXEC);
	if (opened->direct < 0)
		opened->direct = -1;
	return 0;
}

/* Puts descriptors where the engine finds them, unless another thread was faster. gate held. */
static bool install_locked(struct cache_file *file, const struct opened *opened)
{
	if (file->has_fds && (file->has_writable_fds || !opened->is_writable))
		return false;
	file->fd_buffered = opened->buffered;
	file->fd_direct = opened->direct;
	file->opened_align = opened->align;
	file->has_writable_fds = opened->is_writable;
	file->has_fds = true;
	return true;
}

int file_enter(struct cache_file *file, bool needs_writable)
{
	struct opened opened;
	bool is_taken, has_enough;
	int err;

	pthread_mutex_lock(&file->gate);
	file_count_in_locked(file);
	has_enough = file->has_fds && (file->has_writable_fds || !needs_writable);
	pthread_mutex_unlock(&file->gate);
	if (has_enough)
		return 0;
	err = open_backing(file, &opened);
	if (err == 0 && needs_writable && !opened.is_writable) {
		opened_close(&opened);
		err = -EROFS;
	}
	pthread_mutex_lock(&file->gate);
	is_taken = err == 0 && install_locked(file, &opened);
	pthread_mutex_unlock(&file->gate);
	if (err == 0 && !is_taken)
		opened_close(&opened);
	if (err < 0) {
		pthread_mutex_lock(&file->gate);
		file->queued--;
		pthread_mutex_unlock(&file->gate);
	}
	return err;
}

static void backing_retire(struct backing *backing, struct ring_file *file)
{
	if (file->fd < 0)
		return;
	assert(backing->n_retired < sizeof(backing->retired) / sizeof(backing->retired[0]));
	backing->retired[backing->n_retired++] = *file;
	*file = (struct ring_file){-1, -1};
}

void file_take_descriptors(struct cache_file *file)
{
	struct cache *cache = file->cache;
	struct backing *backing = &file->backing;
	int buffered, direct;

	pthread_mutex_lock(&file->gate);
	buffered = file->fd_buffered;
	direct = file->fd_direct;
	file->fd_buffered = file->fd_direct = -1;
	backing->direct_align = file->opened_align;
	pthread_mutex_unlock(&file->gate);
	if (buffered < 0)
		return;
	backing_retire(backing, &backing->buffered); /* an upgrade from read-only */
	backing_retire(backing, &backing->direct);
	backing->buffered = ring_file_open(&cache->ring, buffered);
	backing->direct = direct >= 0 ? ring_file_open(&cache->ring, direct) : (struct ring_file){-1, -1};
}

void file_give_up_direct(struct cache_file *file)
{
	cache_log(file->cache, LOG_NOTICE, "%s: the backing refuses O_DIRECT, going through the page cache",
		  file_name(file));
	backing_retire(&file->backing, &file->backing.direct);
}

static void backing_close(struct ring *ring, struct backing *backing)
{
	ring_file_close(ring, &backing->buffered);
	ring_file_close(ring, &backing->direct);
	while (backing->n_retired > 0)
		ring_file_close(ring, &backing->retired[--backing->n_retired]);
}

/* ---- the gate ---- */

bool cache_file_enter_write(struct cache_file *file)
{
	bool is_outside;

	pthread_mutex_lock(&file->gate);
	is_outside = !atomic_load(&file->is_active);
	if (is_outside)
		file->direct_writes++;
	pthread_mutex_unlock(&file->gate);
	return is_outside;
}

void cache_file_leave_write(struct cache_file *file)
{
	bool tells;

	pthread_mutex_lock(&file->gate);
	tells = --file->direct_writes == 0 && file->is_drain_wanted && !file->is_drained_posted;
	if (tells) {
		file->is_drain_wanted = false;
		file->is_drained_posted = true;
		file_count_in_locked(file); /* for the task itself */
	}
	pthread_mutex_unlock(&file->gate);
	if (tells)
		engine_post(file->cache, &file->drained_task);
}

bool file_activate(struct cache_file *file, struct task *task)
{
	bool was_active, is_drained;

	file_take_descriptors(file);
	pthread_mutex_lock(&file->gate);
	was_active = atomic_load(&file->is_active);
	atomic_store(&file->is_active, true);
	is_drained = file->direct_writes == 0 && !file->is_drained_posted;
	if (!is_drained)
		file->is_drain_wanted = !file->is_drained_posted;
	pthread_mutex_unlock(&file->gate);
	if (!is_drained) {
		file->is_draining = true;
		task_list_append(&file->drain_waiters, task);
		return false;
	}
	if (!was_active)
		file_measure(file);
	return true;
}

bool file_is_ready(struct cache_file *file, struct task *task)
{
	file_take_descriptors(file);
	if (file->is_draining) {
		task_list_append(&file->drain_waiters, task);
		return false;
	}
	if (!atomic_load(&file->is_active))
		file_measure(file); /* it went inactive after the caller looked, and WRITEs passed by the engine */
	return true;
}

/* ---- telling the owner that nothing is left on the device ---- */

static thread_local struct cache_file *telling; /* the file whose owner this thread is telling */

static void tell_idle(struct job *job)
{
	struct cache_file *file = CONTAINER_OF(job, struct cache_file, idle_job);
	struct cache *cache = file->cache;

	pthread_mutex_lock(&file->gate);
	file->idle_state = IDLE_TELLING;
	pthread_mutex_unlock(&file->gate);
	telling = file;
	cache->callbacks->file_idle(cache->fs, file->owner);
	if (telling == NULL)
		return; /* the owner destroyed the file */
	telling = NULL;
	pthread_mutex_lock(&file->gate);
	file->idle_state = IDLE_NONE;
	pthread_cond_broadcast(&file->idle_told);
	pthread_mutex_unlock(&file->gate);
}

/* Waits until no other thread is about to call the owner back, or is at it. */
static void wait_until_told(struct cache_file *file)
{
	if (telling == file) {
		telling = NULL;
		return;
	}
	pthread_mutex_lock(&file->gate);
	while (file->idle_state != IDLE_NONE)
		pthread_cond_wait(&file->idle_told, &file->gate);
	pthread_mutex_unlock(&file->gate);
}

static int apply_nothing(struct cache_mutation *mutation)
{
	(void)mutation;
	return 0;
}

struct destruction {
	struct cache_op op;
	struct task task;
	struct cache_file *file;
};

/* Runs when the file has no chunk left and this is its only request. */
static void destruction_task(struct cache *cache, struct task *task)
{
	struct destruction *destruction = CONTAINER_OF(task, struct destruction, task);
	struct cache_file *file = destruction->file;
	bool is_last;

	(void)cache;
	pthread_mutex_lock(&file->gate);
	is_last = file->queued == 1 && file->chunks == NULL;
	if (is_last)
		atomic_store(&file->is_active, false); /* there is nobody to tell that it went idle */
	pthread_mutex_unlock(&file->gate);
	file->destroy_task = is_last ? NULL : task;
	if (!is_last)
		return;
	file_leave(file);
	destruction->op.done(&destruction->op, 0);
}

static void destruction_start(void *argument)
{
	struct destruction *destruction = argument;
	struct cache_file *file = destruction->file;

	pthread_mutex_lock(&file->gate);
	file_count_in_locked(file);
	pthread_mutex_unlock(&file->gate);
	engine_post(file->cache, &destruction->task);
}

/* Takes a file that the engine has never known out of the list, so that nobody can count a request in any more. */
static bool leave_list_if_untouched(struct cache_file *file)
{
	bool is_untouched;

	pthread_mutex_lock(&file->cache->files_lock);
	is_untouched = cache_file_is_untouched(file);
	if (is_untouched)
		DL_DELETE(file->cache->files, file);
	pthread_mutex_unlock(&file->cache->files_lock);
	return is_untouched;
}

static void quiesce(struct cache_file *file)
{
	struct cache *cache = file->cache;
	struct cache_mutation discard = {
		.file = file, .off = 0, .len = INT64_MAX, .discards = true, .apply = apply_nothing};
	struct destruction destruction = {.task.run = destruction_task, .file = file};

	if (cache_file_is_active(file))
		CACHE_WAIT(cache_mutate, &discard);
	CACHE_WAIT(destruction_start, &destruction);
	wait_until_told(file);
	pthread_mutex_lock(&cache->files_lock);
	DL_DELETE(cache->files, file);
	pthread_mutex_unlock(&cache->files_lock);
}

void cache_file_destroy(struct cache_file *file)
{
	if (!leave_list_if_untouched(file))
		quiesce(file);
	pthread_cond_destroy(&file->idle_told);
	pthread_mutex_destroy(&file->gate);
	free(file);
}

static void try_deactivate(struct cache_file *file)
{
	struct cache *cache = file->cache;
	bool was_active, is_idle, tells = false;

	pthread_mutex_lock(&file->gate);
	is_idle = file->queued == 0 && file->chunks == NULL && file->leases == NULL && file->mutations == NULL;
	was_active = atomic_load(&file->is_active);
	if (is_idle && was_active && file->idle_state == IDLE_NONE) {
		file->idle_state = IDLE_QUEUED;
		tells = true;
	}
	if (is_idle) {
		atomic_store(&file->is_active, false);
		file->has_fds = file->has_writable_fds = false;
		file->is_drain_wanted = false;
		if (file->fd_buffered >= 0)
			close(file->fd_buffered);
		if (file->fd_direct >= 0)
			close(file->fd_direct);
		file->fd_buffered = file->fd_direct = -1;
	}
	pthread_mutex_unlock(&file->gate);
	if (!is_idle)
		return;
	file->is_draining = false; /* whoever waited for it was cancelled */
	backing_close(&cache->ring, &file->backing);
	if (tells) {
		file->idle_job = (struct job){.work = tell_idle};
		workers_give(&cache->tellers, &file->idle_job);
	}
}

/* A request or a chunk of the file is gone: it may go inactive, or be destroyed. */
void file_settle(struct cache_file *file, unsigned queued)
{
	struct task *task = file->destroy_task;

	if (file->chunks != NULL)
		return;
	if (queued == 0)
		try_deactivate(file);
	else if (queued == 1 && task != NULL) {
		file->destroy_task = NULL;
		engine_ready(file->cache, task);
	}
}

void file_leave(struct cache_file *file)
{
	unsigned queued;

	pthread_mutex_lock(&file->gate);
	queued = --file->queued;
	pthread_mutex_unlock(&file->gate);
	file_settle(file, queued);
}

/* ---- writers ---- */

void cache_file_add_writer(struct cache_file *file)
{
	atomic_fetch_add(&file->writers, 1);
}

void cache_file_remove_writer(struct cache_file *file)
{
	atomic_fetch_sub(&file->writers, 1);
}

/* ---- errors ---- */

uint32_t file_record_error(struct cache_file *file, int err)
{
	atomic_store(&file->error, err);
	return atomic_fetch_add(&file->error_seq, 1);
}

void cache_file_error_met(struct cache_file *file, int err, uint32_t *sample)
{
	if (file_record_error(file, err) == *sample)
		++*sample; /* or others came before, and it hears of them together */
}

uint32_t cache_file_error_sample(struct cache_file *file)
{
	return atomic_load(&file->error_seq);
}

int cache_file_error_check(struct cache_file *file, uint32_t *sample)
{
	uint32_t seq = atomic_load(&file->error_seq);

	if (seq == *sample)
		return 0;
	*sample = seq;
	return atomic_load(&file->error);
}

uint64_t cache_file_write_generation(struct cache_file *file)
{
	return atomic_load(&file->write_generation);
}
