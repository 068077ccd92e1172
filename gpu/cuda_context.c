/*
 * cuda_context.c - the context and all that dies with it: streams, events, the bounce memory's registration, and the mappings
 * of chunks. Built when the device is opened, and again when it broke.
 */
#include "gpu/cuda_internal.h"

#include <stddef.h>

static CUresult build_queue(struct cuda_queue *queue, const char **call)
{
	struct cuda_api *api = &queue->dev->api;
	CUresult result;

	*call = "cuStreamCreate";
	result = api->stream_create(&queue->stream, CU_STREAM_NON_BLOCKING);
	for (size_t i = 0; i < CUDA_DEPTH && result == CUDA_SUCCESS; i++) {
		*call = "cuEventCreate";
		result = api->event_create(&queue->events[i], CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING);
	}
	queue->next_event = queue->oldest_event = 0;
	return result;
}

static CUresult register_bounce(struct cuda_device *dev)
{
	CUresult result = dev->api.host_register(dev->bounce.base, dev->bounce.bytes, CU_MEMHOSTREGISTER_PORTABLE);

	/* Portable, it may have outlived the context that it was registered in. */
	return result == CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED ? CUDA_SUCCESS : result;
}

CUresult cuda_context_build(struct cuda_device *dev, const char **call)
{
	struct cuda_api *api = &dev->api;
	CUresult result;

	*call = "cuDevicePrimaryCtxRetain";
	result = api->primary_retain(&dev->context, dev->device);
	if (result != CUDA_SUCCESS) {
		dev->context = NULL;
		return result;
	}
	*call = "cuCtxSetCurrent";
	result = api->context_set(dev->context);
	if (result != CUDA_SUCCESS)
		return result;
	*call = "cuMemAddressReserve";
	result = api->address_reserve(&dev->range, dev->n_slots * dev->base.chunk_bytes, 0, 0, 0);
	if (result != CUDA_SUCCESS) {
		dev->range = 0;
		return result;
	}
	*call = "cuMemHostRegister";
	result = register_bounce(dev);
	if (result != CUDA_SUCCESS)
		return result;
	*call = "cuStreamCreate";
	result = api->stream_create(&dev->zero_stream, CU_STREAM_NON_BLOCKING);
	for (int i = 0; i < GPU_QUEUE_COUNT && result == CUDA_SUCCESS; i++)
		result = build_queue(&dev->queues[i], call);
	return result;
}

static void tear_down_queue(struct cuda_queue *queue)
{
	struct cuda_api *api = &queue->dev->api;

	for (size_t i = 0; i < CUDA_DEPTH; i++) {
		if (queue->events[i] != NULL)
			api->event_destroy(queue->events[i]);
		queue->events[i] = NULL;
	}
	if (queue->stream != NULL)
		api->stream_destroy(queue->stream);
	queue->stream = NULL;
}

/* No queue runs, so that nobody else maps or frees; the owners of chunks may go on making and destroying records. */
static void unmap_chunks(struct cuda_device *dev)
{
	for (size_t i = 0; i < dev->n_slots; i++) {
		struct gpu_chunk *chunk = dev->slots[i];

		if (chunk == NULL)
			continue;
		dev->api.mem_unmap(dev->range + i * dev->base.chunk_bytes, dev->base.chunk_bytes);
		chunk->address = 0;
		dev->slots[i] = NULL;
		pthread_mutex_lock(&dev->mutex);
		if (chunk->state == MEMORY_MAPPED)
			chunk->state = MEMORY_UNMAPPED;
		pthread_mutex_unlock(&dev->mutex);
	}
}

void cuda_context_tear_down(struct cuda_device *dev, bool is_broken)
{
	struct cuda_api *api = &dev->api;

	for (int i = 0; i < GPU_QUEUE_COUNT; i++)
		tear_down_queue(&dev->queues[i]);
	if (dev->zero_stream != NULL)
		api->stream_destroy(dev->zero_stream);
	dev->zero_stream = NULL;
	unmap_chunks(dev);
	if (dev->range != 0)
		api->address_free(dev->range, dev->n_slots * dev->base.chunk_bytes);
	dev->range = 0;
	if (dev->context != NULL) {
		api->host_unregister(dev->bounce.base);
		api->context_set(NULL);
		if (is_broken)
			api->primary_reset(dev->device); /* which does not count as a release */
		api->primary_release(dev->device);
	}
	dev->context = NULL;
}
