/* kernel.c - the system calls, loads and stores. See kernel.h. */
#include "test/simulation/kernel_internal.h"
#include "test/simulation/scheduler.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- loads and stores ---- */

static void take_pages(struct sim_file *file, size_t first, size_t n, const char *bytes, ssize_t n_bytes)
{
	for (size_t i = 0; i < n; i++) {
		struct page *page = &file->pages[first + i];

		for (size_t k = 0; k < PAGE_CELLS && n_bytes >= 0; k++) {
			size_t cell = (first + i) * PAGE_CELLS + k;

			page->stamps[k] = cell_stamp(bytes + (cell_offset(cell) - (off_t)first * PAGE_BYTES), cell);
			if (page->stamps[k] == page->owed[k])
				page_owed_is_over(file, page, k);
		}
		page->is_uptodate |= n_bytes >= 0;
		if (!page->is_uptodate)
			page_dropped(file, page);
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
		while (n < wanted && is_page_before_end(file, index + n) && !page[n].is_locked && !page[n].is_uptodate)
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

/* All of the page that the file has. */
static void check_page(struct sim_file *file, size_t index, uint64_t start, const char *by)
{
	for (size_t k = 0; k < PAGE_CELLS; k++) {
		if (cell_offset(index * PAGE_CELLS + k) < file->size)
			check_seen(file, index * PAGE_CELLS + k, file->pages[index].stamps[k], start, by);
	}
}

int kernel_load(struct sim_file *file, size_t index)
{
	uint64_t start = sim_tick();
	int err;

	if (!is_page_before_end(file, index))
		return 0;
	err = fault(file, index);
	if (err == 0)
		check_page(file, index, start, "a load");
	return err;
}

/* The page is dirty now, and all of it will be flushed: what races with a store to a part races with the flush of the rest. */
static void note_mapped_store(struct sim_file *file, size_t cell, uint64_t now)
{
	struct page *page = &file->pages[cell / PAGE_CELLS];
	const void *lease = lease_over(file, cell);

	for (size_t k = 0; k < PAGE_CELLS; k++) {
		size_t other = page_cell(file, page) + k;

		if (is_behind_end(file, other))
			continue;
		if (lease != NULL)
			note_store(file, other, page->stamps[k], now, STORE_OPEN, lease);
		else if (other == cell || (other >= file->change_first && other < file->change_end))
			note_store(file, other, page->stamps[k], now, now, NULL);
	}
}

int kernel_store(struct sim_file *file, size_t cell)
{
	size_t index = cell / PAGE_CELLS;
	struct page *page = &file->pages[index];
	uint64_t start = sim_tick();
	int err;

	do {
		if (!is_page_before_end(file, index))
			return 0;
		err = fault(file, index);
		if (err < 0)
			return err;
		if (page->is_writeback) { /* page_mkwrite */
			page_wait_writeback(page);
			continue;
		}
	} while (page->is_locked || !page->is_uptodate || page->is_writeback || !is_page_before_end(file, index));
	if (is_behind_end(file, cell) && file->is_size_unstable)
		return 0; /* whether it is in the file or not */
	check_page(file, index, start, "a store");
	page->is_dirty = page->was_stored = true;
	for (size_t k = 0; k < PAGE_CELLS; k++) {
		if (page->owed[k] != 0)
			page_owes(file, page, k, page->owed[k]);
		page->owed[k] = 0;
	}
	page->stamps[cell % PAGE_CELLS] = stamp_next();
	note_mapped_store(file, cell, sim_tick());
	return 0;
}

int kernel_read_direct(struct sim_file *file, size_t first, size_t n)
{
	char bytes[IO_BYTES_MAX];
	off_t off = cell_offset(first), end = cell_offset(first + n);
	uint64_t start = sim_tick();
	ssize_t n_bytes;

	flush_range(file, first / PAGE_CELLS, (first + n - 1) / PAGE_CELLS - first / PAGE_CELLS + 1);
	if (file->has_mapping_error)
		return -EIO;
	n_bytes = request_read(file, bytes, (size_t)(end - off), off, true);
	for (size_t i = first; i < first + n && cell_offset(i + 1) - off <= n_bytes; i++)
		check_seen(file, i, cell_stamp(bytes + (cell_offset(i) - off), i), start, "a direct read");
	return n_bytes < 0 ? (int)n_bytes : 0;
}

/* After a failure the kernel learns the size anew: the attributes' time-out. */
static void look_at_size(struct sim_file *file, uint64_t start)
{
	struct stat st;

	if (fstat(file->disk.memfd, &st) < 0)
		abort();
	for (size_t cell = cells_before(file->size); cell < cells_before(st.st_size); cell++)
		file->histories[cell].is_unknown = true; /* zeroing may be what failed, and told so */
	set_size(file, st.st_size, cells_before(st.st_size));
	remove_range(file, cells_before(file->size), CELLS_MAX, start);
}

/* ---- write(2) ---- */

static int send_write(struct sim_file *file, size_t first, size_t n, const uint64_t *stamps, bool is_direct)
{
	char bytes[IO_BYTES_MAX];
	off_t off = cell_offset(first), end = cell_offset(first + n);
	int err;

	for (size_t i = 0; i < n; i++)
		cell_fill(bytes + (cell_offset(first + i) - off), first + i, stamps[i]);
	err = request_write(file, bytes, (size_t)(end - off), off, is_direct, false);
	for (size_t i = 0; i < n; i++) {
		if (err < 0)
			history_doubt(&file->histories[first + i], stamps[i]);
	}
	if (err == 0 && end > file->size)
		set_size(file, end, first);
	return err;
}

static void end_stores(struct sim_file *file, size_t first, size_t n, const uint64_t *stamps)
{
	for (size_t i = 0; i < n; i++) {
		const void *lease = lease_over(file, first + i);

		struct page *page = &file->pages[(first + i) / PAGE_CELLS];
		size_t k = (first + i) % PAGE_CELLS;
		bool is_older = page->is_locked || (page->is_uptodate && page->stamps[k] != stamps[i]); /* or is being read */

		if (page->is_overtaken && (is_older || page->was_stored))
			page_owes(file, page, k, stamps[i]);
		/* A dirty page is flushed when the lease ends, at the latest, and this store with it. */
		else if (lease != NULL && page->is_dirty)
			history_end_with(&file->histories[first + i], stamps[i], lease);
		else
			history_end(&file->histories[first + i], stamps[i], sim_tick());
	}
}

/* write(2) into the part of one page; true: the page is up to date, and unlocked again. */
static bool write_page(struct sim_file *file, size_t first, size_t end, uint64_t *stamps, uint64_t start)
{
	struct page *page = &file->pages[first / PAGE_CELLS];

	page_lock(page);
	page->is_being_written = true;
	page->is_overtaken = page->was_stored = false;
	for (size_t cell = first; cell < end; cell++) {
		page_owed_is_over(file, page, cell % PAGE_CELLS);
		page->stamps[cell % PAGE_CELLS] = stamps[cell - first] = stamp_next();
		note_store(file, cell, stamps[cell - first], start, STORE_OPEN, NULL);
	}
	page->is_uptodate |= end - first == PAGE_CELLS;
	if (!page->is_uptodate)
		return false;
	page_unlock(page);
	sim_sleep(sim_random(20 * SIM_US)); /* the writer may be preempted here, or wait for the next page */
	return true;
}

/* One WRITE: up to the first page that is not up to date, which stays locked. Returns how many cells, or an error. */
static ssize_t write_batch(struct sim_file *file, size_t first, size_t n, uint64_t start)
{
	uint64_t stamps[IO_CELLS_MAX] = {0};
	size_t taken = 0, first_page = first / PAGE_CELLS, end_page;
	bool is_unlocked = true;
	int err;

	while (taken < n && is_unlocked) {
		size_t cell = first + taken, end = (cell / PAGE_CELLS + 1) * PAGE_CELLS;

		if (end > first + n)
			end = first + n;
		is_unlocked = write_page(file, cell, end, stamps + taken, start);
		taken = end - first;
	}
	end_page = (first + taken - 1) / PAGE_CELLS + 1;
	for (size_t i = first_page; i < end_page; i++)
		page_wait_writeback(&file->pages[i]);
	err = send_write(file, first, taken, stamps, false);
	for (size_t i = first_page; i < end_page && err < 0; i++) {
		if (!file->pages[i].is_dirty)
			page_dropped(file, &file->pages[i]);
	}
	if (err == 0)
		end_stores(file, first, taken, stamps);
	for (size_t i = first_page; i < end_page; i++)
		file->pages[i].is_being_written = false;
	if (!is_unlocked)
		page_unlock(&file->pages[end_page - 1]);
	return err < 0 ? err : (ssize_t)taken;
}

static int write_direct(struct sim_file *file, size_t first, size_t n, uint64_t start)
{
	size_t first_page = first / PAGE_CELLS, n_pages = (first + n - 1) / PAGE_CELLS + 1 - first_page;
	uint64_t stamps[IO_CELLS_MAX] = {0};
	int err;

	file->change_first = first;
	file->change_end = first + n;
	flush_range(file, first_page, n_pages);
	invalidate_range(file, first_page, n_pages);
	for (size_t i = 0; i < n; i++) {
		stamps[i] = stamp_next();
		note_store(file, first + i, stamps[i], start, STORE_OPEN, NULL);
	}
	err = send_write(file, first, n, stamps, true);
	invalidate_range(file, first_page, n_pages);
	if (err == 0)
		end_stores(file, first, n, stamps);
	file->change_end = 0;
	return err;
}

int kernel_write(struct sim_file *file, size_t first, size_t n, bool is_direct)
{
	ssize_t done = 0;
	size_t gap;

	inode_lock(file);
	gap = cells_before(file->size);
	file->is_size_unstable = cell_offset(first + n) > file->size;
	zeros_begin(file, gap, first, sim_tick());
	if (is_direct) {
		done = write_direct(file, first, n, sim_tick());
		n = 0;
	}
	for (size_t i = 0; i < n && done >= 0; i += (size_t)done)
		done = write_batch(file, first + i, n - i, sim_tick());
	if (done >= 0)
		zeros_end(file, gap, first);
	else if (file->is_size_unstable)
		look_at_size(file, sim_tick());
	file->is_size_unstable = false;
	inode_unlock(file);
	return done < 0 ? (int)done : 0;
}

/* ---- fsync, truncate, punch ---- */

int kernel_fsync(struct sim_file *file, struct descriptor *descriptor)
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
		err = descriptor_check(file, descriptor);
	if (err == 0 && device_err == -ENOMEM)
		err = device_err;
	if (err == 0)
		err = disk_fsync(&file->disk);
	inode_unlock(file);
	for (size_t i = 0; i < CELLS_MAX && err == 0; i++) {
		if (file->histories[i].synced < start)
			file->histories[i].synced = start;
	}
	return err;
}

static void truncated(struct sim_file *file, off_t size, uint64_t start)
{
	set_size(file, size, cells_before(size));
	file->is_nowrite = false;
	sim_wake(&file->is_nowrite);
	remove_range(file, cells_before(size), CELLS_MAX, start);
	invalidate_range(file, 0, PAGES_MAX);
}

int kernel_truncate(struct sim_file *file, size_t n_cells)
{
	struct change change = {.file = file, .off = cell_offset(n_cells)};
	struct stat st;
	uint64_t start;
	size_t first, end;
	off_t least;
	int err;

	inode_lock(file);
	start = sim_tick();
	file->is_nowrite = file->is_size_unstable = true;
	while (file->n_writepages > 0)
		sim_block(&file->n_writepages);
	first = cells_before(file->size < change.off ? file->size : change.off);
	end = cells_before(file->size > change.off ? file->size : change.off);
	zeros_begin(file, first, end, start);
	if (fstat(file->disk.memfd, &st) < 0)
		abort();
	least = st.st_size < change.off ? st.st_size : change.off;
	err = request_change(&change, least, INT64_MAX - least);
	if (err == 0) {
		truncated(file, change.off, start);
		zeros_end(file, first, end);
	}
	file->is_nowrite = false;
	sim_wake(&file->is_nowrite);
	if (err < 0)
		look_at_size(file, start);
	file->is_size_unstable = false;
	inode_unlock(file);
	return err;
}

int kernel_punch(struct sim_file *file, size_t first, size_t n)
{
	struct change change = {.file = file, .is_punch = true, .off = cell_offset(first),
				.len = cell_offset(first + n) - cell_offset(first)};
	uint64_t start;
	int err;

	inode_lock(file);
	start = sim_tick();
	file->change_first = first;
	file->change_end = first + n;
	flush_range(file, first / PAGE_CELLS, (first + n - 1) / PAGE_CELLS + 1 - first / PAGE_CELLS);
	zeros_begin(file, first, first + n, start);
	err = request_change(&change, change.off, change.len);
	if (err == 0) {
		remove_range(file, first, first + n, start);
		zeros_end(file, first, first + n);
	}
	file->change_end = 0;
	inode_unlock(file);
	return err;
}
