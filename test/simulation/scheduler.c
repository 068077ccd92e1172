/* scheduler.c - see scheduler.h */
#include "test/simulation/scheduler.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

enum { THREADS_MAX = 40, STACK_BYTES = 256 << 10, EVENTS_MAX = 4096 };

struct sim_thread {
	ucontext_t context; /* to begin with; after that, jump: swapcontext asks the real kernel for the signal mask each time */
	jmp_buf jump;
	bool has_begun;
	void *(*main)(void *);
	void *argument;
	enum { FREE, RUNNABLE, BLOCKED, ENDED } state;
	const void *channel;
	unsigned n_locks;
	bool is_engine; /* the engine's thread-local mark */
	const char *what;
	uint64_t deadline;
	char name[16];
	char *stack;
};

struct event {
	uint64_t at, order;
	void (*run)(void *argument);
	void *argument;
};

static struct sim_thread threads[THREADS_MAX];
static struct sim_thread *current;
static bool is_punctual;
static bool is_in_event; /* an event's callback runs: it is no thread and can't wait */
static struct event events[EVENTS_MAX];
static size_t n_events;
static uint64_t now, ticks, orders, random_state;

extern _Thread_local bool engine_is_current; /* cache/engine.c: per thread, so switched with it */

/* ---- chance: splitmix64 (Steele, Lea, Flood 2014) ---- */

static uint64_t mixed(uint64_t z)
{
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

uint64_t sim_random(uint64_t below)
{
	random_state += UINT64_C(0x9e3779b97f4a7c15);
	return below == 0 ? 0 : mixed(random_state) % below;
}

bool sim_chance(unsigned one_in)
{
	return one_in > 0 && sim_random(one_in) == 0;
}

uint64_t sim_mix(uint64_t seed, uint64_t a, uint64_t b)
{
	return mixed(mixed(mixed(seed + 1) ^ (a + UINT64_C(0x9e3779b97f4a7c15))) + b);
}

/* ---- reports ---- */

void sim_fail(const char *format, ...)
{
	static const char *const states[] = {"free", "runnable", "waiting", "ended"};
	va_list args;

	fprintf(stderr, "simulation: at %.6f s: ", (double)now / 1e9);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	for (size_t i = 0; i < THREADS_MAX; i++) {
		if (threads[i].state != FREE && threads[i].state != ENDED)
			fprintf(stderr, "  %s%-15s %s, %s\n", &threads[i] == current ? "*" : " ", threads[i].name,
				states[threads[i].state], threads[i].what != NULL ? threads[i].what : "-");
	}
	abort();
}

void sim_doing(const char *what, uint64_t limit_ns)
{
	current->what = what;
	current->deadline = limit_ns == 0 ? 0 : now + limit_ns;
}

/* ---- time ---- */

uint64_t sim_now(void)
{
	return now;
}

uint64_t sim_tick(void)
{
	return ++ticks;
}

static bool is_before(const struct event *a, const struct event *b)
{
	return a->at != b->at ? a->at < b->at : a->order < b->order;
}

static void swap_events(size_t a, size_t b)
{
	struct event kept = events[a];

	events[a] = events[b];
	events[b] = kept;
}

void sim_after(uint64_t ns, void (*run)(void *argument), void *argument)
{
	size_t i = n_events++;

	if (n_events > EVENTS_MAX)
		sim_fail("more than %d things are under way", EVENTS_MAX);
	events[i] = (struct event){now + ns, orders++, run, argument};
	for (; i > 0 && is_before(&events[i], &events[(i - 1) / 2]); i = (i - 1) / 2)
		swap_events(i, (i - 1) / 2);
}

static struct event take_event(void)
{
	struct event first = events[0];
	size_t i = 0;

	events[0] = events[--n_events];
	for (;;) {
		size_t least = i, child = 2 * i + 1;

		for (; child <= 2 * i + 2 && child < n_events; child++) {
			if (is_before(&events[child], &events[least]))
				least = child;
		}
		if (least == i)
			return first;
		swap_events(i, least);
		i = least;
	}
}

static void check_deadlines(void)
{
	for (size_t i = 0; i < THREADS_MAX; i++) {
		if (threads[i].state != FREE && threads[i].state != ENDED && threads[i].deadline != 0 &&
		    now > threads[i].deadline)
			sim_fail("%s has not come to an end: %s", threads[i].name, threads[i].what);
	}
}

static void run_event(void)
{
	struct event event = take_event();

	if (event.at > now)
		now = event.at;
	check_deadlines();
	is_in_event = true;
	event.run(event.argument);
	is_in_event = false;
}

/* Whether an event comes before the threads that can go on. */
static bool is_event_next(void)
{
	if (n_events == 0)
		return false;
	return is_punctual ? events[0].at <= now : sim_chance(6);
}

/* ---- threads ---- */

static struct sim_thread *pick(void)
{
	struct sim_thread *runnable[THREADS_MAX];

	for (;;) {
		size_t n = 0;

		for (size_t i = 0; i < THREADS_MAX; i++) {
			if (threads[i].state == RUNNABLE)
				runnable[n++] = &threads[i];
		}
		if (n == 0 && n_events == 0)
			sim_fail("deadlock: nobody can go on");
		if (n > 0 && !is_event_next()) {
			now += sim_random(2000);
			return runnable[sim_random(n)];
		}
		run_event();
	}
}

static void switch_thread(void)
{
	struct sim_thread *before = current, *next = pick();

	if (next == before)
		return;
	before->is_engine = engine_is_current;
	engine_is_current = next->is_engine;
	current = next;
	if (_setjmp(before->jump) != 0)
		return;
	if (next->has_begun)
		_longjmp(next->jump, 1);
	next->has_begun = true;
	setcontext(&next->context);
}

static void yield(void)
{
	if (!is_in_event)
		switch_thread();
}

void sim_block(const void *channel)
{
	if (is_in_event)
		sim_fail("an event's callback waits");
	if (current->n_locks > 0)
		sim_fail("R4: %s waits while it holds a lock", current->name);
	current->state = BLOCKED;
	current->channel = channel;
	switch_thread();
}

void sim_wake(const void *channel)
{
	for (size_t i = 0; i < THREADS_MAX; i++) {
		if (threads[i].state == BLOCKED && threads[i].channel == channel)
			threads[i].state = RUNNABLE;
	}
}

static void wake_event(void *channel)
{
	sim_wake(channel);
}

void sim_block_for(const void *channel, uint64_t ns)
{
	sim_after(ns, wake_event, (void *)channel);
	sim_block(channel);
}

void sim_sleep(uint64_t ns)
{
	uint64_t until = now + ns;
	char channel;

	while (now < until)
		sim_block_for(&channel, until - now);
}

static void thread_start(void)
{
	current->main(current->argument);
	current->state = ENDED;
	sim_wake(current);
	switch_thread();
	abort(); /* nobody picks it again */
}

void sim_init(uint64_t seed)
{
	for (size_t i = 0; i < THREADS_MAX; i++) {
		char *stack = threads[i].stack;

		memset(&threads[i], 0, sizeof(threads[i]));
		threads[i].stack = stack;
	}
	current = &threads[0];
	*current = (struct sim_thread){.state = RUNNABLE, .name = "main", .has_begun = true};
	n_events = 0;
	now = SIM_S; /* a clock that reads 0 is a special case nobody meets */
	ticks = orders = 0;
	is_punctual = false;
	random_state = mixed(seed + 1);
}

void sim_be_punctual(bool is)
{
	is_punctual = is;
}

/* ---- what the cache calls (--wrap) ---- */

int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*main)(void *), void *argument);
int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*main)(void *), void *argument)
{
	struct sim_thread *thread = &threads[1];

	(void)attr;
	while (thread < threads + THREADS_MAX && thread->state != FREE)
		thread++;
	if (thread == threads + THREADS_MAX)
		sim_fail("more than %d threads", THREADS_MAX);
	if (thread->stack == NULL)
		thread->stack = malloc(STACK_BYTES);
	thread->main = main;
	thread->argument = argument;
	thread->state = RUNNABLE;
	thread->has_begun = false;
	snprintf(thread->name, sizeof(thread->name), "thread");
	getcontext(&thread->context);
	thread->context.uc_stack.ss_sp = thread->stack;
	thread->context.uc_stack.ss_size = STACK_BYTES;
	thread->context.uc_link = NULL;
	sigemptyset(&thread->context.uc_sigmask); /* one that spins is interrupted (main.c), though the engine blocks signals */
	makecontext(&thread->context, thread_start, 0);
	*id = (pthread_t)(uintptr_t)thread;
	return 0;
}

