/*
 * test_coherence.c - every (state, event) pair of the chunk's table.
 *
 * The reachable states are enumerated from a new record by sending every event that its senders could send; every
 * state found must keep the invariants, and the properties below must hold for every step. What DESIGN.md says of single
 * pairs is asserted by name.
 */
#include "cache/coherence.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct coherence_context plain = {0};
static const struct coherence_context migrates = {.migrates_on_read = true};
static const struct coherence_context writers = {.has_writers = true};

static enum coherence_action send_in(struct coherence *c, enum coherence_event event, const struct coherence_context *context)
{
	struct coherence_result result = coherence_step(c, event, context);

	ck_assert_msg(coherence_is_valid(c), "invalid after %s", coherence_event_name(event));
	return result.action;
}

static enum coherence_action give(struct coherence *c, enum coherence_event event)
{
	return send_in(c, event, &plain);
}

static struct coherence make(enum chunk_state state)
{
	struct coherence c;

	coherence_init(&c);
	if (state == CHUNK_HOST)
		return c;
	ck_assert_int_eq(give(&c, EVENT_WANT_RESIDENT), DO_FILL);
	if (state == CHUNK_FILLING)
		return c;
	give(&c, EVENT_FILLED);
	give(&c, EVENT_RESERVED);
	if (state == CHUNK_DIRTY) {
		ck_assert_int_eq(give(&c, EVENT_WRITE), DO_DEVICE);
		give(&c, EVENT_WRITE_DONE);
	}
	ck_assert_int_eq(c.state, state);
	return c;
}

static struct coherence make_exclusive(void)
{
	struct coherence c = make(CHUNK_CLEAN);

	give(&c, EVENT_PIN);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_INVALIDATE);
	give(&c, EVENT_INVALIDATED);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_NOTHING);
	ck_assert_int_eq(give(&c, EVENT_GRANT_EXCLUSIVE), DO_NOTHING);
	return c;
}

START_TEST(a_read_goes_where_the_truth_is)
{
	struct coherence c = make(CHUNK_HOST);

	ck_assert_int_eq(give(&c, EVENT_READ), DO_BACKING);
	c = make(CHUNK_FILLING);
	ck_assert_int_eq(give(&c, EVENT_READ), DO_BACKING);
	c = make(CHUNK_CLEAN);
	ck_assert_int_eq(give(&c, EVENT_READ), DO_DEVICE);
	c = make(CHUNK_DIRTY);
	c.kernel_copies = false;
	ck_assert_int_eq(give(&c, EVENT_READ), DO_DEVICE);
	ck_assert(c.kernel_copies);
}
END_TEST

START_TEST(a_write_finds_a_place_at_once_whatever_the_lease)
{
	struct coherence c = make(CHUNK_HOST);

	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_BACKING);
	c = make_exclusive();
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_DEVICE);
	c = make(CHUNK_CLEAN);
	give(&c, EVENT_GRANT_SHARED);
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_DEVICE);
	ck_assert_int_eq(c.state, CHUNK_DIRTY);
	c = make(CHUNK_CLEAN);
	give(&c, EVENT_PIN);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_INVALIDATE);
	ck_assert_int_eq(give(&c, EVENT_WRITEPAGE), DO_DEVICE);
	ck_assert_msg(!c.kernel_copies, "the page that an invalidation flushes does not stay");
}
END_TEST

START_TEST(a_write_waits_for_a_fill_and_a_fill_for_a_write)
{
	struct coherence c = make(CHUNK_FILLING);

	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_WAIT);
	c = make(CHUNK_HOST);
	give(&c, EVENT_WRITE);
	ck_assert_int_eq(give(&c, EVENT_WANT_RESIDENT), DO_WAIT);
	give(&c, EVENT_HOST_WRITTEN);
	ck_assert_int_eq(give(&c, EVENT_WANT_RESIDENT), DO_FILL);
}
END_TEST

/* Found by the model: there was always one more. */
START_TEST(writes_that_overlap_for_ever_keep_no_fill_and_no_mutation_away)
{
	struct coherence c = make(CHUNK_HOST);

	give(&c, EVENT_WRITE);
	ck_assert_int_eq(give(&c, EVENT_WANT_RESIDENT), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_WAIT);
	give(&c, EVENT_HOST_WRITTEN);
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_BACKING);
	c = make(CHUNK_DIRTY);
	give(&c, EVENT_WRITE);
	ck_assert_int_eq(give(&c, EVENT_FREEZE), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_WAIT);
	give(&c, EVENT_WRITE_DONE);
	ck_assert_int_eq(give(&c, EVENT_FREEZE), DO_NOTHING);
}
END_TEST

