/*
 * clients.pml - leases: lease.c, and the processes that have them.
 */
#define STAGE_NONE 0
#define STAGE_WAITING 1 /* an acquire is under way */
#define STAGE_GRANTED 2
#define STAGE_TAKEN 3   /* being revoked */
#define STAGE_OVER 4    /* revoked; its holder has not released it */

bit app_lock;
byte stage[2];
bit is_exclusive[2];
bit is_behind[2]; /* the other one was first */
bit is_prepared[2];
#define X (a - CLIENT_ACTOR)

inline list_enter(x, exclusive)
{
	stage[x] = STAGE_WAITING;
	is_exclusive[x] = exclusive;
	is_behind[x] = stage[1 - x] != STAGE_NONE && stage[1 - x] != STAGE_OVER
}

/* A grant is to show the device all that was stored before the acquire began. */
inline acquire_track(a)
{
	if
	:: MAY_STOP && tracked == 0 -> self = a; c_code { track(now.self); }; self = 0
	:: true
	fi
}

/* The engine runs what was resumed before what comes later: without that no READ would be sure to get on, and no fill. */
#ifdef NPROGRESS
#define LOAD_WAITS(x, is) loads[x] = is;
/* Between two calls, of two acquires, a load under way has the time to send its READ. */
#define IS_SENT(a) !(wants[a] && page[wants[a] - 1] == ABSENT)
#define LOADS_ARE_SENT (IS_SENT(0) && IS_SENT(1))
#define RESUMED_READS_ARE_SERVED !(held[0] && !parked[0]) && !(held[1] && !parked[1])
#else
#define LOAD_WAITS(x, is)
#define LOADS_ARE_SENT true
#define RESUMED_READS_ARE_SERVED true
#endif

/* The lease is no longer in the way of others. */
inline list_leave(x, next)
{
	stage[x] = next;
	is_behind[x] = 0;
	is_behind[1 - x] = 0
}

/* lease_end_step, until it is over. */
inline lease_end(a, x)
{
	do
	:: atomic { ENGINE && !parked[a] && !waits_for_inv[a] ->
		if
		:: !is_exclusive[x] -> SEND(EVENT_END_SHARED); TURN_END; break
		:: is_exclusive[x] && c_expr { now.chunk.exclusive == EXCLUSIVE_HELD } ->
			SEND(EVENT_END_EXCLUSIVE);
			if
			:: ANSWERED(DO_INVALIDATE) -> self = a; c_code { invalidate_for(now.self); }; self = 0; TURN_END
			:: ANSWERED(DO_WAIT) -> parked[a] = 1; TURN_END
			:: ANSWERED(DO_NOTHING) -> TURN_END; break
			fi
		:: is_exclusive[x] && c_expr { now.chunk.exclusive == EXCLUSIVE_ENDING } -> parked[a] = 1
		:: is_exclusive[x] && c_expr { now.chunk.exclusive == EXCLUSIVE_NONE } -> break
		fi }
	od
}

