/*
 * cache.h - the device page cache, as the rest of the daemon sees it.
 *
 * A cache owns a device (gpu/gpu.h), a pool of bounce buffers and one engine thread. A cache_file is
 * one backing file with, perhaps, chunks on the device. All requests are asynchronous: they are posted
 * to the engine, and complete by a call to done on the engine thread, which must not block.
 * CACHE_WAIT() turns one into a call for threads that may wait (they hold no lock: R4).
 *
 * While a file has nothing on the device ("inactive") its reads and writes need not pass through the
 * engine at all: cache_file_enter_write tells.
 *
 * Errors are negative errno.
 */
#ifndef HMMFS_CACHE_H
#define HMMFS_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct cache;
struct cache_file;
struct gpu_device;
struct gpu_chunk;

enum cache_cpu_access { CACHE_CPU_COPY, CACHE_CPU_MIGRATE, CACHE_CPU_AUTO };

struct cache_config {
	const char *device;      /* as in gpu_config.spec */
	size_t chunk_bytes;      /* power of two, 64 KiB .. 1 GiB; 0: 2 MiB */
	uint64_t capacity_bytes; /* 0: chosen from the device's memory */
	size_t bounce_bytes;     /* 0: 64 MiB */
	size_t max_descriptors;  /* for chunks, where the device has one for each: a capacity that needs more is lowered; 0: no bound */
	enum cache_cpu_access cpu_access;
	unsigned writeback_interval_ms; /* 0: only when asked */
	unsigned read_timeout_ms;       /* a READ that a lease holds up for so long gets a snapshot; 0: never */
	unsigned lease_timeout_ms;      /* a lease in the way of others for so long is revoked; 0: never */
	bool is_background;             /* as in gpu_config */
};

/* What the cache asks of the filesystem. owner is what cache_file_create was given. */
struct cache_callbacks {
	/* Removes the kernel's pages of [off, off+len) after flushing dirty ones as WRITEs (R2). Called
	 * on a notifier thread that holds no lock; may block. -ENOENT: the kernel knows no such inode. */
	int (*invalidate)(void *fs, void *owner, off_t off, off_t len);
	/* Opens the owner's backing file with these flags (O_RDWR, O_RDONLY, O_DIRECT); blocks. The
	 * descriptor becomes the cache's. */
	int (*open_backing)(void *fs, void *owner, int flags);
	/* A worker thread tells that the file has gone idle: nothing of it is on the device any more. */
	void (*file_idle)(void *fs, void *owner);
	/* One line for the log. Any thread. priority as in syslog(3). */
	void (*log)(void *fs, int priority, const char *line);
	/* The name of a file for log lines; static or thread-local storage. */
	const char *(*file_name)(void *fs, void *owner);
};

/* On failure *error is a line for the user, to be freed. */
int cache_create(const struct cache_config *config, const struct cache_callbacks *callbacks, void *fs,
		 struct cache **cache, char **error);
/* Threads start here, after the daemon has forked: cache_create itself starts none but the device's. */
int cache_start(struct cache *cache);
/* Everything must be idle: leases ended, files destroyed after cache_sync_all. */
void cache_destroy(struct cache *cache);

/* ---- requests ---- */

struct cache_op {
	void (*done)(struct cache_op *op, int status);
	void *waiter; /* cache_wait_for's */
};

/* ---- files ---- */

/* Cheap: no descriptor is opened until something of the file goes to the device. */
int cache_file_create(struct cache *cache, void *owner, struct cache_file **file);
/* Drops what is on the device, DIRTY or not (the caller has synced it, or the file is gone for good),
 * and frees the file. Nothing may be in flight on it. Blocks. */
void cache_file_destroy(struct cache_file *file);
/* Whether anything of the file is on the device or under way to it. */
bool cache_file_is_active(struct cache_file *file);

/* Whether nothing of the file was ever on the device or asked of the engine: destroying it blocks on nothing then. */
bool cache_file_is_untouched(struct cache_file *file);
/* Whether requests that change the backing may be under way. */
bool cache_file_is_written(struct cache_file *file);

