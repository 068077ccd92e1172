/*
 * daemon.pml - requests in the daemon: read.c, write.c, writeback.c, mutate.c, invalidate.c.
 *
 * Each request is carried on by the process that waits for it: its turns of the engine are atomic, and what is between
 * them (a request on its way, a copy or a disk in flight, an answer on its way) can take any time. step[a] says how far.
 */
#define STEP_NEW 0        /* the engine has not let it in (parked[a]: it waits to be resumed) */
#define STEP_DEVICE 1     /* a copy from or to the device is under way */
#define STEP_BACKING 2
#define STEP_RESERVING 3
#define STEP_RESERVED 4
#define STEP_ANSWERED 5   /* READ: the answer is on its way, the folios are still locked */

c_code {
	/* read_task: looks first (peek), then takes part. */
	static void read_turn(int a)
	{
		struct coherence copy_of = now.chunk;
		struct coherence_context context = {
			.has_writers = now.has_writable[0] || now.has_writable[1],
			.migrates_on_read = (FEATURES & MIGRATE) && !now.has_tried_migration[a],
		};
		int event = now.overdue[a] ? EVENT_READ_OVERDUE : EVENT_READ;
		enum coherence_action action = mutated_step(&copy_of, event, &context).action;

		if (action == DO_LEAVE) {
			is_seen[now.chunk.state][event][action] = 1;
			table_send(EVENT_LEAVE);
			now.has_tried_migration[a] = 1;
			action = now.answer == DO_REFUSE || now.answer == DO_DROP || now.answer == DO_NOTHING ? DO_NOTHING : DO_WAIT;
		}
		if (action == DO_WAIT) {
			is_seen[now.chunk.state][event][action] = 1;
			now.held[a] = 1;
			now.parked[a] = 1;
			now.answer = DO_WAIT;
			return;
		}
		now.held[a] = 0;
		table_send(event);
		now.overdue[a] = 0;
		now.has_tried_migration[a] = 0;
		now.step[a] = now.answer == DO_BACKING ? 2 : 1;
	}

	/* invalidation_start: the pages of held READs are cut out (R2). */
	static void invalidate_for(int a)
	{
		now.inv = 1;
		now.inv_for = a;
		now.waits_for_inv[a] = 1;
		now.inv_pages = 3;
\#if MUTANT != 22
		for (int i = 0; i < N_ACTORS; i++) {
			if (now.held[i] && !now.overdue[i])
				now.inv_pages &= ~now.reading[i];
		}
\#endif
#ifdef NPROGRESS
		now.inv_ahead = now.inv_pages;
#endif
	}

	/* reserve.c: those under way are made again. */
	static void make_reservations_old(void)
	{
		for (int a = 0; a < N_ACTORS; a++)
			now.is_reservation_old[a] = now.step[a] == 3 || now.step[a] == 4;
	}

	/* sync_chunk_settled */
	static void settled(int has_failed)
	{
		if (!now.needs_sync)
			return;
		now.sync_failed |= has_failed;
		if (!has_failed && now.needs_snapshot && now.chunk.state == CHUNK_DIRTY) {
			if (now.chunk.is_writeback) {
				now.needs_snapshot = 0;
				return;
			}
			table_send(EVENT_SNAPSHOT);
			if (now.answer == DO_SNAPSHOT) {
				now.needs_snapshot = 0;
				return;
			}
		}
		now.needs_sync = 0;
		now.needs_snapshot = 0;
	}

	static void sync_start(void)
	{
		now.sync_running = 1;
		if (now.chunk.state != CHUNK_DIRTY)
			return;
		now.needs_sync = 1;
		now.needs_snapshot = now.chunk.is_writeback;
\#if MUTANT == 14
		now.needs_snapshot = 0; /* an fsync is content with a snapshot in flight */
		if (now.chunk.is_writeback)
			return;
\#endif
		if (!now.needs_snapshot) {
			table_send(EVENT_SNAPSHOT);
			if (now.answer != DO_SNAPSHOT)
				settled(0);
		}
	}
}

/*
 * Requests arrive in the order in which they were sent, as they are on the kernel's queue: a READ that was sent after a
 * WRITE of its pages is not let in before the WRITE is in the engine. (Two threads of the daemon that have taken one each
 * might pass each other on the last microseconds to the engine: docs/reliability.md.)
 */
