/* kernel.c - see kernel.h */
#include "test/simulation/kernel.h"

#include "test/simulation/scheduler.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- checking ---- */

void check_seen(struct sim_file *file, size_t page, uint64_t stamp, uint64_t start, const char *by)
{
	uint64_t end = sim_tick();

	if (history_allows(&file->histories[page], stamp, start, end))
		return;
	fprintf(stderr, "%s, page %zu: %s during [%llu, %llu] saw ", file->name, page, by, (unsigned long long)start,
		(unsigned long long)end);
	if (stamp == STAMP_TORN)
		fputs("a torn page\n", stderr);
	else
		fprintf(stderr, "%llu\n", (unsigned long long)stamp);
	history_print(&file->histories[page]);
	sim_fail("a store was lost, or one that is over was seen again");
}

const void *lease_over_page(const struct sim_file *file, size_t page)
{
	for (unsigned i = 0; i < file->n_leases; i++) {
		if (page >= file->leases[i].first && page < file->leases[i].first + file->leases[i].n)
			return file->leases[i].lease;
	}
	return NULL;
}

static void note_store(struct sim_file *file, size_t page, uint64_t stamp, uint64_t start, uint64_t end, const void *lease)
{
	history_store(&file->histories[page], stamp, start, end, lease, history_horizon());
}

/* ---- requests to the filesystem (fusefs/data.c, range.c, file.c) ---- */

static ssize_t request_read(struct sim_file *file, void *buffer, size_t len, off_t off, bool is_direct)
{
	struct cache_io io = {.file = file->cached, .off = off, .len = len, .is_direct = is_direct};
	int err;

	if (!cache_file_is_active(file->cached))
		return disk_pread(&file->disk, buffer, len, off);
	err = CACHE_WAIT(cache_read, &io);
	if (err < 0)
		return err;
	sim_sleep(sim_random(20 * SIM_US)); /* the answer may be a replier's to give */
	memcpy(buffer, io.data, io.done_bytes);
	cache_read_free(&io);
	return (ssize_t)io.done_bytes;
}

static int request_write(struct sim_file *file, void *buffer, size_t len, off_t off, bool is_direct, bool is_writepage)
{
	struct cache_io io = {.file = file->cached, .off = off, .len = len, .data = buffer, .is_direct = is_direct,
			      .is_writepage = is_writepage};
	ssize_t n;

	if (cache_file_enter_write(file->cached)) {
		n = disk_pwrite(&file->disk, buffer, len, off);
		cache_file_leave_write(file->cached);
	} else {
		n = CACHE_WAIT(cache_write, &io);
		if (n == 0)
			n = (ssize_t)io.done_bytes;
	}
	if (n < 0)
		return (int)n;
	return n == (ssize_t)len ? 0 : -EIO;
}

struct change {
	struct cache_mutation mutation;
	struct sim_file *file;
	bool is_punch;
	off_t off, len;
};

static int change_call(struct cache_mutation *mutation)
{
	struct change *change = (struct change *)(void *)mutation;

	return change->is_punch ? disk_punch(&change->file->disk, change->off, change->len)
				: disk_truncate(&change->file->disk, change->off);
}

static int request_change(struct change *change, off_t off, off_t len)
{
	struct cache_file *cached = change->file->cached;

	if (cache_file_enter_write(cached)) {
		int status = change_call(&change->mutation);

		cache_file_leave_write(cached);
		return status;
	}
	change->mutation = (struct cache_mutation){.file = cached, .off = off, .len = len,
						   .discards = !change->is_punch, .apply = change_call};
	return CACHE_WAIT(cache_mutate, &change->mutation);
}

/* ---- locks ---- */

static void page_lock(struct page *page)
{
	while (page->is_locked)
		sim_block(page);
	page->is_locked = true;
}

static void page_unlock(struct page *page)
{
	page->is_locked = false;
	sim_wake(page);
}

static void page_wait_writeback(struct page *page)
{
	while (page->is_writeback)
		sim_block(page);
}

static void inode_lock(struct sim_file *file)
{
	while (file->is_locked)
		sim_block(&file->is_locked);
	file->is_locked = true;
}

static void inode_unlock(struct sim_file *file)
{
	file->is_locked = false;
	sim_wake(&file->is_locked);
}

/* ---- dirty pages ---- */

