/*
 * test_device.c - what gpu.h promises of every device, and, with --measure, how fast it copies. Needs no mount.
 *
 *     HMMFS_TEST_DEVICE=cuda test_device [--measure]      host if not set
 */
#include "test/unit/gpu_waiting.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 2 << 20, BOUNCE = 16 << 20, CHUNKS = 24 };

static struct gpu_device *dev;
static char *bounce;

static bool is_measuring; /* Check takes no assertion outside of its tests */

static void must(bool holds, const char *what)
{
	if (is_measuring && !holds) {
		fprintf(stderr, "test_device: %s\n", what);
		exit(1);
	}
	if (!is_measuring)
		ck_assert_msg(holds, "%s", what);
}

static void start(void)
{
	const char *spec = getenv("HMMFS_TEST_DEVICE");
	struct gpu_config config = {.spec = spec == NULL ? "host" : spec, .chunk_bytes = CHUNK, .bounce = {.bytes = BOUNCE}};
	char *error = NULL;
	int err;

	config.bounce.memfd = memfd_create("bounce", MFD_CLOEXEC);
	must(ftruncate(config.bounce.memfd, BOUNCE) == 0, "ftruncate");
	config.bounce.base = bounce = mmap(NULL, BOUNCE, PROT_READ | PROT_WRITE, MAP_SHARED, config.bounce.memfd, 0);
	err = gpu_open(&config, &dev, &error);
	must(err == 0, error == NULL ? "no memory" : error);
}

static void finish(void)
{
	gpu_close(dev);
	munmap(bounce, BOUNCE);
}

static void load(struct gpu_chunk *chunk, enum gpu_queue queue, size_t off, size_t bounce_off, size_t len)
{
	struct waiting waiting = {.op.done = done};

	dev->ops->copy_from_device(dev, queue, chunk, off, bounce_off, len, &waiting.op);
	must(wait_for(&waiting) == 0, "an operation failed");
}

static void store(struct gpu_chunk *chunk, enum gpu_queue queue, size_t off, size_t bounce_off, size_t len)
{
	struct waiting waiting = {.op.done = done};

	dev->ops->copy_to_device(dev, queue, chunk, off, bounce_off, len, &waiting.op);
	must(wait_for(&waiting) == 0, "an operation failed");
}

START_TEST(new_memory_is_zero_and_keeps_what_is_stored)
{
	struct waiting waiting = {.op.done = done};
	struct gpu_chunk *a, *b;

	for (int round = 0; round < 3; round++) { /* the second time the memory was used before */
		ck_assert_int_eq(dev->ops->chunk_create(dev, &a), 0);
		ck_assert_int_eq(dev->ops->chunk_create(dev, &b), 0);
		memset(bounce, 0xee, CHUNK);
		load(a, GPU_QUEUE_CPU, 0, 0, CHUNK);
		must(bounce[0] == 0 && memcmp(bounce, bounce + 1, CHUNK - 1) == 0, "new memory is not zero");
		for (size_t i = 0; i < CHUNK; i++)
			bounce[i] = (char)(i * 131 >> 3);
		store(a, GPU_QUEUE_FILL, 0, 0, CHUNK);
		store(a, GPU_QUEUE_CPU, 4096, 0, 5);
		waiting.is_done = false;
		dev->ops->copy_chunk(dev, GPU_QUEUE_FILL, b, a, &waiting.op);
		must(wait_for(&waiting) == 0, "an operation failed");
		waiting.is_done = false;
		dev->ops->fill(dev, GPU_QUEUE_FILL, b, 100, 7, 0xab, &waiting.op);
		must(wait_for(&waiting) == 0, "an operation failed");
		load(b, GPU_QUEUE_WRITEBACK, 0, CHUNK, CHUNK);
		memcpy(bounce + 4096, bounce, 5);
		for (size_t i = 100; i < 107; i++) /* gcc with sanitizers takes a memset for one beyond NULL */
			bounce[i] = (char)0xab;
		ck_assert_int_eq(memcmp(bounce, bounce + CHUNK, CHUNK), 0);
		dev->ops->chunk_destroy(dev, a);
		dev->ops->chunk_destroy(dev, b);
	}
}
END_TEST

