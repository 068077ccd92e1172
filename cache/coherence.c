/* coherence.c - the transition table of a chunk. See coherence.h for its states, words and invariants. */
#include "cache/coherence.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

static const struct coherence_result illegal = {DO_ILLEGAL, false};

static struct coherence_result go(enum coherence_action action)
{
	return (struct coherence_result){action, false};
}

static struct coherence_result go_and_resume(enum coherence_action action)
{
	return (struct coherence_result){action, true};
}

void coherence_init(struct coherence *c)
{
	*c = (struct coherence){.state = CHUNK_HOST, .kernel_copies = true};
}

static bool is_resident(const struct coherence *c)
{
	return c->state == CHUNK_CLEAN || c->state == CHUNK_DIRTY;
}

static bool is_leased(const struct coherence *c)
{
	return c->shared > 0 || c->exclusive != EXCLUSIVE_NONE;
}

static bool has_device_io(const struct coherence *c)
{
	return c->device_reads > 0 || c->device_writes > 0;
}

/* R6: only a CLEAN copy is ever dropped, and never under a lease or a copy in flight. */
static bool is_droppable(const struct coherence *c)
{
	return c->state == CHUNK_CLEAN && !is_leased(c) && c->pins == 0 && !has_device_io(c) &&
	       !c->is_invalidating && c->freeze == FREEZE_NONE;
}

static struct coherence_result drop(struct coherence *c)
{
	c->state = CHUNK_HOST;
	c->is_untouched = false;
	c->is_leaving = false;
	c->is_reserved = false;
	c->has_error = false;
	return go_and_resume(DO_DROP);
}

static struct coherence_result start_invalidation(struct coherence *c)
{
	c->is_invalidating = true;
	c->kernel_copies = false; /* what is answered from here on counts anew (R3) */
	c->is_reread = false;
	return go(DO_INVALIDATE);
}

static struct coherence_result start_snapshot(struct coherence *c)
{
	c->is_writeback = true;
	/* A store or copy that may land after its bytes were read makes the snapshot old. */
	c->is_redirtied = c->exclusive == EXCLUSIVE_HELD || c->device_writes > 0;
	return go(DO_SNAPSHOT);
}

static struct coherence_result answer_read(struct coherence *c)
{
	c->kernel_copies = true;
	c->is_reread = c->exclusive == EXCLUSIVE_CLAIMED;
	if (!is_resident(c))
		return go(DO_BACKING);
	c->device_reads++;
	return go(DO_DEVICE);
}

static struct coherence_result on_read(struct coherence *c, const struct coherence_context *context)
{
	/* R5: held until the lease is over. R3: held while the notifier is at it. */
	if (c->exclusive != EXCLUSIVE_NONE || c->is_invalidating || c->freeze != FREEZE_NONE)
		return go(DO_WAIT);
	if (is_resident(c) && context->migrates_on_read && c->shared == 0 && c->pins == 0 && !c->has_error)
		return go(c->is_leaving ? DO_WAIT : DO_LEAVE);
	return answer_read(c);
}

static struct coherence_result on_read_overdue(struct coherence *c)
{
	/* R3: answered whatever the lease: an invalidation may be waiting for these pages. Only a frozen chunk is
	 * waited for: it thaws after a system call on the backing, which waits for no invalidation. */
	if (c->freeze == FREEZE_FROZEN)
		return go(DO_WAIT);
	return answer_read(c);
}

/*
 * R1: a WRITE waits for no client, lease, invalidation or READ. It does wait for a fill in flight and for a frozen
 * chunk to thaw, and for the WRITEs before it that these wait for: all of it depends on disk and device alone. (Were it let in
 * while they drain, one that overlaps the last could always be there, and neither would ever start. Nor is it sent to the backing
 * and the fill started again: that never ends under a CPU that never stops writing.)
 */
