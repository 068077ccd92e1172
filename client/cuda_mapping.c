/* cuda_mapping.c - see cuda_mapping.h. */
#include "client/cuda_mapping.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { RIGHTS_UNMAPPED, RIGHTS_NONE, RIGHTS_READ, RIGHTS_WRITE };

static int find_device(const struct cuda_driver *driver, const uint8_t *wanted, CUdevice *device)
{
	CUcontext context = NULL;
	CUuuid uuid;

	if (driver == NULL || driver->context_get(&context) != CUDA_SUCCESS || context == NULL)
		return -ENXIO;
	if (driver->context_device(device) != CUDA_SUCCESS || driver->device_uuid(&uuid, *device) != CUDA_SUCCESS)
		return -EIO;
	return memcmp(uuid.bytes, wanted, sizeof(uuid.bytes)) == 0 ? 0 : -EXDEV;
}

int cuda_mapping_prepare(struct cuda_mapping *mapping, const struct hmmfs_info *info, size_t n_chunks)
{
	const struct cuda_driver *driver = cuda_driver();
	int err = find_device(driver, info->device_uuid, &mapping->device);

	if (err < 0 || mapping->base != 0)
		return err;
	mapping->driver = driver;
	mapping->chunk_bytes = info->chunk_bytes;
	mapping->n_chunks = n_chunks;
	mapping->rights = calloc(n_chunks, 1);
	if (mapping->rights == NULL)
		return -ENOMEM;
	err = cuda_errno(driver->address_reserve(&mapping->base, n_chunks * mapping->chunk_bytes, 0, 0, 0));
	if (err < 0) {
		mapping->base = 0;
		mapping->n_chunks = 0;
		free(mapping->rights);
		mapping->rights = NULL;
	}
	return err;
}

static CUdeviceptr address_of(const struct cuda_mapping *mapping, size_t index)
{
	return mapping->base + index * mapping->chunk_bytes;
}

int cuda_mapping_put(struct cuda_mapping *mapping, size_t index, int fd)
{
	const struct cuda_driver *driver = mapping->driver;
	CUmemGenericAllocationHandle handle;
	CUresult result;

	if (index >= mapping->n_chunks)
		return -EPROTO;
	/* Another lease of this region has ended long ago, and the work under it: nothing of ours uses the old memory. */
	if (mapping->rights[index] != RIGHTS_UNMAPPED &&
	    driver->mem_unmap(address_of(mapping, index), mapping->chunk_bytes) != CUDA_SUCCESS)
		return -EIO;
	mapping->rights[index] = RIGHTS_UNMAPPED;
	result = driver->mem_import(&handle, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	if (result != CUDA_SUCCESS)
		return result == CUDA_ERROR_OUT_OF_MEMORY ? -ENOMEM : -EPROTO;
	result = driver->mem_map(address_of(mapping, index), mapping->chunk_bytes, 0, handle, 0);
	if (result == CUDA_SUCCESS)
		mapping->rights[index] = RIGHTS_NONE;
	driver->mem_release(handle);
	return cuda_errno(result);
}

static CUresult set_access(const struct cuda_mapping *mapping, size_t from, size_t to, CUmemAccess_flags flags)
{
	CUmemAccessDesc access = {.location = {CU_MEM_LOCATION_TYPE_DEVICE, mapping->device}, .flags = flags};

	return mapping->driver->set_access(address_of(mapping, from), (to - from) * mapping->chunk_bytes, &access, 1);
}

/* Neighbours in one call. */
int cuda_mapping_allow(struct cuda_mapping *mapping, bool is_writable)
{
	for (size_t from = 0, to; from < mapping->n_chunks; from = to) {
		unsigned char wanted = is_writable || mapping->has_no_read_only ? RIGHTS_WRITE : RIGHTS_READ;
		CUresult result;

		if (mapping->rights[from] == RIGHTS_UNMAPPED)
			return -EPROTO; /* the daemon owes it */
		for (to = from; to < mapping->n_chunks && mapping->rights[to] != wanted && mapping->rights[to] != RIGHTS_UNMAPPED; to++)
			;
		if (to == from) {
			to++;
			continue;
		}
		result = set_access(mapping, from, to, wanted == RIGHTS_WRITE ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ);
		if (result != CUDA_SUCCESS && wanted == RIGHTS_READ) {
			mapping->has_no_read_only = true; /* not every driver knows it */
			wanted = RIGHTS_WRITE;
			result = set_access(mapping, from, to, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
		}
		if (result != CUDA_SUCCESS)
			return cuda_errno(result);
		memset(mapping->rights + from, wanted, to - from);
	}
	return 0;
}

void cuda_mapping_finish(struct cuda_mapping *mapping)
{
	if (mapping->base == 0)
		return;
	for (size_t i = 0; i < mapping->n_chunks; i++) {
		if (mapping->rights[i] != RIGHTS_UNMAPPED)
			mapping->driver->mem_unmap(address_of(mapping, i), mapping->chunk_bytes);
	}
	mapping->driver->address_free(mapping->base, mapping->n_chunks * mapping->chunk_bytes);
	free(mapping->rights);
	mapping->base = 0;
}
