/*
 * history.h - what may be seen where: every cell is a register (Lamport 1986: a regular one, with many writers).
 *
 * A page is cut into cells, at odd places that differ from page to page; they are what is stored, loaded and checked, and where
 * files end: sizes are multiples of nothing.
 *
 * A store has a beginning and an end, in sim_tick()s; so has a load. A load may see a store that began before the load's
 * end, unless another store lies wholly between the two. A cell's content is a stamp, repeated in every word with the
 * word's place in the page, so that a cell of two stores (torn) or of another place shows; stamp 0 is zeros.
 *
 * The same question asked of the disk after a power failure, for a load that began when the last successful fsync did, is
 * whether fsync told the truth.
 */
#ifndef HMMFS_SIMULATION_HISTORY_H
#define HMMFS_SIMULATION_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { PAGE_BYTES = 4096, PAGE_CELLS = 3 };
#define STORE_OPEN UINT64_MAX
#define STAMP_TORN ((UINT64_C(1) << 48) - 1) /* what a cell filled with it is seen as, too */

struct store {
	uint64_t stamp, start, end;
	const void *lease; /* ends with this lease */
	bool is_possible;  /* history_lose */
};

struct history {
	struct store *stores;
	size_t n, max;
	bool is_unknown; /* from now on: the file was lengthened by a change that failed */
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
/* What was stored since the last successful fsync is lost with the device, or some of it: from now on any of it may be seen, or
 * what was there before. */
void history_lose(struct history *history, uint64_t now);
void history_end_lease(struct history *history, const void *lease, uint64_t end);
/* A load during [start, end] saw stamp, or a torn cell. */
bool history_allows(const struct history *history, uint64_t stamp, uint64_t start, uint64_t end);
void history_print(const struct history *history);

/* Where the cell begins in its file. */
off_t cell_offset(size_t cell);
/* The first cell that begins at off or behind it: how many a file of that size has. */
size_t cells_before(off_t off);
/* The cell's bytes, at bytes. */
void cell_fill(void *bytes, size_t cell, uint64_t stamp);
/* STAMP_TORN: not one store's. */
uint64_t cell_stamp(const void *bytes, size_t cell);

#endif