START_TEST(blocks_are_reserved_before_a_clean_chunk_is_dirtied)
{
	struct coherence c = make(CHUNK_CLEAN);

	c.is_reserved = false;
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_RESERVE);
	ck_assert_int_eq(c.state, CHUNK_CLEAN);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_RESERVE);
	give(&c, EVENT_RESERVED);
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_DEVICE);
}
END_TEST

START_TEST(reads_are_held_under_an_exclusive_lease)
{
	struct coherence c = make_exclusive();

	ck_assert_int_eq(c.state, CHUNK_DIRTY);
	ck_assert_int_eq(give(&c, EVENT_READ), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_END_EXCLUSIVE), DO_NOTHING);
	ck_assert_int_eq(give(&c, EVENT_READ), DO_DEVICE);
}
END_TEST

START_TEST(an_overdue_read_is_answered_and_its_pages_invalidated_again)
{
	struct coherence c = make(CHUNK_CLEAN);

	give(&c, EVENT_PIN);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_INVALIDATE);
	ck_assert_int_eq(give(&c, EVENT_READ), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_READ_OVERDUE), DO_DEVICE);
	give(&c, EVENT_INVALIDATED);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_INVALIDATE);
	give(&c, EVENT_INVALIDATED);
	give(&c, EVENT_READ_DONE);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_NOTHING);
	ck_assert_int_eq(give(&c, EVENT_GRANT_EXCLUSIVE), DO_NOTHING);
}
END_TEST

START_TEST(an_exclusive_lease_is_not_granted_over_pages_that_were_read_meanwhile)
{
	struct coherence c = make(CHUNK_CLEAN);

	give(&c, EVENT_PIN);
	give(&c, EVENT_WANT_EXCLUSIVE);
	give(&c, EVENT_READ_OVERDUE);
	give(&c, EVENT_INVALIDATED);
	ck_assert_int_eq(coherence_step(&c, EVENT_GRANT_EXCLUSIVE, &plain).action, DO_ILLEGAL);
}
END_TEST

START_TEST(copies_that_came_under_the_lease_are_removed_before_it_ends)
{
	struct coherence c = make_exclusive();

	give(&c, EVENT_WRITE);
	give(&c, EVENT_WRITE_DONE);
	ck_assert_int_eq(give(&c, EVENT_END_EXCLUSIVE), DO_INVALIDATE);
	ck_assert_int_eq(give(&c, EVENT_READ), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_INVALIDATED), DO_NOTHING);
	ck_assert_int_eq(c.exclusive, EXCLUSIVE_NONE);
}
END_TEST

/* Found by the model: it was invalidated again for every WRITE that came meanwhile, before the grant and before the end. */
START_TEST(a_cpu_that_never_stops_writing_keeps_no_lease_away_and_no_lease_alive)
{
	struct coherence c = make(CHUNK_CLEAN);

	give(&c, EVENT_PIN);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_INVALIDATE);
	give(&c, EVENT_WRITE);
	give(&c, EVENT_INVALIDATED);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_NOTHING);
	ck_assert_int_eq(give(&c, EVENT_GRANT_EXCLUSIVE), DO_NOTHING);
	ck_assert_msg(c.kernel_copies, "the page of the WRITE is removed when the lease ends");
	ck_assert_int_eq(give(&c, EVENT_END_EXCLUSIVE), DO_INVALIDATE);
	give(&c, EVENT_WRITE);
	ck_assert_int_eq(give(&c, EVENT_INVALIDATED), DO_NOTHING);
	ck_assert_int_eq(c.exclusive, EXCLUSIVE_NONE);
	ck_assert(c.kernel_copies);
}
END_TEST

START_TEST(shared_leases_invalidate_only_what_the_cpu_may_have_dirtied)
{
	struct coherence c = make(CHUNK_CLEAN);

	ck_assert_int_eq(give(&c, EVENT_WANT_SHARED), DO_NOTHING);
	ck_assert_int_eq(send_in(&c, EVENT_WANT_SHARED, &writers), DO_INVALIDATE);
	ck_assert_int_eq(send_in(&c, EVENT_WANT_SHARED, &writers), DO_WAIT);
	give(&c, EVENT_INVALIDATED);
	ck_assert_int_eq(send_in(&c, EVENT_WANT_SHARED, &writers), DO_NOTHING);
}
END_TEST

