/*
 * opencl.c - the opencl device, as the daemon sees it: a device process, spoken to over a socket.
 *
 * The daemon itself never loads an OpenCL driver: one that crashes takes the device process down, not the mount. One
 * thread (proxy_main) does all the talking, so that nobody who submits an operation waits for the socket.
 *
 * If the device process ends, it is started again. Chunks in memfds (devices that use host memory) are handed to the new
 * one, and their copies repeated; chunks in private memory are lost: their operations end with -ENODEV, and
 * config.lost is called. A run is never repeated: it may have been half done.
 */
#include "gpu/backends.h"
#include "gpu/device_wire.h"
#include "gpu/fdpass.h"
#include "gpu/opencl_process.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <uthash.h>
#include <utlist.h>

enum { RESTARTS_MAX = 5 };

struct gpu_chunk {
	uint64_t id;
	int memfd;    /* -1: private to the device process */
	bool is_lost; /* mutex */
	UT_hash_handle hh;
};

struct pending {
	struct pending *prev, *next;
	struct device_request request;
	int fds[2]; /* sent with it and closed when it is freed; -1: none */
	struct gpu_op *op;
	struct gpu_run *run; /* a built-in kernel */
	bool is_sent;
};

struct opencl_device {
	struct gpu_device base;
	struct gpu_bounce bounce;
	struct device_setup setup;
	bool is_shared;
	char spec[32];
	void (*lost)(void *user);
	void *user;
	bool is_background;

	pthread_t proxy;
	int wake_fd;
	int socket; /* the proxy's; -1: no device process can be had any more */
	pid_t pid;
	unsigned restarts;

	pthread_mutex_t mutex;
	struct pending *pending;  /* mutex; in the order submitted, until answered */
	struct gpu_chunk *chunks; /* mutex; by id */
	uint64_t next_id;         /* mutex */
	bool is_stopping;         /* mutex */
	bool is_dead;             /* mutex */
	struct run_thread *runs;  /* mutex */
	pthread_cond_t run_ended;
};

/* ---- operations ---- */

static void pending_free(struct pending *pending)
{
	for (int i = 0; i < 2; i++) {
		if (pending->fds[i] >= 0)
			close(pending->fds[i]);
	}
	free(pending);
}

static void pending_done(struct pending *pending, int status)
{
	if (pending->op != NULL)
		pending->op->done(pending->op, status);
	pending_free(pending);
}

static void wake(struct opencl_device *dev)
{
	uint64_t one = 1;
	ssize_t n = write(dev->wake_fd, &one, sizeof(one));

	(void)n;
}

static int submit(struct opencl_device *dev, const struct pending *template)
{
	struct pending *pending = malloc(sizeof(*pending));
	bool is_dead;

	if (pending == NULL)
		return -ENOMEM;
	*pending = *template;
	pthread_mutex_lock(&dev->mutex);
	is_dead = dev->is_dead;
	if (!is_dead) {
		pending->request.cookie = pending->op == NULL ? 0 : ++dev->next_id;
		DL_APPEND(dev->pending, pending);
	}
	pthread_mutex_unlock(&dev->mutex);
	if (is_dead) {
		pending->fds[0] = pending->fds[1] = -1;
		free(pending);
		return -ENODEV;
	}
	wake(dev);
	return 0;
}

static void submit_op(struct gpu_device *base, struct device_request request, struct gpu_op *op)
{
	struct pending template = {.request = request, .fds = {-1, -1}, .op = op};
	int err = submit((struct opencl_device *)base, &template);

	if (err < 0)
		op->done(op, err);
}

