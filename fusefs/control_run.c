/*
 * control_run.c - a kernel run on the device for a client: lease, run, release.
 *
 * A user's own kernel is for the owner of the mount (or root) alone, unless the mount allows it to all. What is DIRTY of the
 * file is written back before it is let in.
 */
#include "fusefs/control_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct run {
	struct gpu_run gpu;
	struct cache_op op; /* so that session_wait can wait for it */
	struct gpu_device *dev;
	struct gpu_arg args[WIRE_ARGS_MAX];
	char entry[WIRE_ENTRY_MAX];
};

static void run_done(struct gpu_op *gpu_op, int status)
{
	struct run *run = (struct run *)(void *)((char *)gpu_op - offsetof(struct run, gpu.op));

	run->op.done(&run->op, status);
}

static void start_run(void *argument)
{
	struct run *run = argument;

	run->dev->ops->run(run->dev, &run->gpu);
}

static void cancel_run(void *argument)
{
	struct run *run = argument;

	run->dev->ops->run_cancel(run->dev, &run->gpu);
}

static int read_source(int fd, char **source)
{
	off_t bytes = lseek(fd, 0, SEEK_END);
	char *text;

	if (bytes <= 0 || bytes > WIRE_SOURCE_MAX)
		return -EINVAL;
	text = calloc(1, (size_t)bytes + 1);
	if (text == NULL)
		return -ENOMEM;
	if (pread(fd, text, (size_t)bytes, 0) != bytes) {
		free(text);
		return -EIO;
	}
	*source = text;
	return 0;
}

static int check_args(struct run *run, const struct wire_run *wire)
{
	uint64_t out_bytes = 0;

	if (wire->n_args > WIRE_ARGS_MAX)
		return -EINVAL;
	for (uint32_t i = 0; i < wire->n_args; i++) {
		const struct wire_arg *arg = &wire->args[i];

		if (arg->kind > GPU_ARG_OUT || arg->bytes > sizeof(arg->scalar) ||
		    (arg->kind == GPU_ARG_SCALAR && arg->bytes == 0) ||
		    (arg->kind == GPU_ARG_OUT && (arg->out_bytes == 0 || arg->out_bytes > UINT64_C(1) << 30)))
			return -EINVAL;
		if (arg->kind == GPU_ARG_OUT)
			out_bytes += arg->out_bytes;
		run->args[i] = (struct gpu_arg){.kind = arg->kind, .bytes = arg->bytes, .out_bytes = arg->out_bytes};
		memcpy(run->args[i].scalar, arg->scalar, sizeof(arg->scalar));
	}
	return out_bytes > UINT64_C(1) << 30 ? -EINVAL : 0;
}

static int prepare(struct session *session, const struct message *message, struct run *run, char **source)
{
	const struct wire_run *wire = &message->run;
	struct fusefs *fs = session->control->fs;
	int err;

	if (!run->dev->info.can_run)
		return -EOPNOTSUPP;
	if (wire->kind > GPU_KERNEL_SOURCE || wire->byte > 255 || wire->pattern_bytes > WIRE_PATTERN_MAX ||
	    (wire->kind == GPU_KERNEL_COUNT && wire->pattern_bytes == 0) ||
	    memchr(wire->entry, '\0', sizeof(wire->entry)) == NULL)
		return -EINVAL;
	run->gpu = (struct gpu_run){.op.done = run_done, .kind = wire->kind, .writes = wire->writes != 0,
				    .byte = (uint8_t)wire->byte, .pattern = wire->pattern,
				    .pattern_bytes = wire->pattern_bytes, .items = wire->items,
				    .timeout_ms = message->request.timeout_ms, .args = run->args, .n_args = wire->n_args,
				    .entry = run->entry};
	memcpy(run->entry, wire->entry, sizeof(run->entry));
	if (wire->kind != GPU_KERNEL_SOURCE) {
		run->gpu.writes = wire->kind == GPU_KERNEL_XOR || wire->kind == GPU_KERNEL_FILL;
		run->gpu.n_args = 0;
		return 0;
	}
	if (session->peer.uid != fs->owner && session->peer.uid != 0 && !fs->options->allow_all_kernels)
		return -EPERM;
	err = check_args(run, wire);
	if (err == 0)
		err = message->fd < 0 ? -EINVAL : read_source(message->fd, source);
	run->gpu.source = *source;
	return err;
}

