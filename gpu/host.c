/*
 * host.c - the device for machines with nothing else, and for tests: ordinary memory behind gpu.h.
 *
 * Each chunk is a memfd of its own, so that a client can be handed exactly the chunks of the files it opened. The
 * daemon never maps them: copies are pread and pwrite between the memfd and the bounce memory, which a client that
 * does odd things to its mapping can't turn into a SIGBUS here. Seals keep their size.
 *
 * Threads of a queue take its operations in order. Filling has two: the page faults of fresh memory cost more than the copy.
 */
#include "gpu/backends.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <utlist.h>

struct gpu_chunk {
	int memfd;
};

struct host_op {
	struct host_op *next;
	enum { HOST_TO_DEVICE, HOST_FROM_DEVICE, HOST_FILL, HOST_COPY } kind;
	struct gpu_chunk *chunk, *from;
	size_t chunk_off, bounce_off, len;
	uint8_t byte;
	struct gpu_op *op;
};

enum { QUEUE_THREADS_MAX = 2 };
static const unsigned queue_threads[GPU_QUEUE_COUNT] = {[GPU_QUEUE_FILL] = 2, [GPU_QUEUE_WRITEBACK] = 1, [GPU_QUEUE_CPU] = 1};

struct host_queue {
	struct host_device *dev;
	pthread_t threads[QUEUE_THREADS_MAX];
	unsigned n_threads;
	pthread_mutex_t mutex;
	pthread_cond_t has_work;     /* ops, or is_stopping */
	struct host_op *head, *tail; /* mutex */
	bool is_stopping;            /* mutex */
};

struct host_device {
	struct gpu_device base;
	struct gpu_bounce bounce;
	struct host_queue queues[GPU_QUEUE_COUNT];
};

/* ---- the work ---- */

