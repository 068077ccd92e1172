/*
 * invalidate.c - removing kernel copies (R2, R3).
 *
 * The call into the kernel waits for every page of its range that is locked by a READ not yet answered, and for
 * writeback of dirty ones, which come back to us as WRITEs. So it is made on a notifier thread that holds no lock, and
 * the pages of READs that are held are cut out of the range: they are locked, not yet readable, and will get what is
 * true when they are answered. A READ that arrives during the call may be what it waits for: reads_check_overdue.
 */
#include "cache/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>

struct range {
	off_t off, end;
};

struct invalidation {
	struct invalidation *prev, *next; /* file->invalidations */
	struct cache_file *file;
	struct invalidation_list list; /* the chunks, in the order of their indexes */
	struct range *ranges;          /* what the kernel is asked to remove; in flight until the job is done */
	size_t n_ranges;
	unsigned round;
	uint64_t since_ns;
	struct write_request *during; /* under way since before it began: nobody else is in a write(2) */
	struct task *then;            /* or NULL */
	struct job job;
};

int invalidation_add(struct invalidation_list *list, struct chunk *chunk)
{
	if (list->n == list->max) {
		size_t max = list->max == 0 ? 16 : 2 * list->max;
		struct chunk **chunks = reallocarray(list->chunks, max, sizeof(struct chunk *));

		if (chunks == NULL)
			return -ENOMEM;
		list->chunks = chunks;
		list->max = max;
	}
	list->chunks[list->n++] = chunk;
	return 0;
}

static void invalidation_work(struct job *job)
{
	struct invalidation *invalidation = CONTAINER_OF(job, struct invalidation, job);
	struct cache_file *file = invalidation->file;
	struct cache *cache = file->cache;

	for (size_t i = 0; i < invalidation->n_ranges; i++) {
		struct range *range = &invalidation->ranges[i];
		int err = cache->callbacks->invalidate(cache->fs, file->owner, range->off, range->end - range->off);

		if (err < 0 && err != -ENOENT) /* ENOENT: the kernel has forgotten the inode, and its pages with it */
			cache_log(cache, LOG_ERR, "%s: invalidating bytes %lld..%lld in the kernel failed: %s",
				  file_name(file), (long long)range->off, (long long)range->end, strerror(-err));
	}
}

static void invalidation_done(struct cache *cache, struct task *task)
{
	struct invalidation *invalidation = CONTAINER_OF(task, struct invalidation, job.done);
	struct cache_file *file = invalidation->file;

	cache->stats.invalidations++;
	DL_DELETE(file->invalidations, invalidation);
	for (size_t i = 0; i < invalidation->list.n; i++)
		chunk_send(invalidation->list.chunks[i], EVENT_INVALIDATED);
	if (invalidation->then != NULL)
		engine_ready(cache, invalidation->then);
	else
		file_leave(file);
	free(invalidation->list.chunks);
	free(invalidation->ranges);
	free(invalidation);
}

static void add_range(void *user, off_t off, off_t end)
{
	struct invalidation *invalidation = user;
	struct range *ranges = reallocarray(invalidation->ranges, invalidation->n_ranges + 1, sizeof(*ranges));

	if (ranges == NULL)
		abort(); /* leaving pages behind would show stale bytes later */
	invalidation->ranges = ranges;
	ranges[invalidation->n_ranges++] = (struct range){off, end};
}

static int compare_chunks(const void *a, const void *b)
{
	const struct chunk *const *x = a, *const *y = b;

	return ((*x)->index > (*y)->index) - ((*x)->index < (*y)->index);
}

static struct invalidation *create(struct cache_file *file, unsigned round, struct task *then)
{
	struct invalidation *invalidation = calloc(1, sizeof(*invalidation));

	if (invalidation == NULL)
		abort();
	*invalidation = (struct invalidation){.file = file, .round = round, .then = then, .since_ns = now_ns(),
					      .during = write_of_call(file)};
	file->is_unsettled |= invalidation->during == NULL;
	return invalidation;
}

static void cover(struct invalidation *invalidation, off_t off, off_t end)
{
	reads_force_direct(invalidation->file, off, end);
	reads_cut_out(invalidation->file, off, end, add_range, invalidation);
}

static void start(struct invalidation *invalidation)
{
	DL_APPEND(invalidation->file->invalidations, invalidation);
	invalidation->job = (struct job){.work = invalidation_work, .done.run = invalidation_done};
	workers_give(&invalidation->file->cache->notifiers, &invalidation->job);
}

void invalidation_start(struct cache_file *file, struct invalidation_list *list, unsigned round, struct task *then)
{
	struct invalidation *invalidation = create(file, round, then);

	invalidation->list = *list;
	*list = (struct invalidation_list){0};
	qsort(invalidation->list.chunks, invalidation->list.n, sizeof(struct chunk *), compare_chunks);
	for (size_t i = 0; i < invalidation->list.n;) {
		size_t first = i++;

		while (i < invalidation->list.n &&
		       invalidation->list.chunks[i]->index == invalidation->list.chunks[i - 1]->index + 1)
			i++;
		cover(invalidation, chunk_offset(invalidation->list.chunks[first]),
		      chunk_end(invalidation->list.chunks[i - 1]));
	}
	start(invalidation);
}

void invalidation_start_again(struct cache_file *file, off_t off, off_t end)
{
	struct invalidation *invalidation = create(file, 0, NULL);

	pthread_mutex_lock(&file->gate);
	file_count_in_locked(file); /* it stays until this is done */
	pthread_mutex_unlock(&file->gate);
	cover(invalidation, off, end);
	start(invalidation);
}

void invalidations_outlive(struct cache_file *file, const struct write_request *request)
{
	struct invalidation *invalidation;

	DL_FOREACH(file->invalidations, invalidation) {
		if (invalidation->during != request)
			continue;
		invalidation->during = NULL;
		file->is_unsettled = true;
	}
}

bool invalidation_may_block_on(struct cache_file *file, off_t off, size_t len, uint64_t *since_ns, unsigned *round)
{
	struct invalidation *invalidation;

	DL_FOREACH(file->invalidations, invalidation) {
		for (size_t i = 0; i < invalidation->n_ranges; i++) {
			if (off < invalidation->ranges[i].end && off + (off_t)len > invalidation->ranges[i].off) {
				*since_ns = invalidation->since_ns;
				*round = invalidation->round;
				return true;
			}
		}
	}
	return false;
}
