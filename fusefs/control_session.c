/*
 * control_session.c - one client: its messages in, answers out.
 *
 * All input is checked before use. What is malformed, out of order or too long closes the session, and so does a message
 * with descriptors where none belong; other sessions do not notice.
 */
#include "fusefs/control_internal.h"
#include "fusefs/uring.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

static_assert(sizeof(struct wire_request) == 64, "part of the protocol");

/* ---- waiting ---- */

struct waited_op {
	struct session *session;
	pthread_mutex_t mutex;
	bool is_done; /* mutex */
	int status;   /* mutex */
};

static void waited_done(struct cache_op *op, int status)
{
	struct waited_op *waited = op->waiter;
	uint64_t one = 1;
	ssize_t n;

	pthread_mutex_lock(&waited->mutex);
	waited->status = status;
	waited->is_done = true;
	n = write(waited->session->wake_fd, &one, sizeof(one)); /* an eventfd: does not block */
	(void)n;
	pthread_mutex_unlock(&waited->mutex);
}

static bool is_done(struct waited_op *waited)
{
	bool done;

	pthread_mutex_lock(&waited->mutex);
	done = waited->is_done;
	pthread_mutex_unlock(&waited->mutex);
	return done;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void take_notices(struct session *session)
{
	uint64_t count;
	ssize_t n = read(session->wake_fd, &count, sizeof(count));

	(void)n; /* how many there were says nothing */
}

int session_wait(struct session *session, struct cache_op *op, void (*start)(void *argument),
		 void (*cancel)(void *argument), void *argument, unsigned timeout_ms, bool *is_gone)
{
	struct waited_op waited = {.session = session, .mutex = PTHREAD_MUTEX_INITIALIZER};
	uint64_t deadline = timeout_ms == 0 ? UINT64_MAX : now_ms() + timeout_ms;
	bool is_cancelled = false, has_timed_out = false;

	*is_gone = false;
	op->done = waited_done;
	op->waiter = &waited;
	start(argument);
	for (;;) {
		struct pollfd polled[2] = {{.fd = session->wake_fd, .events = POLLIN},
					   {.fd = session->socket, .events = POLLRDHUP}};
		uint64_t now = now_ms();

		polled[1].fd = is_cancelled ? -1 : session->socket;
		if (poll(polled, 2, deadline == UINT64_MAX || is_cancelled ? -1 : deadline > now ? (int)(deadline - now) : 0) < 0 &&
		    errno != EINTR)
			abort(); /* the arguments are right */
		if (polled[0].revents & POLLIN)
			take_notices(session);
		regions_tell_revoked(session); /* waits itself, and may take our notice */
		if (is_done(&waited))
			break;
		if (!is_cancelled && (polled[1].revents & (POLLRDHUP | POLLHUP | POLLERR)))
			*is_gone = true;
		has_timed_out |= now_ms() >= deadline;
		if (!is_cancelled && (*is_gone || has_timed_out)) {
			is_cancelled = true;
			if (cancel != NULL)
				cancel(argument);
		}
	}
	pthread_mutex_destroy(&waited.mutex);
	return has_timed_out && waited.status == -ECANCELED ? -ETIMEDOUT : waited.status;
}

/* ---- messages ---- */

static void close_all(const int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		close(fds[i]);
}

/* 1: a message; 0: the client is gone; negative: it is malformed. */
static int receive(struct session *session, struct message *message)
{
	struct {
		struct wire_request request;
		struct wire_run run;
	} buffer;
	struct iovec iov = {&buffer, sizeof(buffer)};
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(8 * sizeof(int))];
	} control;
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
				.msg_controllen = sizeof(control)};
	int fds[8];
	size_t n_fds = 0;
	ssize_t n = recvmsg(session->socket, &header, MSG_CMSG_CLOEXEC);

	if (n <= 0)
		return n == 0 || errno == ECONNRESET ? 0 : -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c != NULL; c = CMSG_NXTHDR(&header, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(c), n_fds * sizeof(int));
	}
	message->bytes = (size_t)n;
	message->request = buffer.request;
	message->run = buffer.run;
	message->fd = n_fds == 1 ? fds[0] : -1;
	if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || n_fds > 1 ||
	    (size_t)n != (message->request.op == WIRE_RUN ? sizeof(buffer) : sizeof(buffer.request)) ||
	    message->request.magic != WIRE_MAGIC || message->request.version != WIRE_VERSION ||
	    (n_fds == 1 && (message->request.op != WIRE_RUN || !message->run.has_source))) {
		close_all(fds, n_fds);
		message->fd = -1;
		return -EPROTO;
	}
	return 1;
}

