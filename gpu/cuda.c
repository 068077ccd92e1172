/*
 * cuda.c - the cuda device: chunks as CUDA's virtual memory, in this process, in a context that can be rebuilt.
 *
 * The driver is loaded at run time (cuda_api.c): one binary with and without it. The daemon runs copies and fills only, never a
 * kernel of anybody's: a client maps the chunks into a context of its own process and launches there.
 *
 * A chunk's memory (cuda_chunk.c)
 *
 *     chunk_create        a record; nothing is asked of the driver on the caller's thread
 *     first operation     cuMemCreate at the device's granularity, cuMemExportToShareableHandle (the descriptor is kept),
 *                         cuMemMap into the chunk's slot of one reserved range, cuMemSetAccess, zeroed: on the queue's thread.
 *                         No memory: the operation ends with -ENOMEM, and the cache makes do with less (cache/memory.c)
 *     chunk_export        a duplicate of the kept descriptor, for a client to cuMemImportFromShareableHandle
 *     chunk_destroy       cuMemUnmap, cuMemRelease, close, on a queue's thread
 *
 * Memory is never pooled: every cuMemCreate is for one chunk of one file and goes back to the driver with it. The driver frees
 * memory when all mappings, handles and descriptors of it in all processes are gone (cuda.h on cuMemRelease), so that what a
 * client still maps, revoked or not, is never anybody else's while that client lives.
 *
 * Copies (cuda_queue.c): a stream and a thread for each gpu_queue. The thread alone submits to its stream, records an event
 * behind each operation and sleeps in cuEventSynchronize (CU_EVENT_BLOCKING_SYNC) for the oldest. Not cuLaunchHostFunc: host
 * functions do not run any more once the context is poisoned, and then nobody would learn of it.
 *
 * The context is the primary one, retained: there is one for each device, it is the one that cuDevicePrimaryCtxReset can
 * tear down whatever state it is in, and its calls have had one ABI since CUDA 11, while cuCtxCreate's changed with 13.
 * An error of any copy, fill or wait: all queues stop, the context is torn down and built again, the chunks are mapped again from
 * their handles (memory of cuMemCreate is associated with no context: cuda.h on cuCtxDestroy) or, where a handle is not
 * taken any more, from the kept descriptor, and what was in flight is repeated, one operation at a time until all of it is
 * done. An operation that fails twice more when it is alone shows that its chunk's memory is gone: that chunk is lost. If the
 * context can't be rebuilt, or is broken again and again with nothing done in between, the device is lost with all chunks.
 */
#include "gpu/cuda_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utlist.h>

/* ---- gpu_ops ---- */

static int cuda_chunk_create(struct gpu_device *base, struct gpu_chunk **out)
{
	struct cuda_device *dev = (struct cuda_device *)base;
	struct gpu_chunk *chunk;
	bool is_dead;

	pthread_mutex_lock(&dev->mutex);
	is_dead = dev->is_dead;
	pthread_mutex_unlock(&dev->mutex);
	if (is_dead)
		return -ENODEV;
	chunk = calloc(1, sizeof(*chunk));
	if (chunk == NULL)
		return -ENOMEM;
	chunk->fd = -1;
	*out = chunk;
	return 0;
}

static void cuda_chunk_destroy(struct gpu_device *base, struct gpu_chunk *chunk)
{
	struct cuda_device *dev = (struct cuda_device *)base;

	pthread_mutex_lock(&dev->mutex);
	DL_APPEND(dev->doomed, chunk);
	pthread_cond_signal(&dev->queues[GPU_QUEUE_WRITEBACK].has_work);
	pthread_mutex_unlock(&dev->mutex);
}

static bool cuda_chunk_is_lost(struct gpu_device *base, struct gpu_chunk *chunk)
{
	struct cuda_device *dev = (struct cuda_device *)base;
	bool is_lost;

	pthread_mutex_lock(&dev->mutex);
	is_lost = dev->is_dead || chunk->state == MEMORY_LOST;
	pthread_mutex_unlock(&dev->mutex);
	return is_lost;
}

static int cuda_chunk_export(struct gpu_device *base, struct gpu_chunk *chunk, bool is_writable, int *fd)
{
	(void)is_writable; /* CUDA's handles know no read-only */
	if (cuda_chunk_is_lost(base, chunk))
		return -ENODEV;
	*fd = fcntl(chunk->fd, F_DUPFD_CLOEXEC, 0);
	return *fd < 0 ? -errno : 0;
}

static void cuda_copy_to_device(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off,
				size_t bounce_off, size_t len, struct gpu_op *op)
{
	cuda_queue_submit((struct cuda_device *)base, queue,
			  &(struct cuda_op){.kind = CUDA_TO_DEVICE, .chunk = chunk, .chunk_off = chunk_off, .bounce_off = bounce_off,
					    .len = len, .op = op});
}

