/*
 * uring.c - see uring.h
 *
 * The queues are our own, not libfuse's, for three reasons. A request can wait here for the backing's I/O in the same ring, so
 * that one thread takes it, starts the I/O and answers, with one system call for as many requests as there are. Answers may
 * come from any thread; in libfuse 3.18 those corrupt its submission queue (libfuse issue 1443). And no lock is held while a
 * handler runs.
 *
 * libfuse still does what it is good at. Each request is laid out as /dev/fuse would give it and goes to
 * fuse_session_process_buf; the answer comes back through the session's custom I/O (device_writev), told from those of
 * /dev/fuse by its number. INIT, FORGET, INTERRUPT and notifications go over /dev/fuse in any case: the kernel has it so.
 *
 * An entry is one request: a page with the header that the kernel fills in and, at its end, the copy of it that libfuse gets;
 * then the payload, so that both are contiguous without a copy of the payload. Memory is touched only as far as used: the
 * kernel takes the entry that became free last.
 *
 *   FETCHING --request--> SERVED --answer, any thread--> (posted to the queue's thread) --commit and fetch--> FETCHING
 */
#include "fusefs/fusefs.h"

#include "fusefs/loop.h"
#include "fusefs/uring.h"

#if __has_include(<fuse_kernel.h>)
#include <fuse_kernel.h> /* libfuse's source has the kernel's newest */
#else
#include <linux/fuse.h>
#endif

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <syslog.h>
#include <threads.h>
#include <unistd.h>

enum { DEPTH = 64, HEADER_BYTES = 4096 };

/* The kernel counts its requests up from 2; ours have the top bit, then queue and entry. */
#define OURS (UINT64_C(1) << 63)

struct queue;

struct entry {
	struct queue *queue;
	struct fuse_uring_req_header *header;
	char *payload;
	struct iovec areas[2]; /* header and payload, for the kernel */
	uint64_t commit_id;
	struct loop_op op;     /* the command that waits for a request */
	struct loop_op commit_op; /* the answer, posted to the queue's thread */
};

struct queue {
	struct uring *uring;
	unsigned id;
	struct loop *loop;
	char *memory;
	unsigned n_served; /* queue's thread: delivered and not yet committed */
	struct loop_op register_op;
	struct entry entries[DEPTH];
};

struct uring {
	struct fuse_session *session;
	int fd;
	size_t payload_bytes;
	atomic_bool is_accepted; /* by us, in init */
	atomic_bool is_serving;  /* set once, when the answer to INIT has been sent */
	unsigned n_queues;
	struct queue *queues;
};

static thread_local struct entry *current;

/* ---- order ---- */

/* What was done before an answer comes before what a later request does: the kernel has it so (one LOOKUP's inode, the next one's
 * FORGET). The thread sanitizer sees that in read(2) and write(2), and not in a ring. */
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#else
#define __tsan_acquire(address) ((void)(address))
#define __tsan_release(address) ((void)(address))
#endif

/* ---- commands to the kernel ---- */

static void send_command(struct entry *entry, enum fuse_uring_cmd command)
{
	struct queue *queue = entry->queue;
	struct io_uring_sqe *sqe = loop_prepare(queue->loop);
	struct fuse_uring_cmd_req *request = (struct fuse_uring_cmd_req *)(void *)sqe->cmd;

	memset(sqe, 0, 2 * sizeof(*sqe)); /* IORING_SETUP_SQE128 */
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = queue->uring->fd;
	sqe->cmd_op = command;
	if (command == FUSE_IO_URING_CMD_REGISTER) {
		sqe->addr = (uintptr_t)entry->areas;
		sqe->len = 2;
	}
	request->qid = (uint16_t)queue->id;
	request->commit_id = entry->commit_id;
	loop_listen(queue->loop, sqe, &entry->op);
}

/* ---- requests ---- */