static int opencl_chunk_create(struct gpu_device *base, struct gpu_chunk **out)
{
	struct opencl_device *dev = (struct opencl_device *)base;
	struct gpu_chunk *chunk = calloc(1, sizeof(*chunk));
	struct pending template = {.request.kind = DEVICE_CREATE, .fds = {-1, -1}};
	int err = 0;

	if (chunk == NULL)
		return -ENOMEM;
	chunk->memfd = dev->is_shared ? memfd_create_for_chunk(base->chunk_bytes) : -1;
	if (dev->is_shared && chunk->memfd < 0) {
		err = chunk->memfd;
		free(chunk);
		return err;
	}
	pthread_mutex_lock(&dev->mutex);
	chunk->id = ++dev->next_id;
	HASH_ADD(hh, dev->chunks, id, sizeof(chunk->id), chunk);
	pthread_mutex_unlock(&dev->mutex);
	template.request.chunk = chunk->id;
	if (dev->is_shared)
		template.fds[0] = fcntl(chunk->memfd, F_DUPFD_CLOEXEC, 0);
	if (dev->is_shared && template.fds[0] < 0)
		err = -errno;
	if (err == 0)
		err = submit(dev, &template);
	if (err < 0) {
		if (template.fds[0] >= 0)
			close(template.fds[0]);
		pthread_mutex_lock(&dev->mutex);
		HASH_DEL(dev->chunks, chunk);
		pthread_mutex_unlock(&dev->mutex);
		if (chunk->memfd >= 0)
			close(chunk->memfd);
		free(chunk);
		return err;
	}
	*out = chunk;
	return 0;
}

static void opencl_chunk_destroy(struct gpu_device *base, struct gpu_chunk *chunk)
{
	struct opencl_device *dev = (struct opencl_device *)base;
	struct pending template = {.request = {.kind = DEVICE_DESTROY, .chunk = chunk->id}, .fds = {-1, -1}};

	pthread_mutex_lock(&dev->mutex);
	HASH_DEL(dev->chunks, chunk);
	pthread_mutex_unlock(&dev->mutex);
	submit(dev, &template); /* a device process that is gone has freed it */
	if (chunk->memfd >= 0)
		close(chunk->memfd);
	free(chunk);
}

static bool opencl_chunk_is_lost(struct gpu_device *base, struct gpu_chunk *chunk)
{
	struct opencl_device *dev = (struct opencl_device *)base;
	bool is_lost;

	pthread_mutex_lock(&dev->mutex);
	is_lost = chunk->is_lost;
	pthread_mutex_unlock(&dev->mutex);
	return is_lost;
}

static int opencl_chunk_export(struct gpu_device *base, struct gpu_chunk *chunk, bool is_writable, int *fd)
{
	(void)base;
	return chunk->memfd < 0 ? -EOPNOTSUPP : memfd_export(chunk->memfd, is_writable, fd);
}

static void opencl_copy_to_device(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off,
				  size_t bounce_off, size_t len, struct gpu_op *op)
{
	submit_op(base, (struct device_request){.kind = DEVICE_TO, .queue = queue, .chunk = chunk->id, .chunk_off = chunk_off,
						.bounce_off = bounce_off, .len = len}, op);
}

static void opencl_copy_from_device(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *chunk,
				    size_t chunk_off, size_t bounce_off, size_t len, struct gpu_op *op)
{
	submit_op(base, (struct device_request){.kind = DEVICE_FROM, .queue = queue, .chunk = chunk->id, .chunk_off = chunk_off,
						.bounce_off = bounce_off, .len = len}, op);
}

static void opencl_fill(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off, size_t len,
			uint8_t byte, struct gpu_op *op)
{
	submit_op(base, (struct device_request){.kind = DEVICE_FILL, .queue = queue, .chunk = chunk->id, .chunk_off = chunk_off,
						.len = len, .byte = byte}, op);
}

static void opencl_copy_chunk(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *to, struct gpu_chunk *from,
			      struct gpu_op *op)
{
	submit_op(base, (struct device_request){.kind = DEVICE_COPY, .queue = queue, .chunk = to->id, .from = from->id,
						.len = base->chunk_bytes}, op);
}

/* ---- the proxy thread ---- */

static int set_up(struct opencl_device *dev, struct device_setup_reply *reply)
{
	size_t n_fds = 0;
	int err;

	dev->pid = opencl_process_start("--serve", dev->is_background, &dev->socket);
	if (dev->pid < 0) {
		snprintf(reply->error, sizeof(reply->error), "device=%s: starting hmmfs-device failed: %s; is it installed?",
			 dev->setup.spec, strerror((int)-dev->pid));
		dev->socket = -1;
		return -ENODEV;
	}
	err = fdpass_send(dev->socket, &dev->setup, sizeof(dev->setup), &dev->bounce.memfd, 1, 0);
	if (err == 0 && fdpass_receive(dev->socket, reply, sizeof(*reply), NULL, &n_fds) != sizeof(*reply)) {
		snprintf(reply->error, sizeof(reply->error), "device=%s: the device process ended; its OpenCL driver may be broken",
			 dev->setup.spec);
		err = -ENODEV;
	}
	if (err == 0)
		err = reply->status;
	if (err < 0) {
		opencl_process_end(dev->pid, dev->socket);
		dev->socket = -1;
	}
	return err;
}

