/*
 * hmmfs.h - compute on files where they are: in device memory. The public interface of libhmmfs.
 *
 *     int fd = open("/mnt/model.bin", O_RDWR);
 *     float *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
 *     struct hmmfs_region *region;
 *
 *     hmmfs_map(p, len, &region);
 *     hmmfs_begin(region, HMMFS_EXCLUSIVE, 0);   // resident; CPU accesses to p wait from here on
 *     compute(hmmfs_data(region), len);          // the same bytes, in device memory
 *     hmmfs_end(region);                         // p[0] is what compute() left there
 *     hmmfs_unmap(region);
 *
 * Offsets and lengths are in bytes. Functions return 0 or a negative errno unless they say otherwise. Errors that any of
 * them may return: -ENOTTY (the file is not on an hmmfs mount), -ENOMEM, -ECONNRESET (the daemon is gone; all leases are
 * over).
 *
 * On an NVIDIA GPU (mounts with device=cuda) the memory is in the application's own CUDA context, and its own kernels run on it:
 *
 *     hmmfs_begin(region, HMMFS_EXCLUSIVE, 0);
 *     my_kernel<<<blocks, threads, 0, stream>>>((float *)hmmfs_device_pointer(region), len / 4);
 *     hmmfs_end_stream(region, stream);          // returns at once; the lease ends when the kernel is done
 *
 * The CUDA context has to be current in the calling thread (with the CUDA runtime: after any call of it), on the mount's GPU. The
 * library uses the driver that the application has loaded; it is not linked with it.
 *
 * Threads: a region, or a session, is used by one thread at a time; different ones by any. fork: a child must not use
 * its parent's regions; it may make its own. Memory that hmmfs_data or hmmfs_device_pointer gave is not inherited.
 */
#ifndef HMMFS_H
#define HMMFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmmfs_region;

enum hmmfs_mode {
	HMMFS_SHARED,   /* to read, beside other readers */
	HMMFS_EXCLUSIVE /* to read and write; needs a file that is open for writing */
};

/*
 * A region of the file behind an address: [address, address+len) must lie in one mapping of one file. The library finds
 * the file in /proc/self/maps and a descriptor of it in /proc/self/fd, one that is open for writing if there is; if the
 * application has closed its descriptors, it opens the path again. The mapping itself is left alone and stays valid.
 * *region is the caller's, to be given to hmmfs_unmap.
 * -EFAULT: no mapping there, or of no file; -ENOENT: the file was unlinked and no descriptor is left; -EINVAL: len is 0, or
 * the range reaches past the end of file; -ENOMEM: the range is larger than the device's capacity.
 */
int hmmfs_map(const void *address, size_t len, struct hmmfs_region **region);

/* The same for a range of an open file. fd is not kept: it may be closed afterwards. */
int hmmfs_map_fd(int fd, off_t off, size_t len, struct hmmfs_region **region);

/* Ends the lease, if one is held, and frees the region. NULL is allowed. */
void hmmfs_unmap(struct hmmfs_region *region);

/*
 * Begins access: returns when every byte of the region is in device memory and, for HMMFS_EXCLUSIVE, no CPU access to it is
 * under way; those that come later wait for hmmfs_end. Stores that the CPU made before, through write(2) or a shared
 * mapping, are seen. Waits at most timeout_ms milliseconds (0: as long as it takes).
 * -EACCES: exclusive, but the file is open for reading only; -ENOSPC: no blocks on the disk for what may be written (nothing
 * was changed); -ETIMEDOUT; -EOPNOTSUPP: the file's policy (user.hmmfs.migrate) is never; -EIO: the disk can't be read;
 * -ERANGE: the file has been truncated to less; -EBUSY: access has begun already, or others may store to a
 * file that the kernel passes to the backing (smaller than migrate_min, see hmmfs(1)). On cuda: -ENXIO: the calling thread has no
 * current CUDA context; -EXDEV: it is one of another GPU; -EPERM: of a file that is open for reading only, memory is given to the
 * mount's owner only (see hmmfs_device_pointer). What went wrong in an earlier hmmfs_end_stream that nobody has waited for is
 * returned here, and nothing has begun.
 */
