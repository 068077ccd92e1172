/*
 * coherence.h - the state of one chunk, and the one table of its transitions.
 *
 * Pure: an event goes in, the state changes, an action comes out. No I/O, no threads, no clock, no
 * allocation. The engine, the unit tests, the model and the simulation all run this table; nothing else
 * in the daemon changes a field of struct coherence.
 *
 * States (enum chunk_state)
 *
 *     state     device copy   backing   who has the truth
 *     HOST      none          current   the backing
 *     FILLING   being loaded  current   the backing
 *     CLEAN     current       current   both
 *     DIRTY     current       old       the device copy
 *
 *     HOST --fill--> FILLING --filled--> CLEAN --write, exclusive lease--> DIRTY
 *       ^                |                 |  ^                              |
 *       +--fill failed---+       leave     |  +----------- written ----------+
 *       +----------------------------------+        (unless stored to since)
 *
 * Beside the state
 *
 *     exclusive        NONE -> CLAIMED (an acquire is past its first invalidation: READs are held) -> HELD -> NONE, or
 *                      HELD -> ENDING (kernel copies that came to be under the lease are being removed) -> NONE
 *     shared, pins     leases held; acquires and prefetches under way that want the chunk to stay
 *     kernel_copies    the kernel's page cache may hold pages of the chunk
 *     is_reread        CLAIMED: a READ was answered since the invalidation began, so that there is to be another
 *     is_invalidating  the notifier is removing them; they count as gone, whatever is answered meanwhile counts anew
 *     is_writeback     a snapshot is on its way to the backing; is_redirtied: it will be old when it arrives
 *     is_untouched     DIRTY only for WRITEs that are still on their way: without the device copy, nothing but they is lost
 *     is_leaving       to be dropped as soon as it is CLEAN and nothing uses it
 *     freeze           NONE -> WAITING -> FROZEN: a change of the backing behind the device (truncate, punch) is coming
 *     host_writes      WRITEs on their way to the backing; no fill starts before they are done
 *     is_draining      a fill waits for them: others wait until they are done, or there might always be one
 *     device_reads/writes  copies between device and bounce buffers for CPU requests
 *
 * Invariants (coherence_is_valid)
 *
 *     I1  HELD: DIRTY, shared = 0.                            (one writer, and its stores will be written)
 *     I2  shared > 0: CLEAN or DIRTY, exclusive is not HELD.
 *     I3  HOST or FILLING: no lease, no writeback, no device copies in flight, not leaving.
 *     I4  FROZEN: not FILLING, no CPU request in flight on the chunk.
 *     I5  host_writes > 0: HOST.                              (a fill can't miss a WRITE) is_draining only with it.
 *     I6  is_redirtied only with is_writeback; is_writeback only with DIRTY.
 *     I7  is_reread only with CLAIMED and kernel_copies.
 *     I8  is_untouched only with DIRTY.
 *
 * Where the rules live: R1 on_write, R2/R3 on_read and on_invalidated, R5 on_read, on_grant_exclusive and on_end_exclusive,
 * R6 on_written, on_write_failed and is_droppable. R4 is the engine's.
 */
#ifndef HMMFS_COHERENCE_H
#define HMMFS_COHERENCE_H

#include <stdbool.h>
#include <stdint.h>

enum chunk_state { CHUNK_HOST, CHUNK_FILLING, CHUNK_CLEAN, CHUNK_DIRTY };

enum chunk_exclusive { EXCLUSIVE_NONE, EXCLUSIVE_CLAIMED, EXCLUSIVE_HELD, EXCLUSIVE_ENDING };

enum chunk_freeze { FREEZE_NONE, FREEZE_WAITING, FREEZE_FROZEN };

struct coherence {
	uint8_t state;     /* enum chunk_state */
	uint8_t exclusive; /* enum chunk_exclusive */
	uint8_t freeze;    /* enum chunk_freeze */
	bool kernel_copies : 1;
	bool is_reread : 1;
	bool is_invalidating : 1;
	bool is_writeback : 1;
	bool is_redirtied : 1;
	bool is_untouched : 1;
	bool is_leaving : 1;
	bool is_reserved : 1; /* the backing has blocks for every byte of the chunk below the end of file */
	bool is_draining : 1;
	bool has_error : 1;   /* the last writeback failed */
	uint16_t shared;
	uint16_t pins;
	uint16_t host_writes;
	uint16_t device_reads;
	uint16_t device_writes;
};