/* Sends what the socket takes. True: there is more. */
static bool send_some(struct opencl_device *dev)
{
	struct pending *pending, *next;
	bool has_more = false;

	pthread_mutex_lock(&dev->mutex);
	DL_FOREACH_SAFE(dev->pending, pending, next) {
		size_t n_fds = (pending->fds[0] >= 0) + (pending->fds[1] >= 0);

		if (pending->is_sent)
			continue;
		if (fdpass_send(dev->socket, &pending->request, sizeof(pending->request), pending->fds, n_fds, MSG_DONTWAIT) == -EAGAIN) {
			has_more = true;
			break;
		}
		pending->is_sent = true; /* other errors: the process is gone, which the next receive finds */
		if (pending->op == NULL) {
			DL_DELETE(dev->pending, pending);
			pending_free(pending);
		}
	}
	pthread_mutex_unlock(&dev->mutex);
	return has_more;
}

static struct pending *take_pending(struct opencl_device *dev, uint64_t cookie)
{
	struct pending *pending;

	pthread_mutex_lock(&dev->mutex);
	DL_FOREACH(dev->pending, pending) {
		if (pending->request.cookie == cookie)
			break;
	}
	if (pending != NULL)
		DL_DELETE(dev->pending, pending);
	pthread_mutex_unlock(&dev->mutex);
	return pending;
}

static void on_reply(struct opencl_device *dev, const struct device_reply *reply)
{
	struct pending *pending = take_pending(dev, reply->cookie);
	int status = reply->status;

	dev->restarts = 0;
	if (pending == NULL)
		return;
	if (pending->run != NULL) {
		pending->run->kernel_ns = reply->kernel_ns;
		if (status == 0 && reply->result_bytes > 0 && reply->result_bytes <= DEVICE_RESULT_MAX) {
			pending->run->result = malloc(reply->result_bytes);
			pending->run->result_bytes = reply->result_bytes;
			if (pending->run->result == NULL)
				status = -ENOMEM;
			else
				memcpy(pending->run->result, reply->result, reply->result_bytes);
		}
	}
	pending_done(pending, status);
}

static bool touches_lost_locked(struct opencl_device *dev, const struct device_request *request)
{
	struct gpu_chunk *chunk;

	HASH_FIND(hh, dev->chunks, &request->chunk, sizeof(request->chunk), chunk);
	if (chunk == NULL || chunk->is_lost)
		return true;
	if (request->kind != DEVICE_COPY)
		return false;
	HASH_FIND(hh, dev->chunks, &request->from, sizeof(request->from), chunk);
	return chunk == NULL || chunk->is_lost;
}

/* Hands the surviving chunks to the new process and sorts what was under way: copies are sent again, the rest ends. */
static struct pending *prepare_again_locked(struct opencl_device *dev)
{
	struct pending *failed = NULL, *pending, *next;
	struct gpu_chunk *chunk, *next_chunk;

	HASH_ITER(hh, dev->chunks, chunk, next_chunk)
		chunk->is_lost |= chunk->memfd < 0;
	DL_FOREACH_SAFE(dev->pending, pending, next) {
		pending->is_sent = false;
		if (pending->request.kind == DEVICE_CREATE || pending->request.kind == DEVICE_DESTROY ||
		    pending->request.kind >= DEVICE_RUN || touches_lost_locked(dev, &pending->request)) {
			DL_DELETE(dev->pending, pending);
			DL_APPEND(failed, pending);
		}
	}
	HASH_ITER(hh, dev->chunks, chunk, next_chunk) {
		struct pending *create;

		if (chunk->is_lost)
			continue;
		create = calloc(1, sizeof(*create));
		if (create == NULL) {
			chunk->is_lost = true;
			continue;
		}
		*create = (struct pending){.request = {.kind = DEVICE_CREATE, .chunk = chunk->id},
					   .fds = {fcntl(chunk->memfd, F_DUPFD_CLOEXEC, 0), -1}};
		DL_PREPEND(dev->pending, create);
	}
	return failed;
}