static struct coherence_result on_write(struct coherence *c, bool is_writepage)
{
	if (c->state == CHUNK_FILLING || c->is_draining || c->freeze != FREEZE_NONE)
		return go(DO_WAIT);
	if (c->state == CHUNK_CLEAN && !c->is_reserved)
		return go(DO_RESERVE);
	/* The kernel keeps the pages of a write(), but not those that an invalidation makes it flush. */
	if (!is_writepage || !c->is_invalidating)
		c->kernel_copies = true;
	if (c->state == CHUNK_HOST) {
		c->host_writes++;
		return go(DO_BACKING);
	}
	c->is_untouched |= c->state == CHUNK_CLEAN;
	c->state = CHUNK_DIRTY;
	c->is_redirtied = c->is_writeback;
	c->device_writes++;
	return go(DO_DEVICE);
}

static struct coherence_result on_device_io_done(struct coherence *c, uint16_t *count)
{
	if (*count == 0)
		return illegal;
	--*count;
	if (c->is_leaving && is_droppable(c))
		return drop(c);
	return go_and_resume(DO_NOTHING);
}

static struct coherence_result on_write_done(struct coherence *c)
{
	c->is_untouched = false;
	return on_device_io_done(c, &c->device_writes);
}

/* Sent again when the copy is dropped, but it waits for no client and no invalidation (R1). */
static struct coherence_result on_write_lost(struct coherence *c)
{
	if (c->device_writes == 0)
		return illegal;
	c->device_writes--;
	return go_and_resume(is_leased(c) || c->pins > 0 || c->is_invalidating ? DO_REFUSE : DO_WAIT);
}

static struct coherence_result on_host_written(struct coherence *c)
{
	if (c->host_writes == 0)
		return illegal;
	c->host_writes--;
	if (c->host_writes == 0)
		c->is_draining = false;
	return go_and_resume(DO_NOTHING);
}

static struct coherence_result on_pin(struct coherence *c)
{
	c->pins++;
	c->is_leaving = false;
	return go(DO_NOTHING);
}

static struct coherence_result on_unpin(struct coherence *c)
{
	if (c->pins == 0)
		return illegal;
	c->pins--;
	return go_and_resume(DO_NOTHING);
}

static struct coherence_result on_want_resident(struct coherence *c)
{
	if (is_resident(c))
		return go(DO_NOTHING);
	c->is_draining = c->host_writes > 0;
	if (c->state == CHUNK_FILLING || c->freeze != FREEZE_NONE || c->host_writes > 0)
		return go(DO_WAIT);
	c->state = CHUNK_FILLING;
	return go(DO_FILL);
}

static struct coherence_result on_want_shared(struct coherence *c, const struct coherence_context *context)
{
	if (!is_resident(c))
		return on_want_resident(c);
	if (c->freeze != FREEZE_NONE || c->exclusive != EXCLUSIVE_NONE || c->is_invalidating)
		return go(DO_WAIT);
	if (c->kernel_copies && context->has_writers)
		return start_invalidation(c);
	return go(DO_NOTHING);
}

/*
 * Pages that READs got during the invalidation are removed again (R3). Those of a write() are not, or a CPU that never stops
 * writing would keep the lease away for ever: its WRITE counts as one that came under the lease. Its pages are whole, what
 * is in them is in the device copy, too, and they are removed when the lease ends.
 */
static struct coherence_result on_want_exclusive(struct coherence *c)
{
	bool is_claimed = c->exclusive == EXCLUSIVE_CLAIMED;

	if (!is_resident(c))
		return on_want_resident(c);
	if (c->freeze != FREEZE_NONE || c->exclusive == EXCLUSIVE_HELD || c->exclusive == EXCLUSIVE_ENDING ||
	    c->shared > 0 || c->is_invalidating)
		return go(DO_WAIT);
	if (!c->is_reserved)
		return go(DO_RESERVE);
	c->exclusive = EXCLUSIVE_CLAIMED;
	return (is_claimed ? c->is_reread : c->kernel_copies) ? start_invalidation(c) : go(DO_NOTHING);
}

