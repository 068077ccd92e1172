/*
 * hmmfs_random.c - a file used in every way there is, in an order made from a seed, beside a model of it in memory.
 *
 *     hmmfs_random [--seed N] [--seconds N] [--ops N] [--file-size BYTES] [--processes N] [--one-descriptor] FILE
 *
 * One process (the default): each step is one of the operations below; whatever is read is compared with the model at
 * once, and the whole file at the end. The model is written to FILE's name + ".model" in --model-dir, for whoever
 * compares the backing after the unmount. The same seed and --ops gives the same steps.
 *
 * Several processes: process p of n owns the bytes whose offset / STRIPE % n is p, so that they meet in nearly every page.
 * Each reads, stores and computes on the whole file, but changes, and checks, only its own bytes; the size stays fixed.
 *
 * --one-descriptor: no second one for O_DIRECT. A file that the kernel passes to the backing has no exclusive lease while
 * another can store to it.
 *
 * Exit status: 0, 1 a byte or a status was wrong, 2 misuse.
 */
#include "test/random/device_memory.h"

#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { HISTORY = 40, LINE = 120, STRIPE = 61, DIRECT_ALIGN = 4096, RUNS_MAX = 16384 };

struct arguments {
	uint64_t seed, seconds, ops, file_size, processes;
	bool has_one_descriptor;
	const char *path, *model_dir;
};

struct tester {
	const struct arguments *arguments;
	uint64_t random; /* the generator's state */
	unsigned process, n_processes;
	uint8_t *model; /* file_size bytes; zero behind size */
	uint64_t size;
	int fd, direct_fd; /* direct_fd: -1 where O_DIRECT is refused */
	uint8_t *map;      /* the whole of file_size, kept all along */
	uint8_t *buffer;
	struct hmmfs_session *session;
	uint64_t n_ops;
	char history[HISTORY][LINE];
};