START_TEST(leases_exclude_each_other)
{
	struct coherence c = make(CHUNK_CLEAN);

	give(&c, EVENT_GRANT_SHARED);
	give(&c, EVENT_GRANT_SHARED);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_WAIT);
	give(&c, EVENT_END_SHARED);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_WAIT);
	give(&c, EVENT_END_SHARED);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_INVALIDATE);
	c = make_exclusive();
	ck_assert_int_eq(give(&c, EVENT_WANT_SHARED), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_WAIT);
}
END_TEST

START_TEST(a_snapshot_that_is_overtaken_leaves_the_chunk_dirty)
{
	struct coherence c = make(CHUNK_DIRTY);

	ck_assert_int_eq(give(&c, EVENT_SNAPSHOT), DO_SNAPSHOT);
	give(&c, EVENT_WRITE);
	give(&c, EVENT_WRITTEN);
	ck_assert_int_eq(c.state, CHUNK_DIRTY);
	c = make(CHUNK_DIRTY);
	give(&c, EVENT_WRITE); /* its copy is under way when the snapshot is taken */
	ck_assert_int_eq(give(&c, EVENT_SNAPSHOT), DO_SNAPSHOT);
	give(&c, EVENT_WRITE_DONE);
	give(&c, EVENT_WRITTEN);
	ck_assert_int_eq(c.state, CHUNK_DIRTY);
	c = make(CHUNK_DIRTY);
	give(&c, EVENT_SNAPSHOT);
	give(&c, EVENT_WRITTEN);
	ck_assert_int_eq(c.state, CHUNK_CLEAN);
}
END_TEST

START_TEST(a_snapshot_under_an_exclusive_lease_leaves_the_chunk_dirty)
{
	struct coherence c = make_exclusive();

	ck_assert_int_eq(give(&c, EVENT_SNAPSHOT), DO_SNAPSHOT);
	give(&c, EVENT_END_EXCLUSIVE);
	give(&c, EVENT_WRITTEN);
	ck_assert_int_eq(c.state, CHUNK_DIRTY);
}
END_TEST

START_TEST(dirty_chunk_survives_failed_writeback)
{
	struct coherence c = make(CHUNK_DIRTY);

	ck_assert_int_eq(give(&c, EVENT_LEAVE), DO_SNAPSHOT);
	ck_assert_int_eq(give(&c, EVENT_WRITE_FAILED), DO_NOTHING);
	ck_assert_int_eq(c.state, CHUNK_DIRTY);
	ck_assert(c.has_error && !c.is_leaving);
	ck_assert_int_eq(give(&c, EVENT_SNAPSHOT), DO_SNAPSHOT);
	give(&c, EVENT_WRITTEN);
	ck_assert(!c.has_error);
}
END_TEST

START_TEST(a_dirty_chunk_leaves_through_the_backing)
{
	struct coherence c = make(CHUNK_DIRTY);

	ck_assert_int_eq(give(&c, EVENT_LEAVE), DO_SNAPSHOT);
	ck_assert_int_eq(give(&c, EVENT_WRITTEN), DO_DROP);
	ck_assert_int_eq(c.state, CHUNK_HOST);
	c = make(CHUNK_CLEAN);
	ck_assert_int_eq(give(&c, EVENT_LEAVE), DO_DROP);
}
END_TEST

START_TEST(nothing_in_use_is_evicted)
{
	struct coherence c = make_exclusive();

	ck_assert_int_eq(give(&c, EVENT_LEAVE), DO_REFUSE);
	c = make(CHUNK_CLEAN);
	give(&c, EVENT_GRANT_SHARED);
	ck_assert_int_eq(give(&c, EVENT_LEAVE), DO_REFUSE);
	c = make(CHUNK_CLEAN);
	give(&c, EVENT_READ);
	ck_assert_int_eq(give(&c, EVENT_LEAVE), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_READ_DONE), DO_DROP);
}
END_TEST