static struct coherence_result on_unclaim(struct coherence *c)
{
	if (c->exclusive == EXCLUSIVE_CLAIMED)
		c->exclusive = EXCLUSIVE_NONE;
	c->is_reread = false;
	return go_and_resume(DO_NOTHING);
}

static struct coherence_result on_grant_shared(struct coherence *c)
{
	if (!is_resident(c) || c->exclusive != EXCLUSIVE_NONE)
		return illegal;
	c->shared++;
	return go(DO_NOTHING);
}

static struct coherence_result on_grant_exclusive(struct coherence *c)
{
	if (!is_resident(c) || c->exclusive != EXCLUSIVE_CLAIMED || c->is_reread || c->is_invalidating ||
	    c->shared > 0)
		return illegal;
	c->exclusive = EXCLUSIVE_HELD;
	c->state = CHUNK_DIRTY;
	c->is_untouched = false;
	c->is_redirtied = c->is_writeback;
	return go(DO_NOTHING);
}

static struct coherence_result on_end_shared(struct coherence *c)
{
	if (c->shared == 0)
		return illegal;
	c->shared--;
	return go_and_resume(DO_NOTHING);
}

static struct coherence_result on_end_exclusive(struct coherence *c)
{
	if (c->exclusive != EXCLUSIVE_HELD || c->is_invalidating)
		return illegal;
	c->is_redirtied = c->is_writeback;
	if (!c->kernel_copies) {
		c->exclusive = EXCLUSIVE_NONE;
		return go_and_resume(DO_NOTHING);
	}
	/* A write() or an overdue READ left pages in the kernel that the device may have overwritten since. */
	c->exclusive = EXCLUSIVE_ENDING;
	return start_invalidation(c);
}

static struct coherence_result on_invalidated(struct coherence *c)
{
	if (!c->is_invalidating)
		return illegal;
	c->is_invalidating = false;
	/* Copies that came meanwhile may stay: the device stores no more, so what was answered or written is the truth. */
	if (c->exclusive == EXCLUSIVE_ENDING)
		c->exclusive = EXCLUSIVE_NONE;
	return go_and_resume(DO_NOTHING);
}

static struct coherence_result on_filled(struct coherence *c, bool has_failed)
{
	if (c->state != CHUNK_FILLING)
		return illegal;
	if (has_failed)
		return drop(c);
	c->state = CHUNK_CLEAN;
	return go_and_resume(DO_NOTHING);
}

static struct coherence_result on_snapshot(struct coherence *c, bool by_mutation)
{
	if (c->state != CHUNK_DIRTY)
		return go(DO_NOTHING);
	if (c->is_writeback || (c->freeze == FREEZE_FROZEN && !by_mutation))
		return go(DO_WAIT);
	return start_snapshot(c);
}

static struct coherence_result on_written(struct coherence *c)
{
	if (!c->is_writeback)
		return illegal;
	c->is_writeback = false;
	c->has_error = false;
	if (!c->is_redirtied) {
		c->state = CHUNK_CLEAN;
		c->is_untouched = false;
	} else {
		c->is_leaving = false; /* someone writes it: let another chunk leave */
	}
	c->is_redirtied = false;
	if (c->is_leaving && is_droppable(c))
		return drop(c);
	return go_and_resume(DO_NOTHING);
}

/* R6: the data stays, and stays DIRTY. */
static struct coherence_result on_write_failed(struct coherence *c)
{
	if (!c->is_writeback)
		return illegal;
	c->is_writeback = false;
	c->is_redirtied = false;
	c->is_leaving = false;
	c->has_error = true;
	return go_and_resume(DO_NOTHING);
}

static struct coherence_result on_leave(struct coherence *c)
{
	if (c->state == CHUNK_HOST)
		return go(DO_NOTHING);
	if (!is_resident(c) || is_leased(c) || c->pins > 0 || c->freeze != FREEZE_NONE || c->is_invalidating)
		return go(DO_REFUSE);
	if (is_droppable(c))
		return drop(c);
	c->is_leaving = true;
	if (c->state == CHUNK_DIRTY && !c->is_writeback)
		return start_snapshot(c);
	return go(DO_WAIT);
}

