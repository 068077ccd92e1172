/*
 * history.h - what may be seen where: every page is a register (Lamport 1986: a regular one, with many writers).
 *
 * A store has a beginning and an end, in sim_tick()s; so has a load. A load may see a store that began before the load's
 * end, unless another store lies wholly between the two. A page's content is a stamp, repeated in every word with the
 * word's index, so that a page of two stores (torn) or of another place shows; stamp 0 is a page of zeros.
 *
 * The same question asked of the disk after a power failure, for a load that began when the last successful fsync did, is
 * whether fsync told the truth.
 */
#ifndef HMMFS_SIMULATION_HISTORY_H
#define HMMFS_SIMULATION_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PAGE_BYTES = 4096 };
#define STORE_OPEN UINT64_MAX
#define STAMP_TORN UINT64_MAX

struct store {
	uint64_t stamp, start, end;
	const void *lease; /* ends with this lease */
};

struct history {
	struct store *stores;
	size_t n, max;
	uint64_t synced; /* when the newest fsync that succeeded began */
};

void history_init(struct history *history, uint64_t stamp);
void history_finish(struct history *history);
/* horizon: no load that is still to be checked began before. Returns nothing to keep: ends are set by stamp. */
void history_store(struct history *history, uint64_t stamp, uint64_t start, uint64_t end, const void *lease,
		   uint64_t horizon);
void history_end(struct history *history, uint64_t stamp, uint64_t end);
/* It ends with the lease instead. */
void history_end_with(struct history *history, uint64_t stamp, const void *lease);
/* Never ends: it may be seen or not, for ever (a WRITE that failed). */
void history_doubt(struct history *history, uint64_t stamp);
/* A dirty page was dropped: what was stored since may have been in it. */
void history_doubt_since(struct history *history, uint64_t start);
void history_end_lease(struct history *history, const void *lease, uint64_t end);
/* A load during [start, end] saw stamp, or a torn page. */
bool history_allows(const struct history *history, uint64_t stamp, uint64_t start, uint64_t end);
void history_print(const struct history *history);

void page_fill(void *page, uint64_t stamp);
/* STAMP_TORN: not one store's. */
uint64_t page_stamp(const void *page);

#endif
