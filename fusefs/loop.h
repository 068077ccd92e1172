/*
 * loop.h - a thread with an io_uring of its own: the backing's I/O of files that the device has nothing of, and the requests
 * of a FUSE-over-io_uring queue. Private to fusefs/.
 *
 * Everything but loop_post belongs to the loop's thread. What it calls must not wait for another request (R4).
 */
#ifndef HMMFS_LOOP_H
#define HMMFS_LOOP_H

#include <liburing.h>
#include <stdbool.h>

struct loop;

struct loop_op {
	void (*done)(struct loop_op *op, int result); /* on the loop's thread: what io_uring says, or 0 if it was posted */
	struct loop_op *next; /* the loop's */
	bool is_awaited;      /* the loop's */
};

/* setup: io_uring's flags beside the loop's own. cpu: the thread stays there; -1: anywhere. Negative errno. */
int loop_create(struct loop **loop, const char *name, unsigned entries, unsigned setup, int cpu);
int loop_start(struct loop *loop);
/* Waits for what was submitted, and ends the thread. What is posted later is left alone. */
void loop_stop(struct loop *loop);
void loop_destroy(struct loop *loop);

/* The loop whose thread this is; NULL: none's. */
struct loop *loop_current(void);
/* A submission whose end op is told of; it goes to the kernel when the thread has nothing left to do. Loop thread. */
struct io_uring_sqe *loop_prepare(struct loop *loop);
void loop_submit(struct loop *loop, struct io_uring_sqe *sqe, struct loop_op *op);
/* The same for what ends only with the loop. */
void loop_listen(struct loop *loop, struct io_uring_sqe *sqe, struct loop_op *op);
/* Has op->done called on the loop's thread. Any thread. */
void loop_post(struct loop *loop, struct loop_op *op);

#endif
