/*
 * internal.h - the cache's own structures. Private to cache/.
 *
 * All of it belongs to the engine thread, and so has no lock, but for the fields that say otherwise:
 *
 *   cache->post_lock    guards the list of posted tasks
 *   file->gate          guards the file's counters of requests outside of the engine, and its descriptors
 *   cache->files_lock   guards the list of files
 *
 * They are leaves: nothing is called, and nothing waited for, with one held.
 */
#ifndef HMMFS_CACHE_INTERNAL_H
#define HMMFS_CACHE_INTERNAL_H

#include "cache/bounce.h"
#include "cache/cache.h"
#include "cache/coherence.h"
#include "cache/ring.h"
#include "cache/task.h"
#include "cache/workers.h"
#include "gpu/gpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <uthash.h>

/* A chunk's record; exists while there is something to know about it. */
struct chunk {
	struct coherence coherence; /* changed by chunk_send alone */
	bool is_referenced;         /* second chance */
	bool is_reap_listed;
	bool is_stored;        /* by the mutation that froze it */
	bool needs_sync;       /* counted in file->sync.outstanding */
	bool needs_snapshot;   /* for that, one that starts from here on */
	int logged_error;      /* of its writebacks since the last that succeeded: one line for each cause */
	int fill_error;        /* of the last fill, told to the acquires that waited for it */
	uint64_t cpu_bytes;    /* read by the CPU since the device last used it: policy auto */
	uint64_t index;
	struct cache_file *file;
	struct gpu_chunk *memory; /* NULL: HOST */
	uint64_t generation;      /* of memory */
	struct task_list parked;
	struct chunk *prev, *next;           /* cache->resident, in clock order */
	struct chunk *reap_next;
	UT_hash_handle hh;
};

struct backing {
	struct ring_file buffered; /* always there when open */
	struct ring_file direct;   /* fd -1: the filesystem has no O_DIRECT */
	uint32_t direct_align;     /* of offset, length and memory */
	/* Descriptors replaced by writable ones, or given up: a worker may still be using their numbers. Closed with the
	 * others. */
	struct ring_file retired[4];
	unsigned n_retired;
};

struct invalidation;
struct lease;
struct read_request;
struct write_request;
struct mutation;

struct sync_batch {
	struct cache_sync *running; /* list through internal */
	struct cache_sync *waiting;
	unsigned outstanding; /* chunks that have needs_sync, and one for the batch itself while it starts */
	bool is_running;
	int error;
	struct ring_op fsync_op;
};

struct cache_file {
	struct cache *cache;
	void *owner;
	struct cache_file *prev, *next; /* cache->files; files_lock */

	pthread_mutex_t gate;
	unsigned direct_writes; /* gate: WRITEs that the caller does on the backing itself */
	unsigned queued;        /* gate: requests on their way to or in the engine */
	bool is_drain_wanted;   /* gate: tell the engine when direct_writes comes to 0 */
	bool was_counted_in;    /* gate: the engine has known it: only it can say when nothing is left under way */
	int fd_buffered, fd_direct; /* gate: opened, not yet taken over by the engine; -1: none */
	bool has_fds;               /* gate: descriptors are open, here or in backing */
	bool has_writable_fds;      /* gate */
	uint32_t opened_align;      /* gate */
	enum { IDLE_NONE, IDLE_QUEUED, IDLE_TELLING } idle_state; /* gate */
	pthread_cond_t idle_told;   /* idle_state became IDLE_NONE */
	struct job idle_job;

	atomic_bool is_active; /* read without a lock by the fast path; changed by the engine under gate */
	atomic_uint writers;   /* opens for writing. Counted up before the open is answered: a page may be dirty only after */
	atomic_uint error_seq; /* errseq_t fashion: moves on with each failed writeback */
	atomic_int error;      /* the newest one */
	atomic_ullong write_generation;
	atomic_bool is_sparse; /* may have holes: look before reading */