/* The page is locked and under writeback already. */
static void send_writepage(struct sim_file *file, struct page *page)
{
	size_t index = (size_t)(page - file->pages);
	uint64_t stamp = page->stamp;
	char bytes[PAGE_BYTES];
	int err = 0;

	while (file->is_nowrite)
		sim_block(&file->is_nowrite);
	if (index < file->n_pages) {
		page_fill(bytes, stamp);
		file->n_writepages++;
		err = request_write(file, bytes, PAGE_BYTES, (off_t)index * PAGE_BYTES, false, true);
		file->n_writepages--;
		sim_wake(&file->n_writepages);
	}
	if (err < 0) {
		file->has_mapping_error = true;
		history_doubt_since(&file->histories[index], 0);
	}
	page->is_writeback = false;
	sim_wake(page);
}

static void page_flush(struct sim_file *file, struct page *page)
{
	page_lock(page);
	page_wait_writeback(page);
	if (!page->is_dirty) {
		page_unlock(page);
		return;
	}
	page->is_dirty = false;
	page->is_writeback = true;
	page_unlock(page);
	send_writepage(file, page);
}

static void flush_range(struct sim_file *file, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		if (file->pages[i].is_dirty || file->pages[i].is_writeback)
			page_flush(file, &file->pages[i]);
	}
}

/* invalidate_inode_pages2_range */
static void invalidate_range(struct sim_file *file, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		struct page *page = &file->pages[i];

		if (!page->is_uptodate && !page->is_locked)
			continue;
		page_lock(page);
		page_wait_writeback(page);
		if (page->is_dirty) {
			page->is_dirty = false;
			page->is_writeback = true;
			send_writepage(file, page);
		}
		page->is_uptodate = false;
		page_unlock(page);
	}
}

/* truncate_inode_pages_range: dirty or not; at the end of a change of the file that began at start. */
static void remove_range(struct sim_file *file, size_t first, size_t n, uint64_t start)
{
	for (size_t i = first; i < first + n; i++) {
		struct page *page = &file->pages[i];

		if (!page->is_uptodate && !page->is_locked)
			continue;
		page_lock(page);
		page_wait_writeback(page);
		if (page->is_dirty)
			history_doubt_since(&file->histories[i], start);
		page->is_uptodate = page->is_dirty = false;
		page_unlock(page);
	}
}

void kernel_flush(struct sim_file *file)
{
	flush_range(file, 0, PAGES_MAX);
}

void kernel_drop_clean(struct sim_file *file)
{
	for (size_t i = 0; i < PAGES_MAX; i++) {
		struct page *page = &file->pages[i];

		if (!page->is_locked && !page->is_dirty && !page->is_writeback && sim_chance(2))
			page->is_uptodate = false;
	}
}

/* ---- loads and stores ---- */

static void take_pages(struct sim_file *file, size_t first, size_t n, const char *bytes, ssize_t n_bytes)
{
	for (size_t i = 0; i < n; i++) {
		struct page *page = &file->pages[first + i];

		if (n_bytes >= 0) {
			page->is_uptodate = true;
			page->stamp = (ssize_t)(i + 1) * PAGE_BYTES <= n_bytes ? page_stamp(bytes + i * PAGE_BYTES) : 0;
		}
		page_unlock(page);
	}
}

/* Has the page up to date and unlocked. */
static int fault(struct sim_file *file, size_t index)
{
	for (;;) {
		struct page *page = &file->pages[index];
		size_t n = 1, wanted = 1 + sim_random(4);
		char bytes[4 * PAGE_BYTES];
		ssize_t n_bytes;

		while (page->is_locked)
			sim_block(page);
		if (page->is_uptodate)
			return 0;
		while (n < wanted && index + n < file->n_pages && !page[n].is_locked && !page[n].is_uptodate)
			n++;
		for (size_t i = 0; i < n; i++)
			page_lock(&page[i]);
		n_bytes = request_read(file, bytes, n * PAGE_BYTES, (off_t)index * PAGE_BYTES, false);
		take_pages(file, index, n, bytes, n_bytes);
		if (n_bytes < 0)
			return (int)n_bytes;
		if (page->is_uptodate)
			return 0;
	}
}

int kernel_load(struct sim_file *file, size_t index)
{
	uint64_t start = sim_tick();
	int err;

	if (index >= file->n_pages)
		return 0;
	err = fault(file, index);
	if (err == 0)
		check_seen(file, index, file->pages[index].stamp, start, "a load");
	return err;
}

int kernel_store(struct sim_file *file, size_t index)
{
	struct page *page = &file->pages[index];
	uint64_t now;
	int err;

	do {
		if (index >= file->n_pages)
			return 0;
		err = fault(file, index);
		if (err < 0)
			return err;
		if (page->is_writeback) { /* page_mkwrite */
			page_wait_writeback(page);
			continue;
		}
	} while (page->is_locked || !page->is_uptodate || page->is_writeback || index >= file->n_pages);
	now = sim_tick();
	page->is_dirty = true;
	page->stamp = stamp_next();
	if (lease_over_page(file, index) != NULL)
		note_store(file, index, page->stamp, now, STORE_OPEN, lease_over_page(file, index));
	else
		note_store(file, index, page->stamp, now, now, NULL);
	return 0;
}