proctype client(byte a; byte ops)
{
	byte p, q;
	bit has_failed;

idle:
	if
	:: MAY_STOP -> goto stop
	:: atomic { (ops & EXCLUSIVE) && !app_lock -> app_lock = 1; list_enter(X, 1); acquire_track(a) }
	:: atomic { (ops & SHARED) -> list_enter(X, 0); acquire_track(a) }
	:: atomic { (ops & PREFETCH) && ENGINE -> SEND(EVENT_PIN); TURN_END };
		do
		:: atomic { ENGINE && !parked[a] ->
			SEND(EVENT_WANT_RESIDENT);
			if
			:: ANSWERED(DO_NOTHING) -> SEND(EVENT_UNPIN); TURN_END; goto idle
			:: ANSWERED(DO_FILL) -> fill = 1; parked[a] = 1
			:: ANSWERED(DO_WAIT) -> parked[a] = 1
			fi;
			TURN_END }
		od
	fi;

	/* QUEUED, ADMISSION */
	if
	:: atomic { ENGINE && RESUMED_READS_ARE_SERVED && LOADS_ARE_SENT && !(is_behind[X] && (is_exclusive[0] || is_exclusive[1])) -> SEND(EVENT_PIN); TURN_END }
	:: atomic { (ops & CANCEL) && ENGINE -> list_leave(X, STAGE_NONE) }; goto over
	fi;
	if
	:: atomic { !is_exclusive[X] -> skip }; goto loading
	:: atomic { is_exclusive[X] -> skip }
	fi;
reserving:
	step[a] = STEP_RESERVING;
	atomic { has_blocks = 1; step[a] = STEP_RESERVED };
	if
	:: atomic { ENGINE && is_reservation_old[a] -> is_reservation_old[a] = 0; goto reserving }
	:: atomic { ENGINE && !is_reservation_old[a] -> step[a] = STEP_NEW; SEND(EVENT_RESERVED); TURN_END }
	:: atomic { (ops & CANCEL) && ENGINE && !is_reservation_old[a] -> step[a] = STEP_NEW }; goto failed /* or ENOSPC */
	fi;
loading:
	if
	:: atomic { ENGINE && !parked[a] ->
		LOAD_WAITS(X, 0)
		SEND(EVENT_WANT_RESIDENT);
		if
		:: ANSWERED(DO_NOTHING) -> TURN_END
		:: ANSWERED(DO_FILL) -> fill = 1; parked[a] = 1; TURN_END; goto loading
		:: ANSWERED(DO_WAIT) -> LOAD_WAITS(X, 1) parked[a] = 1; TURN_END; goto loading
		fi }
	:: atomic { (ops & CANCEL) && ENGINE && parked[a] -> parked[a] = 0 }; goto failed
	fi;
claiming:
	if
	:: atomic { ENGINE && READS_HAVE_ARRIVED && !parked[a] && !waits_for_inv[a] ->
		if
		:: is_prepared[X] -> answer = 0
		:: !is_prepared[X] && is_exclusive[X] -> SEND(EVENT_WANT_EXCLUSIVE)
		:: !is_prepared[X] && !is_exclusive[X] -> SEND(EVENT_WANT_SHARED)
		fi;
		if
		:: ANSWERED(DO_NOTHING) ->
			if
			:: is_exclusive[X] -> SEND(EVENT_GRANT_EXCLUSIVE); assert(device & 2 || app_busy[1])
			:: !is_exclusive[X] -> SEND(EVENT_GRANT_SHARED); is_prepared[X] = 0
			fi;
			if
			:: tracked == 1 + a -> assert((device & BITS(3)) >> 2 == 3); c_code { untrack(); }
			:: else
			fi;
			stage[X] = STAGE_GRANTED;
			inv_round = 0;
			TURN_END
		:: ANSWERED(DO_INVALIDATE) ->
			is_prepared[X] = !is_exclusive[X];
			NEXT_ROUND; /* lease->rounds */
			self = a; c_code { invalidate_for(now.self); }; self = 0;
			TURN_END;
			goto claiming
		:: ANSWERED(DO_RESERVE) -> TURN_END; goto reserving
		:: ANSWERED(DO_WAIT) -> parked[a] = 1; TURN_END; goto claiming
		:: ANSWERED(DO_FILL) -> assert(false) /* nothing pinned leaves */
		fi }
	:: atomic { (ops & CANCEL) && ENGINE && !waits_for_inv[a] -> parked[a] = 0 }; goto failed
	fi;

#if NPROGRESS == 2
	if
	:: X == 0 -> progress_lease: skip
	:: else
	fi;
#endif
	do
	:: atomic { MAY_STOP && is_exclusive[X] && stage[X] == STAGE_GRANTED -> /* else it might never release */
		assert(device & 2); /* or bytes beside the stored ones were lost */
		c_code { store(&now.device, 2); };
		CHECK }
	:: ops & UNDER_FSYNC -> fsync_file(a, p)
	:: ops & UNDER_TRUNCATE -> p = 1; truncate_page(a, p, q, has_failed); p = 0
	:: break
	:: ops & HANG -> goto end_hang
	:: atomic { (ops & DIE) && ENGINE && stage[X] == STAGE_GRANTED -> stage[X] = STAGE_TAKEN };
		if
		:: atomic { is_exclusive[X] -> skip }; daemon_replace_memory(a)
		:: atomic { !is_exclusive[X] -> skip }
		fi;
		lease_end(a, X);
		atomic { list_leave(X, STAGE_OVER) };
		break
	od;
	goto release;
end_hang:
	stage[X] == STAGE_OVER;
	if
	:: goto release
	:: true
	fi;
end_for_ever:
	false;
release:
	if
	:: atomic { ENGINE && stage[X] == STAGE_GRANTED -> stage[X] = STAGE_TAKEN };
		lease_end(a, X);
		atomic { list_leave(X, STAGE_OVER); inv_round = 0 }
	:: atomic { ENGINE && stage[X] == STAGE_OVER -> skip }
	fi;
	goto unpin;

failed:
	atomic { ENGINE ->
		if
		:: is_exclusive[X] -> SEND(EVENT_UNCLAIM)
		:: else
		fi;
		list_leave(X, STAGE_OVER);
		TURN_END };
unpin:
	atomic { ENGINE -> SEND(EVENT_UNPIN); TURN_END };
over:
	atomic {
		if
		:: is_exclusive[X] -> app_lock = 0
		:: else
		fi;
		if
		:: tracked == 1 + a -> c_code { untrack(); }
		:: else
		fi;
		stage[X] = STAGE_NONE; is_exclusive[X] = 0; is_prepared[X] = 0 };
	goto idle;
stop:
	has_ended[a] = 1
}

/* lease_timeout: a lease in the way of another one, or of a parked request, is taken away while its holder goes on. */
proctype revoker()
{
	byte x;
	byte a = REVOKER;

end:	do
	:: atomic { ENGINE && stage[0] == STAGE_GRANTED && (is_behind[1] || parked[0] || parked[1]) -> x = 0; stage[0] = STAGE_TAKEN };
		goto take
	:: atomic { ENGINE && stage[1] == STAGE_GRANTED && (is_behind[0] || parked[0] || parked[1]) -> x = 1; stage[1] = STAGE_TAKEN };
		goto take
	od;
take:
	if
	:: atomic { is_exclusive[x] -> skip }; daemon_replace_memory(a)
	:: atomic { !is_exclusive[x] -> skip }
	fi;
	lease_end(a, x);
	atomic { list_leave(x, STAGE_OVER); x = 0 };
	goto end
}