#define MEETS(a, b) ((reading[a] & writing[b]) != 0)
#define PASSES(a, b) (MEETS(a, b) && !is_listed[b])
#define ARRIVES_IN_ORDER(a) !(PASSES(a, 0) || PASSES(a, 1) || PASSES(a, 2) || PASSES(a, 3) || PASSES(a, NOTIFIER) || PASSES(a, UNMOUNT))
/* write_overlaps: a WRITE in the engine changes bytes of the READ. */
#if MUTANT == 19
#define WRITE_OVERLAPS(a) false
#else
#define WRITE_OVERLAPS(a) (MEETS(a, 0) || MEETS(a, 1) || MEETS(a, 2) || MEETS(a, 3) || MEETS(a, NOTIFIER) || MEETS(a, UNMOUNT))
#endif

/* A READ of the pages reading[a]; its answer is in data[a] then. */
inline daemon_read(a)
{
	do
	:: atomic { ENGINE && step[a] == STEP_NEW && !held[a] && ARRIVES_IN_ORDER(a) && WRITE_OVERLAPS(a) -> held[a] = 1 }
	:: atomic { ENGINE && step[a] == STEP_NEW && !parked[a] && ARRIVES_IN_ORDER(a) && !WRITE_OVERLAPS(a) ->
		self = a; c_code { read_turn(now.self); }; self = 0; assert(broken == 0);
#if MUTANT == 4
		engine_is_blocked = ANSWERED(DO_WAIT); /* R4: the engine's thread waits itself */
#endif
		TURN_END }
#if MUTANT == 4
	:: atomic { engine_is_blocked && step[a] == STEP_NEW && held[a] && !parked[a] ->
		self = a; c_code { read_turn(now.self); }; self = 0;
		engine_is_blocked = ANSWERED(DO_WAIT);
		TURN_END }
#endif
	:: atomic { ENGINE && step[a] == STEP_DEVICE ->
		self = a; c_code { copy(&now.data[now.self], now.device, now.reading[now.self]); }; self = 0;
		SEND(EVENT_READ_DONE);
		step[a] = STEP_ANSWERED;
		TURN_END }
	:: atomic { step[a] == STEP_BACKING ->
		self = a; c_code { copy(&now.data[now.self], now.backing, now.reading[now.self]); }; self = 0;
		step[a] = STEP_ANSWERED }
	:: atomic { step[a] == STEP_ANSWERED -> break }
	od
}

/* A WRITE arrives at a place: whole pages, or a part of one that the place has the newest bytes of. */
#define LAND(place) \
	if \
	:: !is_part[a] -> self = a; c_code { copy(&place, now.data[now.self], now.writing[now.self]); }; self = 0 \
	:: is_part[a] -> \
		self = a; c_code { if ((place & now.writing[now.self]) != now.writing[now.self]) now.broken = 8; }; assert(broken == 0); \
		c_code { store(&place, now.writing[now.self]); }; self = 0 \
	fi

/* A WRITE of the pages writing[a] with the bytes data[a]. */
inline daemon_write(a, is_flush)
{
	do
	:: atomic { ENGINE && step[a] == STEP_NEW && !parked[a] && RESUMED_LOADS_ARE_SERVED ->
		is_listed[a] = 1;
		if
		:: is_flush -> SEND(EVENT_WRITEPAGE)
		:: !is_flush -> SEND(EVENT_WRITE)
		fi;
		if
		:: ANSWERED(DO_WAIT) -> parked[a] = 1
		:: ANSWERED(DO_RESERVE) -> SEND(EVENT_PIN); step[a] = STEP_RESERVING
		:: ANSWERED(DO_BACKING) -> step[a] = STEP_BACKING
		:: ANSWERED(DO_DEVICE) -> step[a] = STEP_DEVICE
		fi;
		TURN_END }
	:: atomic { step[a] == STEP_RESERVING -> has_blocks = 1; step[a] = STEP_RESERVED }
	:: atomic { ENGINE && step[a] == STEP_RESERVED ->
		if
		:: is_reservation_old[a] -> is_reservation_old[a] = 0; step[a] = STEP_RESERVING
		:: else ->
			SEND(EVENT_RESERVED);
			SEND(EVENT_UNPIN);
			step[a] = STEP_NEW
		fi;
		TURN_END }
	:: atomic { ENGINE && step[a] == STEP_DEVICE ->
		LAND(now.device);
		SEND(EVENT_WRITE_DONE);
		break }
	:: atomic { ENGINE && step[a] == STEP_BACKING ->
		LAND(now.backing);
		SEND(EVENT_HOST_WRITTEN);
		break }
	od;
	atomic { step[a] = STEP_NEW; writing[a] = 0; data[a] = 0; is_listed[a] = 0; TURN_END }
}