int hmmfs_begin(struct hmmfs_region *region, enum hmmfs_mode mode, unsigned timeout_ms);

/* Ends access. When it returns, every CPU access sees what was stored to the region: on cuda, all work on it must be complete
 * before the call (or see hmmfs_end_stream). -ESTALE: the lease had been revoked
 * (others waited longer than the mount's lease_timeout); stores made after that are lost. -EINVAL: none was held. */
int hmmfs_end(struct hmmfs_region *region);

/* The region's first byte in device memory, where the CPU can address that (devices host, and opencl on a CPU); NULL where it
 * can't, and outside of begin and end. Read-only memory under a shared lease. The address does not change while the region
 * lives. */
void *hmmfs_data(struct hmmfs_region *region);

/* The same as a CUdeviceptr, on cuda; 0 elsewhere, and outside of begin and end. It is valid in every context of the mount's GPU.
 * Under a shared lease the memory is mapped read-only where the driver has read-only mappings (a kernel that stores to it is
 * ended with CUDA_ERROR_ILLEGAL_ADDRESS). Where it hasn't, nothing keeps a kernel from storing: what it stores may or may not be
 * seen by others, and is never written to the disk by the lease. CUDA's handles know no read-only at all: so a process of another
 * user than the mount's owner gets none of a file that it has open for reading only.
 * Memory that is mapped stays mapped until it is replaced by a later hmmfs_begin or the region is unmapped, and so stays in use on
 * the GPU, even when the file has left it. */
unsigned long long hmmfs_device_pointer(struct hmmfs_region *region);

/*
 * Ends access when the work is done that the stream (a CUstream or cudaStream_t; NULL: the default stream) has been given so far, or
 * that the event (CUevent, cudaEvent_t) was recorded behind. Both return at once; until hmmfs_wait, hmmfs_begin or hmmfs_unmap,
 * each of which waits for the end, the region must not be used by work that is queued later, and the event must not be
 * destroyed or recorded again. cuda only: -EOPNOTSUPP elsewhere. -EINVAL: none was held; -ENXIO: no current context; -EIO: the
 * driver refuses (the context is poisoned); the lease is held on then.
 */
int hmmfs_end_stream(struct hmmfs_region *region, void *stream);
int hmmfs_end_event(struct hmmfs_region *region, void *event);
/* Waits for such an end. -ESTALE: as hmmfs_end; -EIO: the work failed; the lease has ended all the same. -EINVAL: there is none. */
int hmmfs_wait(struct hmmfs_region *region);

/* What the last hmmfs_begin did. */
struct hmmfs_times {
	uint64_t fill_bytes; /* loaded from the disk */
	uint64_t acquire_ns; /* all of it, in the daemon */
	uint64_t fill_ns;    /* the part spent on loading */
};
struct hmmfs_times hmmfs_times(const struct hmmfs_region *region);

/* ---- files and mounts, without a region ---- */

struct hmmfs_info {
	uint64_t chunk_bytes, capacity_bytes;
	uint64_t file_bytes; /* when the session was made */
	bool can_export;     /* hmmfs_data works */
	bool can_run;        /* hmmfs_run works */
	bool is_writable;
	uid_t owner;         /* of the mount */
	pid_t daemon;
	char backend[16];
	char device_name[128];
	bool is_cuda;        /* hmmfs_device_pointer works */
	uint8_t device_uuid[16]; /* is_cuda: of the GPU, as cuDeviceGetUuid gives it */
};

struct hmmfs_session;