static void entry_serve(struct entry *entry)
{
	struct fuse_uring_req_header *header = entry->header;
	struct fuse_in_header in;
	struct fuse_buf buffer = {0};
	size_t argument_bytes;
	char *start;

	__tsan_acquire(entry->queue->uring);
	memcpy(&in, header->in_out, sizeof(in));
	assert(in.len >= sizeof(in) + header->ring_ent_in_out.payload_sz);
	argument_bytes = in.len - sizeof(in) - header->ring_ent_in_out.payload_sz;
	assert(argument_bytes <= sizeof(header->op_in));
	entry->commit_id = header->ring_ent_in_out.commit_id;
	in.unique = OURS | (uint64_t)entry->queue->id << 32 | (uint64_t)(entry - entry->queue->entries);
	start = entry->payload - argument_bytes - sizeof(in);
	memcpy(start, &in, sizeof(in));
	memcpy(start + sizeof(in), header->op_in, argument_bytes);
	buffer.mem = start;
	buffer.size = in.len;
	entry->queue->n_served++;
	current = entry;
	fuse_session_process_buf(entry->queue->uring->session, &buffer);
	current = NULL;
}

static void entry_arrived(struct loop_op *op, int result)
{
	struct entry *entry = (struct entry *)(void *)((char *)op - offsetof(struct entry, op));

	if (result == 0)
		entry_serve(entry);
	else if (result == -EAGAIN || result == -EINTR)
		send_command(entry, entry->commit_id == 0 ? FUSE_IO_URING_CMD_REGISTER : FUSE_IO_URING_CMD_COMMIT_AND_FETCH);
	else if (result != -ENOTCONN && result != -ECONNABORTED && result != -ECANCELED) /* those: the connection has ended */
		log_line(LOG_ERR, "FUSE over io_uring: the kernel gave up a place of queue %u: %s", entry->queue->id,
			 strerror(-result));
}

static void entry_commit(struct loop_op *op, int result)
{
	struct entry *entry = (struct entry *)(void *)((char *)op - offsetof(struct entry, commit_op));

	(void)result;
	entry->queue->n_served--;
	send_command(entry, FUSE_IO_URING_CMD_COMMIT_AND_FETCH);
}

/* ---- answers ---- */

static ssize_t entry_answer(struct entry *entry, const struct fuse_out_header *from, const struct iovec *parts, int n_parts)
{
	struct fuse_uring_req_header *header = entry->header;
	struct fuse_out_header out = *from;
	size_t at = 0;

	for (int i = 0; i < n_parts; i++) {
		if (parts[i].iov_len > entry->queue->uring->payload_bytes - at) {
			out.error = -EIO;
			at = 0;
			break;
		}
		if (parts[i].iov_base != entry->payload + at)
			memmove(entry->payload + at, parts[i].iov_base, parts[i].iov_len);
		at += parts[i].iov_len;
	}
	__tsan_release(entry->queue->uring);
	out.unique = entry->commit_id;
	memcpy(header->in_out, &out, sizeof(out));
	header->ring_ent_in_out.payload_sz = (uint32_t)at;
	if (loop_current() == entry->queue->loop)
		entry_commit(&entry->commit_op, 0);
	else
		loop_post(entry->queue->loop, &entry->commit_op);
	return (ssize_t)(sizeof(out) + at);
}

/* The kernel has been told: it takes registrations now. */
static void start_serving(struct uring *uring)
{
	for (unsigned i = 0; i < uring->n_queues; i++)
		loop_post(uring->queues[i].loop, &uring->queues[i].register_op);
	atomic_store(&uring->is_serving, true);
}

static ssize_t device_writev(int fd, struct iovec *parts, int n_parts, void *user)
{
	struct uring *uring = ((struct fusefs *)user)->uring;
	const struct fuse_out_header *out = parts[0].iov_base;
	bool is_init = out->unique != 0 && !(out->unique & OURS) && atomic_load(&uring->is_accepted) &&
		       !atomic_load(&uring->is_serving) && n_parts == 2 && parts[1].iov_len == sizeof(struct fuse_init_out);
	ssize_t n;

	if (out->unique & OURS) {
		struct queue *queue = &uring->queues[(out->unique & ~OURS) >> 32];

		return entry_answer(&queue->entries[(uint32_t)out->unique], out, parts + 1, n_parts - 1);
	}
	if (is_init) {
		struct fuse_init_out *init = parts[1].iov_base;

		init->flags |= FUSE_INIT_EXT;
		init->flags2 |= (uint32_t)(FUSE_OVER_IO_URING >> 32);
	}
	__tsan_release(uring);
	n = writev(fd, parts, n_parts);
	if (is_init && n >= 0)
		start_serving(uring);
	return n;
}

static ssize_t device_read(int fd, void *buffer, size_t bytes, void *user)
{
	ssize_t n = read(fd, buffer, bytes);

	__tsan_acquire(((struct fusefs *)user)->uring);
	return n;
}

