/*
 * fault.c - failures on demand.
 *
 * HMMFS_SIMCUDA_FAIL is a list of rules, separated by spaces: NAME:N:CODE[:HOW]. The Nth call of NAME from the start of the
 * process on (N+: and all later ones) fails with the error CODE. NAME is an entry point without its version, or "any". HOW is
 *   sticky    the current context is poisoned: it fails with CODE until it is destroyed or reset
 *   lost      the device is lost: from then on every call but cuGetErrorName and cuGetProcAddress fails with CODE
 *   after=NAME  it waits until NAME has been called, and a moment longer. CODE may be 0: then that is all
 * "@FILE" has the rules read from FILE, again whenever it has changed, with the count starting again: so that a test can
 * strike a process that is running. If FILE isn't there nothing fails.
 */
#include "test/simcuda/simcuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct rule {
	char name[64];
	uint64_t from, to; /* which calls */
	CUresult code;
	char how[64];
	uint64_t calls;
	bool has_come; /* what it is to wait for */
};

enum { RULES_MAX = 16 };
#define AFTER "after="
static struct rule rules[RULES_MAX]; /* sim.mutex */
static size_t n_rules;               /* sim.mutex */
static bool is_parsed;               /* sim.mutex */
static unsigned n_parsed;            /* sim.mutex; counts */
static struct timespec changed;      /* sim.mutex; of the file */

static void parse_locked(char *text)
{
	char *rest = NULL;

	n_rules = 0;
	n_parsed++;
	pthread_cond_broadcast(&sim.progress);
	for (char *word = strtok_r(text, " \n", &rest); word != NULL; word = strtok_r(NULL, " \n", &rest)) {
		struct rule *rule = &rules[n_rules];
		char plus[2] = "";
		unsigned code = 0;

		*rule = (struct rule){.calls = 0};
		if (n_rules == RULES_MAX || (sscanf(word, "%63[^:]:%lu%1[+]:%u:%63s", rule->name, &rule->from, plus, &code, rule->how) < 4 &&
					     sscanf(word, "%63[^:]:%lu:%u:%63s", rule->name, &rule->from, &code, rule->how) < 3)) {
			fprintf(stderr, "simcuda: HMMFS_SIMCUDA_FAIL: %s: not understood\n", word);
			abort();
		}
		rule->to = plus[0] == '+' ? UINT64_MAX : rule->from;
		rule->code = (CUresult)code;
		n_rules++;
	}
}

static void read_file_locked(const char *path)
{
	char text[1024] = "";
	struct stat st;
	FILE *file;

	if (stat(path, &st) < 0) {
		n_rules = 0;
		changed = (struct timespec){0};
		return;
	}
	if (st.st_mtim.tv_sec == changed.tv_sec && st.st_mtim.tv_nsec == changed.tv_nsec)
		return;
	changed = st.st_mtim;
	file = fopen(path, "re");
	if (file == NULL)
		return;
	if (fread(text, 1, sizeof(text) - 1, file) > 0)
		parse_locked(text);
	else
		n_rules = 0;
	fclose(file);
}

static void update_locked(void)
{
	const char *text = getenv("HMMFS_SIMCUDA_FAIL");

	if (text != NULL && text[0] == '@') {
		read_file_locked(text + 1);
	} else if (text != NULL && !is_parsed) {
		char *copy = strdup(text);

		parse_locked(copy);
		free(copy);
	}
	is_parsed = true;
}

/* Those that wait for this call have waited. */
static void announce_locked(const char *name)
{
	for (size_t i = 0; i < n_rules; i++) {
		if (strncmp(rules[i].how, AFTER, strlen(AFTER)) == 0 && strcmp(rules[i].how + strlen(AFTER), name) == 0) {
			rules[i].has_come = true;
			pthread_cond_broadcast(&sim.progress);
		}
	}
}

static CUresult hold_locked(const struct rule *rule)
{
	const struct timespec moment = {.tv_nsec = 20000000};
	unsigned parsed = n_parsed;
	CUresult code = rule->code;

	while (parsed == n_parsed && !rule->has_come)
		pthread_cond_wait(&sim.progress, &sim.mutex);
	pthread_mutex_unlock(&sim.mutex);
	nanosleep(&moment, NULL);
	pthread_mutex_lock(&sim.mutex);
	return code;
}

static CUresult strike_locked(const char *name)
{
	update_locked();
	announce_locked(name);
	for (size_t i = 0; i < n_rules; i++) {
		struct rule *rule = &rules[i];

		if (strcmp(rule->name, name) != 0 && strcmp(rule->name, "any") != 0)
			continue;
		if (++rule->calls < rule->from || rule->calls > rule->to)
			continue;
		if (strcmp(rule->how, "lost") == 0) {
			sim.lost = rule->code;
			pthread_cond_broadcast(&sim.progress);
		} else if (strcmp(rule->how, "sticky") == 0 && sim_current() != NULL) {
			sim_poison_locked(sim_current(), rule->code);
		} else if (strncmp(rule->how, AFTER, strlen(AFTER)) == 0) {
			return hold_locked(rule);
		}
		return rule->code;
	}
	return sim.lost;
}

CUresult sim_enter(const char *name, int needs)
{
	struct CUctx_st *context = sim_current();
	CUresult result;

	pthread_mutex_lock(&sim.mutex);
	result = strike_locked(name);
	if (result == CUDA_SUCCESS && (needs & SIM_INITIALIZED) && sim.initialized_in != getpid())
		result = (CUresult)ERROR_NOT_INITIALIZED; /* nor is a forked child */
	if (result == CUDA_SUCCESS && sim_is_in_host_func)
		result = (CUresult)ERROR_NOT_PERMITTED;
	if (result == CUDA_SUCCESS && needs == SIM_CONTEXT) {
		if (context == NULL)
			result = (CUresult)ERROR_INVALID_CONTEXT;
		else if (context->is_destroyed)
			result = (CUresult)ERROR_CONTEXT_IS_DESTROYED;
		else
			result = context->sticky;
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}