/* A session for an open file, or for a directory of the mount. *session is the caller's. */
int hmmfs_open_fd(int fd, struct hmmfs_session **session);
void hmmfs_close(struct hmmfs_session *session);
const struct hmmfs_info *hmmfs_info(const struct hmmfs_session *session);
/* For poll(2): readable or hung up when the daemon has something to say or is gone. Owned by the session. */
int hmmfs_session_fd(const struct hmmfs_session *session);

/* Loads [off, off+len) into device memory, as much as fits; *moved (may be NULL) is set to the bytes that are there. */
int hmmfs_prefetch(struct hmmfs_session *session, off_t off, off_t len, uint64_t *moved);
/* Writes back and frees device memory. -EBUSY: a part is in use and stays. */
int hmmfs_evict(struct hmmfs_session *session, off_t off, off_t len, uint64_t *moved);
/* Writes the file (on a directory: every file of the mount) back and to the disk, like fsync. */
int hmmfs_sync(struct hmmfs_session *session);

struct hmmfs_status {
	uint64_t chunk_bytes, capacity_bytes, resident_bytes, dirty_bytes, leases;
	uint64_t passthrough_opens; /* open files that the kernel passes to the backing by itself */
	uint64_t inodes, inode_descriptors; /* files that the kernel knows, and how many of them have a descriptor of the daemon's */
	/* counters since the mount */
	uint64_t fills, fill_bytes, writebacks, writeback_bytes, writeback_errors, migrations_back, evictions, invalidations,
		held_reads, device_read_bytes, device_write_bytes, hits, misses, revocations, lost_chunks;
	char transport[8]; /* how requests come: "uring", "dev" */
	char backend[16];
	char device_name[128];
};
int hmmfs_get_status(struct hmmfs_session *session, struct hmmfs_status *status);

struct hmmfs_chunk {
	uint64_t index;
	char state[8]; /* "FILLING", "CLEAN", "DIRTY", or "HOST" with something under way */
	uint32_t shared_leases;
	bool has_exclusive_lease, has_kernel_copies, has_error;
};
/* Up to max chunks from index first on of which something is known; *n is set. */
int hmmfs_get_chunks(struct hmmfs_session *session, uint64_t first, struct hmmfs_chunk *chunks, size_t max, size_t *n);

/* ---- kernels run by the daemon's device (devices that can_run) ---- */

enum hmmfs_kernel { HMMFS_SUM, HMMFS_HISTOGRAM, HMMFS_COUNT, HMMFS_XOR, HMMFS_FILL, HMMFS_SOURCE };

struct hmmfs_arg {
	bool is_out;        /* a zeroed buffer of out_bytes, returned in the result; else a scalar of 1 to 8 bytes */
	uint32_t bytes;
	uint8_t scalar[8];
	uint64_t out_bytes;
};

struct hmmfs_run {
	enum hmmfs_kernel kernel;
	bool writes;        /* HMMFS_SOURCE: stores to the data are kept */
	uint8_t byte;       /* HMMFS_XOR, HMMFS_FILL */
	const uint8_t *pattern; /* HMMFS_COUNT: 1 to 256 bytes */
	size_t pattern_bytes;
	const char *source; /* HMMFS_SOURCE: OpenCL C, at most 1 MiB */
	const char *entry;
	const struct hmmfs_arg *args; /* at most 16 */
	size_t n_args;
	uint64_t items;     /* work items; 0: one a byte */
	unsigned timeout_ms;
	/* out; result and log are to be freed */
	void *result;
	size_t result_bytes;
	char *log;          /* the compiler's, or NULL */
	struct hmmfs_times times;
	uint64_t kernel_ns, release_ns;
};
/* Runs a kernel on [off, off+len) under a lease of its own. -EPERM: a kernel of one's own on a mount of another user;
 * -ENOEXEC: it does not compile (log tells); -ETIMEDOUT; -EFAULT: it crashed. */
int hmmfs_run(struct hmmfs_session *session, off_t off, uint64_t len, struct hmmfs_run *run);

#ifdef __cplusplus
}
#endif

#endif
