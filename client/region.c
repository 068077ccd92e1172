/*
 * region.c - regions: device memory mapped back to back, leases on it.
 *
 * A region reserves its range of addresses once (PROT_NONE); chunks are mapped into it as their descriptors arrive, each
 * replacing what was there. Between leases the mappings stay: an acquire of what is still resident is one round trip and no
 * mapping.
 */
#include "client/locate.h"
#include "client/session.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct hmmfs_region {
	struct hmmfs_session *session;
	uint32_t id;
	char *base;          /* of the first chunk */
	size_t offset;       /* of the region's first byte in it */
	size_t mapped_bytes;
	bool is_held, is_revoked;
	int map_error;
	struct hmmfs_times times;
};

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
	int protection = PROT_READ | (chunks->is_writable ? PROT_WRITE : 0);

	for (uint32_t i = 0; i < reply->count; i++) {
		uint64_t index = chunks->indexes[i];

		if (index >= region->mapped_bytes / chunk_bytes) {
			region->map_error = -EPROTO;
			return;
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

/* The daemon counts a lease as abandoned if the socket closes with it: told in time, it can keep the memory as it is. */
void hmmfs_unmap(struct hmmfs_region *region)
{
	if (region == NULL)
		return;
	if (region->is_held)
		hmmfs_end(region);
	if (region->base != MAP_FAILED)
		munmap(region->base, region->mapped_bytes);
	hmmfs_close(region->session);
	free(region);
}

int hmmfs_begin(struct hmmfs_region *region, enum hmmfs_mode mode, unsigned timeout_ms)
{
	struct wire_request request = {.op = WIRE_ACQUIRE, .region = region->id, .timeout_ms = timeout_ms};
	struct wire_reply reply;
	int err;

	if (region->is_held)
		return -EBUSY;
	region->is_revoked = false;
	region->map_error = 0;
	request.flags = (mode == HMMFS_EXCLUSIVE ? WIRE_EXCLUSIVE : 0) |
			(region->session->info.can_export ? WIRE_MAP : 0);
	err = session_ask(region->session, &request, NULL, -1, &reply, NULL, 0, NULL);
	if (err < 0)
		return err;
	region->is_held = true;
	region->times = (struct hmmfs_times){reply.fill_bytes, reply.acquire_ns, reply.fill_ns};
	if (region->map_error < 0) {
		hmmfs_end(region);
		return region->map_error;
	}
	return 0;
}

int hmmfs_end(struct hmmfs_region *region)
{
	struct wire_request request = {.op = WIRE_RELEASE, .region = region->id};
	struct wire_reply reply;
	int err;

	if (!region->is_held)
		return -EINVAL;
	region->is_held = false;
	err = session_ask(region->session, &request, NULL, -1, &reply, NULL, 0, NULL);
	return err == 0 && region->is_revoked ? -ESTALE : err;
}

void *hmmfs_data(struct hmmfs_region *region)
{
	return region->is_held && region->session->info.can_export ? region->base + region->offset : NULL;
}

struct hmmfs_times hmmfs_times(const struct hmmfs_region *region)
{
	return region->times;
}
