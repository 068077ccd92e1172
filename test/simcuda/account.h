/* account.h - see account.c. Called with sim.mutex held. */
#ifndef SIMCUDA_ACCOUNT_H
#define SIMCUDA_ACCOUNT_H

#include <stdbool.h>
#include <stdint.h>

uint64_t account_used(int device);
bool account_take(int device, uint64_t bytes, uint64_t total); /* false: there is not so much */
void account_give(int device, uint64_t bytes);

#endif