	/* engine */
	_Atomic(int64_t) size; /* of the backing; written by the engine and, while no request is in it, at open */
	struct backing backing;
	struct chunk *chunks; /* hash by index */
	struct lease *leases; /* pending and granted, in the order they came */
	struct task *destroy_task;   /* of cache_file_destroy, once everything else is done */
	struct read_request *held_reads;
	struct write_request *writes;    /* in the engine */
	bool is_to_be_measured;          /* when there are none */
	struct task_list write_waiters;  /* READs of pages that one of them changes */
	struct invalidation *invalidations;
	bool is_unsettled;         /* a write(2) may have lost pages to an invalidation before it sent its WRITE (write.c) */
	off_t reread, reread_end;  /* what was READ since */
	struct mutation *mutations; /* waiting; the first one is under way if is_mutating */
	bool is_mutating;
	unsigned n_mutations; /* that have changed the backing so far */
	bool is_draining; /* active, but WRITEs outside are under way still: size is not known */
	struct task_list drain_waiters;
	struct sync_batch sync;
	struct task drained_task;
	bool is_drained_posted; /* gate */
};

/* A device operation whose end the engine is told of. */
struct device_op {
	struct gpu_op op;
	struct task task;
	struct cache *cache;
	int status;
	void (*done)(struct device_op *op, int status); /* engine */
};

struct cache {
	struct cache_config config;
	const struct cache_callbacks *callbacks;
	void *fs;
	struct gpu_device *dev;
	size_t chunk_bytes;
	unsigned chunk_shift;
	size_t capacity_chunks, wanted_chunks; /* engine: capacity.c */
	uint64_t reserve_bytes;                /* 0: capacity was given, or is not measured */
	struct bounce_pool bounce;
	struct ring ring;
	struct workers notifiers; /* R2: the only threads that call callbacks->invalidate */
	struct workers workers;
	struct workers tellers; /* call callbacks->file_idle, whose owner may destroy a file and so wait for jobs of the workers */

	pthread_t engine;
	bool has_engine;
	bool is_stopping; /* engine */
	pthread_mutex_t post_lock;
	struct task_list posted;  /* post_lock */
	bool is_engine_awake;     /* post_lock: it will look at the list before it sleeps */
	struct task_list ready;   /* engine */
	struct chunk *reap;       /* engine: records that may have become idle */
	struct task stop_task, lost_task;
	atomic_bool is_lost_posted;

	pthread_mutex_t files_lock;
	struct cache_file *files;

	struct chunk *resident;   /* engine: clock order, the head is looked at next */
	size_t n_resident;        /* chunks with memory */
	size_t n_dirty;           /* chunks that are DIRTY */
	size_t n_pinned;          /* chunks with pins > 0 */
	size_t n_leaving;         /* chunks with is_leaving */
	size_t n_stuck;           /* of the last look for a victim: chunks that can't be written back */
	int stuck_error;
	struct task_list memory_waiters;
	struct task_list admission; /* acquires that wait for room */
	struct read_request *overdue; /* all held READs, of all files */
	uint64_t next_generation;
	uint64_t next_writeback_ns;
	uint64_t next_lease_check_ns;
	uint64_t next_lost_check_ns;
	uint64_t next_measure_ns;
	uint64_t free_bytes; /* of the device, when measured last */
	bool is_measuring;
	struct device_op measure_op;
	uint64_t next_hold_ns; /* when a held READ may be overdue; UINT64_MAX: none */
	uint64_t n_leases;
	struct cache_status stats; /* engine: the counters */
};

/* ---- engine.c ---- */
uint64_t now_ns(void);
void engine_post(struct cache *cache, struct task *task);             /* any thread */
void engine_ready(struct cache *cache, struct task *task);            /* engine */
extern _Thread_local bool engine_is_current; /* this is its thread */
int engine_start(struct cache *cache);
void engine_stop(struct cache *cache);
__attribute__((format(printf, 3, 4))) void cache_log(struct cache *cache, int priority, const char *format, ...);
const char *file_name(struct cache_file *file);

