/* loop.c - see loop.h */
#include "fusefs/loop.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <threads.h>
#include <unistd.h>
#include <utlist.h>

struct loop {
	struct io_uring ring;
	const char *name;
	int cpu;
	pthread_t thread;
	bool has_thread;
	bool is_stopping;   /* loop's thread */
	unsigned n_awaited; /* loop's thread: submitted and not completed */
	int wake_fd;
	uint64_t wake_value;
	struct loop_op wake_op, stop_op;
	pthread_mutex_t lock;   /* leaf */
	struct loop_op *posted; /* lock; newest first */
	bool is_awake;          /* lock: it will look at posted before it sleeps */
};

static thread_local struct loop *current;

struct loop *loop_current(void)
{
	return current;
}

struct io_uring_sqe *loop_prepare(struct loop *loop)
{
	struct io_uring_sqe *sqe;

	while ((sqe = io_uring_get_sqe(&loop->ring)) == NULL)
		io_uring_submit(&loop->ring);
	return sqe;
}

void loop_submit(struct loop *loop, struct io_uring_sqe *sqe, struct loop_op *op)
{
	op->is_awaited = true;
	loop->n_awaited++;
	io_uring_sqe_set_data(sqe, op);
}

void loop_listen(struct loop *loop, struct io_uring_sqe *sqe, struct loop_op *op)
{
	(void)loop;
	op->is_awaited = false;
	io_uring_sqe_set_data(sqe, op);
}

static void arm_wake(struct loop *loop)
{
	struct io_uring_sqe *sqe = loop_prepare(loop);

	io_uring_prep_read(sqe, loop->wake_fd, &loop->wake_value, sizeof(loop->wake_value), 0);
	loop_listen(loop, sqe, &loop->wake_op);
}

static void on_wake(struct loop_op *op, int result)
{
	(void)op;
	(void)result;
	arm_wake(current);
}

static void on_stop(struct loop_op *op, int result)
{
	(void)op;
	(void)result;
	current->is_stopping = true;
}

void loop_post(struct loop *loop, struct loop_op *op)
{
	static const uint64_t one = 1;
	bool is_asleep;

	pthread_mutex_lock(&loop->lock);
	LL_PREPEND(loop->posted, op);
	is_asleep = !loop->is_awake;
	loop->is_awake = true;
	pthread_mutex_unlock(&loop->lock);
	if (is_asleep && write(loop->wake_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd takes 2^64 of them */
}

/* What was posted, oldest first. NULL: nothing, and whoever posts next will wake us. */
static struct loop_op *take_posted(struct loop *loop)
{
	struct loop_op *posted, *op, *next, *oldest_first = NULL;

	pthread_mutex_lock(&loop->lock);
	posted = loop->posted;
	loop->posted = NULL;
	loop->is_awake = posted != NULL;
	pthread_mutex_unlock(&loop->lock);
	for (op = posted; op != NULL; op = next) {
		next = op->next;
		LL_PREPEND(oldest_first, op);
	}
	return oldest_first;
}

static bool run_posted(struct loop *loop)
{
	struct loop_op *op = take_posted(loop), *next;
	bool has_run = op != NULL;

	for (; op != NULL; op = next) {
		next = op->next;
		op->done(op, 0);
	}
	return has_run;
}

static void run_completed(struct loop *loop)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&loop->ring, &cqe) == 0) {
		struct loop_op *op = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&loop->ring, cqe);
		loop->n_awaited -= op->is_awaited;
		op->done(op, result);
	}
}

static void *loop_main(void *argument)
{
	struct loop *loop = argument;

	current = loop;
	if (loop->cpu >= 0) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(loop->cpu, &set);
		sched_setaffinity(0, sizeof(set), &set); /* only for speed: a CPU that is offline is no error */
	}
	/* This thread is its one issuer. Not io_uring_enable_rings: liburing 2.3 does not export it. */
	if (syscall(__NR_io_uring_register, loop->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
		abort(); /* it can't fail for a ring that is disabled */
	arm_wake(loop);
	while (!loop->is_stopping || loop->n_awaited > 0) {
		bool has_run = run_posted(loop);

		io_uring_submit_and_wait(&loop->ring, has_run ? 0 : 1);
		run_completed(loop);
	}
	return NULL;
}

int loop_create(struct loop **out, const char *name, unsigned entries, unsigned setup, int cpu)
{
	struct loop *loop = calloc(1, sizeof(*loop));
	int err;

	if (loop == NULL)
		return -ENOMEM;
	loop->name = name;
	loop->cpu = cpu;
	loop->wake_op.done = on_wake;
	loop->stop_op.done = on_stop;
	loop->is_awake = true; /* it starts with a look */
	setup |= IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED;
	/* completions come when the thread asks for them, and do not interrupt it */
	err = io_uring_queue_init(entries, &loop->ring, setup | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
	if (err == -EINVAL) /* Linux before 6.1 */
		err = io_uring_queue_init(entries, &loop->ring, setup);
	if (err < 0) {
		free(loop);
		return err;
	}
	loop->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (loop->wake_fd < 0) {
		err = -errno;
		io_uring_queue_exit(&loop->ring);
		free(loop);
		return err;
	}
	pthread_mutex_init(&loop->lock, NULL);
	*out = loop;
	return 0;
}

int loop_start(struct loop *loop)
{
	sigset_t all, before;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&loop->thread, NULL, loop_main, loop);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	loop->has_thread = err == 0;
	if (err == 0)
		pthread_setname_np(loop->thread, loop->name);
	return -err;
}

void loop_stop(struct loop *loop)
{
	if (!loop->has_thread)
		return;
	loop_post(loop, &loop->stop_op);
	pthread_join(loop->thread, NULL);
	loop->has_thread = false;
}

void loop_destroy(struct loop *loop)
{
	if (loop == NULL)
		return;
	loop_stop(loop);
	io_uring_queue_exit(&loop->ring);
	close(loop->wake_fd);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
}
