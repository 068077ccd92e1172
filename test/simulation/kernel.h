/*
 * kernel.h - the kernel's side of a FUSE file, as far as it matters to coherence: the page cache and the system calls
 * over it, in the order of locks and requests that Linux 6.18 has (fs/fuse/file.c, dir.c, mm/truncate.c).
 *
 *   - a page is locked from the READ that fills it to its answer, and while it is removed;
 *   - write(2) holds the inode's lock, changes pages that are up to date, or that it covers wholly, at once and lets go of them before
 *     it sends its WRITE; another it keeps locked until that is answered;
 *   - a store to a mapped page makes it dirty, and nobody is told; flushing it is a WRITE (writepage) under writeback;
 *   - invalidation goes through the pages in order, waits for locked ones, flushes dirty ones, and does not look back;
 *   - from before SETATTR (truncate) until its answer the flushing of dirty pages is held back (FUSE_NOWRITE);
 *   - memory pressure drops clean pages and flushes dirty ones at any time.
 *
 *   - a READ that is answered short has zeros behind; flushing the last page stops at the end of file;
 *   - what a mapping stores behind the end of file, in its last page, is gone when the file grows. (FUSE leaves that to the
 *     application so far, which has no business there.)
 *
 * Pages hold a stamp for each cell (history.h) instead of bytes; READs and WRITEs carry the bytes.
 * Every call checks what it sees against the file's history. Errors are negative errno.
 */
#ifndef HMMFS_SIMULATION_KERNEL_H
#define HMMFS_SIMULATION_KERNEL_H

#include "cache/cache.h"
#include "test/simulation/disk.h"
#include "test/simulation/history.h"

enum {
	PAGES_MAX = DISK_FILE_MAX / PAGE_BYTES,
	CELLS_MAX = PAGES_MAX * PAGE_CELLS,
	IO_CELLS_MAX = 48,
	IO_BYTES_MAX = (IO_CELLS_MAX / PAGE_CELLS + 1) * PAGE_BYTES
};

struct page {
	bool is_locked, is_uptodate, is_dirty, is_writeback;
	uint64_t stamps[PAGE_CELLS];
	bool is_being_written; /* by a write(2) that let go of it and has not had its answer: only an invalidation drops it */
	bool is_overtaken;     /* which one did: what was read again may be older */
	bool was_stored;       /* to a mapping of that: flushing it may put older bytes back */
	uint64_t owed[PAGE_CELLS]; /* stores of such a write(2) that the page has not, though they are over: until it is dropped */
};

/* An open file: what it was told of errors. */
struct descriptor {
	struct descriptor *next;
	uint32_t sample;
	bool is_owed;    /* bytes were lost since it was told last */
	uint64_t looked; /* when that was: a tick */
};

struct sim_file {
	const char *name;
	struct cache_file *cached;
	struct disk_file disk;
	struct page pages[PAGES_MAX];
	struct history histories[CELLS_MAX];
	off_t size; /* i_size */
	bool is_size_unstable; /* it is being changed */
	unsigned n_size_changes;
	size_t change_first, change_end; /* cells that an O_DIRECT write or a punch is about to change */
	bool is_locked; /* the inode's lock */
	bool is_nowrite;
	unsigned n_writepages; /* WRITEs of dirty pages in flight */
	bool has_mapping_error;
	struct descriptor *descriptors;
	unsigned n_leases; /* exclusive ones, granted and not over, and which cells they cover */
	struct {
		const void *lease;
		size_t first, n;
	} leases[8];
};

extern const struct cache_callbacks kernel_callbacks; /* owner: the struct sim_file */
extern bool is_verbose;
extern bool has_faults; /* errors are made up now */
extern bool had_faults; /* in this run */

struct sim_file *file_named(const char *name, size_t len);
/* No load that is still to be checked began before. */
uint64_t history_horizon(void);
uint64_t stamp_next(void);
void check_seen(struct sim_file *file, size_t cell, uint64_t stamp, uint64_t start, const char *by);
/* The exclusive lease that covers the cell, or NULL: a store to it races with the device's, until it ends. */
const void *lease_over(const struct sim_file *file, size_t cell);

/* Of the cells there, what is stored must never be seen: no history has it. */
bool is_behind_end(const struct sim_file *file, size_t cell);

/* Pages beyond the end of file are left alone. */
int kernel_load(struct sim_file *file, size_t page);
int kernel_store(struct sim_file *file, size_t cell); /* by a mapping; the file is open for writing */
int kernel_read_direct(struct sim_file *file, size_t cell, size_t n);
int kernel_write(struct sim_file *file, size_t cell, size_t n, bool is_direct);
int kernel_fsync(struct sim_file *file, struct descriptor *descriptor);
int kernel_truncate(struct sim_file *file, size_t n_cells);
int kernel_punch(struct sim_file *file, size_t cell, size_t n);
void descriptor_open(struct sim_file *file, struct descriptor *descriptor);
void descriptor_close(struct sim_file *file, struct descriptor *descriptor);
/* The error that it was not told yet. Each loss is to be told once. */
int descriptor_check(struct sim_file *file, struct descriptor *descriptor);
/* What close(2) and the flusher do. */
void kernel_flush(struct sim_file *file);
void kernel_drop_clean(struct sim_file *file);
/* No page is older than a write(2) that is over: at the end, when everything has had its time. */
void kernel_check_owed(struct sim_file *file);

#endif
