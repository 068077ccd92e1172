/*
 * cuda_queue.c - streams and their threads: submitting, completing, and starting again when the context broke.
 *
 * A queue's thread takes what is pending, up to CUDA_DEPTH operations, submits each with an event behind it, and then waits for
 * the oldest event; what arrives meanwhile is submitted when it wakes, while the stream still has work. The writeback
 * queue's thread also gives the memory of destroyed chunks back.
 *
 * When a call fails (cuda_break), each thread puts what it has in flight back to the head of its queue, marked as repeats, and
 * stops; the last one to stop builds the context anew, and all go on. Bytes in flight may have arrived or not: every operation
 * can be done twice. While there are repeats, operations are done one at a time, over all queues (is_alone_taken), so that one
 * that fails then is known to be the cause. Twice so, and its chunk is lost. All are lost, with -ENODEV, if the device is dead.
 */
#include "gpu/cuda_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <syslog.h>

#include <utlist.h>

static void tell(struct cuda_device *dev, int priority, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void tell(struct cuda_device *dev, int priority, const char *format, ...)
{
	char line[256];
	va_list args;

	if (dev->log == NULL)
		return;
	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	dev->log(dev->user, priority, line);
}

static void wake_all_locked(struct cuda_device *dev)
{
	for (int i = 0; i < GPU_QUEUE_COUNT; i++)
		pthread_cond_signal(&dev->queues[i].has_work);
	pthread_cond_broadcast(&dev->changed);
}

void cuda_break(struct cuda_device *dev, CUresult result, const char *call)
{
	pthread_mutex_lock(&dev->mutex);
	if (!dev->is_broken) {
		dev->is_broken = true;
		dev->failure = result;
		dev->failed_call = call;
		wake_all_locked(dev);
	}
	pthread_mutex_unlock(&dev->mutex);
}

/* ---- one operation ---- */

static CUresult enqueue(struct cuda_queue *queue, const struct cuda_op *op, const char **call)
{
	struct cuda_device *dev = queue->dev;
	struct cuda_api *api = &dev->api;
	char *bounce = (char *)dev->bounce.base + op->bounce_off;
	CUdeviceptr at = op->chunk->address + op->chunk_off;

	switch (op->kind) {
	case CUDA_TO_DEVICE: *call = "cuMemcpyHtoDAsync"; return api->copy_to_device(at, bounce, op->len, queue->stream);
	case CUDA_FROM_DEVICE: *call = "cuMemcpyDtoHAsync"; return api->copy_from_device(bounce, at, op->len, queue->stream);
	case CUDA_FILL: *call = "cuMemsetD8Async"; return api->set_bytes(at, op->byte, op->len, queue->stream);
	default:
		*call = "cuMemcpyDtoDAsync";
		return api->copy_on_device(at, op->from->address, dev->base.chunk_bytes, queue->stream);
	}
}

static int measure(struct cuda_device *dev, const struct cuda_op *op)
{
	size_t free_bytes, total_bytes;
	CUresult result = dev->api.mem_info(&free_bytes, &total_bytes);

	if (result != CUDA_SUCCESS) {
		cuda_break(dev, result, "cuMemGetInfo");
		return -EAGAIN;
	}
	*op->free_bytes = free_bytes;
	return 0;
}

/* 0: it is in the stream, *event behind it; or it is done (CUDA_MEASURE). -EAGAIN: the context is broken. Others: it failed. */
static int start(struct cuda_queue *queue, const struct cuda_op *op, CUevent event)
{
	struct cuda_device *dev = queue->dev;
	const char *call;
	CUresult result;
	int err;

	if (op->kind == CUDA_MEASURE)
		return measure(dev, op);
	err = cuda_chunk_map(dev, op->chunk);
	if (err == 0 && op->from != NULL)
		err = cuda_chunk_map(dev, op->from);
	if (err < 0)
		return err;
	result = enqueue(queue, op, &call);
	if (result == CUDA_SUCCESS) {
		call = "cuEventRecord";
		result = dev->api.event_record(event, queue->stream);
	}
	if (result == CUDA_SUCCESS)
		return 0;
	cuda_break(dev, result, call);
	return -EAGAIN;
}

static void complete(struct cuda_device *dev, struct cuda_op *op, int status)
{
	struct gpu_op *gpu_op = op->op;

	pthread_mutex_lock(&dev->mutex);
	if (status == 0)
		dev->n_rebuilt_in_vain = 0;
	dev->n_repeats -= op->is_repeat;
	pthread_mutex_unlock(&dev->mutex);
	free(op);
	gpu_op->done(gpu_op, status);
}

static void put_back(struct cuda_queue *queue, struct cuda_op *op)
{
	struct cuda_device *dev = queue->dev;

	pthread_mutex_lock(&dev->mutex);
	dev->n_repeats += !op->is_repeat;
	op->is_repeat = true;
	DL_PREPEND(queue->pending, op);
	pthread_mutex_unlock(&dev->mutex);
}

static struct cuda_op *take_pending(struct cuda_queue *queue)
{
	struct cuda_op *op;

	pthread_mutex_lock(&queue->dev->mutex);
	op = queue->dev->is_broken ? NULL : queue->pending;
	if (op != NULL)
		DL_DELETE(queue->pending, op);
	pthread_mutex_unlock(&queue->dev->mutex);
	return op;
}

/* ---- many at a time ---- */

static void submit_pending(struct cuda_queue *queue)
{
	while (queue->n_in_flight < CUDA_DEPTH) {
		struct cuda_op *op = take_pending(queue);
		int err;

		if (op == NULL)
			return;
		err = start(queue, op, queue->events[queue->next_event]);
		if (err == -EAGAIN) {
			put_back(queue, op);
			return;
		}
		if (err < 0 || op->kind == CUDA_MEASURE) {
			complete(queue->dev, op, err);
			continue;
		}
		queue->next_event = (queue->next_event + 1) % CUDA_DEPTH;
		queue->n_in_flight++;
		DL_APPEND(queue->in_flight, op);
	}
}

static void wait_for_oldest(struct cuda_queue *queue)
{
	struct cuda_op *op = queue->in_flight;
	CUresult result = queue->dev->api.event_synchronize(queue->events[queue->oldest_event]);

	if (result != CUDA_SUCCESS) {
		cuda_break(queue->dev, result, "cuEventSynchronize");
		return;
	}
	queue->oldest_event = (queue->oldest_event + 1) % CUDA_DEPTH;
	queue->n_in_flight--;
	DL_DELETE(queue->in_flight, op);
	complete(queue->dev, op, 0);
}

/* ---- one at a time ---- */

static bool take_turn(struct cuda_device *dev)
{
	bool is_mine;

	pthread_mutex_lock(&dev->mutex);
	while (dev->is_alone_taken && !dev->is_broken)
		pthread_cond_wait(&dev->changed, &dev->mutex);
	is_mine = !dev->is_broken && dev->n_repeats > 0; /* without repeats others may have gone on */
	dev->is_alone_taken |= is_mine;
	pthread_mutex_unlock(&dev->mutex);
	return is_mine;
}

static void give_turn(struct cuda_device *dev)
{
	pthread_mutex_lock(&dev->mutex);
	dev->is_alone_taken = false;
	pthread_cond_broadcast(&dev->changed);
	pthread_mutex_unlock(&dev->mutex);
}

/* It failed though nothing else was under way. */
static int blame(struct cuda_device *dev, const struct cuda_op *op)
{
	if (op->kind == CUDA_MEASURE || op->kind == CUDA_COPY)
		return -EIO; /* which of the two chunks is not known; the next operation on it shows */
	cuda_chunk_mark_lost(dev, op->chunk);
	if (dev->lost != NULL)
		dev->lost(dev->user);
	return -ENODEV;
}

static void run_one_alone(struct cuda_queue *queue)
{
	struct cuda_device *dev = queue->dev;
	struct cuda_op *op;
	int err = 0;

	if (!take_turn(dev))
		return;
	op = take_pending(queue);
	if (op != NULL) {
		err = start(queue, op, queue->events[0]);
		if (err == 0 && op->kind != CUDA_MEASURE) {
			CUresult result = dev->api.event_synchronize(queue->events[0]);

			if (result != CUDA_SUCCESS) {
				cuda_break(dev, result, "cuEventSynchronize");
				err = -EAGAIN;
			}
		}
	}
	give_turn(dev);
	if (op == NULL)
		return;
	if (err == -EAGAIN && ++op->n_failed_alone < CUDA_TRIES_ALONE)
		put_back(queue, op);
	else
		complete(dev, op, err == -EAGAIN ? blame(dev, op) : err);
}

/* ---- starting again ---- */

/* All queues have stopped. */
static void rebuild(struct cuda_device *dev)
{
	const char *call = NULL;
	CUresult result;
	bool is_hopeless, is_first;

	pthread_mutex_lock(&dev->mutex);
	is_first = dev->n_rebuilt_in_vain == 0;
	is_hopeless = dev->n_rebuilt_in_vain++ >= CUDA_REBUILDS_MAX;
	pthread_mutex_unlock(&dev->mutex);
	if (is_first)
		tell(dev, LOG_WARNING, "device=%s: %s: %s; building the CUDA context anew and repeating what was in flight", dev->spec,
		     dev->failed_call, cuda_error_name(&dev->api, dev->failure));
	cuda_context_tear_down(dev, true);
	result = is_hopeless ? dev->failure : cuda_context_build(dev, &call);
	pthread_mutex_lock(&dev->mutex);
	dev->is_dead = result != CUDA_SUCCESS;
	dev->is_broken = false;
	dev->n_stopped = 0;
	dev->rebuild++;
	wake_all_locked(dev);
	pthread_mutex_unlock(&dev->mutex);
	if (result == CUDA_SUCCESS)
		return;
	tell(dev, LOG_CRIT, "device=%s: lost: %s: %s; files go on without it", dev->spec, call != NULL ? call : dev->failed_call,
	     cuda_error_name(&dev->api, result));
	if (dev->lost != NULL)
		dev->lost(dev->user);
}

static void stop_for_rebuild(struct cuda_queue *queue)
{
	struct cuda_device *dev = queue->dev;
	unsigned rebuild_before;
	bool is_last;

	while (queue->in_flight != NULL) {
		struct cuda_op *op = queue->in_flight->prev; /* the newest, so that the oldest comes to be the first */

		DL_DELETE(queue->in_flight, op);
		put_back(queue, op);
	}
	queue->n_in_flight = 0;
	pthread_mutex_lock(&dev->mutex);
	rebuild_before = dev->rebuild;
	is_last = ++dev->n_stopped == GPU_QUEUE_COUNT;
	while (!is_last && dev->rebuild == rebuild_before)
		pthread_cond_wait(&dev->changed, &dev->mutex);
	pthread_mutex_unlock(&dev->mutex);
	if (is_last)
		rebuild(dev);
	dev->api.context_set(dev->context);
}

static void fail_pending(struct cuda_queue *queue)
{
	struct cuda_op *op;

	while ((op = take_pending(queue)) != NULL)
		complete(queue->dev, op, -ENODEV);
}

/* ---- the thread ---- */

enum next { NEXT_MANY, NEXT_ALONE, NEXT_STOP, NEXT_FAIL, NEXT_FREE, NEXT_END };

static enum next wait_for_work(struct cuda_queue *queue)
{
	struct cuda_device *dev = queue->dev;
	bool frees = queue->kind == GPU_QUEUE_WRITEBACK;
	enum next next;

	pthread_mutex_lock(&dev->mutex);
	while (!dev->is_broken && !dev->is_stopping && queue->pending == NULL && queue->in_flight == NULL &&
	       !(frees && dev->doomed != NULL))
		pthread_cond_wait(&queue->has_work, &dev->mutex);
	if (dev->is_broken)
		next = NEXT_STOP;
	else if (queue->pending != NULL && dev->is_dead)
		next = NEXT_FAIL;
	else if (queue->in_flight != NULL || (queue->pending != NULL && dev->n_repeats == 0))
		next = NEXT_MANY;
	else if (queue->pending != NULL)
		next = NEXT_ALONE;
	else
		next = frees && dev->doomed != NULL ? NEXT_FREE : NEXT_END;
	pthread_mutex_unlock(&dev->mutex);
	return next;
}

static void *queue_main(void *argument)
{
	struct cuda_queue *queue = argument;
	struct cuda_device *dev = queue->dev;
	enum next next;

	dev->api.context_set(dev->context);
	while ((next = wait_for_work(queue)) != NEXT_END) {
		switch (next) {
		case NEXT_STOP: stop_for_rebuild(queue); break;
		case NEXT_FAIL: fail_pending(queue); break;
		case NEXT_ALONE: run_one_alone(queue); break;
		case NEXT_MANY:
			submit_pending(queue);
			if (queue->in_flight != NULL)
				wait_for_oldest(queue);
			break;
		default: break;
		}
		if (queue->kind == GPU_QUEUE_WRITEBACK)
			cuda_chunk_free_doomed(dev);
	}
	return NULL;
}

void cuda_queue_submit(struct cuda_device *dev, enum gpu_queue which, const struct cuda_op *template)
{
	struct cuda_queue *queue = &dev->queues[which];
	struct cuda_op *op = malloc(sizeof(*op));

	if (op == NULL) {
		template->op->done(template->op, -ENOMEM);
		return;
	}
	*op = *template;
	pthread_mutex_lock(&dev->mutex);
	DL_APPEND(queue->pending, op);
	pthread_cond_signal(&queue->has_work);
	pthread_mutex_unlock(&dev->mutex);
}

int cuda_queues_start(struct cuda_device *dev)
{
	sigset_t all, before;
	int err = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (int i = 0; i < GPU_QUEUE_COUNT && err == 0; i++) {
		err = -pthread_create(&dev->queues[i].thread, NULL, queue_main, &dev->queues[i]);
		dev->queues[i].has_thread = err == 0;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return err;
}

void cuda_queues_stop(struct cuda_device *dev)
{
	pthread_mutex_lock(&dev->mutex);
	dev->is_stopping = true;
	wake_all_locked(dev);
	pthread_mutex_unlock(&dev->mutex);
	for (int i = 0; i < GPU_QUEUE_COUNT; i++) {
		if (dev->queues[i].has_thread)
			pthread_join(dev->queues[i].thread, NULL);
	}
}