static int write_back(struct session *session)
{
	struct cache_sync sync = {.file = session->file};

	return CACHE_WAIT(cache_sync, &sync);
}

static int run_on_lease(struct session *session, struct run *run, struct cache_lease *lease, uint64_t off, uint64_t len)
{
	struct gpu_chunk **chunks = calloc(lease->n_chunks, sizeof(struct gpu_chunk *));
	uint64_t generation;
	bool is_gone;
	int err;

	if (chunks == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < lease->n_chunks; i++)
		chunks[i] = cache_lease_chunk(lease, i, &generation);
	run->gpu.range = (struct gpu_range){.chunks = chunks, .n = lease->n_chunks,
					    .offset = off % run->dev->chunk_bytes, .len = len};
	err = session_wait(session, &run->op, start_run, cancel_run, run, 0, &is_gone);
	free(chunks);
	return err;
}

static int pack(const struct run *run, struct wire_reply *reply, int *fd)
{
	size_t log_bytes = run->gpu.log == NULL ? 0 : strlen(run->gpu.log);

	reply->result_bytes = run->gpu.result == NULL ? 0 : run->gpu.result_bytes;
	reply->log_bytes = log_bytes;
	reply->kernel_ns = run->gpu.kernel_ns;
	if (reply->result_bytes + log_bytes == 0)
		return 0;
	*fd = memfd_create("hmmfs-result", MFD_CLOEXEC);
	if (*fd < 0)
		return -errno;
	for (size_t done = 0; done < reply->result_bytes;) {
		ssize_t n = pwrite(*fd, (const char *)run->gpu.result + done, reply->result_bytes - done, (off_t)done);

		if (n <= 0)
			return -EIO;
		done += (size_t)n;
	}
	if (log_bytes > 0 && pwrite(*fd, run->gpu.log, log_bytes, (off_t)reply->result_bytes) != (ssize_t)log_bytes)
		return -EIO;
	return 0;
}

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int session_run(struct session *session, const struct message *message, struct wire_reply *reply, int *result_fd)
{
	struct run run = {.dev = cache_device(session->control->fs->cache)};
	struct session_lease held;
	char *source = NULL;
	uint64_t start;
	bool has_lease = true;
	int err, pack_err;

	if (session->file == NULL)
		return -EINVAL;
	err = prepare(session, message, &run, &source);
	if (err == 0 && run.gpu.kind == GPU_KERNEL_SOURCE)
		err = write_back(session);
	if (err == 0)
		err = lease_range(session, message->request.off, message->request.len, run.gpu.writes, &held);
	if (err < 0) {
		free(source);
		return err;
	}
	err = run_on_lease(session, &run, &held.lease, message->request.off, message->request.len);
	if (err == -ENODEV && !run.gpu.writes) { /* the device process died: the next one loads the chunks again */
		lease_end(session, &held);
		err = lease_range(session, message->request.off, message->request.len, false, &held);
		if (err == 0)
			err = run_on_lease(session, &run, &held.lease, message->request.off, message->request.len);
		else
			has_lease = false;
	}
	start = clock_ns();
	if (has_lease)
		lease_end(session, &held);
	reply->release_ns = clock_ns() - start;
	reply->fill_bytes = held.lease.fill_bytes;
	reply->acquire_ns = held.lease.acquire_ns;
	reply->fill_ns = held.lease.fill_ns;
	pack_err = pack(&run, reply, result_fd);
	free(run.gpu.result);
	free(run.gpu.log);
	free(source);
	return err < 0 ? err : pack_err;
}