START_TEST(policy_migrate_brings_the_chunk_back_first)
{
	struct coherence c = make(CHUNK_DIRTY);

	ck_assert_int_eq(send_in(&c, EVENT_READ, &migrates), DO_LEAVE);
	ck_assert_int_eq(give(&c, EVENT_LEAVE), DO_SNAPSHOT);
	ck_assert_int_eq(send_in(&c, EVENT_READ, &migrates), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_WRITTEN), DO_DROP);
	ck_assert_int_eq(send_in(&c, EVENT_READ, &migrates), DO_BACKING);
	c = make(CHUNK_CLEAN);
	give(&c, EVENT_GRANT_SHARED);
	ck_assert_int_eq(send_in(&c, EVENT_READ, &migrates), DO_DEVICE);
}
END_TEST

START_TEST(a_chunk_stored_to_since_its_frozen_snapshot_is_not_dropped)
{
	struct coherence c = make(CHUNK_CLEAN);

	give(&c, EVENT_PIN);
	give(&c, EVENT_RESERVED);
	give(&c, EVENT_WANT_EXCLUSIVE);
	if (c.is_invalidating)
		give(&c, EVENT_INVALIDATED);
	give(&c, EVENT_GRANT_EXCLUSIVE);
	give(&c, EVENT_FREEZE);
	ck_assert_int_eq(give(&c, EVENT_SNAPSHOT_FROZEN), DO_SNAPSHOT);
	give(&c, EVENT_WRITTEN);
	give(&c, EVENT_END_EXCLUSIVE);
	give(&c, EVENT_UNPIN);
	ck_assert_int_eq(c.state, CHUNK_DIRTY);
	ck_assert_int_eq(coherence_step(&c, EVENT_THAW_DROP, NULL).action, DO_ILLEGAL);
	ck_assert_int_eq(give(&c, EVENT_THAW_DISCARD), DO_DROP);
}
END_TEST

START_TEST(a_freeze_waits_for_what_is_under_way_but_for_no_invalidation)
{
	struct coherence c = make(CHUNK_FILLING);

	ck_assert_int_eq(give(&c, EVENT_FREEZE), DO_WAIT);
	give(&c, EVENT_FILLED);
	ck_assert_int_eq(give(&c, EVENT_FREEZE), DO_NOTHING);
	ck_assert_int_eq(give(&c, EVENT_READ), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_THAW_DROP), DO_DROP);
	c = make(CHUNK_CLEAN);
	give(&c, EVENT_PIN);
	give(&c, EVENT_WANT_EXCLUSIVE);
	ck_assert_int_eq(give(&c, EVENT_FREEZE), DO_NOTHING);
}
END_TEST

START_TEST(lost_memory_is_dropped_when_nothing_uses_it)
{
	struct coherence c = make(CHUNK_DIRTY);

	give(&c, EVENT_READ);
	ck_assert_int_eq(give(&c, EVENT_LOST), DO_WAIT);
	give(&c, EVENT_READ_DONE);
	ck_assert_int_eq(give(&c, EVENT_LOST), DO_LOSE);
	ck_assert_int_eq(c.state, CHUNK_HOST);
	c = make(CHUNK_CLEAN);
	ck_assert_int_eq(give(&c, EVENT_LOST), DO_DROP);
}
END_TEST

START_TEST(memory_lost_while_it_is_filled_is_looked_at_again)
{
	struct coherence c = make(CHUNK_HOST);

	ck_assert_int_eq(give(&c, EVENT_LOST), DO_NOTHING);
	ck_assert_int_eq(give(&c, EVENT_WANT_RESIDENT), DO_FILL);
	ck_assert_int_eq(give(&c, EVENT_LOST), DO_WAIT);
	give(&c, EVENT_FILLED); /* all of it had come before it was lost */
	ck_assert_int_eq(give(&c, EVENT_LOST), DO_DROP);
}
END_TEST

START_TEST(writes_that_the_device_never_got_are_not_lost_with_it)
{
	struct coherence c = make(CHUNK_CLEAN);

	give(&c, EVENT_RESERVED);
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_DEVICE);
	ck_assert_int_eq(give(&c, EVENT_WRITE), DO_DEVICE);
	ck_assert_int_eq(give(&c, EVENT_WRITE_LOST), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_LOST), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_WRITE_LOST), DO_WAIT);
	ck_assert_int_eq(give(&c, EVENT_LOST), DO_DROP);

	c = make(CHUNK_CLEAN);
	give(&c, EVENT_RESERVED);
	give(&c, EVENT_WRITE);
	give(&c, EVENT_WRITE);
	give(&c, EVENT_WRITE_DONE);
	give(&c, EVENT_WRITE_LOST);
	ck_assert_int_eq(give(&c, EVENT_LOST), DO_LOSE);
}
END_TEST