/* ---- capacity.c ---- */
uint64_t capacity_reserve(const struct gpu_info *info);
uint64_t capacity_auto(const struct gpu_info *info);
/* The device has no memory for one chunk more than there are. False: not for a single one. */
bool capacity_exhausted(struct cache *cache);
/* Has free memory measured if it is time. When to come again; UINT64_MAX: when something has changed. */
uint64_t capacity_check(struct cache *cache, uint64_t now);

struct gpu_op *device_op_init(struct device_op *op, struct cache *cache,
			      void (*done)(struct device_op *op, int status));

/* ---- chunk.c ---- */
struct chunk *chunk_find(struct cache_file *file, uint64_t index);
/* Finds or makes the record. NULL: no memory. */
struct chunk *chunk_get(struct cache_file *file, uint64_t index);
/* The only way to change a chunk's coherence. Carries out DO_DROP and DO_SNAPSHOT itself, resumes parked requests,
 * keeps the counters; the other actions are the caller's to carry out. */
enum coherence_action chunk_send(struct chunk *chunk, enum coherence_event event);
enum coherence_action chunk_send_in(struct chunk *chunk, enum coherence_event event,
				    const struct coherence_context *context);
void chunk_park(struct chunk *chunk, struct task *task);
void chunks_reap(struct cache *cache);
static inline off_t chunk_offset(const struct chunk *chunk);
static inline off_t chunk_end(const struct chunk *chunk);

/* ---- file.c ---- */
/* A request is on its way to the engine. gate held. */
static inline void file_count_in_locked(struct cache_file *file)
{
	file->queued++;
	file->was_counted_in = true;
}
/* Opens the backing if need be and counts a request in; any thread that may block on open(2). */
int file_enter(struct cache_file *file, bool needs_writable);
/* The request is done. Engine. */
void file_leave(struct cache_file *file);
/* Takes over descriptors that file_enter opened, and sends WRITEs through the engine from now on. False: WRITEs outside of
 * it are still under way; task is resumed when they are done. Engine. */
bool file_activate(struct cache_file *file, struct task *task);
/* For READs and WRITEs: descriptors are taken over and size is right. False: the task is parked until it is. Engine. */
bool file_is_ready(struct cache_file *file, struct task *task);
void file_take_descriptors(struct cache_file *file);
/* Reads size and sparseness from the backing. Engine. */
void file_measure(struct cache_file *file);
/* The filesystem refuses O_DIRECT after all. Engine. */
void file_give_up_direct(struct cache_file *file);
uint32_t file_record_error(struct cache_file *file, int err); /* how many came before */
void file_settle(struct cache_file *file, unsigned queued);

/* ---- transfer.c: one piece between backing and device ---- */
/* Loads the chunk's bytes of [from, to) into the device: zeros for holes and past the end of file. */
void chunk_load(struct chunk *chunk, off_t from, off_t to, void (*done)(struct chunk *chunk, void *user, int status),
		void *user);
/* Writes a snapshot of the chunk, up to the end of file, to the backing. */
void chunk_store(struct chunk *chunk, void (*done)(struct chunk *chunk, void *user, int status), void *user);

/* ---- fill.c, evict.c, writeback.c ---- */
/* Gives the chunk memory, evicting another if need be. 0; -EAGAIN: try again when memory_waiters are resumed (park
 * there); -ENOBUFS: more is pinned than the capacity is by now: give up the pins; other errors are final. */
int chunk_take_memory(struct chunk *chunk);
void chunk_free_memory(struct chunk *chunk);
/* True: a chunk has left, or is leaving (then *is_leaving). */
bool memory_evict_one(struct cache *cache, bool *is_leaving);
void memory_resume_waiters(struct cache *cache);
/* For a chunk that WANT_RESIDENT answered DO_FILL. */
void chunk_fill(struct chunk *chunk);
/* For a chunk that was answered DO_SNAPSHOT (by chunk_send). */
void chunk_writeback(struct chunk *chunk);
void writeback_timer(struct cache *cache, uint64_t now);
/* The chunk's snapshot ended, or it became clean otherwise. */
/* Starts a waiting batch, if none runs and no mutation does. */
void sync_kick(struct cache_file *file);
void sync_chunk_settled(struct chunk *chunk, int status);