static struct coherence_result on_freeze(struct coherence *c)
{
	if (c->freeze == FREEZE_FROZEN)
		return illegal;
	/* Not for an invalidation: that may wait for a WRITE which the kernel keeps back until the truncation that
	 * we are freezing for is answered (FUSE_NOWRITE). */
	if (c->state == CHUNK_FILLING || c->is_writeback || c->host_writes > 0 || has_device_io(c)) {
		c->freeze = FREEZE_WAITING;
		return go(DO_WAIT);
	}
	c->freeze = FREEZE_FROZEN;
	c->is_leaving = false;
	return go(DO_NOTHING);
}

static struct coherence_result on_thaw(struct coherence *c)
{
	if (c->freeze == FREEZE_NONE || c->is_writeback)
		return illegal;
	c->freeze = FREEZE_NONE;
	c->is_reserved = false; /* a punched hole has no blocks any more */
	return go_and_resume(DO_NOTHING);
}

static struct coherence_result on_thaw_drop(struct coherence *c, bool is_discarded)
{
	if (c->freeze != FREEZE_FROZEN || is_leased(c) || c->pins > 0 || c->is_writeback)
		return illegal;
	if (c->state == CHUNK_DIRTY && !is_discarded)
		return illegal; /* R6 */
	c->freeze = FREEZE_NONE;
	return c->state == CHUNK_HOST ? go_and_resume(DO_NOTHING) : drop(c);
}

static struct coherence_result on_lost(struct coherence *c)
{
	struct coherence_result result;
	bool has_stores;

	if (c->state == CHUNK_HOST)
		return go(DO_NOTHING);
	/* FILLING: what is lost after its last piece arrived nobody else would notice. */
	if (c->state == CHUNK_FILLING || is_leased(c) || c->pins > 0 || c->is_writeback || has_device_io(c) ||
	    c->freeze != FREEZE_NONE || c->is_invalidating)
		return go(DO_WAIT);
	has_stores = c->state == CHUNK_DIRTY && !c->is_untouched;
	result = drop(c);
	if (has_stores)
		result.action = DO_LOSE;
	return result;
}

struct coherence_result coherence_step(struct coherence *c, enum coherence_event event,
				       const struct coherence_context *context)
{
	switch (event) {
	case EVENT_READ: return on_read(c, context);
	case EVENT_READ_OVERDUE: return on_read_overdue(c);
	case EVENT_WRITE: return on_write(c, false);
	case EVENT_WRITEPAGE: return on_write(c, true);
	case EVENT_READ_DONE: return on_device_io_done(c, &c->device_reads);
	case EVENT_WRITE_DONE: return on_write_done(c);
	case EVENT_WRITE_LOST: return on_write_lost(c);
	case EVENT_HOST_WRITTEN: return on_host_written(c);
	case EVENT_PIN: return on_pin(c);
	case EVENT_UNPIN: return on_unpin(c);
	case EVENT_WANT_RESIDENT: return on_want_resident(c);
	case EVENT_WANT_SHARED: return on_want_shared(c, context);
	case EVENT_WANT_EXCLUSIVE: return on_want_exclusive(c);
	case EVENT_UNCLAIM: return on_unclaim(c);
	case EVENT_GRANT_SHARED: return on_grant_shared(c);
	case EVENT_GRANT_EXCLUSIVE: return on_grant_exclusive(c);
	case EVENT_END_SHARED: return on_end_shared(c);
	case EVENT_END_EXCLUSIVE: return on_end_exclusive(c);
	case EVENT_RESERVED: c->is_reserved = true; return go_and_resume(DO_NOTHING);
	case EVENT_FILLED: return on_filled(c, false);
	case EVENT_FILL_FAILED: return on_filled(c, true);
	case EVENT_INVALIDATED: return on_invalidated(c);
	case EVENT_WRITTEN: return on_written(c);
	case EVENT_WRITE_FAILED: return on_write_failed(c);
	case EVENT_SNAPSHOT: return on_snapshot(c, false);
	case EVENT_SNAPSHOT_FROZEN: return on_snapshot(c, true);
	case EVENT_LEAVE: return on_leave(c);
	case EVENT_FREEZE: return on_freeze(c);
	case EVENT_THAW: return on_thaw(c);
	case EVENT_THAW_DROP: return on_thaw_drop(c, false);
	case EVENT_THAW_DISCARD: return on_thaw_drop(c, true);
	case EVENT_LOST: return on_lost(c);
	case EVENT_COUNT: break;
	}
	return illegal;
}

