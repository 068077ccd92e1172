/*
 * kernel_internal.h - what the parts of the simulated kernel share: record.c, request.c, pages.c, kernel.c.
 */
#ifndef HMMFS_SIMULATION_KERNEL_INTERNAL_H
#define HMMFS_SIMULATION_KERNEL_INTERNAL_H

#include "test/simulation/kernel.h"

/* ---- record.c ---- */
void note_store(struct sim_file *file, size_t cell, uint64_t stamp, uint64_t start, uint64_t end, const void *lease);
/* Zeros in [first, end), from now on until zeros_end. */
void zeros_begin(struct sim_file *file, size_t first, size_t end, uint64_t start);
void zeros_end(struct sim_file *file, size_t first, size_t end);
/* The daemon said in its log that bytes are lost. */
void note_lost(struct sim_file *file, off_t off, off_t end);
size_t page_cell(const struct sim_file *file, const struct page *page);
bool is_page_before_end(const struct sim_file *file, size_t index);
/* A page that a write(2) filled was dropped before its WRITE was sent, and read again: docs/reliability.md, what Linux lets happen. */
void page_owes(struct sim_file *file, struct page *page, size_t k, uint64_t stamp);
void page_owed_is_over(struct sim_file *file, struct page *page, size_t k);
void page_dropped(struct sim_file *file, struct page *page);
/* i_size moves; what a mapping stored behind the old one goes, up to gap_end. */
void set_size(struct sim_file *file, off_t size, size_t gap_end);

/* ---- request.c ---- */
struct change {
	struct cache_mutation mutation;
	struct sim_file *file;
	bool is_punch;
	off_t off, len;
};
ssize_t request_read(struct sim_file *file, void *buffer, size_t len, off_t off, bool is_direct);
int request_write(struct sim_file *file, void *buffer, size_t len, off_t off, bool is_direct, bool is_writepage);
int request_change(struct change *change, off_t off, off_t len);

/* ---- pages.c ---- */
void page_lock(struct page *page);
void page_unlock(struct page *page);
void page_wait_writeback(struct page *page);
void inode_lock(struct sim_file *file);
void inode_unlock(struct sim_file *file);
void flush_range(struct sim_file *file, size_t first, size_t n);
/* invalidate_inode_pages2_range */
void invalidate_range(struct sim_file *file, size_t first, size_t n);
/* truncate_inode_pages_range: dirty or not; at the end of a change of the file that began at start. Of a page that lies in
 * the range in part, that part is zeroed. */
void remove_range(struct sim_file *file, size_t first, size_t end, uint64_t start);

#endif
