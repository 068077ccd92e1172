/*
 * coherence.pml - the coherence protocol of one chunk of two pages, for spin.
 *
 * Two CPU processes that share a mapping of the file and also use write(2), fsync(2), ftruncate(2); the kernel's page cache
 * (kernel.pml); the daemon's requests (daemon.pml) round the daemon's own transition table (table.pml); two clients
 * with leases; a notifier; the disk; eviction and timers. Nobody's number of operations is bounded.
 *
 * What is checked: no process waits for ever when all others rest (every process but the daemon's own may stop between
 * two operations: a process that hangs is an invalid end state, whatever the others could still do); what check() in
 * table.pml says, after every turn; a load sees the newest store; a grant does; an fsync covers what was stored before; at
 * the end all is on the backing. With -DNPROGRESS, under weak fairness, that one process gets on (livelock).
 *
 * What the application owes, and the model's does: the device stores to page 1 only, under an exclusive lease; CPUs
 * store to page 0 at any time, to page 1 only under a lock of the application that the holder of the exclusive lease
 * has, too. A load or store during a write(2) or truncation of the same page is a race of the application.
 *
 * What is not in it: requests of several chunks (ARCHITECTURE.md argues about those), bounce buffers, capacity, lost
 * device memory.
 *
 * Who does what is given with -D: CPU0, CPU1, CLIENT0, CLIENT1 and FEATURES, sums of the names below. MUTANT=n takes a
 * rule away; test/model/check names them.
 */
#define N_ACTORS 7
#define CPU_ACTORS 2
#define CLIENT_ACTOR 2 /* 2, 3 */
#define NOTIFIER 4
#define REVOKER 5
#define UNMOUNT 6

/* of a CPU */
#define LOAD 1
#define STORE0 2
#define STORE1 4
#define WRITE0 8
#define WRITE1 16
#define FSYNC 32
#define TRUNCATE 64 /* page 0 */
#define CLOSE 128   /* its writable descriptor, and opens another */
/* of a client */
#define EXCLUSIVE 1
#define SHARED 2
#define PREFETCH 4
#define UNDER_FSYNC 8 /* under the lease */
#define UNDER_TRUNCATE 16 /* page 1 */
#define DIE 32
#define CANCEL 64
#define HANG 128 /* does not end its lease */
/* FEATURES */
#define EVICT 1
#define TIMER 2     /* writeback */
#define RECLAIM 4   /* of the kernel's pages */
#define MIGRATE 8   /* cpu_access=migrate */
#define ERRORS 16   /* of writebacks and fills */
#define REVOKE 32   /* lease_timeout */
#define READAHEAD 64
#define READ_TIMEOUT 128
#define UNMOUNTS 256

#ifndef MUTANT
#define MUTANT 0
#endif
#ifndef CPU1
#define CPU1 0
#endif
#ifndef CLIENT1
#define CLIENT1 0
#endif
#if MUTANT == 2 || MUTANT == 4
#define ENGINE_CAN_BLOCK
#endif

/* Between two operations. Where progress is asked for nobody rests. */
#ifdef NPROGRESS
#define MAY_STOP false
#else
#define MAY_STOP true
#endif

/* The daemon answers a READ that it held too long: R3, and read_timeout. Time is not in the model. Where progress is
 * asked for:
 * - read_timeout is much longer than an invalidation;
 * - after PATIENCE rounds the hold is longer than a call takes that waits for nothing else: a READ is only answered
 *   early if the call waits for its folio;
 * - after PATIENCE rounds no READ is sent, for a page that the kernel does not have, in the microseconds between the start of
 *   a call and its passing that page. Nothing forbids it: that rounds end is a matter of chance, each has its own. */