START_TEST(many_operations_at_once_on_all_queues_do_not_meet)
{
	struct gpu_chunk *chunks[CHUNKS];
	struct waiting stores[CHUNKS] = {0}, loads[CHUNKS] = {0};
	size_t piece = BOUNCE / 2 / CHUNKS / 4096 * 4096;

	for (size_t i = 0; i < CHUNKS; i++) {
		ck_assert_int_eq(dev->ops->chunk_create(dev, &chunks[i]), 0);
		memset(bounce + i * piece, (int)i + 1, piece);
		stores[i].op.done = loads[i].op.done = done;
		dev->ops->copy_to_device(dev, i % 3, chunks[i], i * 4096, i * piece, piece, &stores[i].op);
	}
	for (size_t i = 0; i < CHUNKS; i++) {
		must(wait_for(&stores[i]) == 0, "an operation failed");
		dev->ops->copy_from_device(dev, (i + 1) % 3, chunks[i], i * 4096, BOUNCE / 2 + i * piece, piece, &loads[i].op);
	}
	for (size_t i = 0; i < CHUNKS; i++) {
		must(wait_for(&loads[i]) == 0, "an operation failed");
		dev->ops->chunk_destroy(dev, chunks[i]);
	}
	ck_assert_int_eq(memcmp(bounce, bounce + BOUNCE / 2, CHUNKS * piece), 0);
}
END_TEST

START_TEST(descriptors_are_given_out)
{
	struct gpu_chunk *chunk;
	int fd;

	ck_assert_int_eq(dev->ops->chunk_create(dev, &chunk), 0);
	store(chunk, GPU_QUEUE_FILL, 0, 0, 4096);
	if (dev->info.can_export) {
		ck_assert_int_eq(dev->ops->chunk_export(dev, chunk, true, &fd), 0);
		ck_assert_int_ge(fd, 0);
		close(fd);
	}
	ck_assert(!dev->ops->chunk_is_lost(dev, chunk));
	dev->ops->chunk_destroy(dev, chunk);
}
END_TEST

/* Copies of 1 MiB, 8 at a time, as fills and writebacks are. */
static double measure(bool is_to_device)
{
	enum { DEPTH = 8, PIECE = 1 << 20, ROUNDS = 2048 };
	struct waiting waiting[DEPTH] = {0};
	struct timespec from, to;
	struct gpu_chunk *chunk;

	must(dev->ops->chunk_create(dev, &chunk) == 0, "chunk_create");
	store(chunk, GPU_QUEUE_FILL, 0, 0, CHUNK);
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (size_t i = 0; i < ROUNDS + DEPTH; i++) {
		struct waiting *slot = &waiting[i % DEPTH];

		if (i >= DEPTH)
			must(wait_for(slot) == 0, "an operation failed");
		*slot = (struct waiting){.op.done = done};
		if (i < ROUNDS && is_to_device)
			dev->ops->copy_to_device(dev, GPU_QUEUE_FILL, chunk, i % 2 * PIECE, i % DEPTH * PIECE, PIECE, &slot->op);
		else if (i < ROUNDS)
			dev->ops->copy_from_device(dev, GPU_QUEUE_WRITEBACK, chunk, i % 2 * PIECE, i % DEPTH * PIECE, PIECE, &slot->op);
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	dev->ops->chunk_destroy(dev, chunk);
	return (double)ROUNDS * PIECE / 1e6 / ((double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
}

int main(int argc, char **argv)
{
	Suite *suite = suite_create("device");
	TCase *tests = tcase_create("all");
	SRunner *runner = srunner_create(suite);
	int failed;

	if (argc > 1 && strcmp(argv[1], "--measure") == 0) {
		is_measuring = true;
		start();
		printf("{\"to_device_MBps\": %.1f, \"from_device_MBps\": %.1f}\n", measure(true), measure(false));
		finish();
		return 0;
	}
	tcase_set_timeout(tests, 60);
	tcase_add_checked_fixture(tests, start, finish);
	tcase_add_test(tests, new_memory_is_zero_and_keeps_what_is_stored);
	tcase_add_test(tests, many_operations_at_once_on_all_queues_do_not_meet);
	tcase_add_test(tests, descriptors_are_given_out);
	suite_add_tcase(suite, tests);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
