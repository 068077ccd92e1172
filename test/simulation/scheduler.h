/*
 * scheduler.h - threads, time and chance of the simulation: all deterministic, all from one seed.
 *
 * The cache's own engine, worker and notifier threads run unmodified: pthread_create, the locks, the conditions and the
 * clock are replaced at link time (--wrap) by threads that take turns on one CPU. A thread is switched at random where
 * it takes a lock and where it waits; time is virtual and moves when nobody can run, or by a random step. So a schedule
 * depends on the seed alone, and a day of waiting takes no time.
 *
 * It watches R4: a thread that waits, or finds a lock taken, while it holds one ends the simulation; so does a state
 * in which nobody can ever run again.
 */
#ifndef HMMFS_SIMULATION_SCHEDULER_H
#define HMMFS_SIMULATION_SCHEDULER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define SIM_US UINT64_C(1000)
#define SIM_MS UINT64_C(1000000)
#define SIM_S UINT64_C(1000000000)

/* Forgets everything of the run before. The caller becomes the first thread. */
void sim_init(uint64_t seed);
/* Whether from now on what is to happen at a time happens then, and not by chance while others could go on still. */
void sim_be_punctual(bool is);
uint64_t sim_random(uint64_t below); /* 0 .. below-1 */
bool sim_chance(unsigned one_in);    /* never, if one_in is 0 */
/* A number from the seed and two others, whatever was drawn before: what an actor does does not depend on others. */
uint64_t sim_mix(uint64_t seed, uint64_t a, uint64_t b);

uint64_t sim_now(void);  /* virtual nanoseconds */
uint64_t sim_tick(void); /* counts up with every call: the order in which things happened */
void sim_sleep(uint64_t ns);
/* Waits until somebody wakes the channel. May return early: look again in a loop. */
void sim_block(const void *channel);
void sim_block_for(const void *channel, uint64_t ns);
void sim_wake(const void *channel);
/* Calls run(argument) in ns from now, on no thread: it must not wait. */
void sim_after(uint64_t ns, void (*run)(void *argument), void *argument);
/* What the current thread is at, for reports; and when it must be done with it (0: no limit). */
void sim_doing(const char *what, uint64_t limit_ns);

/* Prints why, and what every thread waits for; then aborts. */
_Noreturn void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
