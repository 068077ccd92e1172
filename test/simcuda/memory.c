/*
 * memory.c - virtual memory management: allocations, reserved addresses, mappings, access.
 *
 * An allocation lives while a handle, a mapping or an operation under way holds it; what it holds of the device is counted in
 * the process that made it. A reservation has a slot for each granule of it.
 */
#include "test/simcuda/account.h"
#include "test/simcuda/simcuda.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <uthash.h>
#include <utlist.h>

struct sim_allocation {
	int memfd, device;
	char *bytes; /* where we alone touch it */
	size_t len;
	unsigned refs;
	bool is_exportable, is_counted;
};

struct handle {
	CUmemGenericAllocationHandle value;
	struct sim_allocation *allocation;
	UT_hash_handle hh;
};

struct mapping {
	CUdeviceptr start;
	struct sim_allocation *allocation;
	int rights;
	size_t len;
};

struct reservation {
	struct reservation *next;
	CUdeviceptr start;
	size_t len;
	void *memory; /* PROT_NONE */
	size_t memory_bytes;
	struct mapping **slots;
	bool is_plain; /* of cuMemAlloc */
};

static struct handle *handles;            /* sim.mutex */
static struct reservation *reservations;  /* sim.mutex */
static CUmemGenericAllocationHandle next_handle = 0x5100; /* sim.mutex */

static bool is_granular(uint64_t n)
{
	return n % sim.granularity == 0;
}

/* ---- allocations ---- */

static void release_locked(struct sim_allocation *allocation)
{
	if (--allocation->refs > 0)
		return;
	if (allocation->is_counted)
		account_give(allocation->device, allocation->len);
	munmap(allocation->bytes, allocation->len);
	close(allocation->memfd);
	free(allocation);
}

static struct handle *handle_find_locked(CUmemGenericAllocationHandle value)
{
	struct handle *handle;

	HASH_FIND(hh, handles, &value, sizeof(value), handle);
	return handle;
}

/* Takes the descriptor over. NULL: no memory. */
static struct handle *handle_create_locked(int memfd, size_t len, int device, bool is_exportable)
{
	struct sim_allocation *allocation = calloc(1, sizeof(*allocation));
	struct handle *handle = calloc(1, sizeof(*handle));

	if (allocation == NULL || handle == NULL)
		abort();
	*allocation = (struct sim_allocation){.memfd = memfd, .device = device, .len = len, .refs = 1, .is_exportable = is_exportable};
	allocation->bytes = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memfd, 0);
	if (allocation->bytes == MAP_FAILED) {
		close(memfd);
		free(allocation);
		free(handle);
		return NULL;
	}
	handle->value = next_handle += 0x11;
	handle->allocation = allocation;
	HASH_ADD(hh, handles, value, sizeof(handle->value), handle);
	return handle;
}

static bool is_location(const CUmemLocation *location)
{
	return location->type == CU_MEM_LOCATION_TYPE_DEVICE && sim_is_device(location->id);
}

EXPORT CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option)
{
	ENTER(cuMemGetAllocationGranularity, SIM_INITIALIZED);
	(void)option;
	if (prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || !is_location(&prop->location))
		return (CUresult)ERROR_INVALID_VALUE;
	*bytes = sim.granularity;
	return sim.has_vmm ? CUDA_SUCCESS : (CUresult)ERROR_NOT_SUPPORTED;
}

