/*
 * cuda_chunk.c - a chunk's memory: created, mapped, mapped again, given back. See cuda.c for its life.
 *
 * All of it on the queues' threads: cuMemCreate, cuMemSetAccess and cuMemUnmap take tens of microseconds each, and may wait for
 * the device.
 */
#include "gpu/cuda_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <utlist.h>

/* ---- slots of the range ---- */

static CUdeviceptr slot_take(struct cuda_device *dev, struct gpu_chunk *chunk)
{
	CUdeviceptr address = 0;

	pthread_mutex_lock(&dev->mutex);
	for (size_t i = 0; i < dev->n_slots && address == 0; i++) {
		size_t slot = (dev->next_slot + i) % dev->n_slots;

		if (dev->slots[slot] != NULL)
			continue;
		dev->slots[slot] = chunk;
		dev->next_slot = slot + 1;
		address = dev->range + slot * dev->base.chunk_bytes;
	}
	pthread_mutex_unlock(&dev->mutex);
	return address;
}

static void slot_set(struct cuda_device *dev, CUdeviceptr address, struct gpu_chunk *chunk)
{
	size_t slot = (size_t)(address - dev->range) / dev->base.chunk_bytes;

	pthread_mutex_lock(&dev->mutex);
	dev->slots[slot] = chunk;
	dev->next_slot = slot;
	pthread_mutex_unlock(&dev->mutex);
}

/* ---- mapping ---- */

static int failed(struct cuda_device *dev, CUresult result, const char *call)
{
	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		return -ENOMEM;
	cuda_break(dev, result, call);
	return -EAGAIN;
}

static CUresult import(struct cuda_device *dev, struct gpu_chunk *chunk)
{
	CUmemGenericAllocationHandle handle;
	CUresult result = dev->api.mem_import(&handle, (void *)(intptr_t)chunk->fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);

	if (result != CUDA_SUCCESS)
		return result;
	dev->api.mem_release(chunk->handle);
	chunk->handle = handle;
	return CUDA_SUCCESS;
}