enum coherence_event {
	/* from the CPU */
	EVENT_READ,          /* a READ arrived */
	EVENT_READ_OVERDUE,  /* it was held, and others may be waiting for its pages (R3, read.c) */
	EVENT_WRITE,         /* a WRITE arrived; the kernel may keep its pages */
	EVENT_WRITEPAGE,     /* the kernel flushes a dirty page */
	EVENT_READ_DONE,     /* a READ answered with DO_DEVICE is done */
	EVENT_WRITE_DONE,    /* a WRITE answered with DO_DEVICE is done */
	EVENT_WRITE_LOST,    /* it is not, for the device has lost the copy: to be sent again (DO_WAIT), or to fail */
	EVENT_HOST_WRITTEN,  /* a WRITE answered with DO_BACKING is done */
	/* from clients */
	EVENT_PIN,
	EVENT_UNPIN,
	EVENT_WANT_RESIDENT, /* a prefetch's step */
	EVENT_WANT_SHARED,   /* an acquire's step; repeated until DO_NOTHING */
	EVENT_WANT_EXCLUSIVE,
	EVENT_UNCLAIM,       /* the exclusive acquire was given up */
	EVENT_GRANT_SHARED,
	EVENT_GRANT_EXCLUSIVE,
	EVENT_END_SHARED,
	EVENT_END_EXCLUSIVE,
	/* completions */
	EVENT_RESERVED,
	EVENT_FILLED,
	EVENT_FILL_FAILED,
	EVENT_INVALIDATED,
	EVENT_WRITTEN,
	EVENT_WRITE_FAILED,
	/* from the engine */
	EVENT_SNAPSHOT,        /* write it back if DIRTY */
	EVENT_SNAPSHOT_FROZEN, /* the same, by the mutation that froze it */
	EVENT_LEAVE,           /* evict, or migrate back */
	EVENT_FREEZE,
	EVENT_THAW,            /* the device copy is right again, or was not touched */
	EVENT_THAW_DROP,       /* the device copy is out of date: drop it. Never DIRTY: stored to since its snapshot */
	EVENT_THAW_DISCARD,    /* every byte of it is gone from the file: drop it, DIRTY or not */
	EVENT_LOST,            /* the device lost the copy */
	EVENT_COUNT,
};

enum coherence_action {
	DO_NOTHING,    /* go on: for WANT_* the step is done, for END_* the lease is over, for FREEZE it is frozen */
	DO_WAIT,       /* park the request on the chunk; try again when it is resumed */
	DO_BACKING,    /* serve the READ or WRITE from the backing */
	DO_DEVICE,     /* serve it from the device copy */
	DO_LEAVE,      /* READ, policy migrate: send EVENT_LEAVE, then park the READ */
	DO_FILL,       /* load the chunk, then EVENT_FILLED or EVENT_FILL_FAILED */
	DO_INVALIDATE, /* have the notifier remove kernel copies, then EVENT_INVALIDATED */
	DO_RESERVE,    /* reserve blocks in the backing, then EVENT_RESERVED, then try again */
	DO_SNAPSHOT,   /* write it back, then EVENT_WRITTEN or EVENT_WRITE_FAILED */
	DO_DROP,       /* free the device memory */
	DO_LOSE,       /* the same, and stores are lost with it that the backing has not */
	DO_REFUSE,     /* can't be: in use */
	DO_ILLEGAL,    /* the event makes no sense in this state: a bug of the caller */
};

struct coherence_context {
	bool has_writers;     /* READ, WANT_SHARED: the file is open for writing, so kernel copies may be dirty */
	bool migrates_on_read; /* READ: the policy is to bring the chunk back first */
};

struct coherence_result {
	enum coherence_action action;
	bool resumes; /* requests parked on the chunk may have something to do */
};

/* A chunk without a record: nothing on the device, kernel copies assumed. */
void coherence_init(struct coherence *c);
struct coherence_result coherence_step(struct coherence *c, enum coherence_event event,
				       const struct coherence_context *context);
/* Nothing worth a record: HOST, with nothing under way. */
bool coherence_is_idle(const struct coherence *c);
bool coherence_is_valid(const struct coherence *c);

const char *chunk_state_name(enum chunk_state state);
const char *coherence_event_name(enum coherence_event event);
const char *coherence_action_name(enum coherence_action action);

#endif