/* Counts opens for writing: while there are any, pages given to the kernel may be dirty unseen. The
 * release of one is counted after its RELEASE arrived (the kernel has flushed by then). */
void cache_file_add_writer(struct cache_file *file);
void cache_file_remove_writer(struct cache_file *file);

/*
 * READ and WRITE, fast path. True: the file is inactive, the caller reads or writes the backing itself
 * and then calls leave. False: use cache_read/cache_write; leave is not called.
 * A READ needs no bracket: the kernel keeps its pages locked until it is answered, so the invalidation
 * that comes before any lease waits for it. cache_file_is_active is enough.
 */
bool cache_file_enter_write(struct cache_file *file);
void cache_file_leave_write(struct cache_file *file);

/* A READ or WRITE of at most CACHE_IO_MAX bytes, in any chunks, from the kernel. */
struct cache_io {
	struct cache_op op;
	struct cache_file *file;
	off_t off;
	size_t len;
	/* WRITE: the bytes, owned by the caller, valid until done. READ: set by the cache when done is
	 * called with status 0; valid until cache_read_free. */
	void *data;
	size_t done_bytes; /* READ: bytes read (short at end of file). WRITE: bytes written */
	bool is_direct;    /* the request's open file has O_DIRECT: no folio may be locked for it */
	bool must_not_wait; /* READ: a lease that holds it up gives it a snapshot at once */
	bool is_writepage; /* WRITE: the kernel flushes a dirty page (FUSE_WRITE_CACHE) */
	uint64_t held_since_ns; /* the cache's */
	void *internal; /* the cache's */
};
#define CACHE_IO_MAX (1u << 20)

void cache_read(struct cache_io *io);
/* Gives the READ's buffer back; call it once after a successful READ's done, from any thread. */
void cache_read_free(struct cache_io *io);
void cache_write(struct cache_io *io);

/*
 * Anything else that changes the bytes or the size of a backing file: truncate, fallocate, copy_file_range,
 * FICLONE. The cache writes back and quiesces the range, calls apply on a worker thread (it may block; it does
 * the system call on the backing and returns 0 or an errno), then drops the chunks or, under a lease, loads the
 * range again. For a truncation set off to the smaller of old and new size and len to INT64_MAX - off.
 * Use it for active and inactive files alike.
 */
struct cache_mutation {
	struct cache_op op;
	struct cache_file *file;
	off_t off;
	off_t len;
	bool discards; /* the range's old bytes are gone afterwards (truncate, punch, zero): no writeback of
			  chunks that lie wholly inside */
	int (*apply)(struct cache_mutation *mutation);
	void *internal; /* the cache's */
};
void cache_mutate(struct cache_mutation *mutation);

/* fsync(2), or only the writeback of a flush (is_flush: no fsync of the backing). */
struct cache_sync {
	struct cache_op op;
	struct cache_file *file; /* cache_sync */
	struct cache *cache;     /* cache_sync_all */
	bool is_datasync;
	bool is_flush;
	void *internal; /* the cache's */
};
void cache_sync(struct cache_sync *sync);
void cache_sync_all(struct cache_sync *sync); /* every file of sync->cache */

/* Writeback errors, errseq_t fashion: sample when a descriptor is opened, check at fsync and close.
 * check returns 0 or -EIO/-ENOSPC/... once for each error since *sample, and moves *sample on. */
uint32_t cache_file_error_sample(struct cache_file *file);
int cache_file_error_check(struct cache_file *file, uint32_t *sample);
/* The owner of *sample met an error itself, in an fsync(2) of the backing, and is told of it: the others that are open are to
 * be told at their next fsync. */
void cache_file_error_met(struct cache_file *file, int err, uint32_t *sample);

/* The backing was found changed behind our back (size, mtime, ctime): CLEAN chunks without a lease are
 * dropped, DIRTY ones kept and logged. Called at open. */
void cache_file_backing_changed(struct cache_file *file);
/* When the cache itself last wrote to the backing (to tell its own changes from others'): increases with
 * each writeback that completed. */
uint64_t cache_file_write_generation(struct cache_file *file);

