/*
 * ring.h - the engine's io_uring: reads and writes of backing files, without waiting for any.
 *
 * Engine thread only, but for ring_wake. The bounce memory is registered with the ring (READ_FIXED, WRITE_FIXED)
 * where RLIMIT_MEMLOCK allows it, and so are the backing files (up to RING_FILES of them); the rest goes
 * unregistered, which costs a page-table walk or a descriptor look-up more.
 */
#ifndef HMMFS_RING_H
#define HMMFS_RING_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define RING_FILES 1024

struct ring_op {
	void (*done)(struct ring_op *op, int result); /* result: bytes or negative errno */
};

/* A descriptor and, if there was room, its slot among the registered ones. */
struct ring_file {
	int fd;
	int slot; /* or -1 */
};

struct ring {
	struct io_uring uring;
	int wake_fd;
	uint64_t wake_value;
	struct ring_op wake_op;
	char *bounce;
	size_t bounce_bytes;
	bool has_fixed_buffers;
	bool has_fixed_files;
	uint64_t used_slots[RING_FILES / 64];
	unsigned in_flight;
};

/* 0 or negative errno. notice, if set, is a static line for the log: something works less well. */
int ring_init(struct ring *ring, char *bounce, size_t bounce_bytes, const char **notice);
void ring_finish(struct ring *ring);

/* Takes the descriptor, which is closed by ring_file_close. */
struct ring_file ring_file_open(struct ring *ring, int fd);
void ring_file_close(struct ring *ring, struct ring_file *file);

void ring_read(struct ring *ring, struct ring_file file, void *buffer, size_t len, off_t off, struct ring_op *op);
void ring_write(struct ring *ring, struct ring_file file, const void *buffer, size_t len, off_t off,
		struct ring_op *op);
void ring_fsync(struct ring *ring, struct ring_file file, bool is_datasync, struct ring_op *op);
void ring_fallocate(struct ring *ring, struct ring_file file, int mode, off_t off, off_t len, struct ring_op *op);

/* Submits what was prepared, waits for completions until timeout_ns have passed (UINT64_MAX: for ever, 0: not
 * at all) and calls their done. */
void ring_run(struct ring *ring, uint64_t timeout_ns);
/* Ends a ring_run early. Any thread. */
void ring_wake(struct ring *ring);

#endif
