/*
 * engine.c - the thread that owns the cache.
 *
 * It runs tasks that are ready, then completions of the ring, and sleeps in the ring when there is neither. Other
 * threads hand it tasks with engine_post. It never waits for anything else (R4), and calls nothing that blocks.
 */
#include "cache/internal.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void cache_log(struct cache *cache, int priority, const char *format, ...)
{
	char line[512];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	cache->callbacks->log(cache->fs, priority, line);
}

const char *file_name(struct cache_file *file)
{
	return file->cache->callbacks->file_name(file->cache->fs, file->owner);
}

void engine_post(struct cache *cache, struct task *task)
{
	bool is_asleep;

	pthread_mutex_lock(&cache->post_lock);
	task_list_append(&cache->posted, task);
	is_asleep = !cache->is_engine_awake;
	cache->is_engine_awake = true;
	pthread_mutex_unlock(&cache->post_lock);
	if (is_asleep)
		ring_wake(&cache->ring);
}

void engine_ready(struct cache *cache, struct task *task)
{
	task_list_append(&cache->ready, task);
}

static void device_op_task(struct cache *cache, struct task *task)
{
	struct device_op *op = CONTAINER_OF(task, struct device_op, task);

	(void)cache;
	op->done(op, op->status);
}

static void device_op_done(struct gpu_op *gpu_op, int status)
{
	struct device_op *op = CONTAINER_OF(gpu_op, struct device_op, op);

	op->status = status;
	engine_post(op->cache, &op->task);
}

struct gpu_op *device_op_init(struct device_op *op, struct cache *cache,
			      void (*done)(struct device_op *op, int status))
{
	*op = (struct device_op){.op.done = device_op_done, .task.run = device_op_task, .cache = cache, .done = done};
	return &op->op;
}

static bool take_posted(struct cache *cache)
{
	struct task *task, *next;
	struct task *head;

	pthread_mutex_lock(&cache->post_lock);
	head = cache->posted.head;
	cache->posted.head = NULL;
	cache->is_engine_awake = head != NULL;
	pthread_mutex_unlock(&cache->post_lock);
	DL_FOREACH_SAFE(head, task, next) {
		task->on = NULL;
		task_list_append(&cache->ready, task);
	}
	return cache->ready.head != NULL;
}

static void run_ready(struct cache *cache)
{
	struct task *task;

	while ((task = task_list_take(&cache->ready)) != NULL)
		task->run(cache, task);
}

static uint64_t check_timers(struct cache *cache)
{
	uint64_t now = now_ns();
	uint64_t next = cache->next_writeback_ns, next_measure = capacity_check(cache, now);

	reads_check_overdue(cache, now);
	if (now >= cache->next_lease_check_ns || cache->next_lease_check_ns == UINT64_MAX)
		leases_check_timeouts(cache, now);
	if (now >= cache->next_lost_check_ns)
		lost_check(cache);
	if (now >= next) {
		writeback_timer(cache, now);
		next = cache->next_writeback_ns;
	}
	if (next_measure < next)
		next = next_measure;
	if (cache->next_hold_ns < next)
		next = cache->next_hold_ns;
	if (cache->next_lost_check_ns < next)
		next = cache->next_lost_check_ns;
	if (cache->next_lease_check_ns < next)
		next = cache->next_lease_check_ns;
	if (next == UINT64_MAX)
		return UINT64_MAX;
	return next > now ? next - now : 1;
}

_Thread_local bool engine_is_current;

static void *engine_main(void *argument)
{
	struct cache *cache = argument;

	engine_is_current = true;
	while (!cache->is_stopping) {
		uint64_t timeout_ns;

		run_ready(cache);
		chunks_reap(cache);
		timeout_ns = check_timers(cache);
		ring_run(&cache->ring, take_posted(cache) || cache->is_stopping ? 0 : timeout_ns);
	}
	return NULL;
}

static void engine_stop_task(struct cache *cache, struct task *task)
{
	(void)task;
	cache->is_stopping = true;
}

int engine_start(struct cache *cache)
{
	sigset_t all, before;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = -pthread_create(&cache->engine, NULL, engine_main, cache);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	cache->has_engine = err == 0;
	if (err == 0)
		pthread_setname_np(cache->engine, "hmmfs-engine");
	return err;
}

void engine_stop(struct cache *cache)
{
	if (!cache->has_engine)
		return;
	cache->stop_task = (struct task){.run = engine_stop_task};
	engine_post(cache, &cache->stop_task);
	pthread_join(cache->engine, NULL);
	cache->has_engine = false;
}
