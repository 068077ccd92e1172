/*
 * disk.h - the simulated backing: files in memory behind cache/ring.h.
 *
 * Requests complete in any order after a random time, short or with an error now and then; the bytes move when they
 * complete. What was not followed by an fsync may be lost, or kept in part (512 bytes are never torn), when power fails.
 */
#ifndef HMMFS_SIMULATION_DISK_H
#define HMMFS_SIMULATION_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct disk_file {
	int memfd;
	bool has_direct; /* O_DIRECT can be opened */
	bool direct_lies; /* but gives EINVAL */
	uint8_t *durable; /* what an fsync has covered, of DISK_FILE_MAX bytes */
};

enum { DISK_FILE_MAX = 512 << 10, DISK_SECTOR = 512 };

/* One in so many requests; 0: none. */
struct disk_faults {
	unsigned error, short_io, again;
};
extern struct disk_faults disk_faults;

/* For a scenario that knows what it wants (regressions.c), and what it saw. */
struct disk_plan {
	uint64_t latency_ns;         /* of what is asked for from now on; 0: random */
	unsigned interrupted_fsyncs; /* how many more of the ring's get EINTR */
	unsigned ring_runs, fallocates;
};
extern struct disk_plan disk_plan;

void disk_file_init(struct disk_file *file, bool has_direct, bool direct_lies);
/* What is there to begin with. is_sparse: blocks of zeros are holes. */
void disk_file_put(struct disk_file *file, const uint8_t *bytes, off_t size, bool is_sparse);
void disk_file_finish(struct disk_file *file);
/* A descriptor for the ring (and for fstat and lseek); negative errno. */
int disk_file_open(struct disk_file *file, int flags);
/* The system calls that the filesystem makes itself. They take a random time. */
ssize_t disk_pread(struct disk_file *file, void *buffer, size_t len, off_t off);
ssize_t disk_pwrite(struct disk_file *file, const void *buffer, size_t len, off_t off);
int disk_fsync(struct disk_file *file);
int disk_truncate(struct disk_file *file, off_t size);
int disk_punch(struct disk_file *file, off_t off, off_t len);
/* What is found after a power failure now, of [off, off+len). */
void disk_after_power_loss(struct disk_file *file, void *buffer, size_t len, off_t off);

#endif