static void cuda_copy_from_device(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off,
				  size_t bounce_off, size_t len, struct gpu_op *op)
{
	cuda_queue_submit((struct cuda_device *)base, queue,
			  &(struct cuda_op){.kind = CUDA_FROM_DEVICE, .chunk = chunk, .chunk_off = chunk_off, .bounce_off = bounce_off,
					    .len = len, .op = op});
}

static void cuda_fill(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off, size_t len,
		      uint8_t byte, struct gpu_op *op)
{
	cuda_queue_submit((struct cuda_device *)base, queue,
			  &(struct cuda_op){.kind = CUDA_FILL, .chunk = chunk, .chunk_off = chunk_off, .len = len, .byte = byte, .op = op});
}

static void cuda_copy_chunk(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *to, struct gpu_chunk *from,
			    struct gpu_op *op)
{
	cuda_queue_submit((struct cuda_device *)base, queue, &(struct cuda_op){.kind = CUDA_COPY, .chunk = to, .from = from, .op = op});
}

static void cuda_measure(struct gpu_device *base, uint64_t *free_bytes, struct gpu_op *op)
{
	cuda_queue_submit((struct cuda_device *)base, GPU_QUEUE_CPU, &(struct cuda_op){.kind = CUDA_MEASURE, .free_bytes = free_bytes, .op = op});
}

static void cuda_destroy(struct gpu_device *base)
{
	struct cuda_device *dev = (struct cuda_device *)base;

	cuda_queues_stop(dev);
	cuda_context_tear_down(dev, false);
	for (int i = 0; i < GPU_QUEUE_COUNT; i++)
		pthread_cond_destroy(&dev->queues[i].has_work);
	pthread_cond_destroy(&dev->changed);
	pthread_mutex_destroy(&dev->mutex);
	free(dev->slots);
	free(dev);
}

static const struct gpu_ops cuda_ops = {
	.destroy = cuda_destroy,
	.chunk_create = cuda_chunk_create,
	.chunk_destroy = cuda_chunk_destroy,
	.chunk_is_lost = cuda_chunk_is_lost,
	.chunk_export = cuda_chunk_export,
	.copy_to_device = cuda_copy_to_device,
	.copy_from_device = cuda_copy_from_device,
	.fill = cuda_fill,
	.copy_chunk = cuda_copy_chunk,
	.measure = cuda_measure,
};

/* ---- what there is ---- */

static int refuse_call(const struct cuda_api *api, const char *spec, const char *call, CUresult result, char **error)
{
	return gpu_refuse(error, -ENODEV, "device=%s: %s: %s; see nvidia-smi", spec, call, cuda_error_name(api, result));
}

static CUresult describe(const struct cuda_api *api, CUdevice device, struct gpu_info *info, const char **call)
{
	CUresult result;
	size_t bytes = 0;
	CUuuid uuid;

	*info = (struct gpu_info){.backend = "cuda", .can_export = true, .exports_cuda = true};
	*call = "cuDeviceGetName";
	result = api->device_name(info->name, sizeof(info->name), device);
	if (result != CUDA_SUCCESS)
		return result;
	*call = "cuDeviceGetUuid";
	result = api->device_uuid(&uuid, device);
	if (result != CUDA_SUCCESS)
		return result;
	memcpy(info->uuid, uuid.bytes, sizeof(info->uuid));
	*call = "cuDeviceTotalMem";
	result = api->device_total_mem(&bytes, device);
	info->memory_bytes = bytes;
	return result;
}

static bool has(const struct cuda_api *api, CUdevice device, CUdevice_attribute attribute)
{
	int value = 0;

	return api->device_attribute(&value, attribute, device) == CUDA_SUCCESS && value != 0;
}

int cuda_list(void (*each)(void *user, const struct gpu_info *info, const char *spec), void *user)
{
	struct cuda_api api;
	char *error = NULL;
	int n = 0;

	if (cuda_api_load(&api, "cuda", &error) < 0) {
		free(error);
		return -ENODEV;
	}
	if (api.device_count(&n) != CUDA_SUCCESS)
		return -ENODEV;
	for (int i = 0; i < n; i++) {
		struct gpu_info info;
		const char *call;
		CUdevice device;
		char spec[32];

		if (api.device_get(&device, i) != CUDA_SUCCESS ||
		    !has(&api, device, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) ||
		    describe(&api, device, &info, &call) != CUDA_SUCCESS)
			continue;
		snprintf(spec, sizeof(spec), "cuda:%d", i);
		each(user, &info, spec);
	}
	return 0;
}

