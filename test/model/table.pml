/*
 * table.pml - the daemon's transition table inside the model, and where the newest bytes of each page are.
 *
 * cache/coherence.c itself is compiled into the verifier: there is no second table that could differ. table_send
 * does what chunk_send (cache/chunk.c) does with an answer: frees the memory (DO_DROP), starts a snapshot
 * (DO_SNAPSHOT), resumes what is parked, forgets an idle record. An illegal pair or a broken invariant is an error.
 *
 * Bytes: instead of a value, each place that can hold a page has two bits for it: FRESH, it holds the newest store,
 * and COVERS, it holds all that was stored before the operation that is being tracked (an fsync, or a shared acquire)
 * began. A store makes its own place fresh and all others stale; a copy copies both bits. Bits 0 and 1 of a place are
 * FRESH of pages 0 and 1, bits 2 and 3 COVERS. So the state is finite and nobody's number of stores is bounded.
 */
c_decl {
\#include "cache/coherence.c"
}
c_state "struct coherence chunk" "Global"

#define FRESH 3
#define BITS(pages) ((pages) | (pages) << 2)

/* Places. */
byte kernel, device, backing = FRESH;
byte snapshot_bytes, fill_bytes, mutation_bytes; /* in bounce buffers */
byte data[N_ACTORS];                             /* of the WRITE or of the answer of the READ that an actor waits for */

/* Who uses the table: a request that was parked looks again when it is resumed. */
bit parked[N_ACTORS];
byte step[N_ACTORS];    /* how far the actor's request is, see daemon.pml */
byte writing[N_ACTORS]; /* pages of its WRITE */
bit is_part[N_ACTORS];  /* of a page, not all of it */
bit is_listed[N_ACTORS]; /* its WRITE is in the engine */
byte reading[N_ACTORS]; /* pages of its READ */
bit held[N_ACTORS], overdue[N_ACTORS], has_tried_migration[N_ACTORS];

#ifdef NPROGRESS
bit loads[2];           /* a client that was parked because WRITEs were on their way to the backing */
#define RESUMED_LOADS_ARE_SERVED (!(loads[0] && !parked[2]) && !(loads[1] && !parked[3]))
#else
#define RESUMED_LOADS_ARE_SERVED true
#endif

byte page[2]; /* of the kernel, see kernel.pml */
bit dirty[2], writeback[2], locked[2];
bit app_busy[2];        /* a write(2) or truncation of the page is under way: what a load sees is the application's race */
byte tracked;           /* 1 + actor; 0: nobody */
bit has_writable[N_ACTORS];
bit has_ended[N_ACTORS]; /* the process rests for ever */

byte snapshot, fill;    /* 0 none, 1 under way, 2 bytes are taken */
bit needs_sync, needs_snapshot, sync_failed, sync_running, is_mutating;
bit has_blocks;         /* the backing has blocks for every byte */
bit is_reservation_old[N_ACTORS]; /* the backing was changed while it was under way */
bit inv, waits_for_inv[N_ACTORS]; /* an invalidation is under way; who started it */
byte inv_pages, inv_for, inv_round;
byte inv_ahead;        /* pages that the call has not come to (only where progress is asked for) */
bit engine_is_blocked;  /* mutants only: the engine waits */

byte answer;            /* of the table, in this turn */
byte self;              /* whose turn it is, for C */
byte broken;            /* what is wrong: see table_report */
bit is_read_since_claim; /* beside the table: a READ was answered that no invalidation came after */

