/* test_cuda_device.c - the cuda device in moments that mounts seldom have, on the simulated driver. */
#include "test/unit/gpu_waiting.h"

#include "gpu/cuda_abi.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CHUNK = 2 << 20, BOUNCE = 8 << 20, CHUNKS = 4 };

CUresult cuInit(unsigned), cuDevicePrimaryCtxRetain(CUcontext *, CUdevice), cuDevicePrimaryCtxRelease_v2(CUdevice);

static struct gpu_device *dev;
static char *bounce;
static char rules[] = "/tmp/hmmfs-test-rules-XXXXXX";

/* See test/simcuda/fault.c. Each test is a process of its own. */
static void strike(const char *text)
{
	FILE *file = fopen(rules, "we");

	ck_assert(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void start(void)
{
	struct gpu_config config = {.spec = "cuda", .chunk_bytes = CHUNK, .bounce = {.bytes = BOUNCE}};
	char environment[64], memory[32], *error = NULL;

	close(mkstemp(rules));
	unlink(rules); /* nothing fails while it is not there */
	snprintf(environment, sizeof(environment), "@%s", rules);
	snprintf(memory, sizeof(memory), "%d", CHUNKS * CHUNK);
	setenv("HMMFS_SIMCUDA_FAIL", environment, 1);
	setenv("HMMFS_SIMCUDA_MEMORY", memory, 1);
	config.bounce.memfd = memfd_create("bounce", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(config.bounce.memfd, BOUNCE), 0);
	config.bounce.base = bounce = mmap(NULL, BOUNCE, PROT_READ | PROT_WRITE, MAP_SHARED, config.bounce.memfd, 0);
	ck_assert_msg(gpu_open(&config, &dev, &error) == 0, "%s", error);
}

static void finish(void)
{
	unlink(rules);
	gpu_close(dev);
	munmap(bounce, BOUNCE);
}

static int store(struct gpu_chunk *chunk, char byte)
{
	struct waiting waiting = {.op.done = done};

	memset(bounce, byte, CHUNK);
	dev->ops->copy_to_device(dev, GPU_QUEUE_FILL, chunk, 0, 0, CHUNK, &waiting.op);
	return wait_for(&waiting);
}

static int load(struct gpu_chunk *chunk, char byte)
{
	struct waiting waiting = {.op.done = done};
	int status;

	bounce[0] = bounce[CHUNK - 1] = (char)~byte;
	dev->ops->copy_from_device(dev, GPU_QUEUE_CPU, chunk, 0, 0, CHUNK, &waiting.op);
	status = wait_for(&waiting);
	ck_assert(status < 0 || (bounce[0] == byte && bounce[CHUNK - 1] == byte));
	return status;
}

static void take_all_memory(struct gpu_chunk **chunks)
{
	for (char i = 0; i < CHUNKS; i++) {
		ck_assert_int_eq(dev->ops->chunk_create(dev, &chunks[(size_t)i]), 0);
		ck_assert_int_eq(store(chunks[(size_t)i], i), 0);
	}
}

static void change_the_last(struct gpu_chunk **chunks)
{
	dev->ops->chunk_destroy(dev, chunks[CHUNKS - 1]);
	ck_assert_int_eq(dev->ops->chunk_create(dev, &chunks[CHUNKS - 1]), 0);
	ck_assert_int_eq(store(chunks[CHUNKS - 1], 42), 0);
	ck_assert_int_eq(load(chunks[CHUNKS - 1], 42), 0);
	for (size_t i = 0; i < CHUNKS; i++)
		dev->ops->chunk_destroy(dev, chunks[i]);
}

/* The thread that frees is in the middle of it when another finds no memory. */
START_TEST(memory_that_is_being_freed_is_waited_for)
{
	struct gpu_chunk *chunks[CHUNKS];

	take_all_memory(chunks);
	strike("cuMemCreate:1:2:after=cuMemUnmap cuMemUnmap:1:0:after=cuMemCreate cuMemRelease:1:0:after=cuMemCreate");
	change_the_last(chunks);
}
END_TEST

/* It has just been freed when the other, which was refused before, looks for what is being freed. */
START_TEST(memory_that_was_freed_meanwhile_is_taken)
{
	struct gpu_chunk *chunks[CHUNKS];

	take_all_memory(chunks);
	strike("cuMemUnmap:1:0:after=cuMemCreate cuMemCreate:1:2:after=cuMemRelease");
	change_the_last(chunks);
}
END_TEST

/* The thread that would free it is busy: whoever needs it frees it. */
START_TEST(memory_that_nobody_has_time_to_free_is_freed_by_who_needs_it)
{
	struct waiting busy = {.op.done = done};
	struct gpu_chunk *chunks[CHUNKS];

	take_all_memory(chunks);
	strike("cuEventSynchronize:1:0:after=cuMemRelease");
	dev->ops->copy_from_device(dev, GPU_QUEUE_WRITEBACK, chunks[0], 0, CHUNK, CHUNK, &busy.op);
	change_the_last(chunks);
	ck_assert_int_eq(wait_for(&busy), 0);
}
END_TEST

/* Others in the process may have retained the primary context: to release it does not make it sound again. */
START_TEST(a_context_that_somebody_else_retains_is_rebuilt_too)
{
	struct gpu_chunk *chunks[CHUNKS];
	CUcontext context;

	ck_assert_int_eq(cuDevicePrimaryCtxRetain(&context, 0), 0);
	take_all_memory(chunks);
	strike("cuMemcpyDtoHAsync:1:719:sticky");
	for (char i = 0; i < CHUNKS; i++) {
		ck_assert_int_eq(load(chunks[(size_t)i], i), 0);
		ck_assert(!dev->ops->chunk_is_lost(dev, chunks[(size_t)i]));
	}
	change_the_last(chunks);
	ck_assert_int_eq(cuDevicePrimaryCtxRelease_v2(0), 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cuda_device");
	TCase *tests = tcase_create("all");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_set_timeout(tests, 60);
	tcase_add_checked_fixture(tests, start, finish);
	tcase_add_test(tests, memory_that_is_being_freed_is_waited_for);
	tcase_add_test(tests, memory_that_was_freed_meanwhile_is_taken);
	tcase_add_test(tests, memory_that_nobody_has_time_to_free_is_freed_by_who_needs_it);
	tcase_add_test(tests, a_context_that_somebody_else_retains_is_rebuilt_too);
	suite_add_tcase(suite, tests);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