START_TEST(a_lost_write_waits_for_no_client_and_no_invalidation)
{
	struct coherence c = make(CHUNK_DIRTY);

	give(&c, EVENT_PIN);
	give(&c, EVENT_WRITE);
	ck_assert_int_eq(give(&c, EVENT_WRITE_LOST), DO_REFUSE);
	give(&c, EVENT_RESERVED);
	ck_assert_int_eq(give(&c, EVENT_WANT_EXCLUSIVE), DO_INVALIDATE);
	give(&c, EVENT_WRITEPAGE);
	ck_assert_int_eq(give(&c, EVENT_WRITE_LOST), DO_REFUSE);
}
END_TEST

/* ---- every reachable state ---- */

enum { STATES_MAX = 1 << 21, COUNT_MAX = 2 };

static struct coherence *states;
static size_t n_states;
static size_t *buckets; /* 1 + index, by hash, open addressing */

static uint64_t key_of(const struct coherence *c)
{
	uint64_t key = c->state;

	key = key * 4 + c->exclusive;
	key = key * 4 + c->freeze;
	key = key * 2 + c->kernel_copies;
	key = key * 2 + c->is_reread;
	key = key * 2 + c->is_untouched;
	key = key * 2 + c->is_draining;
	key = key * 2 + c->is_invalidating;
	key = key * 2 + c->is_writeback;
	key = key * 2 + c->is_redirtied;
	key = key * 2 + c->is_leaving;
	key = key * 2 + c->is_reserved;
	key = key * 2 + c->has_error;
	key = key * 4 + c->shared;
	key = key * 4 + c->pins;
	key = key * 4 + c->host_writes;
	key = key * 4 + c->device_reads;
	return key * 4 + c->device_writes;
}

static void remember(const struct coherence *c)
{
	size_t slot;

	if (c->shared > COUNT_MAX || c->pins > COUNT_MAX || c->host_writes > COUNT_MAX || c->device_reads > COUNT_MAX ||
	    c->device_writes > COUNT_MAX)
		return;
	slot = (size_t)(key_of(c) * UINT64_C(0x9E3779B97F4A7C15) >> 40) % (2 * STATES_MAX);
	while (buckets[slot] != 0) {
		if (key_of(&states[buckets[slot] - 1]) == key_of(c))
			return;
		slot = (slot + 1) % (2 * STATES_MAX);
	}
	ck_assert_msg(n_states < STATES_MAX, "more states than expected");
	states[n_states++] = *c;
	buckets[slot] = n_states;
}

/* What the engine guarantees of the events that it sends. */
static bool may_send(const struct coherence *c, enum coherence_event event)
{
	bool is_user = c->pins > 0;

	switch (event) {
	case EVENT_READ_DONE: return c->device_reads > 0;
	case EVENT_WRITE_DONE:
	case EVENT_WRITE_LOST: return c->device_writes > 0;
	case EVENT_HOST_WRITTEN: return c->host_writes > 0;
	case EVENT_UNPIN: /* the last pin goes after leases, claims and their invalidations */
		return c->pins > 1 || (c->pins == 1 && c->shared == 0 && c->exclusive == EXCLUSIVE_NONE && !c->is_invalidating);
	case EVENT_WANT_RESIDENT:
	case EVENT_WANT_SHARED:
	case EVENT_WANT_EXCLUSIVE: return is_user;
	case EVENT_GRANT_SHARED:
		return is_user && (c->state == CHUNK_CLEAN || c->state == CHUNK_DIRTY) && c->exclusive == EXCLUSIVE_NONE;
	case EVENT_GRANT_EXCLUSIVE:
		return is_user && c->exclusive == EXCLUSIVE_CLAIMED && !c->is_reread && !c->is_invalidating && c->shared == 0;
	case EVENT_UNCLAIM: return c->exclusive == EXCLUSIVE_CLAIMED && !c->is_invalidating;
	case EVENT_END_SHARED: return c->shared > 0;
	case EVENT_END_EXCLUSIVE: return c->exclusive == EXCLUSIVE_HELD; /* nothing invalidates under it */
	case EVENT_RESERVED: return is_user;
	case EVENT_FILLED:
	case EVENT_FILL_FAILED: return c->state == CHUNK_FILLING;
	case EVENT_INVALIDATED: return c->is_invalidating;
	case EVENT_WRITTEN:
	case EVENT_WRITE_FAILED: return c->is_writeback;
	case EVENT_SNAPSHOT_FROZEN: return c->freeze == FREEZE_FROZEN;
	case EVENT_FREEZE: return c->freeze != FREEZE_FROZEN;
	case EVENT_THAW: return c->freeze == FREEZE_FROZEN && !c->is_writeback;
	case EVENT_THAW_DROP:
	case EVENT_THAW_DISCARD:
		return c->freeze == FREEZE_FROZEN && !c->is_writeback && c->shared == 0 && c->exclusive == EXCLUSIVE_NONE && c->pins == 0 &&
		       (c->state != CHUNK_DIRTY || event == EVENT_THAW_DISCARD);
	default: return true;
	}
}