static uint64_t next_random(struct tester *t)
{
	/* splitmix64 */
	uint64_t z = (t->random += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint64_t below(struct tester *t, uint64_t n)
{
	return n == 0 ? 0 : next_random(t) % n;
}

__attribute__((format(printf, 2, 3))) static void note(struct tester *t, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(t->history[t->n_ops++ % HISTORY], LINE, format, args);
	va_end(args);
}

__attribute__((format(printf, 2, 3), noreturn)) static void wrong(struct tester *t, const char *format, ...)
{
	va_list args;
	uint64_t i = t->n_ops > HISTORY ? t->n_ops - HISTORY : 0;

	for (; i < t->n_ops; i++)
		fprintf(stderr, "  %" PRIu64 ": %s\n", i, t->history[i % HISTORY]);
	fprintf(stderr, "WRONG: seed %" PRIu64 " process %u op %" PRIu64 ": ", t->arguments->seed, t->process, t->n_ops - 1);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static bool is_own(const struct tester *t, uint64_t off)
{
	return t->n_processes == 1 || off / STRIPE % t->n_processes == t->process;
}

static void compare(struct tester *t, const char *who, const uint8_t *bytes, uint64_t off, uint64_t len)
{
	if (t->n_processes == 1 && memcmp(bytes, t->model + off, len) == 0)
		return;
	for (uint64_t i = 0; i < len; i++)
		if (is_own(t, off + i) && bytes[i] != t->model[off + i])
			wrong(t, "%s: byte %" PRIu64 " is 0x%02x, not 0x%02x", who, off + i, bytes[i], t->model[off + i]);
}

/* New bytes for the caller's own part of [off, off+len), into the model and, if not NULL, straight into bytes. */
static void store(struct tester *t, uint8_t *bytes, uint64_t off, uint64_t len)
{
	uint64_t word = 0;

	for (uint64_t i = 0; i < len; i++) {
		if (i % 8 == 0)
			word = next_random(t);
		if (!is_own(t, off + i))
			continue;
		t->model[off + i] = (uint8_t)(word >> (i % 8 * 8));
		if (bytes != NULL)
			bytes[i] = t->model[off + i];
	}
}

/* A range inside of [0, limit): mostly short, sometimes long, often at a page's or chunk's edge. */
static uint64_t pick_range(struct tester *t, uint64_t limit, uint64_t *off)
{
	uint64_t len;

	*off = below(t, limit);
	if (below(t, 3) == 0)
		*off &= ~(uint64_t)(below(t, 2) ? 4095 : 65535);
	len = 1 + below(t, below(t, 4) == 0 ? limit : below(t, 2) ? 5000 : 70000);
	return len < limit - *off ? len : limit - *off;
}

static void set_size(struct tester *t, uint64_t size)
{
	if (size < t->size)
		memset(t->model + size, 0, t->size - size);
	t->size = size;
}

/* ---- operations ---- */

static void read_bytes(struct tester *t, int fd, const char *who)
{
	uint64_t off, len = pick_range(t, t->arguments->file_size, &off), want;
	ssize_t n;

	if (fd == t->direct_fd) {
		off &= ~(uint64_t)(DIRECT_ALIGN - 1);
		len = (len + DIRECT_ALIGN - 1) & ~(uint64_t)(DIRECT_ALIGN - 1);
	}
	want = off >= t->size ? 0 : len < t->size - off ? len : t->size - off;
	note(t, "%s %" PRIu64 "+%" PRIu64 " (size %" PRIu64 ")", who, off, len, t->size);
	for (uint64_t got = 0; got < want; got += (uint64_t)n) {
		n = pread(fd, t->buffer + got, len - got, (off_t)(off + got));
		if (n <= 0)
			wrong(t, "%s gave %zd (%s) after %" PRIu64, who, n, strerror(errno), got);
		if (got + (uint64_t)n > want)
			wrong(t, "%s gave bytes behind the end of file", who);
	}
	compare(t, who, t->buffer, off, want);
}

static void write_bytes(struct tester *t, int fd, const char *who)
{
	uint64_t off, len = pick_range(t, t->arguments->file_size, &off);

	if (fd == t->direct_fd) {
		off &= ~(uint64_t)(DIRECT_ALIGN - 1);
		len = (len + DIRECT_ALIGN - 1) & ~(uint64_t)(DIRECT_ALIGN - 1);
	}
	note(t, "%s %" PRIu64 "+%" PRIu64 " (size %" PRIu64 ")", who, off, len, t->size);
	store(t, NULL, off, len);
	for (uint64_t done = 0; done < len;) {
		uint64_t at = off + done, run = len - done;
		ssize_t n;

		if (t->n_processes > 1) { /* piece by piece: the gaps are other processes' */
			if (!is_own(t, at)) {
				done += STRIPE - at % STRIPE;
				continue;
			}
			if (run > STRIPE - at % STRIPE)
				run = STRIPE - at % STRIPE;
		}
		memcpy(t->buffer, t->model + at, run);
		n = pwrite(fd, t->buffer, run, (off_t)at);
		if (n <= 0)
			wrong(t, "%s gave %zd (%s)", who, n, strerror(errno));
		done += (uint64_t)n;
	}
	if (off + len > t->size)
		t->size = off + len;
}

static void map_load(struct tester *t)
{
	uint64_t off, len;

	if (t->size == 0)
		return;
	len = pick_range(t, t->size, &off);
	note(t, "map load %" PRIu64 "+%" PRIu64, off, len);
	compare(t, "map load", t->map + off, off, len);
}

static void map_store(struct tester *t)
{
	uint64_t off, len;

	if (t->size == 0)
		return;
	len = pick_range(t, t->size, &off);
	note(t, "map store %" PRIu64 "+%" PRIu64, off, len);
	store(t, t->map + off, off, len);
}

static void truncate_file(struct tester *t)
{
	uint64_t size = below(t, t->arguments->file_size + 1);

	note(t, "truncate %" PRIu64 " -> %" PRIu64, t->size, size);
	if (ftruncate(t->fd, (off_t)size) != 0)
		wrong(t, "ftruncate: %s", strerror(errno));
	set_size(t, size);
}

static void punch(struct tester *t)
{
	uint64_t off, len = pick_range(t, t->arguments->file_size, &off);
	bool is_zero = below(t, 2);
	int mode = FALLOC_FL_KEEP_SIZE | (is_zero ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE);

	note(t, "%s %" PRIu64 "+%" PRIu64 " (size %" PRIu64 ")", is_zero ? "zero" : "punch", off, len, t->size);
	if (fallocate(t->fd, mode, (off_t)off, (off_t)len) != 0) {
		if (errno == EOPNOTSUPP) /* tmpfs has no ZERO_RANGE */
			return;
		wrong(t, "fallocate: %s", strerror(errno));
	}
	memset(t->model + off, 0, len);
}

static void check_status(struct tester *t, const char *who, int status, int allowed)
{
	if (status != 0 && status != allowed)
		wrong(t, "%s: %s", who, strerror(-status));
}

static void place(struct tester *t)
{
	uint64_t off, len = pick_range(t, t->arguments->file_size, &off);

	switch (below(t, 4)) {
	case 0:
		note(t, "fsync");
		check_status(t, "fsync", fsync(t->fd) == 0 ? 0 : -errno, 0);
		break;
	case 1:
		note(t, "sync");
		check_status(t, "sync", hmmfs_sync(t->session), 0);
		break;
	case 2:
		note(t, "evict %" PRIu64 "+%" PRIu64, off, len);
		check_status(t, "evict", hmmfs_evict(t->session, (off_t)off, (off_t)len, NULL), t->n_processes > 1 ? -EBUSY : 0);
		break;
	default:
		note(t, "prefetch %" PRIu64 "+%" PRIu64, off, len);
		check_status(t, "prefetch", hmmfs_prefetch(t->session, (off_t)off, (off_t)len, NULL), 0);
	}
}

/* The bytes of others stay as they are: they may write(2) them while we hold the lease. */
static void store_own_runs(struct tester *t, struct hmmfs_region *region, uint64_t off, uint64_t from, uint64_t n)
{
	for (uint64_t at = from, end; at < from + n; at = end) {
		bool is_ours = is_own(t, off + at);

		for (end = at + 1; end < from + n && is_own(t, off + end) == is_ours; end++)
			;
		if (is_ours && device_memory_store(region, at, end - at) < 0)
			wrong(t, "the device's memory can't be stored to");
	}
}

static void use_device(struct tester *t)
{
	struct hmmfs_region *region;
	bool is_exclusive = below(t, 2), is_by_address = below(t, 2);
	uint64_t off, len, from, n, limit = hmmfs_info(t->session)->capacity_bytes / 2;
	uint8_t *data;
	int err;

	if (t->size == 0)
		return;
	len = pick_range(t, t->size, &off);
	if (len > limit)
		len = limit;
	note(t, "device %s %" PRIu64 "+%" PRIu64, is_exclusive ? "exclusive" : "shared", off, len);
	err = is_by_address ? hmmfs_map(t->map + off, len, &region) : hmmfs_map_fd(t->fd, (off_t)off, len, &region);
	check_status(t, "hmmfs_map", err, 0);
	check_status(t, "hmmfs_begin", hmmfs_begin(region, is_exclusive ? HMMFS_EXCLUSIVE : HMMFS_SHARED, 0), 0);
	data = device_memory_load(region, len);
	if (data == NULL)
		wrong(t, "the device's memory can't be had");
	compare(t, "device load", data, off, len);
	if (is_exclusive) {
		n = pick_range(t, len, &from);
		if (t->n_processes > 1 && n > RUNS_MAX)
			n = RUNS_MAX;
		store(t, data + from, off + from, n);
		store_own_runs(t, region, off, from, n);
		if (below(t, 4) == 0 && fsync(t->fd) != 0)
			wrong(t, "fsync under the lease: %s", strerror(errno));
	}
	check_status(t, "hmmfs_end", device_memory_end(region), 0);
	hmmfs_unmap(region);
}

static void step(struct tester *t)
{
	switch (below(t, t->n_processes == 1 ? 20 : 16)) {
	case 0: case 1: read_bytes(t, t->fd, "read"); break;
	case 2: case 3: write_bytes(t, t->fd, "write"); break;
	case 4: case 5: map_load(t); break;
	case 6: case 7: case 8: map_store(t); break;
	case 9: case 10: place(t); break;
	case 11: case 12: case 13: case 14: case 15: use_device(t); break;
	case 16: if (t->direct_fd >= 0) read_bytes(t, t->direct_fd, "direct read"); break;
	case 17: if (t->direct_fd >= 0) write_bytes(t, t->direct_fd, "direct write"); break;
	case 18: truncate_file(t); break;
	default: punch(t);
	}
}

static void check_all(struct tester *t)
{
	struct stat st;

	note(t, "last check");
	if (fstat(t->fd, &st) != 0 || (uint64_t)st.st_size != t->size)
		wrong(t, "the file's size is %jd, not %" PRIu64, (intmax_t)st.st_size, t->size);
	compare(t, "last look", t->map, 0, t->size);
}

/* ---- one process ---- */

static void *allocate(size_t len)
{
	void *memory;

	if (posix_memalign(&memory, DIRECT_ALIGN, len) != 0)
		abort();
	memset(memory, 0, len);
	return memory;
}

static void write_model(struct tester *t)
{
	const char *name = strrchr(t->arguments->path, '/');
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s.model%u", t->arguments->model_dir, name ? name + 1 : t->arguments->path, t->process);
	file = fopen(path, "w");
	if (file == NULL || fwrite(t->model, 1, t->size, file) != t->size || fclose(file) != 0)
		wrong(t, "%s: %s", path, strerror(errno));
}

static double now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static uint64_t test_file(const struct arguments *arguments, unsigned process)
{
	size_t max = (arguments->file_size + DIRECT_ALIGN) & ~(uint64_t)(DIRECT_ALIGN - 1);
	struct tester *t = calloc(1, sizeof(*t));
	double end = now_s() + (double)arguments->seconds;
	const char *problem;
	uint64_t n;
	int err;

	*t = (struct tester){.arguments = arguments, .random = arguments->seed * 1000003 + process, .process = process,
			     .n_processes = (unsigned)arguments->processes, .size = arguments->file_size};
	t->model = allocate(max + DIRECT_ALIGN);
	t->buffer = allocate(max + DIRECT_ALIGN);
	note(t, "open");
	t->fd = open(arguments->path, O_RDWR | O_CLOEXEC);
	if (t->fd < 0)
		wrong(t, "%s: %s", arguments->path, strerror(errno));
	t->direct_fd = arguments->has_one_descriptor ? -1 : open(arguments->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	t->map = mmap(NULL, max, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
	if (t->map == MAP_FAILED)
		wrong(t, "mmap: %s", strerror(errno));
	err = hmmfs_open_fd(t->fd, &t->session);
	check_status(t, "hmmfs_open_fd", err, 0);
	problem = device_memory_start(hmmfs_info(t->session), allocate(max + DIRECT_ALIGN), max + DIRECT_ALIGN);
	if (problem != NULL)
		wrong(t, "%s", problem);
	for (n = 0; arguments->ops != 0 ? n < arguments->ops : now_s() < end; n++)
		step(t);
	check_all(t);
	if (arguments->model_dir != NULL)
		write_model(t);
	hmmfs_close(t->session);
	return n;
}

/* ---- the command ---- */

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case 's': arguments->seed = strtoull(arg, NULL, 0); return 0;
	case 't': arguments->seconds = strtoull(arg, NULL, 0); return 0;
	case 'n': arguments->ops = strtoull(arg, NULL, 0); return 0;
	case 'z': arguments->file_size = strtoull(arg, NULL, 0); return 0;
	case 'p': arguments->processes = strtoull(arg, NULL, 0); return 0;
	case 'm': arguments->model_dir = arg; return 0;
	case 'o': arguments->has_one_descriptor = true; return 0;
	case ARGP_KEY_ARG: arguments->path = arg; return 0;
	case ARGP_KEY_END:
		if (arguments->path == NULL || arguments->processes == 0 || arguments->file_size == 0)
			argp_error(state, "FILE, --processes and --file-size are needed");
		return 0;
	default: return ARGP_ERR_UNKNOWN;
	}
}

int main(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{"seed", 's', "N", 0, "of the sequence (1)", 0},
		{"seconds", 't', "N", 0, "how long, unless --ops is given (10)", 0},
		{"ops", 'n', "N", 0, "how many steps", 0},
		{"file-size", 'z', "BYTES", 0, "the largest size of the file (1000000)", 0},
		{"processes", 'p', "N", 0, "that share the file (1)", 0},
		{"one-descriptor", 'o', NULL, 0, "no second descriptor, for O_DIRECT", 0},
		{"model-dir", 'm', "DIR", 0, "where the model is written at the end", 0},
		{0}};
	static const struct argp argp = {options, parse, "FILE", "Use FILE of an hmmfs mount in every way, and check.", NULL, NULL, NULL};
	struct arguments arguments = {.seed = 1, .seconds = 10, .file_size = 1000000, .processes = 1};
	int status, failed = 0, fd;

	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	fd = open(arguments.path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)arguments.file_size) != 0 || close(fd) != 0) {
		fprintf(stderr, "hmmfs_random: %s: %s\n", arguments.path, strerror(errno));
		return 2;
	}
	for (unsigned p = 0; p < arguments.processes; p++) {
		pid_t pid = fork();

		if (pid < 0)
			return 2;
		if (pid == 0) {
			printf("seed %" PRIu64 " process %u: %" PRIu64 " ops\n", arguments.seed, p, test_file(&arguments, p));
			fflush(stdout);
			_exit(0);
		}
	}
	while (wait(&status) > 0)
		failed |= status;
	return failed != 0;
}
