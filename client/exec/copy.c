/*
 * copy.c - from the device cache to where the program wants it.
 *
 * A copy of pageable memory, which a file's mapping is, waits for its stream and has read its source when it returns, also in its
 * asynchronous form. So this one may wait until it is done. It does not where that is not so: while the stream is being captured
 * into a graph, and for memory that the program has registered with the driver.
 */
#include "client/exec/exec.h"

#include "client/hmmfs.h"
#include "client/locate.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

/* How long another's exclusive lease is waited for, before the bytes are read as the program would have. */
enum { TIMEOUT_MS = 1000, POINTER_MEMORY_TYPE = 2 };

static struct {
	CUresult (*is_capturing[2])(CUstream stream, int *status); /* of the legacy and of the threads' own default streams */
	CUresult (*copy[2])(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream);
	CUresult (*synchronize[2])(CUstream stream);
	CUresult (*pointer_attribute)(void *value, int attribute, CUdeviceptr pointer);
} driver;
static bool has_driver;
static pthread_once_t driver_once = PTHREAD_ONCE_INIT;

static void find_driver(void)
{
	static const char *const names[] = {"cuStreamIsCapturing", "cuStreamIsCapturing_ptsz", "cuMemcpyDtoDAsync_v2",
					    "cuMemcpyDtoDAsync_v2_ptsz", "cuStreamSynchronize", "cuStreamSynchronize_ptsz",
					    "cuPointerGetAttribute"};
	void **entries = (void **)&driver;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		entries[i] = exec_driver_symbol(names[i]);
	has_driver = driver.is_capturing[0] != NULL && driver.copy[0] != NULL && driver.synchronize[0] != NULL &&
		     driver.pointer_attribute != NULL;
}

static bool is_fit(const void *src, CUstream stream, bool is_per_thread)
{
	unsigned type;
	int status = 0;

	pthread_once(&driver_once, find_driver);
	return has_driver && driver.copy[is_per_thread] != NULL && driver.is_capturing[is_per_thread] != NULL &&
	       driver.synchronize[is_per_thread] != NULL &&
	       driver.pointer_attribute(&type, POINTER_MEMORY_TYPE, (CUdeviceptr)(uintptr_t)src) != CUDA_SUCCESS &&
	       driver.is_capturing[is_per_thread](stream, &status) == CUDA_SUCCESS && status == 0;
}

struct target {
	CUdeviceptr address;
	CUstream stream;
	bool is_per_thread;
};

/* Under a lease, if there is one to be had; the region is kept, or freed. */
static bool copy_region(struct hmmfs_region *region, const struct exec_range *range, uint64_t limit, const struct target *target)
{
	bool is_done = hmmfs_begin(region, HMMFS_SHARED, TIMEOUT_MS) == 0 && hmmfs_device_pointer(region) != 0;
	bool is_over = true;

	if (is_done) {
		is_done = driver.copy[target->is_per_thread](target->address, hmmfs_device_pointer(region), range->bytes,
							     target->stream) == CUDA_SUCCESS;
		is_over = driver.synchronize[target->is_per_thread](target->stream) == CUDA_SUCCESS;
		is_done &= is_over;
		is_done &= hmmfs_end(region) == 0; /* revoked: the CPU has the say about the bytes again */
	}
	if (is_done && range->bytes <= limit)
		exec_keep_put(range, region, limit);
	else if (is_over)
		hmmfs_unmap(region);
	/* else memory that a copy may still read stays mapped for good: to unmap it would poison the program's context. */
	return is_done;
}

/* Half of the cache: a copy that is larger is made in parts, so that the next can be loaded; these are not kept. */
static uint64_t part_bytes(int fd)
{
	struct hmmfs_session *session;
	uint64_t bytes = 0;

	if (hmmfs_open_fd(fd, &session) < 0)
		return 0;
	if (hmmfs_info(session)->is_cuda)
		bytes = hmmfs_info(session)->capacity_bytes / 2;
	hmmfs_close(session);
	return bytes;
}

static bool copy_file(int fd, const struct exec_range *range, const struct target *target)
{
	uint64_t part = part_bytes(fd), limit = range->bytes <= part ? part : 0;

	for (size_t done = 0; done < range->bytes;) {
		size_t len = range->bytes - done < part ? range->bytes - done : part;
		struct exec_range now = {range->address + done, len, range->dev, range->inode, range->offset + done};
		struct target to = {target->address + done, target->stream, target->is_per_thread};
		struct hmmfs_region *region;

		if (len == 0 || hmmfs_map_fd(fd, (off_t)now.offset, len, &region) < 0 || !copy_region(region, &now, limit, &to))
			return false;
		done += len;
	}
	return true;
}

static bool copy_range(const struct exec_range *range, const struct target *target)
{
	uint64_t limit;
	struct hmmfs_region *region = exec_keep_take(range, &limit);
	bool is_done = false;
	off_t off;
	int fd;

	if (region != NULL)
		return copy_region(region, range, limit, target);
	fd = locate_mapping((const void *)range->address, range->bytes, &off);
	if (fd >= 0) {
		is_done = (uint64_t)off == range->offset && copy_file(fd, range, target);
		close(fd);
	}
	return is_done;
}

bool exec_copy(CUdeviceptr dst, const void *src, size_t bytes, CUstream stream, bool is_per_thread)
{
	struct target target = {dst, stream, is_per_thread};
	struct exec_range range;
	int before = errno;
	bool is_done = exec_find(src, bytes, &range) && is_fit(src, stream, is_per_thread) && copy_range(&range, &target);

	errno = before;
	return is_done;
}
