/*
 * stream.c - streams, a thread each; events; host functions.
 *
 * Streams that are not CU_STREAM_NON_BLOCKING and the NULL stream of their context wait for each other, as the driver has it:
 * an operation carries the points that it must come after.
 */
#include "test/simcuda/simcuda.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <utlist.h>

static struct CUstream_st *streams; /* sim.mutex; never freed: a handle that is no longer valid is known as such */
static struct CUevent_st *events;   /* sim.mutex; likewise */
static uint64_t n_streams;          /* sim.mutex */

/* ---- work ---- */

static uint64_t next_random(uint64_t *state)
{
	*state += UINT64_C(0x9E3779B97F4A7C15);
	uint64_t z = *state;

	z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
	return z ^ z >> 31;
}

/* Mostly short, sometimes long enough for a great deal to happen elsewhere. */
static void delay(struct CUstream_st *stream)
{
	uint64_t n = next_random(&stream->random);
	long us = n % 64 == 0 ? 3000 : (long)(n >> 8) % 150;
	struct timespec time = {.tv_nsec = us * 1000};

	if (sim.seed != 0)
		nanosleep(&time, NULL);
}

static CUresult carry_out(const struct sim_op *op)
{
	bool is_right = true;

	switch (op->kind) {
	case OP_TO_DEVICE: is_right = sim_copy(op->to, op->host, op->bytes, true); break;
	case OP_FROM_DEVICE: is_right = sim_copy(op->from, op->host, op->bytes, false); break;
	case OP_ON_DEVICE: {
		char *middle = malloc(op->bytes);

		is_right = sim_copy(op->from, middle, op->bytes, false) && sim_copy(op->to, middle, op->bytes, true);
		free(middle);
		break;
	}
	case OP_SET_8: is_right = sim_fill(op->to, op->bytes, &op->value, 1); break;
	case OP_SET_32: is_right = sim_fill(op->to, op->bytes, &op->value, 4); break;
	case OP_HOST_FUNC:
		sim_is_in_host_func = true;
		op->function(op->argument);
		sim_is_in_host_func = false;
		break;
	case OP_KERNEL: return sim_run_kernel(op);
	case OP_NOTHING: break;
	}
	return is_right ? CUDA_SUCCESS : (CUresult)ERROR_ILLEGAL_ADDRESS;
}

static void op_free(struct sim_op *op)
{
	if (op->is_staged)
		free(op->host);
	free(op->after);
	free(op->parameters);
	free(op);
}

static bool is_idle_locked(const struct CUctx_st *context)
{
	return context->is_destroyed || context->sticky != CUDA_SUCCESS || sim.lost != CUDA_SUCCESS;
}

static void wait_for_others_locked(struct CUstream_st *stream, const struct sim_op *op)
{
	for (size_t i = 0; i < op->n_after; i++) {
		while (op->after[i].stream->completed < op->after[i].number && !is_idle_locked(stream->context))
			pthread_cond_wait(&sim.progress, &sim.mutex);
	}
}

static void *stream_main(void *argument)
{
	struct CUstream_st *stream = argument;
	struct sim_op *op;

	pthread_mutex_lock(&sim.mutex);
	for (;;) {
		CUresult result = CUDA_SUCCESS;
		bool is_skipped;

		while (stream->ops == NULL && !stream->is_destroyed)
			pthread_cond_wait(&stream->has_work, &sim.mutex);
		op = stream->ops;
		if (op == NULL)
			break;
		wait_for_others_locked(stream, op);
		is_skipped = is_idle_locked(stream->context);
		pthread_mutex_unlock(&sim.mutex);
		if (!is_skipped) {
			delay(stream);
			result = carry_out(op);
		}
		pthread_mutex_lock(&sim.mutex);
		DL_DELETE(stream->ops, op);
		op_free(op);
		if (result != CUDA_SUCCESS)
			sim_poison_locked(stream->context, result);
		stream->completed++;
		pthread_cond_broadcast(&sim.progress);
	}
	pthread_mutex_unlock(&sim.mutex);
	return NULL;
}

static void add_point(struct sim_op *op, struct sim_point point)
{
	op->after = realloc(op->after, (op->n_after + 1) * sizeof(*op->after));
	if (op->after == NULL)
		abort();
	op->after[op->n_after++] = point;
}

static void add_implicit_order_locked(struct CUstream_st *stream, struct sim_op *op)
{
	struct CUstream_st *other;

	if (stream->is_non_blocking)
		return;
	LL_FOREACH(streams, other) {
		bool is_ordered = other != stream && other->context == stream->context && !other->is_non_blocking &&
				  (stream == stream->context->legacy || other == stream->context->legacy);

		if (is_ordered && other->completed < other->submitted)
			add_point(op, (struct sim_point){other, other->submitted});
	}
}

