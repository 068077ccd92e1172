/* device.h - what clients and the tests' faults need of the simulated device */
#ifndef HMMFS_SIMULATION_DEVICE_H
#define HMMFS_SIMULATION_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gpu_chunk;

extern unsigned device_error_one_in; /* copies that fail; 0: none */
/* What the device has; 0: enough. Otherwise it is short at times, and who wants memory is told -ENOMEM. */
extern size_t device_memory_chunks;
extern uint64_t device_latency_ns;   /* of each half of a copy; 0: random */
extern unsigned device_failing_copies; /* how many more copies from chunk to chunk fail */
/* The chunk's bytes as a client has them mapped. */
uint8_t *device_memory(struct gpu_chunk *chunk);

/* Memory is lost, of one chunk or of all; for good: there will be no other. The cache is told a moment later. */
void device_lose(bool is_all, bool is_for_good);
bool device_is_lost(const struct gpu_chunk *chunk);
/* Since that tick there was lost memory that the cache had not let go of. */
bool device_had_lost_since(uint64_t tick);
extern bool device_is_dead; /* for good */

#endif
