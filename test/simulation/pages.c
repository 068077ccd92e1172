/* pages.c - the page cache's pages: their locks, flushing, invalidation, removal (mm/truncate.c, fs/fuse/file.c). */
#include "test/simulation/kernel_internal.h"
#include "test/simulation/scheduler.h"

/* ---- locks ---- */

void page_lock(struct page *page)
{
	while (page->is_locked)
		sim_block(page);
	page->is_locked = true;
}

void page_unlock(struct page *page)
{
	page->is_locked = false;
	sim_wake(page);
}

void page_wait_writeback(struct page *page)
{
	while (page->is_writeback)
		sim_block(page);
}

void inode_lock(struct sim_file *file)
{
	while (file->is_locked)
		sim_block(&file->is_locked);
	file->is_locked = true;
}

void inode_unlock(struct sim_file *file)
{
	file->is_locked = false;
	sim_wake(&file->is_locked);
}

/* ---- dirty pages ---- */

static void take_dirty_page(struct sim_file *file, struct page *page, char *bytes)
{
	size_t first = page_cell(file, page);

	for (size_t k = 0; k < PAGE_CELLS; k++)
		cell_fill(bytes + (cell_offset(first + k) - cell_offset(first)), first + k, page->stamps[k]);
}

/* The page is locked and under writeback already. */
static void send_writepage(struct sim_file *file, struct page *page)
{
	off_t off = (off_t)(page - file->pages) * PAGE_BYTES;
	size_t first = page_cell(file, page);
	char bytes[PAGE_BYTES];
	int err = 0;

	while (file->is_nowrite)
		sim_block(&file->is_nowrite);
	if (off < file->size) {
		size_t len = file->size - off < PAGE_BYTES ? (size_t)(file->size - off) : PAGE_BYTES;

		take_dirty_page(file, page, bytes);
		file->n_writepages++;
		err = request_write(file, bytes, len, off, false, true);
		file->n_writepages--;
		sim_wake(&file->n_writepages);
	}
	if (err < 0) {
		file->has_mapping_error = true;
		for (size_t k = 0; k < PAGE_CELLS; k++)
			history_doubt_since(&file->histories[first + k], 0);
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

void flush_range(struct sim_file *file, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++) {
		if (file->pages[i].is_dirty || file->pages[i].is_writeback)
			page_flush(file, &file->pages[i]);
	}
}

void invalidate_range(struct sim_file *file, size_t first, size_t n)
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
		page_dropped(file, page);
		page_unlock(page);
	}
}

void remove_range(struct sim_file *file, size_t first, size_t end, uint64_t start)
{
	for (size_t i = first / PAGE_CELLS; i * PAGE_CELLS < end; i++) {
		struct page *page = &file->pages[i];
		size_t from = i * PAGE_CELLS < first ? first % PAGE_CELLS : 0;
		size_t to = end - i * PAGE_CELLS < PAGE_CELLS ? end - i * PAGE_CELLS : PAGE_CELLS;

		if (!page->is_uptodate && !page->is_locked)
			continue;
		page_lock(page);
		page_wait_writeback(page);
		for (size_t k = from; k < to; k++) {
			if (page->is_dirty)
				history_doubt_since(&file->histories[i * PAGE_CELLS + k], start);
			page->stamps[k] = 0;
		}
		if (from == 0 && to == PAGE_CELLS) {
			page->is_dirty = false;
			page_dropped(file, page);
		}
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

		if (!page->is_locked && !page->is_dirty && !page->is_writeback && !page->is_being_written && sim_chance(2))
			page_dropped(file, page);
	}
}