/* ---- reserve.c ---- */
/* fallocate of [off, off+len) in the backing. done(user, status): 0, also where the filesystem can't, or -ENOSPC, ... */
void backing_reserve(struct cache_file *file, off_t off, off_t len, bool extends,
		     void (*done)(struct cache_file *file, void *user, int status), void *user);

/* ---- invalidate.c ---- */
/* Removes the kernel copies of chunks that answered DO_INVALIDATE, sparing the pages of held READs (R2), then sends
 * EVENT_INVALIDATED to each; those that answer DO_INVALIDATE again are done again. Then runs then. chunks is taken
 * over. round: how often it was done for the same purpose before (R3). */
struct invalidation_list {
	struct chunk **chunks;
	size_t n, max;
};
int invalidation_add(struct invalidation_list *list, struct chunk *chunk);
void invalidation_start(struct cache_file *file, struct invalidation_list *list, unsigned round, struct task *then);
/* Removes pages of a range that may be old, whatever the table knows of them: as if the kernel had run out of memory. */
void invalidation_start_again(struct cache_file *file, off_t off, off_t end);
/* The WRITE of a write(2) is about to be answered, and the next one may fill its pages. */
void invalidations_outlive(struct cache_file *file, const struct write_request *request);

/* ---- write.c ---- */
/* The WRITE of a write(2) that is under way, or NULL. There is never more than one: the kernel holds the inode's lock. */
struct write_request *write_of_call(struct cache_file *file);
/* Whether a WRITE under way changes bytes of the range. */
bool write_overlaps(struct cache_file *file, off_t off, off_t end);

/* ---- read.c ---- */
/* Whether an invalidation in flight may be waiting for the READ's pages. */
bool invalidation_may_block_on(struct cache_file *file, off_t off, size_t len, uint64_t *since_ns, unsigned *round);
void reads_check_overdue(struct cache *cache, uint64_t now);
/* Answers held O_DIRECT READs of the range at once: they can't be told from page faults, whose pages are locked. */
void reads_force_direct(struct cache_file *file, off_t off, off_t end);
/* Cuts the ranges of held READs out of [off, end): calls each for what is left. */
void reads_cut_out(struct cache_file *file, off_t off, off_t end, void (*each)(void *user, off_t off, off_t end),
		   void *user);

/* ---- cache.c ---- */
/* The device lost the chunk's memory: drops it, and reports what was DIRTY. False: something is still under way on it. */
bool chunk_lose(struct chunk *chunk);
void lost_check(struct cache *cache);

/* ---- lease.c, lease_end.c ---- */
void leases_check_timeouts(struct cache *cache, uint64_t now);
void admission_check(struct cache *cache);

/* ---- mutate.c ---- */
/* Starts the first waiting mutation, if none runs and no sync batch does. */
void mutation_kick(struct cache_file *file);
/* Gives the chunks other device memory with the same bytes, then calls done. */
void mutation_replace_memory(struct cache_file *file, uint64_t first, size_t n,
			     void (*done)(struct cache_file *file, void *user), void *user);
bool mutation_covers(struct cache_file *file, uint64_t index);

static inline off_t chunk_offset(const struct chunk *chunk)
{
	return (off_t)(chunk->index << chunk->file->cache->chunk_shift);
}

static inline off_t chunk_end(const struct chunk *chunk)
{
	return chunk_offset(chunk) + (off_t)chunk->file->cache->chunk_bytes;
}

static inline off_t min_off(off_t a, off_t b)
{
	return a < b ? a : b;
}

static inline off_t max_off(off_t a, off_t b)
{
	return a > b ? a : b;
}

#endif