static int copy_all(ssize_t (*io)(int, void *, size_t, off_t), int fd, void *memory, size_t len, off_t off)
{
	while (len > 0) {
		ssize_t n = io(fd, memory, len, off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		memory = (char *)memory + n;
		len -= (size_t)n;
		off += n;
	}
	return 0;
}

static ssize_t write_at(int fd, void *memory, size_t len, off_t off)
{
	return pwrite(fd, memory, len, off);
}

static ssize_t read_at(int fd, void *memory, size_t len, off_t off)
{
	return pread(fd, memory, len, off);
}

static int fill_memory(const struct host_op *op)
{
	uint8_t pattern[65536];

	/* Zeros need no pages. */
	if (op->byte == 0 && fallocate(op->chunk->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       (off_t)op->chunk_off, (off_t)op->len) == 0)
		return 0;
	memset(pattern, op->byte, sizeof(pattern));
	for (size_t done = 0; done < op->len;) {
		size_t len = op->len - done < sizeof(pattern) ? op->len - done : sizeof(pattern);
		int err = copy_all(write_at, op->chunk->memfd, pattern, len, (off_t)(op->chunk_off + done));

		if (err < 0)
			return err;
		done += len;
	}
	return 0;
}

static int copy_memory(const struct host_op *op, size_t bytes)
{
	char buffer[65536];

	for (size_t done = 0; done < bytes; done += sizeof(buffer)) {
		int err = copy_all(read_at, op->from->memfd, buffer, sizeof(buffer), (off_t)done);

		if (err == 0)
			err = copy_all(write_at, op->chunk->memfd, buffer, sizeof(buffer), (off_t)done);
		if (err < 0)
			return err;
	}
	return 0;
}

static int carry_out(struct host_device *dev, const struct host_op *op)
{
	char *bounce = (char *)dev->bounce.base + op->bounce_off;

	switch (op->kind) {
	case HOST_TO_DEVICE: return copy_all(write_at, op->chunk->memfd, bounce, op->len, (off_t)op->chunk_off);
	case HOST_FROM_DEVICE: return copy_all(read_at, op->chunk->memfd, bounce, op->len, (off_t)op->chunk_off);
	case HOST_FILL: return fill_memory(op);
	case HOST_COPY: return copy_memory(op, dev->base.chunk_bytes);
	}
	return -EINVAL;
}

static void *queue_main(void *argument)
{
	struct host_queue *queue = argument;

	for (;;) {
		struct host_op *op;

		pthread_mutex_lock(&queue->mutex);
		while (queue->head == NULL && !queue->is_stopping)
			pthread_cond_wait(&queue->has_work, &queue->mutex);
		op = queue->head;
		if (op != NULL)
			LL_DELETE(queue->head, op);
		pthread_mutex_unlock(&queue->mutex);
		if (op == NULL)
			return NULL;
		op->op->done(op->op, carry_out(queue->dev, op));
		free(op);
	}
}

static void submit(struct gpu_device *base, enum gpu_queue which, const struct host_op *template)
{
	struct host_device *dev = (struct host_device *)base;
	struct host_queue *queue = &dev->queues[which];
	struct host_op *op = malloc(sizeof(*op));

	if (op == NULL) {
		template->op->done(template->op, -ENOMEM);
		return;
	}
	*op = *template;
	op->next = NULL;
	pthread_mutex_lock(&queue->mutex);
	if (queue->head == NULL)
		queue->head = op;
	else
		queue->tail->next = op;
	queue->tail = op;
	pthread_cond_signal(&queue->has_work);
	pthread_mutex_unlock(&queue->mutex);
}

/* ---- gpu_ops ---- */

static int host_chunk_create(struct gpu_device *base, struct gpu_chunk **out)
{
	struct gpu_chunk *chunk = malloc(sizeof(*chunk));
	int err;

	if (chunk == NULL)
		return -ENOMEM;
	chunk->memfd = memfd_create_for_chunk(base->chunk_bytes);
	if (chunk->memfd < 0) {
		err = chunk->memfd;
		free(chunk);
		return err;
	}
	*out = chunk;
	return 0;
}

static void host_chunk_destroy(struct gpu_device *base, struct gpu_chunk *chunk)
{
	(void)base;
	close(chunk->memfd);
	free(chunk);
}

static bool host_chunk_is_lost(struct gpu_device *base, struct gpu_chunk *chunk)
{
	(void)base;
	(void)chunk;
	return false;
}

static int host_chunk_export(struct gpu_device *base, struct gpu_chunk *chunk, bool is_writable, int *fd)
{
	(void)base;
	return memfd_export(chunk->memfd, is_writable, fd);
}

static void host_copy_to_device(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off,
				size_t bounce_off, size_t len, struct gpu_op *op)
{
	submit(base, queue, &(struct host_op){.kind = HOST_TO_DEVICE, .chunk = chunk, .chunk_off = chunk_off,
					      .bounce_off = bounce_off, .len = len, .op = op});
}

static void host_copy_from_device(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *chunk,
				  size_t chunk_off, size_t bounce_off, size_t len, struct gpu_op *op)
{
	submit(base, queue, &(struct host_op){.kind = HOST_FROM_DEVICE, .chunk = chunk, .chunk_off = chunk_off,
					      .bounce_off = bounce_off, .len = len, .op = op});
}

static void host_fill(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off, size_t len,
		      uint8_t byte, struct gpu_op *op)
{
	submit(base, queue, &(struct host_op){.kind = HOST_FILL, .chunk = chunk, .chunk_off = chunk_off, .len = len,
					      .byte = byte, .op = op});
}

static void host_copy_chunk(struct gpu_device *base, enum gpu_queue queue, struct gpu_chunk *to, struct gpu_chunk *from,
			    struct gpu_op *op)
{
	submit(base, queue, &(struct host_op){.kind = HOST_COPY, .chunk = to, .from = from, .op = op});
}

static void queue_stop(struct host_queue *queue)
{
	pthread_mutex_lock(&queue->mutex);
	queue->is_stopping = true;
	pthread_cond_broadcast(&queue->has_work);
	pthread_mutex_unlock(&queue->mutex);
	while (queue->n_threads > 0)
		pthread_join(queue->threads[--queue->n_threads], NULL);
}

static void host_destroy(struct gpu_device *base)
{
	struct host_device *dev = (struct host_device *)base;

	for (int i = 0; i < GPU_QUEUE_COUNT; i++) {
		queue_stop(&dev->queues[i]);
		pthread_cond_destroy(&dev->queues[i].has_work);
		pthread_mutex_destroy(&dev->queues[i].mutex);
	}
	free(dev);
}

static const struct gpu_ops host_ops = {
	.destroy = host_destroy,
	.chunk_create = host_chunk_create,
	.chunk_destroy = host_chunk_destroy,
	.chunk_is_lost = host_chunk_is_lost,
	.chunk_export = host_chunk_export,
	.copy_to_device = host_copy_to_device,
	.copy_from_device = host_copy_from_device,
	.fill = host_fill,
	.copy_chunk = host_copy_chunk,
};

void host_describe(struct gpu_info *info)
{
	struct sysinfo machine;

	*info = (struct gpu_info){.backend = "host", .name = "host memory (memfd)", .granularity = 65536,
				  .can_export = true};
	if (sysinfo(&machine) == 0)
		info->memory_bytes = (uint64_t)machine.totalram * machine.mem_unit;
}

int host_open(const struct gpu_config *config, struct gpu_device **out, char **error)
{
	struct host_device *dev = calloc(1, sizeof(*dev));
	int err = 0;

	if (dev == NULL)
		return -ENOMEM;
	dev->base.ops = &host_ops;
	dev->base.chunk_bytes = config->chunk_bytes;
	host_describe(&dev->base.info);
	dev->bounce = config->bounce;
	for (int i = 0; i < GPU_QUEUE_COUNT; i++) {
		struct host_queue *queue = &dev->queues[i];

		queue->dev = dev;
		pthread_mutex_init(&queue->mutex, NULL);
		pthread_cond_init(&queue->has_work, NULL);
		while (err == 0 && queue->n_threads < queue_threads[i]) {
			err = -pthread_create(&queue->threads[queue->n_threads], NULL, queue_main, queue);
			queue->n_threads += err == 0;
		}
	}
	if (err < 0) {
		host_destroy(&dev->base);
		*error = NULL;
		return err;
	}
	*out = &dev->base;
	return 0;
}
