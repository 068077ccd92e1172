/* device.h - what clients and the tests' faults need of the simulated device */
#ifndef HMMFS_SIMULATION_DEVICE_H
#define HMMFS_SIMULATION_DEVICE_H

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

#endif