/* Check's own assertions make a system call each. */
#define must(is_right, ...) do { if (!(is_right)) ck_abort_msg(__VA_ARGS__); } while (0)

static void check_step(const struct coherence *before, enum coherence_event event, const struct coherence *after,
		       struct coherence_result result)
{
	bool was_dirty = before->state == CHUNK_DIRTY, is_dirty = after->state == CHUNK_DIRTY;

	must(result.action != DO_ILLEGAL, "%s in %s is illegal", coherence_event_name(event),
		      chunk_state_name(before->state));
	must(coherence_is_valid(after), "%s in %s breaks an invariant", coherence_event_name(event),
		      chunk_state_name(before->state));
	/* R6 */
	if (was_dirty && !is_dirty)
		must(event == EVENT_WRITTEN || event == EVENT_THAW_DISCARD || event == EVENT_LOST,
			      "%s makes a DIRTY chunk %s", coherence_event_name(event), chunk_state_name(after->state));
	if (event == EVENT_WRITTEN && before->is_redirtied)
		must(is_dirty, "an overtaken snapshot cleans");
	/* R1 */
	if (event == EVENT_WRITE || event == EVENT_WRITEPAGE)
		must(result.action != DO_WAIT || before->state == CHUNK_FILLING || before->is_draining || before->freeze != FREEZE_NONE,
			      "a WRITE is held in %s", chunk_state_name(before->state));
	/* R3, R5 */
	if (event == EVENT_READ && result.action != DO_WAIT)
		must(before->exclusive == EXCLUSIVE_NONE && !before->is_invalidating, "a READ is let in under a lease");
	if (event == EVENT_READ_OVERDUE)
		must(result.action != DO_WAIT || before->freeze == FREEZE_FROZEN, "an overdue READ is held");
	if (result.action == DO_BACKING || (result.action == DO_DEVICE && event == EVENT_READ))
		must(after->kernel_copies || event == EVENT_WRITEPAGE, "a copy given out is not counted");
	if (result.action == DO_BACKING)
		must(!is_dirty && after->state != CHUNK_CLEAN, "the backing is used though the device has the truth");
	if (event == EVENT_LOST && is_dirty != was_dirty)
		must(result.action == (before->is_untouched ? DO_DROP : DO_LOSE), "a loss is told wrongly");
	if (result.action == DO_DROP || result.action == DO_LOSE)
		must(after->state == CHUNK_HOST, "what is dropped is %s", chunk_state_name(after->state));
	/* A held request is resumed when what it was held for is over. */
	if (before->is_invalidating && !after->is_invalidating && after->exclusive != EXCLUSIVE_ENDING)
		must(result.resumes, "%s ends an invalidation silently", coherence_event_name(event));
	if (before->exclusive != EXCLUSIVE_NONE && after->exclusive == EXCLUSIVE_NONE)
		must(result.resumes, "%s ends an exclusive lease silently", coherence_event_name(event));
	if (before->state == CHUNK_FILLING && after->state != CHUNK_FILLING)
		must(result.resumes, "%s ends a fill silently", coherence_event_name(event));
	if (before->freeze == FREEZE_FROZEN && after->freeze == FREEZE_NONE)
		must(result.resumes, "%s thaws silently", coherence_event_name(event));
}

