/* disk.c - see disk.h; and ring.h, for the engine */
#include "test/simulation/disk.h"

#include "cache/ring.h"
#include "test/simulation/scheduler.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FDS_MAX = 1024 };

struct request {
	struct ring *ring;
	struct ring_op *op;
	enum { READ, WRITE, FSYNC, FALLOCATE } kind;
	struct disk_file *file;
	bool is_direct;
	void *buffer;
	size_t len;
	off_t off;
	int mode, result;
	uint8_t *snapshot; /* FSYNC: what it makes durable */
	struct request *next;
};

struct disk_faults disk_faults;
struct disk_plan disk_plan;
static struct disk_file *file_of_fd[FDS_MAX];
static bool is_direct_fd[FDS_MAX];
static struct request *completed, **completed_tail = &completed;

/* ---- files ---- */

void disk_file_init(struct disk_file *file, bool has_direct, bool direct_lies)
{
	*file = (struct disk_file){.memfd = memfd_create("backing", MFD_CLOEXEC), .has_direct = has_direct,
				   .direct_lies = direct_lies, .durable = calloc(1, DISK_FILE_MAX)};
	if (file->memfd < 0 || file->durable == NULL)
		sim_fail("no memory for a file");
}

void disk_file_put(struct disk_file *file, const uint8_t *bytes, off_t size, bool is_sparse)
{
	static const uint8_t zeros[4096];

	for (off_t off = 0; off < size; off += (off_t)sizeof(zeros)) {
		size_t len = size - off < (off_t)sizeof(zeros) ? (size_t)(size - off) : sizeof(zeros);

		if ((!is_sparse || memcmp(bytes + off, zeros, len) != 0) && pwrite(file->memfd, bytes + off, len, off) < 0)
			sim_fail("pwrite to a memfd");
	}
	if (ftruncate(file->memfd, size) < 0)
		sim_fail("ftruncate of a memfd");
	memcpy(file->durable, bytes, (size_t)size);
}

void disk_file_finish(struct disk_file *file)
{
	close(file->memfd);
	free(file->durable);
}

int disk_file_open(struct disk_file *file, int flags)
{
	int fd;

	if ((flags & O_DIRECT) && !file->has_direct)
		return -EINVAL;
	if (sim_chance(disk_faults.error))
		return -EMFILE;
	fd = dup(file->memfd);
	if (fd < 0 || fd >= FDS_MAX)
		sim_fail("descriptors leak: %d", fd);
	file_of_fd[fd] = file;
	is_direct_fd[fd] = (flags & O_DIRECT) != 0;
	return fd;
}

static uint64_t latency(void)
{
	if (disk_plan.latency_ns > 0)
		return disk_plan.latency_ns;
	return sim_chance(16) ? sim_random(20 * SIM_MS) : sim_random(200 * SIM_US);
}

ssize_t disk_pread(struct disk_file *file, void *buffer, size_t len, off_t off)
{
	sim_sleep(latency());
	return sim_chance(disk_faults.error) ? -EIO : pread(file->memfd, buffer, len, off);
}

ssize_t disk_pwrite(struct disk_file *file, const void *buffer, size_t len, off_t off)
{
	sim_sleep(latency());
	return sim_chance(disk_faults.error) ? -EIO : pwrite(file->memfd, buffer, len, off);
}

static void take_snapshot(struct disk_file *file, uint8_t *snapshot)
{
	ssize_t n = pread(file->memfd, snapshot, DISK_FILE_MAX, 0);

	memset(snapshot + n, 0, DISK_FILE_MAX - (size_t)n);
}

int disk_fsync(struct disk_file *file)
{
	uint8_t *snapshot = malloc(DISK_FILE_MAX);

	take_snapshot(file, snapshot);
	sim_sleep(latency());
	memcpy(file->durable, snapshot, DISK_FILE_MAX);
	free(snapshot);
	return sim_chance(disk_faults.error) ? -EIO : 0;
}

int disk_truncate(struct disk_file *file, off_t size)
{
	sim_sleep(latency());
	return sim_chance(disk_faults.error) ? -EIO : ftruncate(file->memfd, size);
}

int disk_punch(struct disk_file *file, off_t off, off_t len)
{
	sim_sleep(latency());
	return fallocate(file->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len) < 0 ? -errno : 0;
}

void disk_after_power_loss(struct disk_file *file, void *buffer, size_t len, off_t off)
{
	uint8_t *to = buffer;

	memset(to, 0, len);
	if (pread(file->memfd, to, len, off) < 0)
		sim_fail("pread of a memfd");
	for (size_t i = 0; i < len; i += DISK_SECTOR) {
		if (sim_chance(2))
			memcpy(to + i, file->durable + off + i, DISK_SECTOR);
	}
}

/* ---- the ring ---- */