int session_send(struct session *session, const struct wire_reply *reply, const void *more, size_t more_bytes, const int *fds,
		 size_t n_fds)
{
	struct iovec iov[2] = {{(void *)(uintptr_t)reply, sizeof(*reply)}, {(void *)(uintptr_t)more, more_bytes}};
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(WIRE_CHUNKS_MAX * sizeof(int))];
	} control = {.bytes = {0}};
	struct msghdr header = {.msg_iov = iov, .msg_iovlen = more_bytes > 0 ? 2 : 1};

	if (n_fds > 0) {
		struct cmsghdr *c;

		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&header);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	/* A client that does not read its answers is not waited for longer than the socket's time limit (session_main). */
	return sendmsg(session->socket, &header, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* ---- requests ---- */

static int hello(struct session *session, const struct wire_request *request, struct wire_reply *reply)
{
	struct fusefs *fs = session->control->fs;
	struct gpu_device *dev = cache_device(fs->cache);
	struct cache_status status;
	struct wire_hello answer = {.owner_uid = fs->owner, .daemon_pid = (uint32_t)getpid()};
	struct ticket ticket;
	struct stat st;

	if (session->inode != NULL || !control_redeem(session->control, request->token, session->peer.uid, &ticket))
		return -EPROTO; /* said twice, or a token that is used up, old, made up or another user's */
	session->inode = ticket.inode;
	session->is_writable = ticket.is_writable;
	session->handle_id = ticket.handle_id;
	if (S_ISREG(session->inode->type))
		session->file = inode_cache_file(session->inode);
	cache_get_status(fs->cache, &status);
	answer.chunk_bytes = status.chunk_bytes;
	answer.capacity_bytes = status.capacity_bytes;
	if (inode_stat(session->inode, &st) == 0)
		answer.file_bytes = (uint64_t)st.st_size;
	answer.flags = (dev->info.can_export ? WIRE_CAN_EXPORT : 0) | (dev->info.can_run ? WIRE_CAN_RUN : 0) |
		       (dev->info.exports_cuda ? WIRE_EXPORTS_CUDA : 0) | (session->is_writable ? WIRE_IS_WRITABLE : 0) |
		       (session->file == NULL ? WIRE_IS_DIRECTORY : 0);
	memcpy(answer.backend, status.device_backend, sizeof(answer.backend));
	memcpy(answer.device_name, status.device_name, sizeof(answer.device_name));
	memcpy(answer.device_uuid, dev->info.uuid, sizeof(answer.device_uuid));
	return session_send(session, reply, &answer, sizeof(answer), NULL, 0);
}

static void start_sync(void *argument)
{
	cache_sync(argument);
}

static void start_sync_all(void *argument)
{
	cache_sync_all(argument);
}

static int synchronize(struct session *session)
{
	struct cache_sync sync = {.file = session->file, .cache = session->control->fs->cache};
	bool is_gone;

	return session_wait(session, &sync.op, session->file != NULL ? start_sync : start_sync_all, NULL, &sync, 0,
			    &is_gone);
}

static void start_prefetch(void *argument)
{
	cache_prefetch(argument);
}

static void start_evict(void *argument)
{
	cache_evict(argument);
}

static int place(struct session *session, const struct wire_request *request, struct wire_reply *reply)
{
	struct cache_place moved = {.file = session->file, .off = (off_t)request->off, .len = (off_t)request->len};
	bool is_prefetch = request->op == WIRE_PREFETCH, is_gone;
	struct fusefs *fs = session->control->fs;
	struct passthrough_lease pass;
	int err;

	if (session->file == NULL || request->off > INT64_MAX || request->len > INT64_MAX)
		return -EINVAL;
	if (is_prefetch && inode_policy(session->inode) == POLICY_NEVER)
		return -EOPNOTSUPP;
	if (!is_prefetch) {
		err = session_wait(session, &moved.op, start_evict, NULL, &moved, 0, &is_gone);
	} else {
		err = passthrough_lease_begin(fs->passthrough, session->inode, session->handle_id, false, &pass);
		if (err < 0)
			return err;
		if (!pass.is_passed || fs->options->is_read_only) /* nothing may stay of the others */
			err = session_wait(session, &moved.op, start_prefetch, NULL, &moved, 0, &is_gone);
		passthrough_lease_end(fs->passthrough, session->inode, &pass);
	}
	reply->moved_bytes = moved.moved_bytes;
	return err;
}

static int status(struct session *session, struct wire_reply *reply)
{
	struct cache_status s;
	struct wire_status answer;

	cache_get_status(session->control->fs->cache, &s);
	answer = (struct wire_status){
		.chunk_bytes = s.chunk_bytes, .capacity_bytes = s.capacity_bytes, .resident_bytes = s.resident_bytes,
		.dirty_bytes = s.dirty_bytes, .leases = s.leases, .fills = s.fills, .fill_bytes = s.fill_bytes,
		.writebacks = s.writebacks, .writeback_bytes = s.writeback_bytes, .writeback_errors = s.writeback_errors,
		.migrations_back = s.migrations_back, .evictions = s.evictions, .invalidations = s.invalidations,
		.held_reads = s.held_reads, .device_read_bytes = s.device_read_bytes,
		.device_write_bytes = s.device_write_bytes, .hits = s.hits, .misses = s.misses,
		.revocations = s.revocations, .lost_chunks = s.lost_chunks,
		.passthrough_opens = passthrough_count(session->control->fs->passthrough),
		.inodes = inodes_count(session->control->fs), .inode_descriptors = atomic_load(&session->control->fs->n_fds)};
	strcpy(answer.transport, uring_is_serving(session->control->fs->uring) ? "uring" : "dev");
	memcpy(answer.backend, s.device_backend, sizeof(answer.backend));
	memcpy(answer.device_name, s.device_name, sizeof(answer.device_name));
	return session_send(session, reply, &answer, sizeof(answer), NULL, 0);
}

static void start_map(void *argument)
{
	cache_map(argument);
}

static int map_chunks(struct session *session, const struct wire_request *request, struct wire_reply *reply)
{
	struct cache_chunk_info infos[WIRE_CHUNKS_MAX];
	struct wire_chunk chunks[WIRE_CHUNKS_MAX];
	struct cache_map map = {.file = session->file, .first = request->off, .max = WIRE_CHUNKS_MAX, .chunks = infos};
	bool is_gone;
	int err;

	if (session->file == NULL)
		return -EINVAL;
	err = session_wait(session, &map.op, start_map, NULL, &map, 0, &is_gone);
	if (err < 0)
		return err;
	for (size_t i = 0; i < map.n; i++) {
		chunks[i] = (struct wire_chunk){.index = infos[i].index, .shared_leases = infos[i].shared_leases,
						.has_exclusive_lease = infos[i].has_exclusive_lease,
						.has_kernel_copies = infos[i].has_kernel_copies,
						.has_error = infos[i].has_error};
		memcpy(chunks[i].state, infos[i].state, sizeof(chunks[i].state));
	}
	reply->count = (uint32_t)map.n;
	return session_send(session, reply, chunks, map.n * sizeof(chunks[0]), NULL, 0);
}

/* Negative: the session ends. */
static int answer(struct session *session, const struct message *message)
{
	const struct wire_request *request = &message->request;
	struct wire_reply reply = {.magic = WIRE_MAGIC, .op = WIRE_REPLY, .id = request->id};
	int fd = -1, err;

	if (session->inode == NULL && request->op != WIRE_HELLO)
		return -EPROTO;
	switch (request->op) {
	case WIRE_HELLO: return hello(session, request, &reply);
	case WIRE_STATUS: return status(session, &reply);
	case WIRE_MAP_CHUNKS:
		err = map_chunks(session, request, &reply);
		if (err != -EINVAL)
			return err;
		reply.status = err;
		break;
	case WIRE_REGION_OPEN: reply.status = region_open(session, request, &reply); break;
	case WIRE_REGION_CLOSE: reply.status = region_close(session, request->region); break;
	case WIRE_ACQUIRE: reply.status = region_acquire(session, request, &reply); break;
	case WIRE_RELEASE: reply.status = region_release(session, request->region); break;
	case WIRE_PREFETCH:
	case WIRE_EVICT: reply.status = place(session, request, &reply); break;
	case WIRE_SYNC: reply.status = synchronize(session); break;
	case WIRE_RUN: reply.status = session_run(session, message, &reply, &fd); break;
	default: return -EPROTO;
	}
	err = session_send(session, &reply, NULL, 0, &fd, fd >= 0 ? 1 : 0);
	if (fd >= 0)
		close(fd);
	return err;
}

static void serve_messages(struct session *session)
{
	for (;;) {
		struct pollfd polled[2] = {{.fd = session->wake_fd, .events = POLLIN}, {.fd = session->socket, .events = POLLIN}};
		struct message message;
		int result;

		regions_tell_revoked(session);
		if (poll(polled, 2, -1) < 0)
			continue;
		if (polled[0].revents & POLLIN)
			take_notices(session);
		if (polled[1].revents == 0)
			continue;
		result = receive(session, &message);
		if (result > 0) {
			result = answer(session, &message) < 0 ? -EPROTO : 1;
			if (message.fd >= 0)
				close(message.fd);
		}
		if (result < 0)
			log_line(LOG_NOTICE, "a client (pid %d, uid %u) sent what the protocol does not allow: session closed",
				 (int)session->peer.pid, (unsigned)session->peer.uid);
		if (result <= 0)
			return;
	}
}

void *session_main(void *argument)
{
	struct session *session = argument;
	struct timeval limit = {.tv_sec = 10};

	setsockopt(session->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	serve_messages(session);
	regions_end(session);
	if (session->inode != NULL)
		inode_unref(session->inode);
	control_session_ended(session);
	return NULL;
}
