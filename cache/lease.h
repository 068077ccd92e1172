/*
 * lease.h - a lease and the stages that it goes through. What lease.c (acquires) and lease_end.c (what comes after) have in common.
 *
 * An acquire goes through these stages, each left only when it holds for the whole region:
 *
 *   QUEUED     behind earlier leases of the file that overlap and conflict (first come, first served, so that nobody
 *              starves, and two clients can't each hold half of what both want)
 *   ADMISSION  until all its chunks fit into the capacity together with those that others hold: nobody who has been
 *              admitted waits for memory that a client holds. Back to it from LOADING if the capacity shrank meanwhile
 *   RESERVING  exclusive: blocks in the backing for every byte (this is page_mkwrite; ENOSPC is told here)
 *   LOADING    every chunk is made resident; READs and WRITEs of the CPU go on meanwhile
 *   CLAIMING   kernel copies are removed where the table asks for it, again if READs had to be answered meanwhile (R3)
 *   GRANTED    until cache_release, or revoked
 *   ENDING     kernel copies that came to be under an exclusive lease are removed, then CPU accesses go on (R5)
 *
 * Loading comes before claiming so that READs are held for the invalidation only, not for the disk; pages that the
 * invalidation makes the kernel flush are stored into the device copies.
 *
 * The engine's thread alone looks at a lease, but for what is said to be read by the holder's.
 */
#ifndef HMMFS_LEASE_H
#define HMMFS_LEASE_H

#include "cache/internal.h"

enum lease_stage {
	LEASE_QUEUED,
	LEASE_ADMISSION,
	LEASE_RESERVING,
	LEASE_LOADING,
	LEASE_CLAIMING,
	LEASE_GRANTED,
	LEASE_REPLACING, /* its memory is being replaced: it was revoked, or its holder vanished */
	LEASE_ENDING,
	LEASE_OVER, /* revoked and ended; waits for cache_release */
};

struct lease {
	struct task task;
	struct lease *prev, *next; /* file->leases */
	struct cache_lease *public;
	struct cache_file *file;
	enum lease_stage stage;
	size_t n_loaded;   /* chunks before this one are resident */
	bool *is_prepared; /* shared: this chunk's kernel copies were dealt with */
	struct chunk **chunks; /* valid while is_pinned: records of pinned chunks stay */
	struct lease_memory {
		struct gpu_chunk *chunk;
		uint64_t generation;
		bool is_own; /* the chunk has other memory since: this is the lease's to destroy */
		bool is_shared_with_holder; /* no other could be had: the chunk is to leave the device instead */
	} *memory; /* as granted; read by the holder's thread until cache_release */
	unsigned rounds;
	bool is_busy;      /* an invalidation or reservation is under way for it, and will run the task */
	bool is_cancelled;
	bool is_pinned;
	bool has_ended_shared;
	bool is_release_wanted;
	bool is_revoked;
	uint64_t start_ns, load_ns;
	uint64_t in_the_way_ns; /* since when someone waits for its end; 0: nobody */
	struct task start_task, release_task;
};

static inline bool lease_is_exclusive(const struct lease *lease)
{
	return lease->public->mode == CACHE_LEASE_EXCLUSIVE;
}

static inline bool lease_overlaps(const struct lease *a, const struct lease *b)
{
	return a->public->first_chunk < b->public->first_chunk + b->public->n_chunks &&
	       b->public->first_chunk < a->public->first_chunk + a->public->n_chunks;
}

/* Whoever is QUEUED and has no conflict ahead any more goes on. */
void lease_resume_queued(struct cache_file *file);
/* One step of ENDING, run again when what it waited for is over. */
void lease_end_step(struct lease *lease);
void lease_free(struct lease *lease);

#endif
