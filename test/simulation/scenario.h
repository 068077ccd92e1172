/* scenario.h - what scenarios (regressions*.c) are written with: a cache, one file, requests with fixed latencies. */
#ifndef HMMFS_SIMULATION_SCENARIO_H
#define HMMFS_SIMULATION_SCENARIO_H

#include "cache/cache.h"
#include "test/simulation/device.h"
#include "test/simulation/disk.h"
#include "test/simulation/scheduler.h"

enum { CHUNK = 64 << 10, PAGE = 4096, CHUNKS = 8 };

#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition))                                                                                      \
			sim_fail("%s:%d: %s does not hold", __FILE__, __LINE__, #condition);                           \
	} while (0)

extern struct cache *cache;
extern struct cache_file *file;
extern struct disk_file disk;
extern unsigned log_lines, invalidations;
extern char log_last[256]; /* the last line */

/* A file of byte 1 everywhere. Disk requests take a millisecond, and so do copies. */
void begin_with(off_t bytes, struct cache_config config);
void begin(off_t bytes); /* four chunks fit */
void end(void);

/* A request that is under way. */
struct pending {
	bool is_done;
	int status;
};

void start_op(struct cache_op *op, struct pending *pending);
int await(struct pending *pending);
#define START(start, request, pending_) (start_op(&(request)->op, (pending_)), start(request))

struct cache_lease lease_of(uint64_t first, size_t n, enum cache_lease_mode mode);
void acquire(struct cache_lease *lease);
void release(struct cache_lease *lease);
void make_resident(uint64_t chunk);
uint8_t *memory_of(struct cache_lease *lease, size_t chunk);
uint8_t load(off_t off);
uint8_t on_disk(off_t off);
void sync_file(void);
int apply_slowly(struct cache_mutation *mutation); /* takes ten milliseconds */
int apply_at_once(struct cache_mutation *mutation);

/* ---- regressions_device.c ---- */
void bytes_lost_with_the_device_are_told_to_each_descriptor_once(void);
void a_write_that_a_lost_copy_did_not_get_goes_to_the_backing(void);
void clean_bytes_lost_with_the_device_are_read_from_the_backing(void);
void what_a_lease_stores_to_lost_memory_is_told_when_it_is_over(void);
void pages_read_again_before_the_write_of_them_came_are_removed_again(void);

#endif