int __wrap_pthread_setname_np(pthread_t id, const char *name);
int __wrap_pthread_setname_np(pthread_t id, const char *name)
{
	struct sim_thread *thread = (struct sim_thread *)(uintptr_t)id;

	snprintf(thread->name, sizeof(thread->name), "%s", name);
	return 0;
}

int __wrap_pthread_join(pthread_t id, void **result);
int __wrap_pthread_join(pthread_t id, void **result)
{
	struct sim_thread *thread = (struct sim_thread *)(uintptr_t)id;

	if (result != NULL)
		*result = NULL;
	while (thread->state != ENDED)
		sim_block(thread);
	thread->state = FREE;
	return 0;
}

int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);

static void lock(pthread_mutex_t *mutex)
{
	if (pthread_mutex_trylock(mutex) != 0)
		sim_fail("R4: a lock that %s wants is held by a thread that waits", current->name);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
	if (!is_in_event && current->n_locks == 0 && sim_chance(4))
		yield();
	lock(mutex);
	if (!is_in_event)
		current->n_locks++;
	return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
	if (!is_in_event)
		current->n_locks--;
	return __real_pthread_mutex_unlock(mutex);
}

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	current->n_locks--;
	__real_pthread_mutex_unlock(mutex);
	sim_block(cond);
	lock(mutex);
	current->n_locks++;
	return 0;
}

int __wrap_pthread_cond_signal(pthread_cond_t *cond);
int __wrap_pthread_cond_signal(pthread_cond_t *cond)
{
	sim_wake(cond);
	return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *cond);
int __wrap_pthread_cond_broadcast(pthread_cond_t *cond)
{
	sim_wake(cond);
	return 0;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
	(void)clock;
	*t = (struct timespec){.tv_sec = (time_t)(now / SIM_S), .tv_nsec = (long)(now % SIM_S)};
	return 0;
}