static int io_result(const struct request *request)
{
	size_t len = request->len;
	ssize_t n;

	if (request->is_direct && request->file->direct_lies)
		return -EINVAL;
	if (request->is_direct && ((request->off | (off_t)len) & (DISK_SECTOR - 1)) != 0)
		sim_fail("O_DIRECT of %zu bytes at %lld", len, (long long)request->off);
	if (sim_chance(disk_faults.short_io) && !request->is_direct)
		len = 1 + sim_random(len);
	else if (sim_chance(disk_faults.short_io) && len > DISK_SECTOR)
		len = (1 + sim_random(len / DISK_SECTOR)) * DISK_SECTOR;
	n = request->kind == READ ? pread(request->file->memfd, request->buffer, len, request->off)
				  : pwrite(request->file->memfd, request->buffer, len, request->off);
	return n < 0 ? -errno : (int)n;
}

static int perform(struct request *request)
{
	if (request->kind == FSYNC && disk_plan.interrupted_fsyncs > 0) {
		disk_plan.interrupted_fsyncs--;
		return -EINTR;
	}
	if (sim_chance(disk_faults.again))
		return sim_chance(2) ? -EINTR : -EAGAIN;
	if (sim_chance(disk_faults.error))
		return request->kind == FALLOCATE ? -ENOSPC : -EIO;
	switch (request->kind) {
	case FSYNC: memcpy(request->file->durable, request->snapshot, DISK_FILE_MAX); return 0;
	case FALLOCATE:
		return fallocate(request->file->memfd, request->mode, request->off, (off_t)request->len) < 0 ? -errno : 0;
	default: return io_result(request);
	}
}

static void complete(void *argument)
{
	struct request *request = argument;

	request->result = perform(request);
	request->next = NULL;
	*completed_tail = request;
	completed_tail = &request->next;
	sim_wake(request->ring);
}

static struct request *submit(struct ring *ring, struct ring_file file, struct ring_op *op, struct request request)
{
	struct request *submitted = malloc(sizeof(*submitted));

	if (file.fd < 0 || file_of_fd[file.fd] == NULL)
		sim_fail("I/O on descriptor %d, which is closed", file.fd);
	request.ring = ring;
	request.op = op;
	request.file = file_of_fd[file.fd];
	request.is_direct = is_direct_fd[file.fd];
	*submitted = request;
	ring->in_flight++;
	sim_after(latency(), complete, submitted);
	return submitted;
}

int ring_init(struct ring *ring, char *bounce, size_t bounce_bytes, const char **notice)
{
	*notice = NULL;
	*ring = (struct ring){.bounce = bounce, .bounce_bytes = bounce_bytes};
	completed = NULL;
	completed_tail = &completed;
	return 0;
}

void ring_finish(struct ring *ring)
{
	if (ring->in_flight > 0)
		sim_fail("%u requests are in flight at the end", ring->in_flight);
}

struct ring_file ring_file_open(struct ring *ring, int fd)
{
	(void)ring;
	return (struct ring_file){fd, -1};
}

void ring_file_close(struct ring *ring, struct ring_file *file)
{
	(void)ring;
	if (file->fd >= 0) {
		file_of_fd[file->fd] = NULL;
		close(file->fd);
	}
	*file = (struct ring_file){-1, -1};
}

void ring_read(struct ring *ring, struct ring_file file, void *buffer, size_t len, off_t off, struct ring_op *op)
{
	submit(ring, file, op, (struct request){.kind = READ, .buffer = buffer, .len = len, .off = off});
}

void ring_write(struct ring *ring, struct ring_file file, const void *buffer, size_t len, off_t off, struct ring_op *op)
{
	submit(ring, file, op, (struct request){.kind = WRITE, .buffer = (void *)buffer, .len = len, .off = off});
}

void ring_fsync(struct ring *ring, struct ring_file file, bool is_datasync, struct ring_op *op)
{
	struct request *request = submit(ring, file, op, (struct request){.kind = FSYNC});

	(void)is_datasync;
	request->snapshot = malloc(DISK_FILE_MAX);
	take_snapshot(request->file, request->snapshot);
}

void ring_fallocate(struct ring *ring, struct ring_file file, int mode, off_t off, off_t len, struct ring_op *op)
{
	disk_plan.fallocates++;
	submit(ring, file, op, (struct request){.kind = FALLOCATE, .mode = mode, .off = off, .len = (size_t)len});
}

void ring_run(struct ring *ring, uint64_t timeout_ns)
{
	struct request *request;

	disk_plan.ring_runs++;
	if (completed == NULL && ring->wake_value == 0 && timeout_ns == UINT64_MAX)
		sim_block(ring);
	else if (completed == NULL && ring->wake_value == 0 && timeout_ns > 0)
		sim_block_for(ring, timeout_ns);
	ring->wake_value = 0;
	while ((request = completed) != NULL) {
		completed = request->next;
		if (completed == NULL)
			completed_tail = &completed;
		ring->in_flight--;
		request->op->done(request->op, request->result);
		free(request->snapshot);
		free(request);
	}
}

void ring_wake(struct ring *ring)
{
	ring->wake_value = 1;
	sim_wake(ring);
}