int kernel_read_direct(struct sim_file *file, size_t first, size_t n)
{
	char bytes[IO_PAGES_MAX * PAGE_BYTES];
	uint64_t start = sim_tick();
	ssize_t n_bytes;

	flush_range(file, first, n);
	if (file->has_mapping_error)
		return -EIO;
	n_bytes = request_read(file, bytes, n * PAGE_BYTES, (off_t)first * PAGE_BYTES, true);
	for (size_t i = 0; (ssize_t)(i + 1) * PAGE_BYTES <= n_bytes; i++)
		check_seen(file, first + i, page_stamp(bytes + i * PAGE_BYTES), start, "a direct read");
	return n_bytes < 0 ? (int)n_bytes : 0;
}

/* ---- write(2) ---- */

static int send_write(struct sim_file *file, size_t first, size_t n, const uint64_t *stamps, bool is_direct)
{
	char bytes[IO_PAGES_MAX * PAGE_BYTES];
	int err;

	for (size_t i = 0; i < n; i++)
		page_fill(bytes + i * PAGE_BYTES, stamps[i]);
	err = request_write(file, bytes, n * PAGE_BYTES, (off_t)first * PAGE_BYTES, is_direct, false);
	for (size_t i = 0; i < n; i++) {
		if (err < 0)
			history_doubt(&file->histories[first + i], stamps[i]);
	}
	if (err == 0 && first + n > file->n_pages)
		file->n_pages = first + n;
	return err;
}

static void end_stores(struct sim_file *file, size_t first, size_t n, const uint64_t *stamps)
{
	for (size_t i = 0; i < n; i++) {
		const void *lease = lease_over_page(file, first + i);

		/* A dirty page is flushed when the lease ends, at the latest, and this store with it. */
		if (lease != NULL && file->pages[first + i].is_dirty)
			history_end_with(&file->histories[first + i], stamps[i], lease);
		else
			history_end(&file->histories[first + i], stamps[i], sim_tick());
	}
}

/* One WRITE: up to the first page that is not up to date, which stays locked. Returns how many pages, or an error. */
static ssize_t write_batch(struct sim_file *file, size_t first, size_t n, uint64_t start)
{
	uint64_t stamps[IO_PAGES_MAX] = {0};
	struct page *kept = NULL;
	size_t taken = 0;
	int err;

	while (taken < n && kept == NULL) {
		struct page *page = &file->pages[first + taken];

		page_lock(page);
		stamps[taken] = page->stamp = stamp_next();
		note_store(file, first + taken, page->stamp, start, STORE_OPEN, NULL);
		taken++;
		if (page->is_uptodate)
			page_unlock(page);
		else
			kept = page;
	}
	for (size_t i = 0; i < taken; i++)
		page_wait_writeback(&file->pages[first + i]);
	err = send_write(file, first, taken, stamps, false);
	for (size_t i = 0; i < taken && err < 0; i++) {
		if (!file->pages[first + i].is_dirty)
			file->pages[first + i].is_uptodate = false;
	}
	if (err == 0)
		end_stores(file, first, taken, stamps);
	if (kept != NULL) {
		kept->is_uptodate = err == 0;
		page_unlock(kept);
	}
	return err < 0 ? err : (ssize_t)taken;
}

static int write_direct(struct sim_file *file, size_t first, size_t n, uint64_t start)
{
	uint64_t stamps[IO_PAGES_MAX] = {0};
	int err;

	flush_range(file, first, n);
	invalidate_range(file, first, n);
	for (size_t i = 0; i < n; i++) {
		stamps[i] = stamp_next();
		note_store(file, first + i, stamps[i], start, STORE_OPEN, NULL);
	}
	err = send_write(file, first, n, stamps, true);
	invalidate_range(file, first, n);
	if (err == 0)
		end_stores(file, first, n, stamps);
	return err;
}

int kernel_write(struct sim_file *file, size_t first, size_t n, bool is_direct)
{
	ssize_t done = 0;

	inode_lock(file);
	if (is_direct) {
		done = write_direct(file, first, n, sim_tick());
		n = 0;
	}
	for (size_t i = 0; i < n && done >= 0; i += (size_t)done)
		done = write_batch(file, first + i, n - i, sim_tick());
	inode_unlock(file);
	return done < 0 ? (int)done : 0;
}

/* ---- fsync, truncate, punch ---- */