CUresult sim_submit_locked(struct CUstream_st *stream, const struct sim_op *template)
{
	struct sim_op *op = malloc(sizeof(*op));

	if (op == NULL)
		abort();
	*op = *template;
	add_implicit_order_locked(stream, op);
	DL_APPEND(stream->ops, op);
	stream->submitted++;
	pthread_cond_signal(&stream->has_work);
	return CUDA_SUCCESS;
}

CUresult sim_wait_locked(struct sim_point point)
{
	struct CUctx_st *context = point.stream->context;

	while (point.stream->completed < point.number && !is_idle_locked(context))
		pthread_cond_wait(&sim.progress, &sim.mutex);
	if (sim.lost != CUDA_SUCCESS)
		return sim.lost;
	return context->is_destroyed ? (CUresult)ERROR_CONTEXT_IS_DESTROYED : context->sticky;
}

CUresult sim_wait_context_locked(struct CUctx_st *context)
{
	struct CUstream_st *stream;
	CUresult result = context->sticky;

	LL_FOREACH(streams, stream) {
		if (stream->context == context && result == CUDA_SUCCESS)
			result = sim_wait_locked((struct sim_point){stream, stream->submitted});
	}
	return result;
}

void sim_forget_work_locked(struct CUctx_st *context)
{
	struct CUstream_st *stream;

	pthread_cond_broadcast(&sim.progress);
	LL_FOREACH(streams, stream) {
		if (stream->context != context)
			continue;
		while (stream->completed < stream->submitted)
			pthread_cond_wait(&sim.progress, &sim.mutex);
		stream->is_destroyed = true;
		pthread_cond_signal(&stream->has_work);
	}
}

/* ---- streams ---- */

struct CUstream_st *sim_stream_create_locked(struct CUctx_st *context, bool is_non_blocking)
{
	struct CUstream_st *stream = calloc(1, sizeof(*stream));
	pthread_attr_t attributes;

	if (stream == NULL)
		abort();
	*stream = (struct CUstream_st){.context = context, .is_non_blocking = is_non_blocking, .random = sim.seed + n_streams++ * 7919};
	pthread_cond_init(&stream->has_work, NULL);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&stream->thread, &attributes, stream_main, stream) != 0)
		abort();
	pthread_attr_destroy(&attributes);
	LL_PREPEND(streams, stream);
	return stream;
}

struct CUstream_st *sim_stream_find_locked(CUstream wanted, CUresult *result)
{
	struct CUstream_st *stream;

	*result = CUDA_SUCCESS;
	if (wanted == NULL || wanted == (CUstream)1) /* CU_STREAM_LEGACY */
		return sim_current()->legacy;
	LL_FOREACH(streams, stream) {
		if (stream == wanted && !stream->is_destroyed && stream->context == sim_current())
			return stream;
	}
	*result = (CUresult)ERROR_INVALID_HANDLE;
	return NULL;
}

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
	ENTER(cuStreamCreate, SIM_CONTEXT);
	if (flags > CU_STREAM_NON_BLOCKING)
		return (CUresult)ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim.mutex);
	*stream = sim_stream_create_locked(sim_current(), flags == CU_STREAM_NON_BLOCKING);
	pthread_mutex_unlock(&sim.mutex);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
	(void)priority;
	return cuStreamCreate(stream, flags);
}

