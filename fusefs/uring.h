/*
 * uring.h - FUSE-over-io_uring: requests come as completions of rings that the daemon shares with the kernel, one queue a CPU,
 * and each answer fetches the next. Private to fusefs/.
 */
#ifndef HMMFS_URING_H
#define HMMFS_URING_H

#include <stdbool.h>
#include <stddef.h>

struct fuse_session;
struct uring;

/* Why it can't be used here, as a line for the user; NULL: it can. */
const char *uring_obstacle(void);
/* Takes over the session's device, which is mounted and not yet served. payload_bytes: of the largest request. */
int uring_create(struct uring **uring, struct fuse_session *session, size_t payload_bytes);
/* In init: the kernel offers it. The answer to INIT will ask for it, and the queues start to serve then. */
void uring_accept(struct uring *uring);
bool uring_is_serving(struct uring *uring);
/* The session's loop has ended: no more requests are taken, and answers go nowhere. */
void uring_stop(struct uring *uring);
void uring_destroy(struct uring *uring);

/* On a queue's thread, in a handler: the request's own buffer, page-aligned. It holds the bytes of a WRITE, and an answer that
 * is put there is not copied. It is the handler's until the request is answered. NULL: the request came another way. */
char *uring_payload(void);
/* So many requests of this queue are unanswered that one more that waits could keep others from being delivered. */
bool uring_is_crowded(void);

#endif
