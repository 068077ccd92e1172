/* scenario.c - see scenario.h */
#include "test/simulation/scenario.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- a filesystem of one file ---- */

struct cache *cache;
struct cache_file *file;
struct disk_file disk;
unsigned log_lines, invalidations;
char log_last[256];

static int invalidate(void *fs, void *owner, off_t off, off_t len)
{
	(void)fs;
	(void)owner;
	(void)off;
	(void)len;
	invalidations++;
	return 0;
}

static int open_backing(void *fs, void *owner, int flags)
{
	(void)fs;
	(void)owner;
	return disk_file_open(&disk, flags);
}

static void file_idle(void *fs, void *owner)
{
	(void)fs;
	(void)owner;
}

static void count_line(void *fs, int priority, const char *line)
{
	(void)fs;
	(void)priority;
	snprintf(log_last, sizeof(log_last), "%s", line);
	log_lines++;
}

static const char *file_name(void *fs, void *owner)
{
	(void)fs;
	(void)owner;
	return "file";
}

static const struct cache_callbacks callbacks = {invalidate, open_backing, file_idle, count_line, file_name};

void begin_with(off_t bytes, struct cache_config config)
{
	static char content[CHUNKS * CHUNK];
	char *error;

	sim_init(1);
	sim_be_punctual(true);
	disk_plan = (struct disk_plan){.latency_ns = SIM_MS};
	device_latency_ns = SIM_MS / 2;
	config.device = "sim";
	config.chunk_bytes = CHUNK;
	config.bounce_bytes = 8 << 20;
	log_lines = invalidations = 0;
	CHECK(cache_create(&config, &callbacks, NULL, &cache, &error) == 0);
	CHECK(cache_start(cache) == 0);
	if (disk.durable == NULL)
		disk_file_init(&disk, true, false);
	memset(content, 1, sizeof(content));
	CHECK(pwrite(disk.memfd, content, (size_t)bytes, 0) == bytes);
	CHECK(cache_file_create(cache, NULL, &file) == 0);
	sim_doing("the scenario", 600 * SIM_S);
}

void begin(off_t bytes)
{
	begin_with(bytes, (struct cache_config){.capacity_bytes = 4 * CHUNK});
}

void end(void)
{
	struct cache_sync sync = {.cache = cache};

	CACHE_WAIT(cache_sync_all, &sync);
	cache_file_destroy(file);
	cache_destroy(cache);
}

/* ---- requests that are under way ---- */

static void note_done(struct cache_op *op, int status)
{
	struct pending *pending = op->waiter;

	pending->is_done = true;
	pending->status = status;
	sim_wake(pending);
}

int await(struct pending *pending)
{
	while (!pending->is_done)
		sim_block(pending);
	return pending->status;
}

void start_op(struct cache_op *op, struct pending *pending)
{
	*pending = (struct pending){0};
	op->done = note_done;
	op->waiter = pending;
}

struct cache_lease lease_of(uint64_t first, size_t n, enum cache_lease_mode mode)
{
	return (struct cache_lease){.file = file, .first_chunk = first, .n_chunks = n, .mode = mode};
}

void acquire(struct cache_lease *lease)
{
	CHECK(CACHE_WAIT(cache_acquire, lease) == 0);
}

void release(struct cache_lease *lease)
{
	CHECK(CACHE_WAIT(cache_release, lease) == 0);
}

void make_resident(uint64_t chunk)
{
	struct cache_lease lease = lease_of(chunk, 1, CACHE_LEASE_SHARED);

	acquire(&lease);
	release(&lease);
}

uint8_t *memory_of(struct cache_lease *lease, size_t chunk)
{
	uint64_t generation;

	return device_memory(cache_lease_chunk(lease, chunk, &generation));
}

uint8_t load(off_t off)
{
	struct cache_io io = {.file = file, .off = off, .len = 1};
	uint8_t byte;

	CHECK(CACHE_WAIT(cache_read, &io) == 0);
	CHECK(io.done_bytes == 1);
	byte = *(uint8_t *)io.data;
	cache_read_free(&io);
	return byte;
}

uint8_t on_disk(off_t off)
{
	uint8_t byte = 0xFF;

	CHECK(pread(disk.memfd, &byte, 1, off) == 1);
	return byte;
}

void sync_file(void)
{
	struct cache_sync sync = {.file = file};

	CHECK(CACHE_WAIT(cache_sync, &sync) == 0);
}

int apply_slowly(struct cache_mutation *mutation)
{
	(void)mutation;
	sim_sleep(10 * SIM_MS);
	return 0;
}

int apply_at_once(struct cache_mutation *mutation)
{
	(void)mutation;
	return 0;
}
