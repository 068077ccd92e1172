/* run.h - one simulated run: a cache, two files, seven actors, and chance. */
#ifndef HMMFS_SIMULATION_RUN_H
#define HMMFS_SIMULATION_RUN_H

#include <stdint.h>

enum { ACTORS = 7, OPERATIONS = 40 };

/* Aborts where a promise is broken. skip: operations that are left out, a bit each, by actor. Counts operations done. */
void run_simulation(uint64_t seed, const uint64_t skip[ACTORS], uint64_t *n_operations);

#endif
