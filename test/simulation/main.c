/*
 * main.c - hmmfs_simulation: many runs, and what to do when one fails.
 *
 *     hmmfs_simulation [--seconds N] [--seed S] [--runs N] [--verbose] [--past FILE]
 *
 * Runs go on from a fresh seed (printed) or from S until the time is over or N are done. Each batch runs in a process of its
 * own. A run that fails is made small: operations are left out, in halves, as long as it fails still (Zeller's delta
 * debugging); then what is left is printed with all that happened. --past: seeds, one a line, that failed once.
 */
#include "test/simulation/kernel.h"
#include "test/simulation/run.h"
#include "test/simulation/scheduler.h"

#include <argp.h>
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, RUN_SECONDS_MAX = 4 };

struct shared {
	uint64_t seed; /* of the run under way */
	uint64_t runs, operations;
};

struct arguments {
	double seconds;
	uint64_t seed, runs;
	bool has_seed, is_verbose;
	const char *past;
};

static struct shared *shared;

/* The real clock: clock_gettime is the simulation's. */
static double seconds_now(void)
{
	struct timespec t;

	timespec_get(&t, TIME_UTC);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool has_failed(int status)
{
	return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

static void give_up(int signal)
{
	(void)signal;
	sim_fail("a run has not come to an end in %d seconds of CPU time", RUN_SECONDS_MAX);
}

/* Whether n runs from seed on fail, in a process of their own. */
static bool fails(uint64_t seed, uint64_t n, const uint64_t skip[ACTORS], bool is_quiet)
{
	static const struct itimerval limit = {.it_value.tv_sec = RUN_SECONDS_MAX};
	pid_t pid;
	int status;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		signal(SIGPROF, give_up);
		if (is_quiet && freopen("/dev/null", "w", stderr) == NULL)
			_exit(1);
		for (uint64_t i = 0; i < n; i++) {
			setitimer(ITIMER_PROF, &limit, NULL); /* CPU time: how busy the machine is does not matter */
			shared->seed = seed + i;
			run_simulation(seed + i, skip, &shared->operations);
			shared->runs++;
		}
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		abort();
	if (WIFSIGNALED(status) && !is_quiet)
		printf("ended by signal %d\n", WTERMSIG(status));
	return has_failed(status);
}

static unsigned count_left(const uint64_t skip[ACTORS])
{
	unsigned n = 0;

	for (size_t i = 0; i < ACTORS; i++)
		n += OPERATIONS - (unsigned)__builtin_popcountll(skip[i]);
	return n;
}

static void shrink(uint64_t seed, uint64_t skip[ACTORS])
{
	for (unsigned step = 64; step > 0; step /= 2) {
		for (unsigned from = 0; from < ACTORS * OPERATIONS; from += step) {
			uint64_t tried[ACTORS];

			memcpy(tried, skip, sizeof(tried));
			for (unsigned i = from; i < from + step && i < ACTORS * OPERATIONS; i++)
				tried[i / OPERATIONS] |= UINT64_C(1) << i % OPERATIONS;
			if (count_left(tried) < count_left(skip) && fails(seed, 1, tried, true))
				memcpy(skip, tried, sizeof(tried));
		}
	}
}

static int report(uint64_t seed)
{
	uint64_t skip[ACTORS] = {0};

	printf("seed %" PRIu64 " fails; making it small\n", seed);
	shrink(seed, skip);
	printf("%u operations are left:\n", count_left(skip));
	is_verbose = true;
	if (!fails(seed, 1, skip, false))
		puts("it does not fail alone: what it depends on is not simulated");
	printf("again: hmmfs_simulation --seed %" PRIu64 " --runs 1\n", seed);
	return 1;
}

static int run_past(const char *path)
{
	static const uint64_t nothing[ACTORS];
	FILE *file = fopen(path, "r");
	char line[256];

	if (file == NULL) {
		perror(path);
		return 2;
	}
	while (fgets(line, sizeof(line), file) != NULL) {
		uint64_t seed;

		if (sscanf(line, "%" SCNu64, &seed) == 1 && fails(seed, 1, nothing, false))
			return report(seed);
	}
	fclose(file);
	return 0;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case 't': arguments->seconds = atof(argument); return 0;
	case 's':
		arguments->seed = strtoull(argument, NULL, 10);
		arguments->has_seed = true;
		return 0;
	case 'r': arguments->runs = strtoull(argument, NULL, 10); return 0;
	case 'v': arguments->is_verbose = true; return 0;
	case 'p': arguments->past = argument; return 0;
	default: return ARGP_ERR_UNKNOWN;
	}
}

int main(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{"seconds", 't', "N", 0, "stop after so many seconds (10)", 0},
		{"seed", 's', "S", 0, "the first seed (a fresh one)", 0},
		{"runs", 'r', "N", 0, "stop after so many runs", 0},
		{"verbose", 'v', NULL, 0, "print what happens", 0},
		{"past", 'p', "FILE", 0, "first the seeds of FILE", 0},
		{0}};
	static const struct argp argp = {options, parse, NULL, "Simulates the cache with seeded schedules.", NULL, NULL, NULL};
	static const uint64_t nothing[ACTORS];
	struct arguments arguments = {.seconds = 10, .runs = UINT64_MAX};
	double start = seconds_now(), took;

	if (getrandom(&arguments.seed, sizeof(arguments.seed), 0) < 0)
		return 2;
	arguments.seed >>= 24;
	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	mallopt(M_MMAP_THRESHOLD, 64 << 20); /* what a run frees the next one takes: no new pages from the kernel */
	mallopt(M_TRIM_THRESHOLD, 256 << 20);
	is_verbose = arguments.is_verbose;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 2;
	if (arguments.past != NULL && run_past(arguments.past) != 0)
		return 1;
	shared->runs = shared->operations = 0;
	printf("simulation: seeds from %" PRIu64 "\n", arguments.seed);
	for (uint64_t done = 0; done < arguments.runs && seconds_now() - start < arguments.seconds; done += BATCH) {
		uint64_t n = arguments.runs - done < BATCH ? arguments.runs - done : BATCH;

		if (fails(arguments.seed + done, n, nothing, n > 1 && !is_verbose))
			return report(shared->seed);
	}
	took = seconds_now() - start;
	printf("simulation: %" PRIu64 " runs, %" PRIu64 " operations in %.1f s (%.0f a minute): no failure\n", shared->runs,
	       shared->operations, took, (double)shared->operations / took * 60);
	return 0;
}