/* is_again: the context is another one than the handle was made in. It should not matter; if it does, the descriptor is left. */
static int map(struct cuda_device *dev, struct gpu_chunk *chunk, bool is_again)
{
	CUmemAccessDesc access = {.location = dev->prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUdeviceptr address = slot_take(dev, chunk);
	size_t bytes = dev->base.chunk_bytes;
	const char *call = "cuMemMap";
	CUresult result;

	if (address == 0)
		return -ENOMEM; /* memory that is gone still holds its addresses: there are as many as the device has memory */
	result = dev->api.mem_map(address, bytes, 0, chunk->handle, 0);
	if (result != CUDA_SUCCESS && is_again && import(dev, chunk) == CUDA_SUCCESS)
		result = dev->api.mem_map(address, bytes, 0, chunk->handle, 0);
	if (result == CUDA_SUCCESS) {
		call = "cuMemSetAccess";
		result = dev->api.set_access(address, bytes, &access, 1);
		if (result != CUDA_SUCCESS)
			dev->api.mem_unmap(address, bytes);
	}
	if (result != CUDA_SUCCESS) {
		slot_set(dev, address, NULL);
		return failed(dev, result, call);
	}
	chunk->address = address;
	return 0;
}

static void unmap(struct cuda_device *dev, struct gpu_chunk *chunk)
{
	if (chunk->address == 0)
		return;
	/* Where it fails the slot stays taken: the address may still be mapped. */
	slot_set(dev, chunk->address, dev->api.mem_unmap(chunk->address, dev->base.chunk_bytes) == CUDA_SUCCESS ? NULL : &dev->stuck);
	chunk->address = 0;
}

/* ---- creating ---- */

/* True: memory was given back since n_freed_before was read; what is on its way out is waited for. */
static bool reclaim(struct cuda_device *dev, uint64_t n_freed_before)
{
	bool has_memory;

	if (cuda_chunk_free_doomed(dev))
		return true;
	pthread_mutex_lock(&dev->mutex);
	while (dev->n_freed == n_freed_before && dev->n_being_freed > 0 && !dev->is_broken)
		pthread_cond_wait(&dev->changed, &dev->mutex);
	has_memory = dev->n_freed != n_freed_before;
	pthread_mutex_unlock(&dev->mutex);
	return has_memory;
}

static CUresult create_handle(struct cuda_device *dev, struct gpu_chunk *chunk)
{
	uint64_t n_freed;
	CUresult result;

	do {
		pthread_mutex_lock(&dev->mutex);
		n_freed = dev->n_freed;
		pthread_mutex_unlock(&dev->mutex);
		result = dev->api.mem_create(&chunk->handle, dev->base.chunk_bytes, &dev->prop, 0);
	} while (result == CUDA_ERROR_OUT_OF_MEMORY && reclaim(dev, n_freed));
	return result;
}

static int zero(struct cuda_device *dev, struct gpu_chunk *chunk)
{
	/* On a stream of its own, so that nothing else is waited for. */
	CUresult result = dev->api.set_bytes(chunk->address, 0, dev->base.chunk_bytes, dev->zero_stream);

	if (result != CUDA_SUCCESS)
		return failed(dev, result, "cuMemsetD8Async");
	result = dev->api.stream_synchronize(dev->zero_stream);
	return result == CUDA_SUCCESS ? 0 : failed(dev, result, "cuStreamSynchronize");
}

static void release(struct cuda_device *dev, struct gpu_chunk *chunk)
{
	unmap(dev, chunk);
	dev->api.mem_release(chunk->handle);
	if (chunk->fd >= 0)
		close(chunk->fd);
	chunk->fd = -1;
}

static int create(struct cuda_device *dev, struct gpu_chunk *chunk)
{
	CUresult result = create_handle(dev, chunk);
	int err;

	if (result != CUDA_SUCCESS)
		return failed(dev, result, "cuMemCreate");
	result = dev->api.mem_export(&chunk->fd, chunk->handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	if (result != CUDA_SUCCESS) { /* for want of descriptors, most likely; a broken context shows elsewhere too */
		chunk->fd = -1;
		release(dev, chunk);
		return -EMFILE;
	}
	fcntl(chunk->fd, F_SETFD, FD_CLOEXEC);
	err = map(dev, chunk, false);
	if (err == 0)
		err = zero(dev, chunk);
	if (err < 0)
		release(dev, chunk);
	return err;
}

int cuda_chunk_map(struct cuda_device *dev, struct gpu_chunk *chunk)
{
	enum memory_state state;
	int err;

	pthread_mutex_lock(&dev->mutex);
	while (chunk->state == MEMORY_BUSY)
		pthread_cond_wait(&dev->changed, &dev->mutex);
	state = chunk->state;
	if (state == MEMORY_NONE || state == MEMORY_UNMAPPED)
		chunk->state = MEMORY_BUSY;
	pthread_mutex_unlock(&dev->mutex);
	if (state == MEMORY_MAPPED)
		return 0;
	if (state == MEMORY_LOST)
		return -ENODEV;
	err = state == MEMORY_NONE ? create(dev, chunk) : map(dev, chunk, true);
	pthread_mutex_lock(&dev->mutex);
	chunk->state = err == 0 ? MEMORY_MAPPED : state;
	pthread_cond_broadcast(&dev->changed);
	pthread_mutex_unlock(&dev->mutex);
	return err;
}

/* ---- the end ---- */

bool cuda_chunk_free_doomed(struct cuda_device *dev)
{
	struct gpu_chunk *chunk;

	pthread_mutex_lock(&dev->mutex);
	chunk = dev->doomed;
	if (chunk != NULL) {
		DL_DELETE(dev->doomed, chunk);
		dev->n_being_freed++;
	}
	pthread_mutex_unlock(&dev->mutex);
	if (chunk == NULL)
		return false;
	if (chunk->fd >= 0)
		release(dev, chunk);
	free(chunk);
	pthread_mutex_lock(&dev->mutex);
	dev->n_being_freed--;
	dev->n_freed++;
	pthread_cond_broadcast(&dev->changed);
	pthread_mutex_unlock(&dev->mutex);
	return true;
}

void cuda_chunk_mark_lost(struct cuda_device *dev, struct gpu_chunk *chunk)
{
	pthread_mutex_lock(&dev->mutex);
	chunk->state = MEMORY_LOST;
	pthread_mutex_unlock(&dev->mutex);
}
