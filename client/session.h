/* session.h - a connection to the daemon. Private to client/. */
#ifndef HMMFS_CLIENT_SESSION_H
#define HMMFS_CLIENT_SESSION_H

#include "client/hmmfs.h"
#include "client/protocol.h"

struct hmmfs_session {
	int socket;
	uint32_t next_id;
	struct hmmfs_info info;
	/* Told of what comes before the answer. May be NULL. */
	void (*on_chunks)(void *user, const struct wire_reply *reply, const struct wire_chunks *chunks, const int *fds);
	void (*on_revoked)(void *user, uint32_t region);
	void *user;
};

/* Sends a request (run, fd and more: NULL and -1 if none) and waits for its answer; returns its status. more, of max_more
 * bytes, takes what is behind it; fd_out (may be NULL) a descriptor that came with it, or -1. */
int session_ask(struct hmmfs_session *session, struct wire_request *request, const struct wire_run *run, int fd,
		struct wire_reply *reply, void *more, size_t max_more, int *fd_out);

/* region.c. What becomes of a region whose descriptor somebody else has closed is that one's own affair; here is how to tell. */
int region_socket(const struct hmmfs_region *region);

#endif