#ifdef NPROGRESS
#define PATIENCE 2
#define IS_ON_ITS_WAY(a) (reading[a] && step[a] == STEP_NEW && !held[a])
#define READS_HAVE_ARRIVED (inv_round < PATIENCE || (!IS_ON_ITS_WAY(0) && !IS_ON_ITS_WAY(1)))
#define MISSES_THE_CALL(p) (inv_round < PATIENCE || !(inv_ahead & 1 << p))
#define HAS_FOLIO(a, p) if :: a == NOTIFIER -> inv_ahead = inv_ahead & ~(1 << p) :: else fi
#define NEXT_ROUND if :: inv_round < PATIENCE -> inv_round++ :: else fi
#define CALL_WAITS_FOR(a) ((inv_ahead & 1) -> (reading[a] & 1) : (inv_ahead & 2 & reading[a]))
#define INVALIDATION_OVERDUE(a) (inv && (inv_pages & reading[a]) && (inv_round < PATIENCE || CALL_WAITS_FOR(a)))
#define READ_OVERDUE(a) c_expr { now.chunk.exclusive == EXCLUSIVE_HELD }
#else
#define NEXT_ROUND skip
#define READS_HAVE_ARRIVED true
#define MISSES_THE_CALL(p) true
#define HAS_FOLIO(a, p) skip
#define INVALIDATION_OVERDUE(a) (inv && (inv_pages & reading[a]))
#define READ_OVERDUE(a) true
#endif
#if MUTANT == 3
#undef INVALIDATION_OVERDUE
#define INVALIDATION_OVERDUE(a) false
#endif

#include "table.pml"
#include "daemon.pml"
#include "kernel.pml"
#include "clients.pml"


/* Progress is asked for of CPU 0 (NPROGRESS=1), or of client 0 (2). */
#if NPROGRESS == 1
#define GETS_ON(label) if :: a == 0 -> label: skip :: else fi;
#else
#define GETS_ON(label)
#endif

proctype cpu(byte a; byte ops)
{
	byte p, q;
	bit has_failed;

	do
	:: MAY_STOP -> break
	:: ops & LOAD ->
		if
		:: p = 0
		:: p = 1
		fi;
		load(a, p);
		GETS_ON(progress_load)
		p = 0
	:: (ops & STORE0) && has_writable[a] ->
		store_page(a, p);
		GETS_ON(progress_store)
		skip
	:: atomic { (ops & STORE1) && has_writable[a] && !app_lock -> app_lock = 1; p = 1 };
		store_page(a, p);
		atomic { p = 0; app_lock = 0 }
	:: (ops & WRITE0) && has_writable[a] -> write_page(a, p);
		GETS_ON(progress_write)
		skip
	:: atomic { (ops & WRITE1) && has_writable[a] && !app_lock -> app_lock = 1; p = 1 };
		write_page(a, p);
		atomic { p = 0; app_lock = 0 }
	:: (ops & FSYNC) && has_writable[a] ->
		fsync_file(a, p);
		GETS_ON(progress_fsync)
		skip
	:: (ops & TRUNCATE) && has_writable[a] -> truncate_page(a, p, q, has_failed)
	:: (ops & CLOSE) && has_writable[a] -> flush_pages(a, p); has_writable[a] = 0
	:: (ops & CLOSE) && !has_writable[a] -> has_writable[a] = 1
	od;
	has_ended[a] = 1
}

proctype read_timer(byte a)
{
end:	do
	:: atomic { ENGINE && held[a] && !overdue[a] &&
		    (INVALIDATION_OVERDUE(a) || ((FEATURES & READ_TIMEOUT) && READ_OVERDUE(a))) ->
		overdue[a] = 1;
		parked[a] = 0 }
	od
}

