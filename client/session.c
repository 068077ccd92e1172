/* session.c - talking to the daemon: tickets, questions, answers. */
#include "client/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { CHUNK_BYTES_MIN = 1 << 12, CHUNK_BYTES_MAX = 1 << 30 };

struct incoming {
	struct wire_reply reply;
	union {
		struct wire_chunks chunks;
		char bytes[16384];
	} more;
	size_t more_bytes;
	int fds[WIRE_CHUNKS_MAX];
	size_t n_fds;
};

static void close_fds(struct incoming *incoming)
{
	while (incoming->n_fds > 0)
		close(incoming->fds[--incoming->n_fds]);
}

static int receive(struct hmmfs_session *session, struct incoming *incoming)
{
	struct iovec iov[2] = {{&incoming->reply, sizeof(incoming->reply)}, {&incoming->more, sizeof(incoming->more)}};
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(incoming->fds))];
	} control;
	struct msghdr header = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t n;

	do
		n = recvmsg(session->socket, &header, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	incoming->n_fds = 0;
	if (n <= 0)
		return -ECONNRESET;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c != NULL; c = CMSG_NXTHDR(&header, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		incoming->n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(incoming->fds, CMSG_DATA(c), incoming->n_fds * sizeof(int));
	}
	if ((size_t)n < sizeof(incoming->reply) || incoming->reply.magic != WIRE_MAGIC ||
	    (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		close_fds(incoming);
		return -EPROTO;
	}
	incoming->more_bytes = (size_t)n - sizeof(incoming->reply);
	return 0;
}

static int send_request(struct hmmfs_session *session, const struct wire_request *request, const struct wire_run *run, int fd)
{
	struct iovec iov[2] = {{(void *)(uintptr_t)request, sizeof(*request)}, {(void *)(uintptr_t)run, sizeof(*run)}};
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {.bytes = {0}};
	struct msghdr header = {.msg_iov = iov, .msg_iovlen = run != NULL ? 2 : 1};

	if (fd >= 0) {
		header.msg_control = &control;
		header.msg_controllen = sizeof(control);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	}
	return sendmsg(session->socket, &header, MSG_NOSIGNAL) < 0 ? -ECONNRESET : 0;
}

/* What comes without being asked for. False: it is the answer. */
static bool take_notice(struct hmmfs_session *session, struct incoming *incoming)
{
	switch (incoming->reply.op) {
	case WIRE_REVOKED:
		if (session->on_revoked != NULL)
			session->on_revoked(session->user, incoming->reply.region);
		break;
	case WIRE_CHUNKS:
		if (session->on_chunks != NULL && incoming->more_bytes == sizeof(struct wire_chunks) &&
		    incoming->n_fds == incoming->reply.count)
			session->on_chunks(session->user, &incoming->reply, &incoming->more.chunks, incoming->fds);
		break;
	default: return false;
	}
	close_fds(incoming);
	return true;
}

int session_ask(struct hmmfs_session *session, struct wire_request *request, const struct wire_run *run, int fd,
		struct wire_reply *reply, void *more, size_t max_more, int *fd_out)
{
	struct incoming incoming;
	int err;

	request->magic = WIRE_MAGIC;
	request->version = WIRE_VERSION;
	request->id = ++session->next_id;
	if (fd_out != NULL)
		*fd_out = -1;
	err = send_request(session, request, run, fd);
	if (err < 0)
		return err;
	do
		err = receive(session, &incoming);
	while (err == 0 && take_notice(session, &incoming));
	if (err < 0)
		return err;
	if (fd_out != NULL && incoming.n_fds == 1) {
		*fd_out = incoming.fds[0];
		incoming.n_fds = 0;
	}
	close_fds(&incoming);
	if (incoming.reply.op != WIRE_REPLY || incoming.reply.id != request->id)
		return -EPROTO;
	*reply = incoming.reply;
	if (max_more > 0) {
		size_t bytes = incoming.more_bytes < max_more ? incoming.more_bytes : max_more;

		memcpy(more, &incoming.more, bytes);
		memset((char *)more + bytes, 0, max_more - bytes);
	}
	return reply->status;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	memcpy(address.sun_path, path, sizeof(address.sun_path));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int err = -errno;

		close(fd);
		return err;
	}
	return fd;
}

/* Whose daemon it is nobody has said: a mount is any user's. */
static bool is_sound(const struct wire_hello *hello)
{
	return hello->chunk_bytes >= CHUNK_BYTES_MIN && hello->chunk_bytes <= CHUNK_BYTES_MAX &&
	       (hello->chunk_bytes & (hello->chunk_bytes - 1)) == 0 && memchr(hello->backend, '\0', sizeof(hello->backend)) != NULL &&
	       memchr(hello->device_name, '\0', sizeof(hello->device_name)) != NULL;
}

static int say_hello(struct hmmfs_session *session, const struct wire_ticket *ticket)
{
	struct wire_request request = {.op = WIRE_HELLO};
	struct wire_reply reply;
	struct wire_hello hello;
	int err;

	memcpy(request.token, ticket->token, sizeof(request.token));
	err = session_ask(session, &request, NULL, -1, &reply, &hello, sizeof(hello), NULL);
	if (err < 0)
		return err;
	if (!is_sound(&hello))
		return -EPROTO;
	session->info = (struct hmmfs_info){.chunk_bytes = hello.chunk_bytes, .capacity_bytes = hello.capacity_bytes,
					    .file_bytes = hello.file_bytes, .can_export = (hello.flags & (WIRE_CAN_EXPORT | WIRE_EXPORTS_CUDA)) == WIRE_CAN_EXPORT,
					    .is_cuda = hello.flags & WIRE_EXPORTS_CUDA,
					    .can_run = hello.flags & WIRE_CAN_RUN,
					    .is_writable = hello.flags & WIRE_IS_WRITABLE, .owner = hello.owner_uid,
					    .daemon = (pid_t)hello.daemon_pid};
	memcpy(session->info.backend, hello.backend, sizeof(hello.backend));
	memcpy(session->info.device_name, hello.device_name, sizeof(hello.device_name));
	memcpy(session->info.device_uuid, hello.device_uuid, sizeof(hello.device_uuid));
	return 0;
}

