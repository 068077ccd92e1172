/* history.c - see history.h */
#include "test/simulation/history.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = PAGE_BYTES / 8, PRUNE_AT = 12 };

void page_fill(void *page, uint64_t stamp)
{
	uint64_t *words = page;

	for (size_t i = 0; i < WORDS; i++)
		words[i] = stamp == 0 ? 0 : stamp << 16 | i;
}

uint64_t page_stamp(const void *page)
{
	const uint64_t *words = page;
	uint64_t stamp = words[0] >> 16;

	for (size_t i = 0; i < WORDS; i++) {
		if (words[i] != (stamp == 0 ? 0 : stamp << 16 | i))
			return STAMP_TORN;
	}
	return stamp;
}

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
	history->stores[history->n++] = (struct store){stamp, start, end, lease};
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
	/* Of two stores at once, say a write(2) and one by a mapping, a page may get a part each. */
	return stamp == STAMP_TORN && n_possible > 1;
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
