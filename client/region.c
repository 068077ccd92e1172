/*
 * region.c - regions: device memory mapped back to back, leases on it.
 *
 * A region reserves its range of addresses once (PROT_NONE; on cuda: cuda_mapping.c); chunks are mapped into it as their
 * descriptors arrive, each replacing what was there. Between leases the mappings stay: an acquire of what is still resident is
 * one round trip and no mapping.
 *
 * An end in the order of a stream has a thread of its own (ender), which sleeps until the work is done and then releases the
 * lease. It alone uses the session meanwhile; whatever is called next joins it first.
 */
#include "client/cuda_mapping.h"
#include "client/locate.h"
#include "client/session.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct hmmfs_region {
	struct hmmfs_session *session;
	uint32_t id;
	char *base;          /* of the first chunk */
	size_t offset;       /* of the region's first byte in it */
	size_t mapped_bytes;
	struct cuda_mapping cuda;
	bool is_held, is_revoked;
	int map_error; /* for good: the daemon does not send a descriptor twice */
	struct hmmfs_times times;

	bool is_ending; /* there is an ender; the fields below are its own until it is joined */
	pthread_t ender;
	bool has_thread;
	CUcontext context;
	CUevent event;
	bool is_own_event; /* to be destroyed */
	int end_status;
};

static bool is_on_cuda(const struct hmmfs_region *region)
{
	return region->session->info.is_cuda;
}

static void on_revoked(void *user, uint32_t id)
{
	struct hmmfs_region *region = user;

	if (id == region->id)
		region->is_revoked = true;
}

static void on_chunks(void *user, const struct wire_reply *reply, const struct wire_chunks *chunks, const int *fds)
{
	struct hmmfs_region *region = user;
	size_t chunk_bytes = region->session->info.chunk_bytes;
	int err;
	int protection = PROT_READ | (chunks->is_writable ? PROT_WRITE : 0);

	for (uint32_t i = 0; i < reply->count; i++) {
		uint64_t index = chunks->indexes[i];

		if (index >= region->mapped_bytes / chunk_bytes) {
			region->map_error = -EPROTO;
			return;
		}
		if (is_on_cuda(region)) {
			err = cuda_mapping_put(&region->cuda, index, fds[i]);
			region->map_error = err < 0 ? err : region->map_error;
			continue;
		}
		if (mmap(region->base + index * chunk_bytes, chunk_bytes, protection, MAP_SHARED | MAP_FIXED, fds[i], 0) == MAP_FAILED)
			region->map_error = -errno;
	}
}