static CUresult create(size_t bytes, int device, bool is_exportable, CUmemGenericAllocationHandle *out)
{
	struct handle *handle = NULL;
	char name[32];
	int memfd;

	snprintf(name, sizeof(name), "simcuda-%d", device);
	memfd = memfd_create(name, MFD_CLOEXEC);
	if (memfd < 0)
		return (CUresult)ERROR_OPERATING_SYSTEM;
	if (ftruncate(memfd, (off_t)bytes) < 0) {
		close(memfd);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	pthread_mutex_lock(&sim.mutex);
	if (account_take(device, bytes, sim.memory_bytes)) {
		handle = handle_create_locked(memfd, bytes, device, is_exportable);
		if (handle != NULL) {
			handle->allocation->is_counted = true;
			*out = handle->value;
		} else {
			account_give(device, bytes);
		}
	} else {
		close(memfd);
	}
	pthread_mutex_unlock(&sim.mutex);
	return handle == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

/* Fresh memory of a real device holds what was there before. */
static void make_dirty(CUmemGenericAllocationHandle value)
{
	struct handle *handle;

	pthread_mutex_lock(&sim.mutex);
	handle = handle_find_locked(value);
	if (handle != NULL) {
		memset(handle->allocation->bytes, 0xd1, 4096);
		memset(handle->allocation->bytes + handle->allocation->len / 2, 0xd1, 4096);
		memset(handle->allocation->bytes + handle->allocation->len - 4096, 0xd1, 4096);
	}
	pthread_mutex_unlock(&sim.mutex);
}

EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *out, size_t bytes, const CUmemAllocationProp *prop, unsigned long long flags)
{
	CUresult result;

	ENTER(cuMemCreate, SIM_INITIALIZED);
	if (!sim.has_vmm)
		return (CUresult)ERROR_NOT_SUPPORTED;
	if (flags != 0 || bytes == 0 || !is_granular(bytes) || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    !is_location(&prop->location) || (unsigned)prop->requestedHandleTypes > CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
	    prop->win32HandleMetaData != NULL)
		return (CUresult)ERROR_INVALID_VALUE;
	result = create(bytes, prop->location.id, prop->requestedHandleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, out);
	if (result == CUDA_SUCCESS)
		make_dirty(*out);
	return result;
}

EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle value)
{
	struct handle *handle;

	ENTER(cuMemRelease, SIM_INITIALIZED);
	pthread_mutex_lock(&sim.mutex);
	handle = handle_find_locked(value);
	if (handle != NULL) {
		HASH_DEL(handles, handle);
		release_locked(handle->allocation);
		free(handle);
	}
	pthread_mutex_unlock(&sim.mutex);
	return handle == NULL ? (CUresult)ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

EXPORT CUresult cuMemExportToShareableHandle(void *fd, CUmemGenericAllocationHandle value, CUmemAllocationHandleType type,
					     unsigned long long flags)
{
	CUresult result = (CUresult)ERROR_INVALID_VALUE;
	struct handle *handle;

	ENTER(cuMemExportToShareableHandle, SIM_INITIALIZED);
	if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0)
		return result;
	pthread_mutex_lock(&sim.mutex);
	handle = handle_find_locked(value);
	if (handle != NULL && handle->allocation->is_exportable) {
		*(int *)fd = fcntl(handle->allocation->memfd, F_DUPFD_CLOEXEC, 0);
		result = *(int *)fd < 0 ? (CUresult)ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

/* Ours? Then it says on which device. */
static bool is_ours(int fd, int *device, size_t *len)
{
	char path[32], target[64] = "";
	struct stat st;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (readlink(path, target, sizeof(target) - 1) < 0 || fstat(fd, &st) < 0 ||
	    sscanf(target, "/memfd:simcuda-%d", device) != 1)
		return false;
	*len = (size_t)st.st_size;
	return sim_is_device(*device);
}

EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *out, void *os_handle, CUmemAllocationHandleType type)
{
	int fd = (int)(intptr_t)os_handle, device, copy;
	struct handle *handle;
	size_t len;

	ENTER(cuMemImportFromShareableHandle, SIM_INITIALIZED);
	if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || !is_ours(fd, &device, &len))
		return (CUresult)ERROR_INVALID_VALUE;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return (CUresult)ERROR_OPERATING_SYSTEM;
	pthread_mutex_lock(&sim.mutex);
	handle = handle_create_locked(copy, len, device, true);
	if (handle != NULL)
		*out = handle->value;
	pthread_mutex_unlock(&sim.mutex);
	return handle == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
	uint64_t used;

	ENTER(cuMemGetInfo, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	used = account_used(sim_current()->device);
	pthread_mutex_unlock(&sim.mutex);
	*total_bytes = sim.memory_bytes;
	*free_bytes = used < sim.memory_bytes ? sim.memory_bytes - used : 0;
	return CUDA_SUCCESS;
}

/* ---- addresses ---- */

static CUresult reserve(size_t bytes, size_t alignment, bool is_plain, CUdeviceptr *address)
{
	struct reservation *reservation = calloc(1, sizeof(*reservation));

	if (reservation == NULL)
		abort();
	if (alignment < sim.granularity)
		alignment = sim.granularity;
	reservation->memory_bytes = bytes + alignment;
	reservation->memory = mmap(NULL, reservation->memory_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (reservation->memory == MAP_FAILED) {
		free(reservation);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	reservation->start = ((CUdeviceptr)(uintptr_t)reservation->memory + alignment - 1) / alignment * alignment;
	reservation->len = bytes;
	reservation->is_plain = is_plain;
	reservation->slots = calloc(bytes / sim.granularity, sizeof(*reservation->slots));
	if (reservation->slots == NULL)
		abort();
	pthread_mutex_lock(&sim.mutex);
	LL_PREPEND(reservations, reservation);
	pthread_mutex_unlock(&sim.mutex);
	*address = reservation->start;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint, unsigned long long flags)
{
	ENTER(cuMemAddressReserve, SIM_INITIALIZED);
	(void)hint;
	if (flags != 0 || bytes == 0 || !is_granular(bytes) || (alignment & (alignment - 1)) != 0)
		return (CUresult)ERROR_INVALID_VALUE;
	return sim.has_vmm ? reserve(bytes, alignment, false, address) : (CUresult)ERROR_NOT_SUPPORTED;
}

static struct reservation *reservation_find_locked(CUdeviceptr address, size_t bytes)
{
	struct reservation *reservation;

	LL_FOREACH(reservations, reservation) {
		if (address >= reservation->start && bytes <= reservation->len &&
		    address - reservation->start <= reservation->len - bytes)
			return reservation;
	}
	return NULL;
}

static struct mapping **slot_of(struct reservation *reservation, CUdeviceptr address)
{
	return &reservation->slots[(address - reservation->start) / sim.granularity];
}

static bool is_empty(struct reservation *reservation, CUdeviceptr address, size_t bytes)
{
	for (size_t done = 0; done < bytes; done += sim.granularity) {
		if (*slot_of(reservation, address + done) != NULL)
			return false;
	}
	return true;
}

EXPORT CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes)
{
	struct reservation *reservation;
	CUresult result = (CUresult)ERROR_INVALID_VALUE;

	ENTER(cuMemAddressFree, SIM_INITIALIZED);
	pthread_mutex_lock(&sim.mutex);
	reservation = reservation_find_locked(address, bytes);
	if (reservation != NULL && !reservation->is_plain && reservation->start == address && reservation->len == bytes &&
	    is_empty(reservation, address, bytes)) {
		LL_DELETE(reservations, reservation);
		munmap(reservation->memory, reservation->memory_bytes);
		free(reservation->slots);
		free(reservation);
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

/* ---- mappings ---- */

EXPORT CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle value, unsigned long long flags)
{
	struct reservation *reservation;
	struct handle *handle;
	CUresult result = (CUresult)ERROR_INVALID_VALUE;

	ENTER(cuMemMap, SIM_INITIALIZED);
	if (offset != 0 || flags != 0 || bytes == 0 || !is_granular(bytes) || !is_granular(address))
		return result;
	pthread_mutex_lock(&sim.mutex);
	reservation = reservation_find_locked(address, bytes);
	handle = handle_find_locked(value);
	if (reservation != NULL && handle != NULL && handle->allocation->len == bytes && is_empty(reservation, address, bytes)) {
		struct mapping *mapping = calloc(1, sizeof(*mapping));

		if (mapping == NULL)
			abort();
		*mapping = (struct mapping){.start = address, .allocation = handle->allocation, .len = bytes};
		handle->allocation->refs++;
		for (size_t done = 0; done < bytes; done += sim.granularity)
			*slot_of(reservation, address + done) = mapping;
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

/* Is the range made of whole mappings, with nothing between them? */
static bool is_whole(struct reservation *reservation, CUdeviceptr address, size_t bytes)
{
	CUdeviceptr at = address;

	while (at < address + bytes) {
		const struct mapping *mapping = *slot_of(reservation, at);

		if (mapping == NULL || mapping->start != at || mapping->len > address + bytes - at)
			return false;
		at += mapping->len;
	}
	return true;
}

static CUresult on_mappings_locked(CUdeviceptr address, size_t bytes, int rights, bool is_unmap)
{
	struct reservation *reservation = reservation_find_locked(address, bytes);

	if (reservation == NULL || bytes == 0 || !is_granular(address) || !is_whole(reservation, address, bytes))
		return (CUresult)ERROR_INVALID_VALUE;
	for (CUdeviceptr at = address; at < address + bytes;) {
		struct mapping *mapping = *slot_of(reservation, at);

		at += mapping->len;
		mapping->rights = rights;
		if (!is_unmap)
			continue;
		for (size_t done = 0; done < mapping->len; done += sim.granularity)
			*slot_of(reservation, mapping->start + done) = NULL;
		release_locked(mapping->allocation);
		free(mapping);
	}
	return CUDA_SUCCESS;
}

EXPORT CUresult cuMemUnmap(CUdeviceptr address, size_t bytes)
{
	CUresult result;

	ENTER(cuMemUnmap, SIM_INITIALIZED);
	pthread_mutex_lock(&sim.mutex);
	result = on_mappings_locked(address, bytes, 0, true);
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

EXPORT CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t n)
{
	int rights = 0;
	CUresult result;

	ENTER(cuMemSetAccess, SIM_INITIALIZED);
	for (size_t i = 0; i < n; i++) {
		if (!is_location(&access[i].location))
			return (CUresult)ERROR_INVALID_VALUE;
		if (access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READ && !sim.has_read_only)
			return (CUresult)ERROR_NOT_SUPPORTED;
		rights = access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? MAY_READ | MAY_WRITE
			 : access[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READ	? MAY_READ
										: 0;
	}
	pthread_mutex_lock(&sim.mutex);
	result = on_mappings_locked(address, bytes, rights, false);
	pthread_mutex_unlock(&sim.mutex);
	return result;
}

bool sim_may_locked(CUdeviceptr address, size_t bytes, int rights)
{
	struct reservation *reservation = reservation_find_locked(address, bytes);

	if (reservation == NULL)
		return false;
	for (CUdeviceptr at = address; at < address + bytes;) {
		const struct mapping *mapping = *slot_of(reservation, at);

		if (mapping == NULL || (mapping->rights & rights) != rights)
			return false;
		at = mapping->start + mapping->len;
	}
	return true;
}

bool sim_part_take(CUdeviceptr address, size_t bytes, int rights, struct sim_part *part)
{
	struct reservation *reservation;
	const struct mapping *mapping = NULL;

	pthread_mutex_lock(&sim.mutex);
	reservation = reservation_find_locked(address, 1);
	if (reservation != NULL)
		mapping = *slot_of(reservation, address);
	if (mapping != NULL && (mapping->rights & rights) == rights) {
		size_t offset = address - mapping->start;

		*part = (struct sim_part){.bytes = mapping->allocation->bytes + offset, .allocation = mapping->allocation,
					  .len = mapping->len - offset < bytes ? mapping->len - offset : bytes};
		mapping->allocation->refs++;
	} else {
		mapping = NULL;
	}
	pthread_mutex_unlock(&sim.mutex);
	return mapping != NULL;
}

void sim_part_release(struct sim_part *part)
{
	pthread_mutex_lock(&sim.mutex);
	release_locked(part->allocation);
	pthread_mutex_unlock(&sim.mutex);
}

/* ---- cuMemAlloc: all of the above at once ---- */

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
	size_t rounded = (bytes + sim.granularity - 1) / sim.granularity * sim.granularity;
	CUmemAccessDesc access = {.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUmemGenericAllocationHandle handle;
	CUresult result;

	ENTER(cuMemAlloc, SIM_CONTEXT);
	if (bytes == 0)
		return (CUresult)ERROR_INVALID_VALUE;
	access.location.id = sim_current()->device;
	result = create(rounded, access.location.id, false, &handle);
	if (result != CUDA_SUCCESS)
		return result;
	result = reserve(rounded, 0, true, address);
	if (result == CUDA_SUCCESS)
		result = cuMemMap(*address, rounded, 0, handle, 0);
	if (result == CUDA_SUCCESS)
		result = cuMemSetAccess(*address, rounded, &access, 1);
	cuMemRelease(handle);
	return result;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr address)
{
	struct reservation *reservation;
	CUresult result = (CUresult)ERROR_INVALID_VALUE;

	ENTER(cuMemFree, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	sim_wait_context_locked(sim_current()); /* cuMemFree does; cuMemUnmap does not say that it would */
	reservation = reservation_find_locked(address, 1);
	if (reservation != NULL && reservation->is_plain && reservation->start == address) {
		result = on_mappings_locked(address, reservation->len, 0, true);
		reservation->is_plain = false;
	}
	pthread_mutex_unlock(&sim.mutex);
	return result == CUDA_SUCCESS ? cuMemAddressFree(address, reservation->len) : result;
}
