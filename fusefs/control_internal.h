/* control_internal.h - shared by the files of the control socket: control.c (tickets, listening), control_session.c
 * (messages), control_lease.c (regions and leases), control_run.c (kernels). */
#ifndef HMMFS_CONTROL_INTERNAL_H
#define HMMFS_CONTROL_INTERNAL_H

#include "client/protocol.h"
#include "fusefs/control.h"
#include "fusefs/passthrough.h"
#include "gpu/gpu.h"

#include <sys/socket.h>

enum { TICKETS_MAX = 1024, SESSIONS_MAX = 1024, SESSIONS_OF_USER_MAX = 256, REGIONS_MAX = 1024, TICKET_SECONDS = 10 };

struct ticket {
	uint8_t token[WIRE_TOKEN_BYTES];
	struct inode *inode; /* referenced; NULL: the slot is free */
	bool is_writable;
	uint64_t handle_id; /* 0: a directory's */
	uid_t uid; /* who asked for it, and alone may use it */
	uint64_t expires_ns;
};

struct control {
	struct fusefs *fs;
	int listener;
	char directory[80];
	char path[108];
	pthread_t thread;
	bool has_thread;
	pthread_mutex_t mutex;
	pthread_cond_t session_ended;
	struct ticket tickets[TICKETS_MAX]; /* mutex */
	struct session *sessions;           /* mutex */
	unsigned n_sessions;                /* mutex */
	bool is_stopping;                   /* mutex */
};

/* A lease, and how it stands to opens that the kernel passes to the backing. */
struct session_lease {
	struct cache_lease lease;
	struct passthrough_lease pass;
};

struct region {
	uint32_t id;
	uint64_t off, len;
	struct session_lease held;
	bool is_held;
	atomic_bool is_revoked;
	uint64_t *sent; /* generation of each chunk whose descriptor the client has; low bit: writable */
	struct session *session;
	UT_hash_handle hh;
};

struct session {
	struct session *prev, *next; /* control->sessions */
	struct control *control;
	int socket;
	int wake_fd; /* an operation is done, or a lease was revoked */
	struct ucred peer;
	struct inode *inode; /* NULL until HELLO; referenced */
	struct cache_file *file; /* NULL for a directory */
	bool is_writable;
	uint64_t handle_id; /* the descriptor that it is bound to; it may be closed by now */
	struct region *regions;
	uint32_t next_region;
	atomic_bool has_revoked; /* set by the engine: a region's is_revoked is */
	bool is_telling;
};

/* A message as it arrived. */
struct message {
	struct wire_request request;
	struct wire_run run;
	size_t bytes;
	int fd; /* that came with it, or -1 */
};

/* control.c */
/* The ticket's reference goes to the caller. */
bool control_redeem(struct control *control, const uint8_t *token, uid_t uid, struct ticket *ticket);
void control_session_ended(struct session *session); /* frees it */

/* control_session.c */
void *session_main(void *session);
/* Waits for an operation started by start(argument), and for the client to go away: then cancel(argument) is called once
 * (it may be NULL) and the wait goes on. *is_gone tells of it. Returns the operation's status. */
int session_wait(struct session *session, struct cache_op *op, void (*start)(void *argument),
		 void (*cancel)(void *argument), void *argument, unsigned timeout_ms, bool *is_gone);
int session_send(struct session *session, const struct wire_reply *reply, const void *more, size_t more_bytes,
		 const int *fds, size_t n_fds);

/* control_lease.c */
int region_open(struct session *session, const struct wire_request *request, struct wire_reply *reply);
int region_close(struct session *session, uint32_t id);
int region_acquire(struct session *session, const struct wire_request *request, struct wire_reply *reply);
int region_release(struct session *session, uint32_t id);
void regions_end(struct session *session); /* the client is gone */
/* Releases leases that were revoked, and tells the client. Also while a request of the same client waits: for just these, maybe. */
void regions_tell_revoked(struct session *session);
/* Acquires for as long as a run takes. */
int lease_range(struct session *session, uint64_t off, uint64_t len, bool is_exclusive, struct session_lease *held);
void lease_end(struct session *session, struct session_lease *held);

/* control_run.c */
int session_run(struct session *session, const struct message *message, struct wire_reply *reply, int *result_fd);

#endif