bool coherence_is_idle(const struct coherence *c)
{
	return c->state == CHUNK_HOST && c->pins == 0 && c->host_writes == 0 && !c->is_invalidating &&
	       c->exclusive == EXCLUSIVE_NONE && c->freeze == FREEZE_NONE;
}

bool coherence_is_valid(const struct coherence *c)
{
	bool resident = is_resident(c);

	if (c->exclusive == EXCLUSIVE_HELD && (c->state != CHUNK_DIRTY || c->shared > 0))
		return false; /* I1 */
	if (c->shared > 0 && !resident)
		return false; /* I2 */
	if (!resident && (c->exclusive == EXCLUSIVE_HELD || c->is_writeback || has_device_io(c) || c->is_leaving))
		return false; /* I3 */
	if (c->freeze == FREEZE_FROZEN && (c->state == CHUNK_FILLING || c->host_writes > 0 || has_device_io(c)))
		return false; /* I4 */
	if ((c->host_writes > 0 && c->state != CHUNK_HOST) || (c->is_draining && c->host_writes == 0))
		return false; /* I5 */
	if ((c->is_redirtied && !c->is_writeback) || (c->is_writeback && c->state != CHUNK_DIRTY))
		return false; /* I6 */
	if (c->is_reread && (c->exclusive != EXCLUSIVE_CLAIMED || !c->kernel_copies))
		return false; /* I7 */
	if (c->is_untouched && c->state != CHUNK_DIRTY)
		return false; /* I8 */
	return true;
}

const char *chunk_state_name(enum chunk_state state)
{
	static const char *const names[] = {"HOST", "FILLING", "CLEAN", "DIRTY"};

	assert((size_t)state < sizeof(names) / sizeof(names[0]));
	return names[state];
}

const char *coherence_event_name(enum coherence_event event)
{
	static const char *const names[EVENT_COUNT] = {
		"READ", "READ_OVERDUE", "WRITE", "WRITEPAGE", "READ_DONE", "WRITE_DONE", "WRITE_LOST", "HOST_WRITTEN", "PIN", "UNPIN",
		"WANT_RESIDENT", "WANT_SHARED", "WANT_EXCLUSIVE", "UNCLAIM", "GRANT_SHARED", "GRANT_EXCLUSIVE",
		"END_SHARED", "END_EXCLUSIVE", "RESERVED", "FILLED", "FILL_FAILED", "INVALIDATED", "WRITTEN",
		"WRITE_FAILED", "SNAPSHOT", "SNAPSHOT_FROZEN", "LEAVE", "FREEZE", "THAW", "THAW_DROP", "THAW_DISCARD", "LOST",
	};

	assert(event < EVENT_COUNT);
	return names[event];
}

const char *coherence_action_name(enum coherence_action action)
{
	static const char *const names[] = {"NOTHING", "WAIT", "BACKING", "DEVICE", "LEAVE", "FILL",
					    "INVALIDATE", "RESERVE", "SNAPSHOT", "DROP", "LOSE", "REFUSE", "ILLEGAL"};

	assert((size_t)action < sizeof(names) / sizeof(names[0]));
	return names[action];
}
