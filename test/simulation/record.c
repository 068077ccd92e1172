/* record.c - what is stored and seen goes into a file's histories, and is checked against them; the file's size. */
#include "test/simulation/device.h"
#include "test/simulation/kernel_internal.h"
#include "test/simulation/scheduler.h"

#include <errno.h>
#include <stdio.h>

void check_seen(struct sim_file *file, size_t cell, uint64_t stamp, uint64_t start, const char *by)
{
	uint64_t end = sim_tick();

	if (history_allows(&file->histories[cell], stamp, start, end))
		return;
	fprintf(stderr, "%s, bytes %lld..%lld, page %zu, of %lld: %s during [%llu, %llu] saw ", file->name,
		(long long)cell_offset(cell), (long long)cell_offset(cell + 1), cell / PAGE_CELLS, (long long)file->size, by,
		(unsigned long long)start, (unsigned long long)end);
	if (stamp == STAMP_TORN)
		fputs("a torn cell\n", stderr);
	else
		fprintf(stderr, "%llu\n", (unsigned long long)stamp);
	history_print(&file->histories[cell]);
	sim_fail("a store was lost, or one that is over was seen again");
}

const void *lease_over(const struct sim_file *file, size_t cell)
{
	for (unsigned i = 0; i < file->n_leases; i++) {
		if (cell >= file->leases[i].first && cell < file->leases[i].first + file->leases[i].n)
			return file->leases[i].lease;
	}
	return NULL;
}

void note_store(struct sim_file *file, size_t cell, uint64_t stamp, uint64_t start, uint64_t end, const void *lease)
{
	history_store(&file->histories[cell], stamp, start, end, lease, history_horizon());
}

void zeros_begin(struct sim_file *file, size_t first, size_t end, uint64_t start)
{
	for (size_t i = first; i < end; i++)
		note_store(file, i, 0, start, STORE_OPEN, NULL);
}

void zeros_end(struct sim_file *file, size_t first, size_t end)
{
	for (size_t i = first; i < end; i++)
		history_end(&file->histories[i], 0, sim_tick());
}

size_t page_cell(const struct sim_file *file, const struct page *page)
{
	return (size_t)(page - file->pages) * PAGE_CELLS;
}

bool is_behind_end(const struct sim_file *file, size_t cell)
{
	return cell_offset(cell) >= file->size;
}

bool is_page_before_end(const struct sim_file *file, size_t index)
{
	return (off_t)index * PAGE_BYTES < file->size;
}

void set_size(struct sim_file *file, off_t size, size_t gap_end)
{
	for (size_t cell = cells_before(file->size); cell < gap_end; cell++)
		file->pages[cell / PAGE_CELLS].stamps[cell % PAGE_CELLS] = 0;
	file->size = size;
	file->n_size_changes++;
}

/* ---- pages that were dropped under a write(2) ---- */

void page_owes(struct sim_file *file, struct page *page, size_t k, uint64_t stamp)
{
	if (page->was_stored) /* its flush may overtake the WRITE */
		history_doubt(&file->histories[page_cell(file, page) + k], stamp);
	else
		page->owed[k] = stamp;
}

void page_owed_is_over(struct sim_file *file, struct page *page, size_t k)
{
	if (page->owed[k] != 0)
		history_end(&file->histories[page_cell(file, page) + k], page->owed[k], sim_tick());
	page->owed[k] = 0;
}

void page_dropped(struct sim_file *file, struct page *page)
{
	page->is_uptodate = false;
	page->is_overtaken |= page->is_being_written;
	for (size_t k = 0; k < PAGE_CELLS; k++)
		page_owed_is_over(file, page, k);
}

void kernel_check_owed(struct sim_file *file)
{
	for (size_t i = 0; i < PAGES_MAX; i++) {
		for (size_t k = 0; k < PAGE_CELLS; k++) {
			if (file->pages[i].owed[k] != 0)
				sim_fail("page %zu of %s, which was dropped under a write(2) and read again, is old still", i, file->name);
		}
	}
}

/* ---- lost bytes, and who is told ---- */

void descriptor_open(struct sim_file *file, struct descriptor *descriptor)
{
	*descriptor = (struct descriptor){.next = file->descriptors, .sample = cache_file_error_sample(file->cached),
					  .looked = sim_tick()};
	file->descriptors = descriptor;
}

void descriptor_close(struct sim_file *file, struct descriptor *descriptor)
{
	struct descriptor **at = &file->descriptors;

	while (*at != descriptor)
		at = &(*at)->next;
	*at = descriptor->next;
}

int descriptor_check(struct sim_file *file, struct descriptor *descriptor)
{
	int err = cache_file_error_check(file->cached, &descriptor->sample);

	if (descriptor->is_owed && err == 0)
		sim_fail("bytes of %s were lost, and whoever has it open is not told", file->name);
	/* While lost memory is under a lease, each writeback of it fails, and is told. */
	if (!descriptor->is_owed && err == -EIO && !had_faults && !device_had_lost_since(descriptor->looked))
		sim_fail("an error of %s is told again, or there was none", file->name);
	descriptor->is_owed = false;
	descriptor->looked = sim_tick();
	return err;
}

void note_lost(struct sim_file *file, off_t off, off_t end)
{
	for (size_t cell = cells_before(off); cell < CELLS_MAX && cell_offset(cell) < end; cell++)
		history_lose(&file->histories[cell], sim_tick());
	for (struct descriptor *descriptor = file->descriptors; descriptor != NULL; descriptor = descriptor->next)
		descriptor->is_owed = true;
}