int kernel_fsync(struct sim_file *file, uint32_t *error_sample)
{
	struct cache_sync sync = {.file = file->cached, .is_flush = true};
	uint64_t start = sim_tick();
	int err, device_err = 0;

	inode_lock(file);
	kernel_flush(file);
	err = file->has_mapping_error ? -EIO : 0;
	file->has_mapping_error = false;
	if (cache_file_is_active(file->cached))
		device_err = CACHE_WAIT(cache_sync, &sync);
	if (err == 0)
		err = cache_file_error_check(file->cached, error_sample);
	if (err == 0 && device_err == -ENOMEM)
		err = device_err;
	if (err == 0)
		err = disk_fsync(&file->disk);
	inode_unlock(file);
	for (size_t i = 0; i < PAGES_MAX && err == 0; i++) {
		if (file->histories[i].synced < start)
			file->histories[i].synced = start;
	}
	return err;
}

/* After a failure the kernel learns the size anew: the attributes' time-out. */
static void look_at_size(struct sim_file *file, uint64_t start)
{
	struct stat st;

	if (fstat(file->disk.memfd, &st) < 0)
		abort();
	file->n_pages = (size_t)st.st_size / PAGE_BYTES;
	remove_range(file, file->n_pages, PAGES_MAX - file->n_pages, start);
}

int kernel_truncate(struct sim_file *file, size_t n_pages)
{
	struct change change = {.file = file, .off = (off_t)n_pages * PAGE_BYTES};
	struct stat st;
	uint64_t start;
	off_t first;
	int err;

	inode_lock(file);
	start = sim_tick();
	file->is_nowrite = true;
	while (file->n_writepages > 0)
		sim_block(&file->n_writepages);
	for (size_t i = n_pages; i < file->n_pages; i++)
		note_store(file, i, 0, start, STORE_OPEN, NULL);
	if (fstat(file->disk.memfd, &st) < 0)
		abort();
	first = st.st_size < change.off ? st.st_size : change.off;
	err = request_change(&change, first, INT64_MAX - first);
	if (err == 0) {
		size_t before = file->n_pages;

		file->n_pages = n_pages;
		file->is_nowrite = false;
		sim_wake(&file->is_nowrite);
		remove_range(file, n_pages, PAGES_MAX - n_pages, start);
		invalidate_range(file, 0, n_pages);
		for (size_t i = n_pages; i < before; i++)
			history_end(&file->histories[i], 0, sim_tick());
	}
	file->is_nowrite = false;
	sim_wake(&file->is_nowrite);
	if (err < 0)
		look_at_size(file, start);
	inode_unlock(file);
	return err;
}

int kernel_punch(struct sim_file *file, size_t first, size_t n)
{
	struct change change = {.file = file, .is_punch = true, .off = (off_t)first * PAGE_BYTES,
				.len = (off_t)n * PAGE_BYTES};
	uint64_t start;
	int err;

	inode_lock(file);
	start = sim_tick();
	flush_range(file, first, n);
	for (size_t i = first; i < first + n; i++)
		note_store(file, i, 0, start, STORE_OPEN, NULL);
	err = request_change(&change, change.off, change.len);
	if (err == 0)
		remove_range(file, first, n, start);
	for (size_t i = first; i < first + n && err == 0; i++)
		history_end(&file->histories[i], 0, sim_tick());
	inode_unlock(file);
	return err;
}

/* ---- what the cache asks ---- */

static int on_invalidate(void *fs, void *owner, off_t off, off_t len)
{
	size_t first = (size_t)off / PAGE_BYTES;
	size_t end = ((size_t)(off + len) + PAGE_BYTES - 1) / PAGE_BYTES;

	(void)fs;
	invalidate_range(owner, first, (end < PAGES_MAX ? end : PAGES_MAX) - first);
	return 0;
}

static int on_open_backing(void *fs, void *owner, int flags)
{
	struct sim_file *file = owner;

	(void)fs;
	sim_sleep(sim_random(50 * SIM_US));
	return disk_file_open(&file->disk, flags);
}

static void on_file_idle(void *fs, void *owner)
{
	(void)fs;
	(void)owner;
}

static void on_log(void *fs, int priority, const char *line)
{
	(void)fs;
	if (is_verbose)
		fprintf(stderr, "  %.6f <%d> %s\n", (double)sim_now() / 1e9, priority, line);
}

static const char *on_file_name(void *fs, void *owner)
{
	const struct sim_file *file = owner;

	(void)fs;
	return file->name;
}

const struct cache_callbacks kernel_callbacks = {
	.invalidate = on_invalidate,
	.open_backing = on_open_backing,
	.file_idle = on_file_idle,
	.log = on_log,
	.file_name = on_file_name,
};