static int reserve(struct hmmfs_region *region, off_t off, size_t len)
{
	size_t chunk_bytes = region->session->info.chunk_bytes;
	uint64_t first = (uint64_t)off / chunk_bytes, last = ((uint64_t)off + len - 1) / chunk_bytes;

	region->offset = (size_t)((uint64_t)off % chunk_bytes);
	region->mapped_bytes = (last - first + 1) * chunk_bytes;
	if (is_on_cuda(region))
		return 0; /* by the first begin: it needs a context */
	region->base = mmap(NULL, region->mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return region->base == MAP_FAILED ? -errno : 0;
}

int hmmfs_map_fd(int fd, off_t off, size_t len, struct hmmfs_region **out)
{
	struct wire_request request = {.op = WIRE_REGION_OPEN, .off = (uint64_t)off, .len = len};
	struct wire_reply reply;
	struct hmmfs_region *region;
	int err;

	if (off < 0 || len == 0)
		return -EINVAL;
	region = calloc(1, sizeof(*region));
	if (region == NULL)
		return -ENOMEM;
	region->base = MAP_FAILED;
	err = hmmfs_open_fd(fd, &region->session);
	if (err < 0) {
		free(region);
		return err;
	}
	err = session_ask(region->session, &request, NULL, -1, &reply, NULL, 0, NULL);
	if (err == 0)
		err = reserve(region, off, len);
	if (err < 0) {
		hmmfs_unmap(region);
		return err;
	}
	region->id = reply.region;
	region->session->user = region;
	region->session->on_chunks = on_chunks;
	region->session->on_revoked = on_revoked;
	*out = region;
	return 0;
}

int hmmfs_map(const void *address, size_t len, struct hmmfs_region **region)
{
	off_t off;
	int fd = locate_mapping(address, len, &off);
	int err;

	if (fd < 0)
		return fd;
	err = hmmfs_map_fd(fd, off, len, region);
	close(fd);
	return err;
}

static int release(struct hmmfs_region *region)
{
	struct wire_request request = {.op = WIRE_RELEASE, .region = region->id};
	struct wire_reply reply;
	int err = session_ask(region->session, &request, NULL, -1, &reply, NULL, 0, NULL);

	return err == 0 && region->is_revoked ? -ESTALE : err;
}

/* The daemon counts a lease as abandoned if the socket closes with it: told in time, it can keep the memory as it is. */
void hmmfs_unmap(struct hmmfs_region *region)
{
	if (region == NULL)
		return;
	hmmfs_wait(region);
	if (region->is_held)
		hmmfs_end(region);
	if (region->base != MAP_FAILED)
		munmap(region->base, region->mapped_bytes);
	cuda_mapping_finish(&region->cuda);
	hmmfs_close(region->session);
	free(region);
}

static int prepare(struct hmmfs_region *region)
{
	int err;

	if (region->is_held)
		return -EBUSY;
	if (region->map_error < 0)
		return region->map_error;
	if (region->is_ending) {
		err = hmmfs_wait(region);
		if (err < 0)
			return err;
	}
	return is_on_cuda(region) ? cuda_mapping_prepare(&region->cuda, &region->session->info,
							  region->mapped_bytes / region->session->info.chunk_bytes)
				  : 0;
}

int hmmfs_begin(struct hmmfs_region *region, enum hmmfs_mode mode, unsigned timeout_ms)
{
	struct wire_request request = {.op = WIRE_ACQUIRE, .region = region->id, .timeout_ms = timeout_ms};
	bool is_mapped = region->session->info.can_export || is_on_cuda(region);
	struct wire_reply reply;
	int err = prepare(region);

	if (err < 0)
		return err;
	region->is_revoked = false;
	request.flags = (mode == HMMFS_EXCLUSIVE ? WIRE_EXCLUSIVE : 0) | (is_mapped ? WIRE_MAP : 0);
	err = session_ask(region->session, &request, NULL, -1, &reply, NULL, 0, NULL);
	if (err < 0)
		return err;
	region->is_held = true;
	region->times = (struct hmmfs_times){reply.fill_bytes, reply.acquire_ns, reply.fill_ns};
	if (is_on_cuda(region) && region->map_error == 0)
		region->map_error = cuda_mapping_allow(&region->cuda, mode == HMMFS_EXCLUSIVE);
	if (region->map_error < 0) {
		hmmfs_end(region);
		return region->map_error;
	}
	return 0;
}

int hmmfs_end(struct hmmfs_region *region)
{
	if (!region->is_held)
		return -EINVAL;
	region->is_held = false;
	return release(region);
}

/* ---- in the order of a stream ---- */

static void *ender_main(void *argument)
{
	struct hmmfs_region *region = argument;
	const struct cuda_driver *driver = region->cuda.driver;
	CUresult result = driver->context_set(region->context);

	if (result == CUDA_SUCCESS)
		result = driver->event_synchronize(region->event);
	if (region->is_own_event)
		driver->event_destroy(region->event);
	region->end_status = release(region);
	if (region->end_status == 0)
		region->end_status = cuda_errno(result);
	return NULL;
}

/* Without a thread it is done before the caller goes on. */
static void start_ender(struct hmmfs_region *region)
{
	sigset_t all, before;

	region->is_held = false;
	region->is_ending = true;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	region->has_thread = pthread_create(&region->ender, NULL, ender_main, region) == 0;
	if (!region->has_thread)
		ender_main(region);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static int check_end(struct hmmfs_region *region)
{
	CUcontext context = NULL;

	if (!region->is_held)
		return -EINVAL;
	if (!is_on_cuda(region))
		return -EOPNOTSUPP;
	if (region->cuda.driver->context_get(&context) != CUDA_SUCCESS || context == NULL)
		return -ENXIO;
	region->context = context;
	return 0;
}

int hmmfs_end_stream(struct hmmfs_region *region, void *stream)
{
	const struct cuda_driver *driver = region->cuda.driver;
	CUresult result;
	int err = check_end(region);

	if (err < 0)
		return err;
	result = driver->event_create(&region->event, CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING);
	if (result != CUDA_SUCCESS)
		return cuda_errno(result);
	result = driver->event_record(region->event, stream);
	if (result != CUDA_SUCCESS) {
		driver->event_destroy(region->event);
		return cuda_errno(result);
	}
	region->is_own_event = true;
	start_ender(region);
	return 0;
}

int hmmfs_end_event(struct hmmfs_region *region, void *event)
{
	int err = check_end(region);

	if (err < 0)
		return err;
	region->event = event;
	region->is_own_event = false;
	start_ender(region);
	return 0;
}

int hmmfs_wait(struct hmmfs_region *region)
{
	if (!region->is_ending)
		return -EINVAL;
	if (region->has_thread)
		pthread_join(region->ender, NULL);
	region->is_ending = false;
	return region->end_status;
}

void *hmmfs_data(struct hmmfs_region *region)
{
	return region->is_held && region->session->info.can_export ? region->base + region->offset : NULL;
}

unsigned long long hmmfs_device_pointer(struct hmmfs_region *region)
{
	return region->is_held && is_on_cuda(region) ? region->cuda.base + region->offset : 0;
}

int region_socket(const struct hmmfs_region *region)
{
	return region->session->socket;
}

struct hmmfs_times hmmfs_times(const struct hmmfs_region *region)
{
	return region->times;
}