/* FSYNC: a batch, then an fsync of the backing. */
inline daemon_fsync(a)
{
	atomic { ENGINE && !is_mutating && !sync_running -> c_code { sync_start(); }; assert(broken == 0); TURN_END };
	atomic { ENGINE && !needs_sync ->
		if
		:: tracked == 1 + a && !sync_failed -> assert((backing & BITS(3)) >> 2 == 3) /* fsync is truthful */
		:: else
		fi;
		sync_failed = 0;
		sync_running = 0 }
}

/* mutate.c up to where nothing else moves: FREEZING, and STORING what is DIRTY if it stores. */
inline mutation_quiesce(a)
{
	atomic { ENGINE && !is_mutating && !sync_running -> is_mutating = 1 };
	do
	:: atomic { ENGINE && !parked[a] ->
		SEND(EVENT_FREEZE);
		if
		:: ANSWERED(DO_WAIT) -> parked[a] = 1; TURN_END
		:: else -> TURN_END; break
		fi }
	od
}

inline mutation_store(a)
{
	if
	:: atomic { ENGINE && c_expr { now.chunk.state == CHUNK_DIRTY } -> SEND(EVENT_SNAPSHOT_FROZEN); TURN_END }
	:: else
	fi;
	c_expr { !now.chunk.is_writeback }
}

#define IS_RESIDENT c_expr { now.chunk.state == CHUNK_CLEAN || now.chunk.state == CHUNK_DIRTY }
#define IS_IN_USE c_expr { now.chunk.shared > 0 || now.chunk.exclusive != EXCLUSIVE_NONE || now.chunk.pins > 0 }
#if MUTANT == 18
#define IS_KEPT IS_IN_USE /* what a lease that ended meanwhile left DIRTY is dropped */
#else
#define IS_KEPT (IS_IN_USE || c_expr { now.chunk.state == CHUNK_DIRTY })
#endif

/* SETATTR that zeroes one page; has_failed: a writeback before it did, and nothing was changed. */
inline daemon_truncate(a, p, has_failed)
{
	mutation_quiesce(a);
	mutation_store(a);
	if
	:: atomic { c_expr { now.chunk.state == CHUNK_DIRTY && now.chunk.has_error } && (FEATURES & ERRORS) ->
		SEND(EVENT_THAW);
		has_failed = true;
		TURN_END }
	:: atomic { !(FEATURES & ERRORS) || c_expr { !(now.chunk.state == CHUNK_DIRTY && now.chunk.has_error) } ->
		self = p; c_code { store(&now.backing, 1 << now.self); }; self = 0;
		has_blocks = 0;
#if MUTANT != 17
		c_code { make_reservations_old(); }
#endif
		};
		if
		:: atomic { ENGINE && IS_RESIDENT && IS_KEPT ->
			self = p; c_code { copy(&now.mutation_bytes, now.backing, 1 << now.self); }; self = 0 };
			atomic { ENGINE ->
				self = p; c_code { copy(&now.device, now.mutation_bytes, 1 << now.self); }; self = 0;
				mutation_bytes = 0;
				SEND(EVENT_THAW);
				TURN_END }
		:: atomic { ENGINE && !IS_RESIDENT -> SEND(EVENT_THAW); TURN_END }
		:: atomic { ENGINE && IS_RESIDENT && !IS_KEPT -> SEND(EVENT_THAW_DROP); TURN_END }
		fi
	fi;
	is_mutating = 0
}

/* mutation_replace_memory: the chunk moves to other memory, which its last holder does not have mapped. */
inline daemon_replace_memory(a)
{
	mutation_quiesce(a);
	atomic { ENGINE -> c_code { copy(&now.mutation_bytes, now.device, 3); } };
	atomic { ENGINE ->
		c_code { copy(&now.device, now.mutation_bytes, 3); };
		mutation_bytes = 0;
		is_mutating = 0;
		SEND(EVENT_THAW);
		TURN_END }
}