/* What is in it is still done. */
EXPORT CUresult cuStreamDestroy_v2(CUstream handle)
{
	struct CUstream_st *stream;
	CUresult result;

	ENTER(cuStreamDestroy, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	stream = sim_stream_find_locked(handle, &result);
	if (stream == sim_current()->legacy)
		result = (CUresult)ERROR_INVALID_HANDLE;
	if (result == CUDA_SUCCESS) {
		stream->is_destroyed = true;
		pthread_cond_signal(&stream->has_work);
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

static CUresult on_stream(CUstream handle, CUresult (*act)(struct CUstream_st *stream, void *argument), void *argument)
{
	struct CUstream_st *stream;
	CUresult result;

	pthread_mutex_lock(&sim.mutex);
	stream = sim_stream_find_locked(handle, &result);
	if (result == CUDA_SUCCESS)
		result = act(stream, argument);
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

static CUresult synchronize_locked(struct CUstream_st *stream, void *argument)
{
	struct CUstream_st *other;
	CUresult result = sim_wait_locked((struct sim_point){stream, stream->submitted});

	(void)argument;
	if (stream != stream->context->legacy)
		return result;
	LL_FOREACH(streams, other) { /* the NULL stream is all that block with it */
		if (other->context == stream->context && !other->is_non_blocking && result == CUDA_SUCCESS)
			result = sim_wait_locked((struct sim_point){other, other->submitted});
	}
	return result;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream)
{
	ENTER(cuStreamSynchronize, SIM_CONTEXT);
	return on_stream(stream, synchronize_locked, NULL);
}

static CUresult query_locked(struct CUstream_st *stream, void *argument)
{
	(void)argument;
	return stream->completed < stream->submitted ? (CUresult)ERROR_NOT_READY : CUDA_SUCCESS;
}

EXPORT CUresult cuStreamQuery(CUstream stream)
{
	ENTER(cuStreamQuery, SIM_CONTEXT);
	return on_stream(stream, query_locked, NULL);
}

static CUresult check_locked(struct CUstream_st *stream, void *argument)
{
	(void)stream;
	(void)argument;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamIsCapturing(CUstream stream, int *status)
{
	ENTER(cuStreamIsCapturing, SIM_CONTEXT);
	*status = 0;
	return on_stream(stream, check_locked, NULL);
}

static CUresult submit_locked(struct CUstream_st *stream, void *op)
{
	return sim_submit_locked(stream, op);
}

EXPORT CUresult cuLaunchHostFunc(CUstream stream, void (*function)(void *), void *argument)
{
	struct sim_op op = {.kind = OP_HOST_FUNC, .function = function, .argument = argument};

	ENTER(cuLaunchHostFunc, SIM_CONTEXT);
	return function == NULL ? (CUresult)ERROR_INVALID_VALUE : on_stream(stream, submit_locked, &op);
}

/* ---- events ---- */

static struct CUevent_st *event_find_locked(CUevent wanted, CUresult *result)
{
	struct CUevent_st *event;

	LL_FOREACH(events, event) {
		if (event == wanted && !event->is_destroyed) {
			*result = event->context->is_destroyed ? (CUresult)ERROR_CONTEXT_IS_DESTROYED : CUDA_SUCCESS;
			return event;
		}
	}
	*result = (CUresult)ERROR_INVALID_HANDLE;
	return NULL;
}

EXPORT CUresult cuEventCreate(CUevent *out, unsigned int flags)
{
	struct CUevent_st *event;

	ENTER(cuEventCreate, SIM_CONTEXT);
	if (flags > 7)
		return (CUresult)ERROR_INVALID_VALUE;
	event = calloc(1, sizeof(*event));
	if (event == NULL)
		return CUDA_ERROR_OUT_OF_MEMORY;
	event->context = sim_current();
	pthread_mutex_lock(&sim.mutex);
	LL_PREPEND(events, event);
	pthread_mutex_unlock(&sim.mutex);
	*out = event;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuEventDestroy_v2(CUevent handle)
{
	struct CUevent_st *event;
	CUresult result;

	ENTER(cuEventDestroy, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	event = event_find_locked(handle, &result);
	if (event != NULL)
		event->is_destroyed = true;
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

EXPORT CUresult cuEventRecord(CUevent handle, CUstream stream_handle)
{
	struct CUevent_st *event;
	struct CUstream_st *stream;
	CUresult result;

	ENTER(cuEventRecord, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	event = event_find_locked(handle, &result);
	if (result == CUDA_SUCCESS && event->context != sim_current())
		result = (CUresult)ERROR_INVALID_HANDLE;
	if (result == CUDA_SUCCESS) {
		stream = sim_stream_find_locked(stream_handle, &result);
		if (result == CUDA_SUCCESS) {
			result = sim_submit_locked(stream, &(struct sim_op){.kind = OP_NOTHING});
			event->recorded = (struct sim_point){stream, stream->submitted};
		}
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

EXPORT CUresult cuEventSynchronize(CUevent handle)
{
	struct CUevent_st *event;
	CUresult result;

	ENTER(cuEventSynchronize, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	event = event_find_locked(handle, &result);
	if (result == CUDA_SUCCESS && event->recorded.stream != NULL)
		result = sim_wait_locked(event->recorded);
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

EXPORT CUresult cuEventQuery(CUevent handle)
{
	struct CUevent_st *event;
	CUresult result;

	ENTER(cuEventQuery, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	event = event_find_locked(handle, &result);
	if (result == CUDA_SUCCESS && event->recorded.stream != NULL && event->recorded.stream->completed < event->recorded.number)
		result = (CUresult)ERROR_NOT_READY;
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

EXPORT CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned int flags)
{
	struct sim_op op = {.kind = OP_NOTHING};
	struct CUevent_st *event;
	struct CUstream_st *stream;
	CUresult result;

	ENTER(cuStreamWaitEvent, SIM_CONTEXT);
	(void)flags;
	pthread_mutex_lock(&sim.mutex);
	event = event_find_locked(handle, &result);
	if (result == CUDA_SUCCESS) {
		stream = sim_stream_find_locked(stream_handle, &result);
		if (result == CUDA_SUCCESS) {
			if (event->recorded.stream != NULL)
				add_point(&op, event->recorded);
			result = sim_submit_locked(stream, &op);
		}
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}
