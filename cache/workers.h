/*
 * workers.h - a few threads for system calls that block and that io_uring has no operation for (ftruncate, lseek,
 * copy_file_range, ...), and likewise the notifier's threads. Jobs are done in the order given, several at once;
 * their ends are told to the engine. Jobs hold no lock (R4).
 */
#ifndef HMMFS_WORKERS_H
#define HMMFS_WORKERS_H

#include "cache/task.h"

#include <pthread.h>
#include <stdbool.h>

enum { WORKERS_MAX = 8 };

struct job {
	struct job *prev, *next;
	void (*work)(struct job *job); /* on a worker thread */
	struct task done;              /* posted to the engine when work has returned, unless done.run is NULL: then
					  work has freed the job */
};

struct workers {
	struct cache *cache;
	pthread_t threads[WORKERS_MAX];
	unsigned n_threads;
	pthread_mutex_t mutex;
	pthread_cond_t has_work; /* there are jobs, or is_stopping */
	struct job *jobs;        /* mutex */
	bool is_stopping;        /* mutex */
};

int workers_start(struct workers *workers, struct cache *cache, unsigned n_threads, const char *name);
/* Waits for all jobs to end. */
void workers_stop(struct workers *workers);
void workers_give(struct workers *workers, struct job *job); /* any thread */

#endif
