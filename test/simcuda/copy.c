/*
 * copy.c - copies and fills, and the host memory that is registered for them.
 *
 * As the driver has it, a copy from host memory that is not registered reads it before the call returns, and one to such
 * memory is done when the call returns; copies of registered memory are left to the stream, and read and write it when they run.
 */
#include "test/simcuda/simcuda.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <utlist.h>

struct registered {
	struct registered *next;
	char *base;
	size_t bytes;
	bool is_ours; /* of cuMemHostAlloc */
};
static struct registered *registered; /* sim.mutex */

/* ---- moving bytes ---- */

/*
 * Two streams may be at the same device memory at once, a copy of a chunk for the disk and a WRITE to it, say: a device gives
 * each byte as it was or as it is. In C that takes atomic accesses: bytes, and words where they are aligned.
 */
static size_t step_at(const char *at, size_t left)
{
	return (uintptr_t)at % sizeof(uint64_t) == 0 && left >= sizeof(uint64_t) ? sizeof(uint64_t) : 1;
}

static void load(char *to, const char *device, size_t bytes)
{
	for (size_t done = 0, step; done < bytes; done += step) {
		step = step_at(device + done, bytes - done);
		if (step == 1) {
			to[done] = __atomic_load_n(device + done, __ATOMIC_RELAXED);
		} else {
			uint64_t word = __atomic_load_n((const uint64_t *)(const void *)(device + done), __ATOMIC_RELAXED);

			memcpy(to + done, &word, sizeof(word));
		}
	}
}

static void store(char *device, const char *from, size_t bytes)
{
	for (size_t done = 0, step; done < bytes; done += step) {
		step = step_at(device + done, bytes - done);
		if (step == 1) {
			__atomic_store_n(device + done, from[done], __ATOMIC_RELAXED);
		} else {
			uint64_t word;

			memcpy(&word, from + done, sizeof(word));
			__atomic_store_n((uint64_t *)(void *)(device + done), word, __ATOMIC_RELAXED);
		}
	}
}

bool sim_copy(CUdeviceptr device, void *host, size_t bytes, bool is_to_device)
{
	for (size_t done = 0; done < bytes;) {
		struct sim_part part;

		if (!sim_part_take(device + done, bytes - done, is_to_device ? MAY_WRITE : MAY_READ, &part))
			return false;
		if (is_to_device)
			store(part.bytes, (char *)host + done, part.len);
		else
			load((char *)host + done, part.bytes, part.len);
		done += part.len;
		sim_part_release(&part);
	}
	return true;
}

bool sim_fill(CUdeviceptr to, size_t bytes, const void *pattern, size_t pattern_bytes)
{
	char block[4096]; /* of whole patterns, which have one byte or four */

	for (size_t i = 0; i < sizeof(block); i += pattern_bytes)
		memcpy(block + i, pattern, pattern_bytes);
	for (size_t done = 0; done < bytes;) {
		struct sim_part part;

		if (!sim_part_take(to + done, bytes - done, MAY_WRITE, &part))
			return false;
		for (size_t at = 0; at < part.len; at += sizeof(block))
			store(part.bytes + at, block, part.len - at < sizeof(block) ? part.len - at : sizeof(block));
		done += part.len;
		sim_part_release(&part);
	}
	return true;
}

/* ---- host memory ---- */

static bool overlaps(const struct registered *r, const char *base, size_t bytes)
{
	return base < r->base + r->bytes && r->base < base + bytes;
}

bool sim_is_registered_locked(const void *host, size_t bytes)
{
	const struct registered *r;

	LL_FOREACH(registered, r) {
		if ((const char *)host >= r->base && (const char *)host + bytes <= r->base + r->bytes)
			return true;
	}
	return false;
}