/* ---- leases ---- */

enum cache_lease_mode { CACHE_LEASE_SHARED, CACHE_LEASE_EXCLUSIVE };

/*
 * A lease on the chunks that [off, off+len) touches. Status of acquire: 0; -ENOSPC: no blocks for an exclusive one;
 * -ENOMEM: more chunks than the capacity; -ECANCELED: cancelled; -EIO: a fill failed; -EOPNOTSUPP: policy never.
 */
struct cache_lease {
	struct cache_op op; /* of the acquire or release in flight */
	struct cache_file *file;
	uint64_t first_chunk;
	size_t n_chunks;
	enum cache_lease_mode mode;
	/* Set before cache_release if the holder vanished without ending the lease: it may still store to the
	 * memory it mapped, so the chunks of an exclusive lease get other memory. */
	bool is_abandoned;
	/* Called on the engine thread when the lease was taken away. The lease is over then: its chunks have
	 * new memory, the old one is the holder's alone. cache_release must still be called. */
	void (*revoked)(struct cache_lease *lease);
	uint64_t fill_bytes; /* out: loaded for this acquire */
	uint64_t acquire_ns; /* out */
	uint64_t fill_ns;    /* out: the part of it spent waiting for fills */
	void *internal; /* the cache's */
};
/* Blocks only on open(2) of the backing. */
void cache_acquire(struct cache_lease *lease);
/* Ends a pending acquire with -ECANCELED, unless it is done already; the acquire's done is called either way. */
void cache_acquire_cancel(struct cache_lease *lease);
/* Ends a granted lease; done is called when CPU accesses see the device's stores. */
void cache_release(struct cache_lease *lease);

/* The memory behind a granted lease's chunk, valid while the lease is held. generation is unique to this
 * allocation for the life of the cache: a client that mapped the same generation has nothing to do. Any thread. */
struct gpu_chunk *cache_lease_chunk(struct cache_lease *lease, size_t i, uint64_t *generation);
struct gpu_device *cache_device(struct cache *cache);

/* ---- placement ---- */

/* Loads (prefetch) or writes back and frees (evict) the chunks of a range. Evict skips leased chunks and
 * then ends with -EBUSY; prefetch loads what fits in the capacity. */
struct cache_place {
	struct cache_op op;
	struct cache_file *file;
	off_t off;
	off_t len;
	uint64_t moved_bytes; /* out */
	void *internal; /* the cache's */
};
void cache_prefetch(struct cache_place *place);
void cache_evict(struct cache_place *place);

/* ---- what there is ---- */

struct cache_status {
	char device_backend[16];
	char device_name[128];
	uint64_t chunk_bytes, capacity_bytes, resident_bytes, dirty_bytes, leases;
	/* counters since the mount */
	uint64_t fills, fill_bytes, writebacks, writeback_bytes, writeback_errors, migrations_back, evictions,
		invalidations, held_reads, device_read_bytes, device_write_bytes, hits, misses, revocations,
		lost_chunks;
};
void cache_get_status(struct cache *cache, struct cache_status *status);

struct cache_chunk_info {
	uint64_t index;
	char state[8]; /* "FILLING", "CLEAN", "DIRTY"; HOST chunks are not listed unless they have copies tracked */
	uint32_t shared_leases;
	bool has_exclusive_lease;
	bool has_kernel_copies;
	bool has_error;
};
/* Up to max chunks of the file from index first on that have a record; sets *n. Through the engine. */
struct cache_map {
	struct cache_op op;
	struct cache_file *file;
	uint64_t first;
	size_t max;
	struct cache_chunk_info *chunks;
	size_t n; /* out */
};
void cache_map(struct cache_map *map);

/* ---- waiting ---- */

/* Starts `start(request)` with op.done set by this call and returns its status. For threads that may wait:
 * they hold no lock (R4) and are not the engine's. */
#define CACHE_WAIT(start, request) cache_wait_for(&(request)->op, (void (*)(void *))(start), (request))
int cache_wait_for(struct cache_op *op, void (*start)(void *request), void *request);

#endif