int hmmfs_open_fd(int fd, struct hmmfs_session **out)
{
	struct hmmfs_session *session;
	struct wire_ticket ticket = {.version = 0};
	int err;

	if (ioctl(fd, HMMFS_IOC_TICKET, &ticket) < 0)
		return errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS ? -ENOTTY : -errno;
	if (ticket.version != WIRE_VERSION)
		return -EPROTONOSUPPORT;
	session = calloc(1, sizeof(*session));
	if (session == NULL)
		return -ENOMEM;
	session->socket = connect_to(ticket.socket_path);
	err = session->socket < 0 ? session->socket : say_hello(session, &ticket);
	if (err < 0) {
		if (session->socket >= 0)
			close(session->socket);
		free(session);
		return err;
	}
	*out = session;
	return 0;
}

void hmmfs_close(struct hmmfs_session *session)
{
	if (session == NULL)
		return;
	close(session->socket);
	free(session);
}

const struct hmmfs_info *hmmfs_info(const struct hmmfs_session *session)
{
	return &session->info;
}

int hmmfs_session_fd(const struct hmmfs_session *session)
{
	return session->socket;
}

static int place(struct hmmfs_session *session, enum wire_op op, off_t off, off_t len, uint64_t *moved)
{
	struct wire_request request = {.op = op, .off = (uint64_t)off, .len = (uint64_t)len};
	struct wire_reply reply = {.moved_bytes = 0};
	int err = session_ask(session, &request, NULL, -1, &reply, NULL, 0, NULL);

	if (moved != NULL)
		*moved = reply.moved_bytes;
	return err;
}

int hmmfs_prefetch(struct hmmfs_session *session, off_t off, off_t len, uint64_t *moved)
{
	return place(session, WIRE_PREFETCH, off, len, moved);
}

int hmmfs_evict(struct hmmfs_session *session, off_t off, off_t len, uint64_t *moved)
{
	return place(session, WIRE_EVICT, off, len, moved);
}

int hmmfs_sync(struct hmmfs_session *session)
{
	struct wire_request request = {.op = WIRE_SYNC};
	struct wire_reply reply;

	return session_ask(session, &request, NULL, -1, &reply, NULL, 0, NULL);
}

static void copy_name(char *to, const char *from, size_t size)
{
	memcpy(to, from, size - 1);
	to[size - 1] = '\0';
}

int hmmfs_get_status(struct hmmfs_session *session, struct hmmfs_status *status)
{
	struct wire_request request = {.op = WIRE_STATUS};
	struct wire_reply reply;
	struct wire_status s;
	int err = session_ask(session, &request, NULL, -1, &reply, &s, sizeof(s), NULL);

	if (err < 0)
		return err;
	*status = (struct hmmfs_status){
		.chunk_bytes = s.chunk_bytes, .capacity_bytes = s.capacity_bytes, .resident_bytes = s.resident_bytes,
		.dirty_bytes = s.dirty_bytes, .leases = s.leases, .fills = s.fills, .fill_bytes = s.fill_bytes,
		.writebacks = s.writebacks, .writeback_bytes = s.writeback_bytes, .writeback_errors = s.writeback_errors,
		.migrations_back = s.migrations_back, .evictions = s.evictions, .invalidations = s.invalidations,
		.held_reads = s.held_reads, .device_read_bytes = s.device_read_bytes,
		.device_write_bytes = s.device_write_bytes, .hits = s.hits, .misses = s.misses,
		.revocations = s.revocations, .lost_chunks = s.lost_chunks,
		.passthrough_opens = s.passthrough_opens, .inodes = s.inodes, .inode_descriptors = s.inode_descriptors};
	copy_name(status->transport, s.transport, sizeof(s.transport));
	copy_name(status->backend, s.backend, sizeof(s.backend));
	copy_name(status->device_name, s.device_name, sizeof(s.device_name));
	return 0;
}

int hmmfs_get_chunks(struct hmmfs_session *session, uint64_t first, struct hmmfs_chunk *chunks, size_t max, size_t *n)
{
	*n = 0;
	while (*n < max) {
		struct wire_request request = {.op = WIRE_MAP_CHUNKS, .off = first};
		struct wire_chunk wire[WIRE_CHUNKS_MAX];
		struct wire_reply reply;
		int err = session_ask(session, &request, NULL, -1, &reply, wire, sizeof(wire), NULL);

		if (err < 0)
			return err;
		if (reply.count == 0 || reply.count > WIRE_CHUNKS_MAX)
			return 0;
		for (uint32_t i = 0; i < reply.count && *n < max; i++) {
			chunks[*n] = (struct hmmfs_chunk){.index = wire[i].index, .shared_leases = wire[i].shared_leases,
							  .has_exclusive_lease = wire[i].has_exclusive_lease,
							  .has_kernel_copies = wire[i].has_kernel_copies,
							  .has_error = wire[i].has_error};
			copy_name(chunks[*n].state, wire[i].state, sizeof(wire[i].state));
			++*n;
		}
		first = wire[reply.count - 1].index + 1;
		if (reply.count < WIRE_CHUNKS_MAX)
			return 0;
	}
	return 0;
}