static void fail_all(struct opencl_device *dev, struct pending *failed)
{
	struct pending *pending, *next;

	DL_FOREACH_SAFE(failed, pending, next) {
		DL_DELETE(failed, pending);
		pending_done(pending, -ENODEV);
	}
	if (dev->lost != NULL)
		dev->lost(dev->user);
}

static void start_again(struct opencl_device *dev)
{
	struct device_setup_reply reply;
	struct gpu_chunk *chunk, *next_chunk;
	struct pending *failed;
	bool is_dead;

	opencl_process_end(dev->pid, dev->socket);
	dev->socket = -1;
	is_dead = dev->restarts++ >= RESTARTS_MAX || set_up(dev, &reply) < 0;
	pthread_mutex_lock(&dev->mutex);
	dev->is_dead = is_dead;
	if (is_dead) {
		HASH_ITER(hh, dev->chunks, chunk, next_chunk)
			chunk->is_lost = true;
		failed = dev->pending;
		dev->pending = NULL;
	} else {
		failed = prepare_again_locked(dev);
	}
	pthread_mutex_unlock(&dev->mutex);
	fail_all(dev, failed);
}

static bool is_stopping(struct opencl_device *dev)
{
	bool stopping;

	pthread_mutex_lock(&dev->mutex);
	stopping = dev->is_stopping && dev->pending == NULL;
	pthread_mutex_unlock(&dev->mutex);
	return stopping;
}

static void *proxy_main(void *argument)
{
	struct opencl_device *dev = argument;
	bool has_more = false;

	while (!is_stopping(dev)) {
		struct pollfd polled[2] = {{.fd = dev->wake_fd, .events = POLLIN},
					   {.fd = dev->socket, .events = (short)(POLLIN | (has_more ? POLLOUT : 0))}};
		struct device_reply reply;
		uint64_t count;
		size_t n_fds = 0;

		if (poll(polled, 2, -1) < 0)
			continue;
		if ((polled[0].revents & POLLIN) && read(dev->wake_fd, &count, sizeof(count)) < 0)
			continue;
		if (polled[1].revents & (POLLIN | POLLHUP | POLLERR)) {
			if (fdpass_receive(dev->socket, &reply, sizeof(reply), NULL, &n_fds) == sizeof(reply))
				on_reply(dev, &reply);
			else
				start_again(dev);
		}
		if (dev->socket >= 0)
			has_more = send_some(dev);
	}
	return NULL;
}

/* ---- kernels ---- */

static int write_ids(const struct gpu_run *run)
{
	int fd = memfd_create("hmmfs-ids", MFD_CLOEXEC);

	for (size_t i = 0; fd >= 0 && i < run->range.n; i++) {
		uint64_t id = run->range.chunks[i]->id;

		if (pwrite(fd, &id, sizeof(id), (off_t)(i * sizeof(id))) != sizeof(id)) {
			close(fd);
			return -ENOSPC;
		}
	}
	return fd < 0 ? -errno : fd;
}

static void run_builtin(struct opencl_device *dev, struct gpu_run *run)
{
	struct pending template = {.request = {.kind = DEVICE_RUN, .kernel = run->kind, .byte = run->byte,
					       .n_chunks = (uint32_t)run->range.n, .chunk_off = run->range.offset,
					       .len = run->range.len, .pattern_bytes = (uint32_t)run->pattern_bytes},
				   .fds = {write_ids(run), -1}, .op = &run->op, .run = run};
	int err = template.fds[0] < 0 ? template.fds[0] : 0;

	if (run->pattern_bytes > 0 && run->pattern_bytes <= GPU_PATTERN_MAX)
		memcpy(template.request.pattern, run->pattern, run->pattern_bytes);
	if (err == 0)
		err = submit(dev, &template);
	if (err < 0) {
		if (template.fds[0] >= 0)
			close(template.fds[0]);
		run->op.done(&run->op, err);
	}
}

/* A user's kernel: a thread for the run process's life. */
struct run_thread {
	struct run_thread *prev, *next; /* dev->runs */
	struct opencl_device *dev;
	struct gpu_run *run;
	int cancel_fd;
};

struct stage_op {
	struct gpu_op op;
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	bool is_done; /* mutex */
	int status;
};