static CUresult add(void *base, size_t bytes, bool is_ours)
{
	CUresult result = CUDA_SUCCESS;
	struct registered *r;

	pthread_mutex_lock(&sim.mutex);
	LL_FOREACH(registered, r) {
		if (overlaps(r, base, bytes))
			result = (CUresult)ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	}
	if (result == CUDA_SUCCESS) {
		r = malloc(sizeof(*r));
		if (r == NULL)
			abort();
		*r = (struct registered){.base = base, .bytes = bytes, .is_ours = is_ours};
		LL_PREPEND(registered, r);
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

static CUresult take_out(void *base, bool is_ours, size_t *bytes)
{
	CUresult result = (CUresult)ERROR_HOST_MEMORY_NOT_REGISTERED;
	struct registered *r, *next;

	pthread_mutex_lock(&sim.mutex);
	LL_FOREACH_SAFE(registered, r, next) {
		if (r->base != base || r->is_ours != is_ours)
			continue;
		*bytes = r->bytes;
		LL_DELETE(registered, r);
		free(r);
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

EXPORT CUresult cuMemHostRegister_v2(void *base, size_t bytes, unsigned int flags)
{
	ENTER(cuMemHostRegister, SIM_CONTEXT);
	if (base == NULL || bytes == 0 || flags > 15)
		return (CUresult)ERROR_INVALID_VALUE;
	return add(base, bytes, false);
}

EXPORT CUresult cuMemHostUnregister(void *base)
{
	size_t bytes;

	ENTER(cuMemHostUnregister, SIM_CONTEXT);
	return take_out(base, false, &bytes);
}

EXPORT CUresult cuMemHostAlloc(void **base, size_t bytes, unsigned int flags)
{
	ENTER(cuMemHostAlloc, SIM_CONTEXT);
	(void)flags;
	*base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return *base == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : add(*base, bytes, true);
}

EXPORT CUresult cuMemFreeHost(void *base)
{
	CUresult result;
	size_t bytes;

	ENTER(cuMemFreeHost, SIM_CONTEXT);
	result = take_out(base, true, &bytes);
	if (result == CUDA_SUCCESS)
		munmap(base, bytes);
	return result == CUDA_SUCCESS ? result : (CUresult)ERROR_INVALID_VALUE;
}

/* Of a pointer: 1 host memory that the driver knows, 2 device memory. */
EXPORT CUresult cuPointerGetAttribute(void *value, int attribute, CUdeviceptr pointer)
{
	CUresult result = CUDA_SUCCESS;

	ENTER(cuPointerGetAttribute, SIM_INITIALIZED);
	if (attribute != 2)
		return (CUresult)ERROR_NOT_SUPPORTED;
	pthread_mutex_lock(&sim.mutex);
	if (sim_is_registered_locked((void *)(uintptr_t)pointer, 1))
		*(unsigned *)value = 1;
	else if (sim_may_locked(pointer, 1, 0))
		*(unsigned *)value = 2;
	else
		result = (CUresult)ERROR_INVALID_VALUE;
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

/* ---- operations ---- */

static bool is_allowed_locked(const struct sim_op *op)
{
	bool writes = op->kind != OP_FROM_DEVICE, reads = op->kind == OP_FROM_DEVICE || op->kind == OP_ON_DEVICE;

	return (!writes || sim_may_locked(op->to, op->bytes, MAY_WRITE)) && (!reads || sim_may_locked(op->from, op->bytes, MAY_READ));
}

/* Waits for what is before it in the stream, and reads. */
static CUresult stage_locked(struct CUstream_st *stream, struct sim_op *op)
{
	CUresult result = sim_wait_locked((struct sim_point){stream, stream->submitted});
	void *copy = malloc(op->bytes);

	if (copy == NULL)
		abort();
	pthread_mutex_unlock(&sim.mutex);
	memcpy(copy, op->host, op->bytes); /* may fault pages of a file in */
	pthread_mutex_lock(&sim.mutex);
	op->host = copy;
	op->is_staged = true;
	if (result != CUDA_SUCCESS)
		free(copy);
	return result;
}

static CUresult submit(CUstream handle, struct sim_op *op, bool waits)
{
	struct CUstream_st *stream;
	CUresult result;

	if (op->bytes == 0)
		return CUDA_SUCCESS;
	pthread_mutex_lock(&sim.mutex);
	stream = sim_stream_find_locked(handle, &result);
	if (result == CUDA_SUCCESS && !is_allowed_locked(op))
		result = (CUresult)ERROR_INVALID_VALUE;
	if (result == CUDA_SUCCESS && op->host != NULL && !sim_is_registered_locked(op->host, op->bytes)) {
		if (op->kind == OP_TO_DEVICE)
			result = stage_locked(stream, op);
		waits |= op->kind == OP_FROM_DEVICE;
	}
	if (result == CUDA_SUCCESS)
		result = sim_submit_locked(stream, op);
	if (result == CUDA_SUCCESS && waits)
		result = sim_wait_locked((struct sim_point){stream, stream->submitted});
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
	ENTER(cuMemcpyHtoDAsync, SIM_CONTEXT);
	return submit(stream, &(struct sim_op){.kind = OP_TO_DEVICE, .to = to, .host = (void *)(uintptr_t)from, .bytes = bytes}, false);
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	ENTER(cuMemcpyDtoHAsync, SIM_CONTEXT);
	return submit(stream, &(struct sim_op){.kind = OP_FROM_DEVICE, .from = from, .host = to, .bytes = bytes}, false);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	ENTER(cuMemcpyDtoDAsync, SIM_CONTEXT);
	return submit(stream, &(struct sim_op){.kind = OP_ON_DEVICE, .to = to, .from = from, .bytes = bytes}, false);
}

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
	ENTER(cuMemcpyHtoD, SIM_CONTEXT);
	return submit(NULL, &(struct sim_op){.kind = OP_TO_DEVICE, .to = to, .host = (void *)(uintptr_t)from, .bytes = bytes}, true);
}

EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
	ENTER(cuMemcpyDtoH, SIM_CONTEXT);
	return submit(NULL, &(struct sim_op){.kind = OP_FROM_DEVICE, .from = from, .host = to, .bytes = bytes}, true);
}

EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	ENTER(cuMemcpyDtoD, SIM_CONTEXT);
	return submit(NULL, &(struct sim_op){.kind = OP_ON_DEVICE, .to = to, .from = from, .bytes = bytes}, false);
}

/* Between any two addresses: what is no device memory is the host's. */
static CUresult copy_any(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream, bool waits)
{
	struct sim_op op = {.kind = OP_ON_DEVICE, .to = to, .from = from, .bytes = bytes};
	bool is_to_device, is_from_device;

	pthread_mutex_lock(&sim.mutex);
	is_to_device = sim_may_locked(to, 1, 0);
	is_from_device = sim_may_locked(from, 1, 0);
	pthread_mutex_unlock(&sim.mutex);
	if (!is_to_device && !is_from_device)
		return (CUresult)ERROR_NOT_SUPPORTED;
	if (!is_to_device)
		op = (struct sim_op){.kind = OP_FROM_DEVICE, .from = from, .host = (void *)(uintptr_t)to, .bytes = bytes};
	else if (!is_from_device)
		op = (struct sim_op){.kind = OP_TO_DEVICE, .to = to, .host = (void *)(uintptr_t)from, .bytes = bytes};
	return submit(stream, &op, waits);
}

EXPORT CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	ENTER(cuMemcpy, SIM_CONTEXT);
	return copy_any(to, from, bytes, NULL, true);
}

EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	ENTER(cuMemcpyAsync, SIM_CONTEXT);
	return copy_any(to, from, bytes, stream, false);
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char byte, size_t bytes, CUstream stream)
{
	ENTER(cuMemsetD8Async, SIM_CONTEXT);
	return submit(stream, &(struct sim_op){.kind = OP_SET_8, .to = to, .value = byte, .bytes = bytes}, false);
}

EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char byte, size_t bytes)
{
	ENTER(cuMemsetD8, SIM_CONTEXT);
	return submit(NULL, &(struct sim_op){.kind = OP_SET_8, .to = to, .value = byte, .bytes = bytes}, false);
}

EXPORT CUresult cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t n, CUstream stream)
{
	ENTER(cuMemsetD32Async, SIM_CONTEXT);
	if (to % 4 != 0)
		return (CUresult)ERROR_INVALID_VALUE;
	return submit(stream, &(struct sim_op){.kind = OP_SET_32, .to = to, .value = value, .bytes = n * 4}, false);
}
