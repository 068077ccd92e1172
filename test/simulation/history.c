/* history.c - see history.h */
#include "test/simulation/history.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PRUNE_AT = 12 };

/* ---- cells ---- */

static size_t offset_in_page(size_t cell)
{
	size_t page = cell / PAGE_CELLS;

	/* Each has at least one whole word: its stamp is read from that. */
	switch (cell % PAGE_CELLS) {
	case 0: return 0;
	case 1: return 17 + page * 797 % 1900;
	default: return 2047 + page * 1231 % 2030;
	}
}

off_t cell_offset(size_t cell)
{
	return (off_t)(cell / PAGE_CELLS * PAGE_BYTES + offset_in_page(cell));
}

size_t cells_before(off_t off)
{
	size_t cell = (size_t)off / PAGE_BYTES * PAGE_CELLS;

	while (cell_offset(cell) < off)
		cell++;
	return cell;
}

static uint64_t word_at(uint64_t stamp, size_t off)
{
	return stamp == 0 ? 0 : stamp << 16 | off / sizeof(uint64_t);
}

/* Calls for each word that lies at least in part in the cell: which bytes of it, and where they are. */
static bool each_word(size_t cell, uint64_t stamp, uint8_t *to, const uint8_t *from)
{
	size_t begin = offset_in_page(cell), end = cell % PAGE_CELLS == PAGE_CELLS - 1 ? PAGE_BYTES : offset_in_page(cell + 1);

	for (size_t off = begin; off < end;) {
		uint64_t word = word_at(stamp, off);
		size_t at = off % sizeof(word), n = sizeof(word) - at;

		if (n > end - off)
			n = end - off;
		if (n == sizeof(word) && to == NULL) { /* nearly always: in line */
			uint64_t seen;

			memcpy(&seen, from + (off - begin), sizeof(seen));
			if (seen != word)
				return false;
		} else if (to != NULL)
			memcpy(to + (off - begin), (uint8_t *)&word + at, n);
		else if (memcmp(from + (off - begin), (uint8_t *)&word + at, n) != 0)
			return false;
		off += n;
	}
	return true;
}

void cell_fill(void *bytes, size_t cell, uint64_t stamp)
{
	each_word(cell, stamp, bytes, NULL);
}

uint64_t cell_stamp(const void *bytes, size_t cell)
{
	size_t begin = offset_in_page(cell), first = (begin + 7) / 8 * 8 - begin;
	uint64_t word;

	memcpy(&word, (const uint8_t *)bytes + first, sizeof(word));
	return each_word(cell, word >> 16, NULL, bytes) ? word >> 16 : STAMP_TORN;
}

/* ---- what was stored ---- */

void history_init(struct history *history, uint64_t stamp)
{
	*history = (struct history){0};
	history_store(history, stamp, 0, 0, NULL, 0);
}

void history_finish(struct history *history)
{
	free(history->stores);
}

/* Whether another store lies wholly after this one and before a load that began at start. */
static bool is_overwritten(const struct history *history, const struct store *store, uint64_t start)
{
	for (size_t i = 0; i < history->n; i++) {
		const struct store *other = &history->stores[i];

		if (store->end != STORE_OPEN && other->start > store->end && other->end < start)
			return true;
	}
	return false;
}

static void prune(struct history *history, uint64_t horizon)
{
	size_t kept = 0;

	if (history->synced < horizon)
		horizon = history->synced;
	for (size_t i = 0; i < history->n; i++) {
		struct store store = history->stores[i];

		/* What the one dropped has overwritten is overwritten by its own overwriter too. */
		if (!is_overwritten(history, &store, horizon))
			history->stores[kept++] = store;
	}
	history->n = kept;
}

void history_store(struct history *history, uint64_t stamp, uint64_t start, uint64_t end, const void *lease, uint64_t horizon)
{
	if (history->n >= PRUNE_AT)
		prune(history, horizon);
	if (history->n == history->max) {
		history->max = history->max == 0 ? 16 : 2 * history->max;
		history->stores = reallocarray(history->stores, history->max, sizeof(*history->stores));
		if (history->stores == NULL)
			abort();
	}
	history->stores[history->n++] = (struct store){stamp, start, end, lease, false};
}

static void end_one(struct store *store, uint64_t end)
{
	if (store->end == STORE_OPEN)
		store->end = end;
}

/* The newest of that stamp (there may be many of zeros) that is open and no lease's. */
static struct store *find_open(struct history *history, uint64_t stamp)
{
	for (size_t i = history->n; i-- > 0;) {
		struct store *store = &history->stores[i];

		if (store->stamp == stamp && store->lease == NULL && store->end == STORE_OPEN)
			return store;
	}
	return NULL;
}

void history_end(struct history *history, uint64_t stamp, uint64_t end)
{
	struct store *store = find_open(history, stamp);

	if (store != NULL)
		store->end = end;
}

void history_end_with(struct history *history, uint64_t stamp, const void *lease)
{
	struct store *store = find_open(history, stamp);

	if (store != NULL)
		store->lease = lease;
}

static void doubt(struct history *history, struct store *store)
{
	store->end = STORE_OPEN;
	store->lease = history; /* no lease's: stays open */
}

void history_doubt(struct history *history, uint64_t stamp)
{
	for (size_t i = 0; i < history->n; i++) {
		if (history->stores[i].stamp == stamp)
			doubt(history, &history->stores[i]);
	}
}

void history_doubt_since(struct history *history, uint64_t start)
{
	for (size_t i = 0; i < history->n; i++) {
		if (history->stores[i].end >= start)
			doubt(history, &history->stores[i]);
	}
}

void history_lose(struct history *history, uint64_t now)
{
	for (size_t i = 0; i < history->n; i++)
		history->stores[i].is_possible = !is_overwritten(history, &history->stores[i], history->synced);
	for (size_t i = 0; i < history->n; i++) {
		if (history->stores[i].is_possible && history->stores[i].end != STORE_OPEN)
			history->stores[i].end = now;
	}
}

void history_end_lease(struct history *history, const void *lease, uint64_t end)
{
	for (size_t i = 0; i < history->n; i++) {
		if (history->stores[i].lease == lease) {
			end_one(&history->stores[i], end);
			history->stores[i].lease = NULL;
		}
	}
}

bool history_allows(const struct history *history, uint64_t stamp, uint64_t start, uint64_t end)
{
	unsigned n_possible = 0;

	for (size_t i = 0; i < history->n; i++) {
		const struct store *store = &history->stores[i];

		if (store->start >= end || is_overwritten(history, store, start))
			continue;
		if (store->stamp == stamp)
			return true;
		n_possible++;
	}
	/* Of two stores at once, say a write(2) and one by a mapping, a cell may get a part each. */
	return history->is_unknown || (stamp == STAMP_TORN && n_possible > 1);
}

void history_print(const struct history *history)
{
	for (size_t i = 0; i < history->n; i++) {
		const struct store *store = &history->stores[i];

		fprintf(stderr, "    stored %llu from %llu to ", (unsigned long long)store->stamp,
			(unsigned long long)store->start);
		if (store->end == STORE_OPEN)
			fputs("now or never\n", stderr);
		else
			fprintf(stderr, "%llu\n", (unsigned long long)store->end);
	}
}
