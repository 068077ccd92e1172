/* workers.c - see workers.h */
#include "cache/workers.h"

#include "cache/internal.h"

#include <signal.h>

static void *worker_main(void *argument)
{
	struct workers *workers = argument;

	for (;;) {
		struct job *job;
		bool tells;

		pthread_mutex_lock(&workers->mutex);
		while (workers->jobs == NULL && !workers->is_stopping)
			pthread_cond_wait(&workers->has_work, &workers->mutex);
		job = workers->jobs;
		if (job != NULL)
			DL_DELETE(workers->jobs, job);
		pthread_mutex_unlock(&workers->mutex);
		if (job == NULL)
			return NULL;
		tells = job->done.run != NULL;
		job->work(job);
		if (tells)
			engine_post(workers->cache, &job->done);
	}
}

int workers_start(struct workers *workers, struct cache *cache, unsigned n_threads, const char *name)
{
	sigset_t all, before;
	int err = 0;

	*workers = (struct workers){.cache = cache};
	pthread_mutex_init(&workers->mutex, NULL);
	pthread_cond_init(&workers->has_work, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (err == 0 && workers->n_threads < n_threads) {
		err = -pthread_create(&workers->threads[workers->n_threads], NULL, worker_main, workers);
		if (err == 0)
			pthread_setname_np(workers->threads[workers->n_threads++], name);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err < 0)
		workers_stop(workers);
	return err;
}

void workers_stop(struct workers *workers)
{
	pthread_mutex_lock(&workers->mutex);
	workers->is_stopping = true;
	pthread_cond_broadcast(&workers->has_work);
	pthread_mutex_unlock(&workers->mutex);
	while (workers->n_threads > 0)
		pthread_join(workers->threads[--workers->n_threads], NULL);
	pthread_cond_destroy(&workers->has_work);
	pthread_mutex_destroy(&workers->mutex);
}

void workers_give(struct workers *workers, struct job *job)
{
	pthread_mutex_lock(&workers->mutex);
	DL_APPEND(workers->jobs, job);
	pthread_cond_signal(&workers->has_work);
	pthread_mutex_unlock(&workers->mutex);
}