START_TEST(every_reachable_state_keeps_the_invariants_under_every_event)
{
	const struct coherence_context contexts[] = {plain, writers, migrates};
	struct coherence first;
	size_t pairs = 0;
	bool is_seen[4][EVENT_COUNT] = {{false}};

	states = calloc(STATES_MAX, sizeof(*states));
	buckets = calloc(2 * STATES_MAX, sizeof(*buckets));
	ck_assert_ptr_nonnull(states);
	ck_assert_ptr_nonnull(buckets);
	coherence_init(&first);
	remember(&first);
	for (size_t i = 0; i < n_states; i++) {
		for (int event = 0; event < EVENT_COUNT; event++) {
			if (!may_send(&states[i], (enum coherence_event)event))
				continue;
			for (size_t k = 0; k < 3; k++) {
				struct coherence next = states[i];
				struct coherence_result result = coherence_step(&next, (enum coherence_event)event, &contexts[k]);

				check_step(&states[i], (enum coherence_event)event, &next, result);
				is_seen[states[i].state][event] = true;
				remember(&next);
				pairs++;
			}
		}
	}
	printf("%zu states, %zu steps\n", n_states, pairs);
	for (int event = 0; event < EVENT_COUNT; event++)
		ck_assert_msg(is_seen[0][event] || is_seen[1][event] || is_seen[2][event] || is_seen[3][event],
			      "%s was never sent", coherence_event_name((enum coherence_event)event));
	free(states);
	free(buckets);
}
END_TEST

START_TEST(names_are_printable)
{
	for (int event = 0; event < EVENT_COUNT; event++)
		ck_assert_ptr_nonnull(coherence_event_name((enum coherence_event)event));
	ck_assert_str_eq(coherence_event_name(EVENT_LOST), "LOST");
	ck_assert_str_eq(chunk_state_name(CHUNK_DIRTY), "DIRTY");
	ck_assert_str_eq(coherence_action_name(DO_ILLEGAL), "ILLEGAL");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("coherence");
	TCase *tcase = tcase_create("table");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tcase, 120);
	tcase_add_test(tcase, a_read_goes_where_the_truth_is);
	tcase_add_test(tcase, a_write_finds_a_place_at_once_whatever_the_lease);
	tcase_add_test(tcase, a_write_waits_for_a_fill_and_a_fill_for_a_write);
	tcase_add_test(tcase, writes_that_overlap_for_ever_keep_no_fill_and_no_mutation_away);
	tcase_add_test(tcase, blocks_are_reserved_before_a_clean_chunk_is_dirtied);
	tcase_add_test(tcase, reads_are_held_under_an_exclusive_lease);
	tcase_add_test(tcase, an_overdue_read_is_answered_and_its_pages_invalidated_again);
	tcase_add_test(tcase, an_exclusive_lease_is_not_granted_over_pages_that_were_read_meanwhile);
	tcase_add_test(tcase, copies_that_came_under_the_lease_are_removed_before_it_ends);
	tcase_add_test(tcase, a_cpu_that_never_stops_writing_keeps_no_lease_away_and_no_lease_alive);
	tcase_add_test(tcase, shared_leases_invalidate_only_what_the_cpu_may_have_dirtied);
	tcase_add_test(tcase, leases_exclude_each_other);
	tcase_add_test(tcase, a_snapshot_that_is_overtaken_leaves_the_chunk_dirty);
	tcase_add_test(tcase, a_snapshot_under_an_exclusive_lease_leaves_the_chunk_dirty);
	tcase_add_test(tcase, dirty_chunk_survives_failed_writeback);
	tcase_add_test(tcase, a_dirty_chunk_leaves_through_the_backing);
	tcase_add_test(tcase, nothing_in_use_is_evicted);
	tcase_add_test(tcase, policy_migrate_brings_the_chunk_back_first);
	tcase_add_test(tcase, a_chunk_stored_to_since_its_frozen_snapshot_is_not_dropped);
	tcase_add_test(tcase, a_freeze_waits_for_what_is_under_way_but_for_no_invalidation);
	tcase_add_test(tcase, lost_memory_is_dropped_when_nothing_uses_it);
	tcase_add_test(tcase, memory_lost_while_it_is_filled_is_looked_at_again);
	tcase_add_test(tcase, writes_that_the_device_never_got_are_not_lost_with_it);
	tcase_add_test(tcase, a_lost_write_waits_for_no_client_and_no_invalidation);
	tcase_add_test(tcase, every_reachable_state_keeps_the_invariants_under_every_event);
	tcase_add_test(tcase, names_are_printable);
	suite_add_tcase(suite, tcase);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
