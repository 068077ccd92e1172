/* replier.c - a few threads that answer requests whose answer is long, or needs a system call that blocks. */
#include "fusefs/fusefs.h"

#include <signal.h>
#include <stdlib.h>
#include <utlist.h>

struct reply_job {
	struct reply_job *prev, *next;
	void (*work)(void *argument);
	void *argument;
};

struct repliers {
	pthread_mutex_t mutex;
	pthread_cond_t has_work; /* jobs, or is_stopping */
	struct reply_job *jobs;  /* mutex */
	bool is_stopping;        /* mutex */
	unsigned n_threads;
	pthread_t threads[REPLIERS_MAX];
};

static void *replier_main(void *argument)
{
	struct repliers *repliers = argument;

	for (;;) {
		struct reply_job *job;

		pthread_mutex_lock(&repliers->mutex);
		while (repliers->jobs == NULL && !repliers->is_stopping)
			pthread_cond_wait(&repliers->has_work, &repliers->mutex);
		job = repliers->jobs;
		if (job != NULL)
			DL_DELETE(repliers->jobs, job);
		pthread_mutex_unlock(&repliers->mutex);
		if (job == NULL)
			return NULL;
		job->work(job->argument);
		free(job);
	}
}

struct repliers *repliers_start(const char *name, unsigned n_threads)
{
	struct repliers *repliers = calloc(1, sizeof(*repliers));
	sigset_t all, before;

	if (repliers == NULL)
		return NULL;
	pthread_mutex_init(&repliers->mutex, NULL);
	pthread_cond_init(&repliers->has_work, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (repliers->n_threads < n_threads &&
	       pthread_create(&repliers->threads[repliers->n_threads], NULL, replier_main, repliers) == 0)
		pthread_setname_np(repliers->threads[repliers->n_threads++], name);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (repliers->n_threads == 0) {
		free(repliers);
		return NULL;
	}
	return repliers;
}

void repliers_stop(struct repliers *repliers)
{
	pthread_mutex_lock(&repliers->mutex);
	repliers->is_stopping = true;
	pthread_cond_broadcast(&repliers->has_work);
	pthread_mutex_unlock(&repliers->mutex);
	while (repliers->n_threads > 0)
		pthread_join(repliers->threads[--repliers->n_threads], NULL);
	pthread_cond_destroy(&repliers->has_work);
	pthread_mutex_destroy(&repliers->mutex);
	free(repliers);
}

void repliers_give(struct repliers *repliers, void (*work)(void *argument), void *argument)
{
	struct reply_job *job = calloc(1, sizeof(*job));

	if (job == NULL)
		abort(); /* out of memory; doing it here could make the engine wait for itself */
	job->work = work;
	job->argument = argument;
	pthread_mutex_lock(&repliers->mutex);
	DL_APPEND(repliers->jobs, job);
	pthread_cond_signal(&repliers->has_work);
	pthread_mutex_unlock(&repliers->mutex);
}