/* ---- opening ---- */

static int parse_spec(const char *spec, int *ordinal, char **error)
{
	char *end;
	long n;

	*ordinal = 0;
	if (strcmp(spec, "cuda") == 0)
		return 0;
	errno = 0;
	n = strtol(spec + 5, &end, 10); /* behind "cuda:" */
	if (spec[5] < '0' || spec[5] > '9' || *end != '\0' || errno != 0 || n > INT_MAX)
		return gpu_refuse(error, -EINVAL, "device=%s: cuda:N is meant, with the device's number N; hmmfs devices lists them", spec);
	*ordinal = (int)n;
	return 0;
}

static int choose(struct cuda_device *dev, char **error)
{
	struct cuda_api *api = &dev->api;
	const char *spec = dev->spec, *call = "cuDeviceGetCount";
	size_t granularity = 0;
	int n = 0;
	CUresult result = api->device_count(&n);

	if (result == CUDA_SUCCESS && dev->ordinal >= n)
		return gpu_refuse(error, -ENODEV, "device=%s: there %s %d CUDA device%s, counted from 0; hmmfs devices lists them", spec,
				  n == 1 ? "is" : "are", n, n == 1 ? "" : "s");
	if (result == CUDA_SUCCESS) {
		call = "cuDeviceGet";
		result = api->device_get(&dev->device, dev->ordinal);
	}
	if (result == CUDA_SUCCESS)
		result = describe(api, dev->device, &dev->base.info, &call);
	if (result != CUDA_SUCCESS)
		return refuse_call(api, spec, call, result, error);
	if (!has(api, dev->device, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) ||
	    !has(api, dev->device, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED))
		return gpu_refuse(error, -ENODEV, "device=%s: %s has no virtual memory management with exportable memory; use device=opencl",
				  spec, dev->base.info.name);
	dev->prop = (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
					  .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
					  .location = {CU_MEM_LOCATION_TYPE_DEVICE, dev->device}};
	result = api->granularity(&granularity, &dev->prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
	if (result != CUDA_SUCCESS || granularity == 0)
		return refuse_call(api, spec, "cuMemGetAllocationGranularity", result, error);
	dev->base.info.granularity = granularity;
	if (dev->base.chunk_bytes % granularity != 0)
		return gpu_refuse(error, -EINVAL, "chunk=%zu: memory of device=%s comes in multiples of %zu bytes; choose one of these",
				  dev->base.chunk_bytes, spec, granularity);
	return 0;
}

static int set_up(struct cuda_device *dev, char **error)
{
	const char *call;
	size_t free_bytes, total_bytes;
	CUresult result;
	int err;

	dev->n_slots = dev->base.info.memory_bytes / dev->base.chunk_bytes + 1;
	dev->slots = calloc(dev->n_slots, sizeof(struct gpu_chunk *));
	if (dev->slots == NULL)
		return -ENOMEM;
	result = cuda_context_build(dev, &call);
	if (result == CUDA_SUCCESS) {
		call = "cuMemGetInfo";
		result = dev->api.mem_info(&free_bytes, &total_bytes);
	}
	if (result != CUDA_SUCCESS)
		return refuse_call(&dev->api, dev->spec, call, result, error);
	dev->base.info.free_bytes = free_bytes;
	err = cuda_queues_start(dev);
	dev->api.context_set(NULL); /* the queues' threads have it */
	return err;
}

int cuda_open(const struct gpu_config *config, const char *spec, struct gpu_device **out, char **error)
{
	struct cuda_device *dev = calloc(1, sizeof(*dev));
	int err;

	if (dev == NULL)
		return -ENOMEM;
	dev->base = (struct gpu_device){.ops = &cuda_ops, .chunk_bytes = config->chunk_bytes};
	dev->bounce = config->bounce;
	dev->lost = config->lost;
	dev->log = config->log;
	dev->user = config->user;
	pthread_mutex_init(&dev->mutex, NULL);
	pthread_cond_init(&dev->changed, NULL);
	for (int i = 0; i < GPU_QUEUE_COUNT; i++) {
		dev->queues[i].dev = dev;
		dev->queues[i].kind = (enum gpu_queue)i;
		pthread_cond_init(&dev->queues[i].has_work, NULL);
	}
	snprintf(dev->spec, sizeof(dev->spec), "%s", spec);
	err = parse_spec(spec, &dev->ordinal, error);
	if (err == 0)
		err = cuda_api_load(&dev->api, spec, error);
	if (err == 0)
		err = choose(dev, error);
	if (err == 0)
		err = set_up(dev, error);
	if (err < 0) {
		cuda_destroy(&dev->base);
		return err;
	}
	*out = &dev->base;
	return 0;
}