static void stage_done(struct gpu_op *op, int status)
{
	struct stage_op *stage = (struct stage_op *)(void *)op;

	pthread_mutex_lock(&stage->mutex);
	stage->is_done = true;
	stage->status = status;
	pthread_cond_signal(&stage->cond);
	pthread_mutex_unlock(&stage->mutex);
}

/* Copies private chunks to or from a memfd that the run process can have. On the run's own thread, which may wait. */
static int stage(struct run_thread *thread, enum device_request_kind kind, int memfd)
{
	struct stage_op op = {.op.done = stage_done, .mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	struct pending template = {.request = {.kind = kind, .n_chunks = (uint32_t)thread->run->range.n},
				   .fds = {write_ids(thread->run), fcntl(memfd, F_DUPFD_CLOEXEC, 0)}, .op = &op.op};
	int err = template.fds[0] < 0 ? template.fds[0] : template.fds[1] < 0 ? -errno : submit(thread->dev, &template);

	if (err < 0) {
		for (int i = 0; i < 2; i++) {
			if (template.fds[i] >= 0)
				close(template.fds[i]);
		}
		return err;
	}
	pthread_mutex_lock(&op.mutex);
	while (!op.is_done)
		pthread_cond_wait(&op.cond, &op.mutex);
	pthread_mutex_unlock(&op.mutex);
	return op.status;
}

static int run_on_memfds(struct run_thread *thread)
{
	struct gpu_run *run = thread->run;
	struct opencl_device *dev = thread->dev;
	size_t n = run->range.n;
	int *memfds = calloc(n, sizeof(int));
	int staging = -1, err = 0;

	if (memfds == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		memfds[i] = run->range.chunks[i]->memfd;
	if (dev->is_shared) {
		err = opencl_process_run(run, dev->spec, true, dev->base.chunk_bytes, memfds, n, thread->cancel_fd);
		free(memfds);
		return err;
	}
	staging = memfd_create_for_chunk(n * dev->base.chunk_bytes);
	err = staging < 0 ? staging : stage(thread, DEVICE_STAGE_OUT, staging);
	if (err == 0)
		err = opencl_process_run(run, dev->spec, false, n * dev->base.chunk_bytes, &staging, 1, thread->cancel_fd);
	if (err == 0 && run->writes)
		err = stage(thread, DEVICE_STAGE_IN, staging); /* a run that failed has changed nothing */
	if (staging >= 0)
		close(staging);
	free(memfds);
	return err;
}

static void *run_main(void *argument)
{
	struct run_thread *thread = argument;
	struct opencl_device *dev = thread->dev;
	struct gpu_run *run = thread->run;
	int status = run_on_memfds(thread);

	pthread_mutex_lock(&dev->mutex);
	DL_DELETE(dev->runs, thread);
	pthread_cond_broadcast(&dev->run_ended);
	pthread_mutex_unlock(&dev->mutex);
	close(thread->cancel_fd);
	free(thread);
	run->op.done(&run->op, status);
	return NULL;
}

static void run_source(struct opencl_device *dev, struct gpu_run *run)
{
	struct run_thread *thread = calloc(1, sizeof(*thread));
	pthread_attr_t attributes;
	pthread_t id;
	int err = -ENOMEM;

	if (thread != NULL) {
		*thread = (struct run_thread){.dev = dev, .run = run, .cancel_fd = eventfd(0, EFD_CLOEXEC)};
		pthread_mutex_lock(&dev->mutex);
		DL_APPEND(dev->runs, thread);
		pthread_mutex_unlock(&dev->mutex);
		pthread_attr_init(&attributes);
		pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
		err = thread->cancel_fd < 0 ? -EMFILE : -pthread_create(&id, &attributes, run_main, thread);
		pthread_attr_destroy(&attributes);
	}
	if (err == 0)
		return;
	if (thread != NULL) {
		pthread_mutex_lock(&dev->mutex);
		DL_DELETE(dev->runs, thread);
		pthread_mutex_unlock(&dev->mutex);
		if (thread->cancel_fd >= 0)
			close(thread->cancel_fd);
		free(thread);
	}
	run->op.done(&run->op, err);
}

static void opencl_run(struct gpu_device *base, struct gpu_run *run)
{
	struct opencl_device *dev = (struct opencl_device *)base;

	run->result = NULL;
	run->log = NULL;
	run->result_bytes = 0;
	run->kernel_ns = 0;
	if (run->kind == GPU_KERNEL_SOURCE)
		run_source(dev, run);
	else
		run_builtin(dev, run);
}

/* A built-in kernel is left to end by itself: it does in a time that its bytes bound. */
static void opencl_run_cancel(struct gpu_device *base, struct gpu_run *run)
{
	struct opencl_device *dev = (struct opencl_device *)base;
	struct run_thread *thread;
	uint64_t one = 1;
	ssize_t n;

	pthread_mutex_lock(&dev->mutex);
	DL_FOREACH(dev->runs, thread) {
		if (thread->run == run) {
			n = write(thread->cancel_fd, &one, sizeof(one));
			(void)n;
		}
	}
	pthread_mutex_unlock(&dev->mutex);
}

/* ---- the device's life ---- */

static void opencl_destroy(struct gpu_device *base)
{
	struct opencl_device *dev = (struct opencl_device *)base;

	pthread_mutex_lock(&dev->mutex);
	while (dev->runs != NULL)
		pthread_cond_wait(&dev->run_ended, &dev->mutex);
	dev->is_stopping = true;
	pthread_mutex_unlock(&dev->mutex);
	wake(dev);
	pthread_join(dev->proxy, NULL);
	if (dev->socket >= 0)
		opencl_process_end(dev->pid, dev->socket);
	close(dev->wake_fd);
	pthread_cond_destroy(&dev->run_ended);
	pthread_mutex_destroy(&dev->mutex);
	free(dev);
}

static const struct gpu_ops opencl_ops = {
	.destroy = opencl_destroy,
	.chunk_create = opencl_chunk_create,
	.chunk_destroy = opencl_chunk_destroy,
	.chunk_is_lost = opencl_chunk_is_lost,
	.chunk_export = opencl_chunk_export,
	.copy_to_device = opencl_copy_to_device,
	.copy_from_device = opencl_copy_from_device,
	.fill = opencl_fill,
	.copy_chunk = opencl_copy_chunk,
	.run = opencl_run,
	.run_cancel = opencl_run_cancel,
};

int opencl_open(const struct gpu_config *config, const char *spec, struct gpu_device **out, char **error)
{
	struct opencl_device *dev = calloc(1, sizeof(*dev));
	struct device_setup_reply reply = {.error = ""};
	const char *is_private = getenv("HMMFS_OPENCL_PRIVATE");
	int err;

	if (dev == NULL)
		return -ENOMEM;
	dev->base = (struct gpu_device){.ops = &opencl_ops, .chunk_bytes = config->chunk_bytes};
	dev->bounce = config->bounce;
	dev->lost = config->lost;
	dev->user = config->user;
	dev->is_background = config->is_background;
	dev->setup = (struct device_setup){.chunk_bytes = config->chunk_bytes, .bounce_bytes = config->bounce.bytes,
					   .is_private = is_private != NULL && strcmp(is_private, "1") == 0};
	snprintf(dev->setup.spec, sizeof(dev->setup.spec), "%s", spec);
	err = set_up(dev, &reply);
	if (err < 0) {
		free(dev);
		return gpu_refuse(error, err, "%s", reply.error);
	}
	dev->is_shared = reply.is_shared;
	memcpy(dev->spec, reply.spec, sizeof(dev->spec));
	memcpy(dev->setup.spec, reply.spec, sizeof(reply.spec)); /* the same one if it must be started again */
	dev->base.info = (struct gpu_info){.backend = "opencl", .memory_bytes = reply.memory_bytes, .granularity = 65536,
					   .can_export = reply.is_shared, .can_run = true};
	memcpy(dev->base.info.name, reply.name, sizeof(dev->base.info.name));
	pthread_mutex_init(&dev->mutex, NULL);
	pthread_cond_init(&dev->run_ended, NULL);
	dev->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	err = dev->wake_fd < 0 ? -errno : -pthread_create(&dev->proxy, NULL, proxy_main, dev);
	if (err < 0) {
		opencl_process_end(dev->pid, dev->socket);
		if (dev->wake_fd >= 0)
			close(dev->wake_fd);
		free(dev);
		*error = NULL;
		return err;
	}
	*out = &dev->base;
	return 0;
}