/* ---- life ---- */

const char *uring_obstacle(void)
{
	FILE *parameter = fopen("/sys/module/fuse/parameters/enable_uring", "re");
	int answer = parameter == NULL ? 0 : fgetc(parameter);

	if (parameter != NULL)
		fclose(parameter);
	if (answer == 0)
		return "this kernel has no FUSE over io_uring (Linux has it from 6.14 on)";
	if (answer != 'Y')
		return "FUSE over io_uring is switched off; root can write Y to /sys/module/fuse/parameters/enable_uring";
	return NULL;
}

static void queue_register(struct loop_op *op, int result)
{
	struct queue *queue = (struct queue *)(void *)((char *)op - offsetof(struct queue, register_op));

	(void)result;
	for (unsigned i = 0; i < DEPTH; i++)
		send_command(&queue->entries[i], FUSE_IO_URING_CMD_REGISTER);
}

static int queue_init(struct queue *queue, struct uring *uring, unsigned id)
{
	size_t entry_bytes = HEADER_BYTES + uring->payload_bytes;

	*queue = (struct queue){.uring = uring, .id = id, .register_op.done = queue_register};
	queue->memory = mmap(NULL, DEPTH * entry_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (queue->memory == MAP_FAILED) {
		queue->memory = NULL;
		return -ENOMEM;
	}
	for (unsigned i = 0; i < DEPTH; i++) {
		struct entry *entry = &queue->entries[i];

		entry->queue = queue;
		entry->header = (struct fuse_uring_req_header *)(void *)(queue->memory + i * entry_bytes);
		entry->payload = queue->memory + i * entry_bytes + HEADER_BYTES;
		entry->areas[0] = (struct iovec){entry->header, sizeof(*entry->header)};
		entry->areas[1] = (struct iovec){entry->payload, uring->payload_bytes};
		entry->op.done = entry_arrived;
		entry->commit_op.done = entry_commit;
	}
	return loop_create(&queue->loop, "hmmfs-queue", 4 * DEPTH, IORING_SETUP_SQE128, (int)id);
}

static void queue_finish(struct queue *queue)
{
	loop_destroy(queue->loop);
	if (queue->memory != NULL)
		munmap(queue->memory, DEPTH * (HEADER_BYTES + queue->uring->payload_bytes));
}

int uring_create(struct uring **out, struct fuse_session *session, size_t payload_bytes)
{
	static const struct fuse_custom_io io = {.writev = device_writev, .read = device_read};
	struct uring *uring = calloc(1, sizeof(*uring));
	int err = 0;

	if (uring == NULL)
		return -ENOMEM;
	*uring = (struct uring){.session = session, .fd = fuse_session_fd(session), .payload_bytes = payload_bytes};
	uring->queues = calloc((size_t)get_nprocs_conf(), sizeof(*uring->queues));
	if (uring->queues == NULL)
		err = -ENOMEM;
	for (unsigned i = 0; err == 0 && i < (unsigned)get_nprocs_conf(); i++) {
		uring->n_queues++;
		err = queue_init(&uring->queues[i], uring, i);
	}
	for (unsigned i = 0; err == 0 && i < uring->n_queues; i++)
		err = loop_start(uring->queues[i].loop); /* now: later there is no way back */
	if (err == 0)
		err = fuse_session_custom_io(session, &io, sizeof(io), uring->fd);
	if (err < 0) {
		uring_destroy(uring);
		return err;
	}
	*out = uring;
	return 0;
}

void uring_accept(struct uring *uring)
{
	atomic_store(&uring->is_accepted, true);
}

bool uring_is_serving(struct uring *uring)
{
	return uring != NULL && atomic_load(&uring->is_serving);
}

void uring_stop(struct uring *uring)
{
	for (unsigned i = 0; i < uring->n_queues; i++)
		loop_stop(uring->queues[i].loop);
}

void uring_destroy(struct uring *uring)
{
	if (uring == NULL)
		return;
	for (unsigned i = 0; i < uring->n_queues; i++)
		queue_finish(&uring->queues[i]);
	free(uring->queues);
	free(uring);
}

char *uring_payload(void)
{
	return current != NULL ? current->payload : NULL;
}

bool uring_is_crowded(void)
{
	return current != NULL && current->queue->n_served > DEPTH / 2;
}