/* R2: the only one who makes the call. */
proctype notifier()
{
	byte p;

end:	do
	:: atomic { inv ->
#if MUTANT == 2
		engine_is_blocked = 1; /* R2: the engine makes it */
#endif
		p = 0 };
		do
		:: atomic { p < 2 && !(inv_pages & 1 << p) -> p++ }
		:: atomic { p < 2 && (inv_pages & 1 << p) -> skip }; remove_page(NOTIFIER, p, true); p++
		:: atomic { p == 2 -> p = 0; break }
		od;
		atomic {
#if MUTANT == 2
			engine_is_blocked = 0;
#endif
			ENGINE && READS_HAVE_ARRIVED ->
			SEND(EVENT_INVALIDATED);
			waits_for_inv[inv_for] = 0;
			inv = 0;
			inv_for = 0;
			inv_pages = 0;
			TURN_END }
	od
}

proctype disk()
{
end:	do
	:: atomic { snapshot == 1 -> snapshot_bytes = device; snapshot = 2 }
	:: atomic { ENGINE && snapshot == 2 ->
		snapshot = 0;
		if
		:: c_code { copy(&now.backing, now.snapshot_bytes, 3); }; SEND(EVENT_WRITTEN); c_code { settled(0); }
		:: (FEATURES & ERRORS) -> SEND(EVENT_WRITE_FAILED); c_code { settled(1); }
		fi;
		if
		:: snapshot == 0 -> snapshot_bytes = 0
		:: else
		fi;
		TURN_END }
	:: atomic { fill == 1 -> fill_bytes = backing; fill = 2 }
	:: atomic { ENGINE && fill == 2 ->
		fill = 0;
		if
		:: c_code { copy(&now.device, now.fill_bytes, 3); }; SEND(EVENT_FILLED)
		:: (FEATURES & ERRORS) -> SEND(EVENT_FILL_FAILED)
		fi;
		fill_bytes = 0;
		TURN_END }
	od
}

proctype surroundings()
{
	do
	:: MAY_STOP -> break
	:: atomic { (FEATURES & EVICT) && ENGINE && c_expr { !now.chunk.has_error } && c_expr { now.chunk.state != CHUNK_HOST } ->
		SEND(EVENT_LEAVE); TURN_END }
	:: atomic { (FEATURES & TIMER) && ENGINE && c_expr { now.chunk.state == CHUNK_DIRTY && !now.chunk.is_writeback } ->
		SEND(EVENT_SNAPSHOT); TURN_END }
	:: atomic { (FEATURES & RECLAIM) && page[0] == UPTODATE && !dirty[0] && !writeback[0] && !locked[0] && !app_busy[0] ->
		c_code { forget_page(0); } }
	:: atomic { (FEATURES & RECLAIM) && page[1] == UPTODATE && !dirty[1] && !writeback[1] && !locked[1] && !app_busy[1] ->
		c_code { forget_page(1); } }
	od
}

init
{
	byte p;

	atomic {
		c_code { coherence_init(&now.chunk); atexit(table_report); };
		has_writable[0] = (CPU0 & ~LOAD) != 0;
		has_writable[1] = (CPU1 & ~LOAD) != 0;
		run notifier();
		run disk();
		if :: (FEATURES & (EVICT | TIMER | RECLAIM)) != 0 -> run surroundings() :: else fi;
		if :: (FEATURES & REVOKE) != 0 -> run revoker() :: else fi;
		if :: CPU0 != 0 -> run cpu(0, CPU0); run read_timer(0) :: else -> has_ended[0] = 1 fi;
		if :: CPU1 != 0 -> run cpu(1, CPU1); run read_timer(1) :: else -> has_ended[1] = 1 fi;
		if :: CLIENT0 != 0 -> run client(2, CLIENT0) :: else -> has_ended[2] = 1 fi;
		if :: CLIENT1 != 0 -> run client(3, CLIENT1) :: else -> has_ended[3] = 1 fi
	};
	/* Unmount: when all have ended the kernel flushes and everything is written back. */
	if
	:: !(FEATURES & UNMOUNTS)
	:: atomic { (FEATURES & UNMOUNTS) && has_ended[0] && has_ended[1] && has_ended[2] && has_ended[3] -> skip };
		fsync_file(UNMOUNT, p);
		assert((FEATURES & ERRORS) || backing == FRESH)
	fi
}
