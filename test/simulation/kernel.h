/*
 * kernel.h - the kernel's side of a FUSE file, as far as it matters to coherence: the page cache and the system calls
 * over it, in the order of locks and requests that Linux 6.18 has (fs/fuse/file.c, dir.c, mm/truncate.c).
 *
 *   - a page is locked from the READ that fills it to its answer, and while it is removed;
 *   - write(2) holds the inode's lock, changes pages that are up to date at once, and keeps one that is not locked until
 *     its WRITE is answered;
 *   - a store to a mapped page makes it dirty, and nobody is told; flushing it is a WRITE (writepage) under writeback;
 *   - invalidation goes through the pages in order, waits for locked ones, flushes dirty ones, and does not look back;
 *   - from before SETATTR (truncate) until its answer the flushing of dirty pages is held back (FUSE_NOWRITE);
 *   - memory pressure drops clean pages and flushes dirty ones at any time.
 *
 * Pages hold a stamp (history.h) instead of bytes; READs and WRITEs carry the bytes. Sizes are multiples of a page.
 * Every call checks what it sees against the file's history. Errors are negative errno.
 */
#ifndef HMMFS_SIMULATION_KERNEL_H
#define HMMFS_SIMULATION_KERNEL_H

#include "cache/cache.h"
#include "test/simulation/disk.h"
#include "test/simulation/history.h"

enum { PAGES_MAX = DISK_FILE_MAX / PAGE_BYTES, IO_PAGES_MAX = 16 };

struct page {
	bool is_locked, is_uptodate, is_dirty, is_writeback;
	uint64_t stamp;
};

struct sim_file {
	const char *name;
	struct cache_file *cached;
	struct disk_file disk;
	struct page pages[PAGES_MAX];
	struct history histories[PAGES_MAX];
	size_t n_pages; /* i_size */
	bool is_locked; /* the inode's lock */
	bool is_nowrite;
	unsigned n_writepages; /* WRITEs of dirty pages in flight */
	bool has_mapping_error;
	unsigned n_leases; /* exclusive ones, granted and not over, and which pages they cover */
	struct {
		const void *lease;
		size_t first, n;
	} leases[8];
};

extern const struct cache_callbacks kernel_callbacks; /* owner: the struct sim_file */
extern bool is_verbose;

/* No load that is still to be checked began before. */
uint64_t history_horizon(void);
uint64_t stamp_next(void);
void check_seen(struct sim_file *file, size_t page, uint64_t stamp, uint64_t start, const char *by);
/* The exclusive lease that covers the page, or NULL: a store to it races with the device's, until it ends. */
const void *lease_over_page(const struct sim_file *file, size_t page);

/* Pages beyond the end of file are left alone. */
int kernel_load(struct sim_file *file, size_t page);
int kernel_store(struct sim_file *file, size_t page); /* by a mapping; the file is open for writing */
int kernel_read_direct(struct sim_file *file, size_t page, size_t n);
int kernel_write(struct sim_file *file, size_t page, size_t n, bool is_direct);
int kernel_fsync(struct sim_file *file, uint32_t *error_sample);
int kernel_truncate(struct sim_file *file, size_t n_pages);
int kernel_punch(struct sim_file *file, size_t page, size_t n);
/* What close(2) and the flusher do. */
void kernel_flush(struct sim_file *file);
void kernel_drop_clean(struct sim_file *file);

#endif