c_code {
	static unsigned char is_seen[4][EVENT_COUNT][DO_ILLEGAL + 1];

	static void table_report(void)
	{
		static const char *const reasons[] = {
			"", "an illegal event", "an invariant of the table", "the newest bytes are nowhere",
			"CLEAN, but the backing differs", "a kernel copy that the table does not know", "a load would see old bytes",
			"reserved, but the backing has no blocks",
			"a part of a page was written where the rest is old",
			"a lease was granted over pages that a READ got meanwhile",
		};

		if (now.broken)
			printf("broken: %s\n", reasons[now.broken]);
		printf("seen:");
		for (int s = 0; s < 4; s++) {
			for (int e = 0; e < EVENT_COUNT; e++) {
				for (int a = 0; a < DO_ILLEGAL; a++) {
					if (is_seen[s][e][a])
						printf(" %s.%s.%s", chunk_state_name(s), coherence_event_name(e), coherence_action_name(a));
				}
			}
		}
		printf("\n");
	}

	static struct coherence_result mutated_step(struct coherence *c, enum coherence_event event,
						    const struct coherence_context *context)
	{
		struct coherence before = *c;
		struct coherence_result result;

\#if MUTANT == 1
		/* R1: a WRITE is held by an invalidation. */
		if ((event == EVENT_WRITE || event == EVENT_WRITEPAGE) && c->is_invalidating)
			return (struct coherence_result){DO_WAIT, false};
\#elif MUTANT == 11
		/* R1: a WRITE is held by a lease. */
		if ((event == EVENT_WRITE || event == EVENT_WRITEPAGE) && c->exclusive != EXCLUSIVE_NONE)
			return (struct coherence_result){DO_WAIT, false};
\#elif MUTANT == 13
		/* A fill does not wait for WRITEs to the backing. */
		if (event == EVENT_WANT_RESIDENT && c->state == CHUNK_HOST && c->host_writes > 0 && c->freeze == FREEZE_NONE) {
			c->state = CHUNK_FILLING;
			c->host_writes = 0;
			c->is_draining = false;
			return (struct coherence_result){DO_FILL, false};
		}
		if (event == EVENT_HOST_WRITTEN && c->host_writes == 0)
			return (struct coherence_result){DO_NOTHING, true};
\#elif MUTANT == 15
		/* A mutation waits for an invalidation. */
		if (event == EVENT_FREEZE && c->is_invalidating) {
			c->freeze = FREEZE_WAITING;
			return (struct coherence_result){DO_WAIT, false};
		}
\#elif MUTANT == 16
		/* A mutation does not quiesce the chunk. */
		if (event == EVENT_FREEZE) {
			c->freeze = FREEZE_FROZEN;
			return (struct coherence_result){DO_NOTHING, false};
		}
\#elif MUTANT == 5
		/* R5: copies that came to be under the lease stay when it ends. */
		if (event == EVENT_END_EXCLUSIVE)
			c->kernel_copies = false;
\#elif MUTANT == 51
		/* R5: the lease is granted over kernel copies. */
		if (event == EVENT_WANT_EXCLUSIVE)
			c->kernel_copies = c->is_reread = false;
\#elif MUTANT == 52
		/* R5: READs are not held by a lease. */
		if (event == EVENT_READ && c->exclusive == EXCLUSIVE_HELD) {
			c->device_reads++;
			return (struct coherence_result){DO_DEVICE, false};
		}
\#elif MUTANT == 6
		/* R6: eviction drops a DIRTY copy. */
		if (event == EVENT_LEAVE && c->state == CHUNK_DIRTY && !c->is_writeback)
			c->state = CHUNK_CLEAN;
\#elif MUTANT == 61
		/* R6: a snapshot that was overtaken cleans. */
		if (event == EVENT_WRITTEN)
			c->is_redirtied = false;
\#elif MUTANT == 62
		/* R6: a writeback that failed cleans. */
		if (event == EVENT_WRITE_FAILED)
			event = EVENT_WRITTEN;
\#endif
		result = coherence_step(c, event, context);
\#if MUTANT == 31
		/* R3: pages that a READ got during the invalidation are not invalidated again. */
		if (event == EVENT_READ_OVERDUE && before.is_invalidating)
			c->is_reread = before.is_reread;
\#elif MUTANT == 32
		/* A WRITE during the invalidation has it made again. */
		if (event == EVENT_WRITE && result.action == DO_DEVICE && c->exclusive == EXCLUSIVE_CLAIMED)
			c->is_reread = true;
\#elif MUTANT == 12
		/* Nobody is resumed when a lease ends. */
		if (event == EVENT_END_EXCLUSIVE || event == EVENT_INVALIDATED)
			result.resumes = false;
\#endif
		(void)before;
		return result;
	}

	static void table_send_in(int event, int migrates)
	{
		struct coherence_context context = {.has_writers = now.has_writable[0] || now.has_writable[1],
						    .migrates_on_read = migrates};
		int state = now.chunk.state, n_parked = 0;
		struct coherence_result result = mutated_step(&now.chunk, event, &context);

		if (result.action == DO_ILLEGAL)
			now.broken = 1;
		else if (!coherence_is_valid(&now.chunk))
			now.broken = 2;
		if (result.action == DO_INVALIDATE || now.chunk.exclusive == EXCLUSIVE_NONE)
			now.is_read_since_claim = 0;
		else if ((event == EVENT_READ || event == EVENT_READ_OVERDUE) && now.chunk.exclusive == EXCLUSIVE_CLAIMED &&
			 (result.action == DO_DEVICE || result.action == DO_BACKING))
			now.is_read_since_claim = 1;
		else if (event == EVENT_GRANT_EXCLUSIVE && now.is_read_since_claim && !now.broken)
			now.broken = 9; /* R3, R5 */
		is_seen[state][event][result.action] = 1;
		now.answer = result.action;
		if (result.action == DO_DROP)
			now.device = 0;
		if (result.action == DO_SNAPSHOT)
			now.snapshot = 1;
		for (int a = 0; a < N_ACTORS; a++) {
			if (result.resumes)
				now.parked[a] = 0;
			n_parked += now.parked[a];
		}
		/* chunks_reap: a record made anew assumes kernel copies. */
		if (coherence_is_idle(&now.chunk) && n_parked == 0 && !now.needs_sync)
			coherence_init(&now.chunk);
	}

	static void table_send(int event)
	{
		table_send_in(event, 0);
	}

	static unsigned char *place_of(int i)
	{
		switch (i) {
		case 0: return &now.kernel;
		case 1: return &now.device;
		case 2: return &now.backing;
		case 3: return &now.snapshot_bytes;
		case 4: return &now.fill_bytes;
		case 5: return &now.mutation_bytes;
		default: return &now.data[i - 6];
		}
	}

	static void copy(unsigned char *to, unsigned char from, int pages)
	{
		*to = (*to & ~BITS(pages)) | (from & BITS(pages));
	}

	static void store(unsigned char *place, int pages)
	{
		for (int i = 0; i < 6 + N_ACTORS; i++)
			*place_of(i) &= ~pages;
		*place |= now.tracked ? BITS(pages) : pages;
	}

	static void track(int actor)
	{
		int racing = now.app_busy[0] | now.app_busy[1] << 1;

		now.tracked = 1 + actor;
		for (int i = 0; i < 6 + N_ACTORS; i++) {
			unsigned char *place = place_of(i);

			*place = (*place & FRESH) | ((*place & FRESH) | racing) << 2;
		}
	}

	static void untrack(void)
	{
		now.tracked = 0;
		for (int i = 0; i < 6 + N_ACTORS; i++)
			*place_of(i) &= FRESH;
	}

	static bool device_may_store(void)
	{
		return now.chunk.exclusive == EXCLUSIVE_HELD || now.chunk.exclusive == EXCLUSIVE_ENDING;
	}

	/* What must hold after every turn. */
	static void check(void)
	{
		const struct coherence *c = &now.chunk;

		for (int p = 0; p < 2 && !now.broken; p++) {
			int bit = 1 << p;
			bool is_somewhere = (now.backing & bit) || (c->state == CHUNK_DIRTY && (now.device & bit)) ||
					    ((now.dirty[p] || now.writeback[p]) && (now.kernel & bit));

			for (int a = 0; a < N_ACTORS; a++)
				is_somewhere |= (now.writing[a] & bit) && (now.data[a] & bit);
			if (!is_somewhere)
				now.broken = 3; /* a value stored is never lost; DIRTY is never dropped (R6) */
			else if (c->state == CHUNK_CLEAN && c->freeze != FREEZE_FROZEN && ((now.device ^ now.backing) & bit))
				now.broken = 4;
			else if (now.page[p] == 2 && !now.app_busy[p]) {
				if (!c->is_invalidating && !c->kernel_copies)
					now.broken = 5; /* R5: copies under a lease are known */
				else if (!(now.kernel & bit) && !(p == 1 && device_may_store()))
					now.broken = 6; /* R5: whoever loads now must see the newest store */
			}
		}
		if (c->is_reserved && !now.has_blocks && c->freeze != FREEZE_FROZEN && !now.broken)
			now.broken = 7; /* ENOSPC would be found at writeback, by nobody who could be told */
	}
}

/* A turn of the engine: one event, or several that it handles without looking elsewhere. */
#ifdef ENGINE_CAN_BLOCK
#define ENGINE (!engine_is_blocked)
#else
#define ENGINE true
#endif
#define SEND(event) c_code { table_send(event); }; assert(broken == 0)
#define ANSWERED(action) c_expr { now.answer == action }
#define CHECK c_code { check(); }; assert(broken == 0)
#define TURN_END CHECK; answer = 0
