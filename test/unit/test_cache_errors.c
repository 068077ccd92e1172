/*
 * test_cache_errors.c - the cache on the host device and a real file, with the disk's failures made up: reads, writes and
 * fallocate of the ring are wrapped (linker option --wrap) and fail when told to.
 */
#include "cache/cache.h"
#include "cache/ring.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 64 << 10, FILE_BYTES = 4 * CHUNK + 777 };

static atomic_int fail_reads, fail_writes, fail_fallocates, fail_fsyncs; /* how many more to fail */
static atomic_int error_to_give = -EIO;

void __real_ring_read(struct ring *ring, struct ring_file file, void *buffer, size_t len, off_t off, struct ring_op *op);
void __real_ring_write(struct ring *ring, struct ring_file file, const void *buffer, size_t len, off_t off, struct ring_op *op);
void __real_ring_fallocate(struct ring *ring, struct ring_file file, int mode, off_t off, off_t len, struct ring_op *op);
void __real_ring_fsync(struct ring *ring, struct ring_file file, bool is_datasync, struct ring_op *op);
void __wrap_ring_read(struct ring *ring, struct ring_file file, void *buffer, size_t len, off_t off, struct ring_op *op);
void __wrap_ring_write(struct ring *ring, struct ring_file file, const void *buffer, size_t len, off_t off, struct ring_op *op);
void __wrap_ring_fallocate(struct ring *ring, struct ring_file file, int mode, off_t off, off_t len, struct ring_op *op);

void __wrap_ring_fsync(struct ring *ring, struct ring_file file, bool is_datasync, struct ring_op *op);

static bool fails(atomic_int *count)
{
	return atomic_load(count) > 0 && atomic_fetch_sub(count, 1) > 0;
}

void __wrap_ring_read(struct ring *ring, struct ring_file file, void *buffer, size_t len, off_t off, struct ring_op *op)
{
	if (fails(&fail_reads))
		op->done(op, atomic_load(&error_to_give));
	else
		__real_ring_read(ring, file, buffer, len, off, op);
}

void __wrap_ring_write(struct ring *ring, struct ring_file file, const void *buffer, size_t len, off_t off, struct ring_op *op)
{
	if (fails(&fail_writes))
		op->done(op, atomic_load(&error_to_give));
	else
		__real_ring_write(ring, file, buffer, len, off, op);
}

void __wrap_ring_fallocate(struct ring *ring, struct ring_file file, int mode, off_t off, off_t len, struct ring_op *op)
{
	if (fails(&fail_fallocates))
		op->done(op, atomic_load(&error_to_give));
	else
		__real_ring_fallocate(ring, file, mode, off, len, op);
}

void __wrap_ring_fsync(struct ring *ring, struct ring_file file, bool is_datasync, struct ring_op *op)
{
	if (fails(&fail_fsyncs))
		op->done(op, atomic_load(&error_to_give));
	else
		__real_ring_fsync(ring, file, is_datasync, op);
}

/* ---- a filesystem of one file ---- */

static char path[] = "/tmp/hmmfs-test-XXXXXX";
static struct cache *cache;
static struct cache_file *file;
static uint8_t content[FILE_BYTES];
static atomic_int invalidations, lines_logged;

static int invalidate(void *fs, void *owner, off_t off, off_t len)
{
	(void)fs;
	(void)owner;
	(void)off;
	(void)len;
	atomic_fetch_add(&invalidations, 1);
	return 0;
}

static int open_backing(void *fs, void *owner, int flags)
{
	int fd = open(path, flags);

	(void)fs;
	(void)owner;
	return fd < 0 ? -errno : fd;
}

static pthread_mutex_t owners = PTHREAD_MUTEX_INITIALIZER; /* taken by a test: owners that are told keep waiting */

static void file_idle(void *fs, void *owner)
{
	(void)fs;
	(void)owner;
	pthread_mutex_lock(&owners);
	pthread_mutex_unlock(&owners);
}

static void count_line(void *fs, int priority, const char *line)
{
	(void)fs;
	(void)priority;
	(void)line;
	atomic_fetch_add(&lines_logged, 1);
}

static const char *file_name(void *fs, void *owner)
{
	(void)fs;
	(void)owner;
	return path;
}

static const struct cache_callbacks callbacks = {invalidate, open_backing, file_idle, count_line, file_name};

static void set_up(void)
{
	struct cache_config config = {.device = "host", .chunk_bytes = CHUNK, .capacity_bytes = 16 * CHUNK, .bounce_bytes = 8 << 20,
				      .cpu_access = CACHE_CPU_COPY};
	char *error;
	int fd;

	strcpy(path, "/tmp/hmmfs-test-XXXXXX");
	fd = mkstemp(path);
	for (size_t i = 0; i < sizeof(content); i++)
		content[i] = (uint8_t)(i * 7 + (i >> 8));
	ck_assert_int_eq(write(fd, content, sizeof(content)), sizeof(content));
	close(fd);
	ck_assert_int_eq(cache_create(&config, &callbacks, NULL, &cache, &error), 0);
	ck_assert_int_eq(cache_start(cache), 0);
	ck_assert_int_eq(cache_file_create(cache, NULL, &file), 0);
}

static void tear_down(void)
{
	atomic_store(&fail_reads, 0);
	atomic_store(&fail_writes, 0);
	atomic_store(&fail_fallocates, 0);
	atomic_store(&fail_fsyncs, 0);
	cache_file_destroy(file);
	cache_destroy(cache);
	unlink(path);
}

/* ---- what tests do with it ---- */

static struct cache_lease whole(enum cache_lease_mode mode)
{
	return (struct cache_lease){.file = file, .first_chunk = 0, .n_chunks = 5, .mode = mode};
}

static int acquire(struct cache_lease *lease)
{
	return CACHE_WAIT(cache_acquire, lease);
}

static void release(struct cache_lease *lease)
{
	ck_assert_int_eq(CACHE_WAIT(cache_release, lease), 0);
}

static int store(off_t off, uint8_t byte)
{
	struct cache_io io = {.file = file, .off = off, .len = 1, .data = &byte};

	return CACHE_WAIT(cache_write, &io);
}

static int load(off_t off, uint8_t *byte)
{
	struct cache_io io = {.file = file, .off = off, .len = 1};
	int err = CACHE_WAIT(cache_read, &io);

	if (err < 0)
		return err;
	*byte = *(uint8_t *)io.data;
	cache_read_free(&io);
	return 0;
}

static int flush(void)
{
	struct cache_sync sync = {.file = file, .is_flush = true};

	return CACHE_WAIT(cache_sync, &sync);
}

static uint8_t on_disk(off_t off)
{
	int fd = open(path, O_RDONLY);
	uint8_t byte = 0;

	ck_assert_int_eq(pread(fd, &byte, 1, off), 1);
	close(fd);
	return byte;
}

static void make_resident(void)
{
	struct cache_lease lease = whole(CACHE_LEASE_SHARED);

	ck_assert_int_eq(acquire(&lease), 0);
	release(&lease);
}

/* ---- the tests ---- */

START_TEST(a_fill_that_fails_ends_the_acquire_and_the_next_one_succeeds)
{
	struct cache_lease lease = whole(CACHE_LEASE_SHARED);

	for (int n = 1; n <= 5; n++) {
		atomic_store(&fail_reads, n);
		ck_assert_int_eq(acquire(&lease), -EIO);
		atomic_store(&fail_reads, 0);
	}
	ck_assert_int_eq(acquire(&lease), 0);
	release(&lease);
}
END_TEST

START_TEST(no_space_refuses_the_exclusive_lease_before_a_byte_is_dirty)
{
	struct cache_lease lease = whole(CACHE_LEASE_EXCLUSIVE);
	struct cache_status status;

	atomic_store(&error_to_give, -ENOSPC);
	atomic_store(&fail_fallocates, 1);
	ck_assert_int_eq(acquire(&lease), -ENOSPC);
	cache_get_status(cache, &status);
	ck_assert_int_eq((int)status.dirty_bytes, 0);
	ck_assert_int_eq(acquire(&lease), 0);
	release(&lease);
	atomic_store(&error_to_give, -EIO);
}
END_TEST

START_TEST(dirty_chunk_survives_failed_writeback_and_is_written_later)
{
	struct cache_status status;
	uint8_t byte = 0;

	make_resident();
	ck_assert_int_eq(store(CHUNK + 3, 0xEE), 0);
	atomic_store(&fail_writes, 1000);
	ck_assert_int_lt(flush(), 0);
	cache_get_status(cache, &status);
	ck_assert_int_eq((int)status.dirty_bytes, CHUNK);
	ck_assert_int_ge((int)status.writeback_errors, 1);
	ck_assert_int_eq(load(CHUNK + 3, &byte), 0);
	ck_assert_int_eq(byte, 0xEE);
	ck_assert_int_eq(on_disk(CHUNK + 3), content[CHUNK + 3]);
	atomic_store(&fail_writes, 0);
	ck_assert_int_eq(flush(), 0);
	ck_assert_int_eq(on_disk(CHUNK + 3), 0xEE);
	cache_get_status(cache, &status);
	ck_assert_int_eq((int)status.dirty_bytes, 0);
}
END_TEST

START_TEST(an_error_is_told_once_to_each_descriptor_that_was_open)
{
	uint32_t first = cache_file_error_sample(file), second = first, later;

	make_resident();
	ck_assert_int_eq(store(0, 1), 0);
	atomic_store(&fail_writes, 1000);
	flush();
	atomic_store(&fail_writes, 0);
	later = cache_file_error_sample(file);
	ck_assert_int_eq(cache_file_error_check(file, &first), -EIO);
	ck_assert_int_eq(cache_file_error_check(file, &first), 0);
	ck_assert_int_eq(cache_file_error_check(file, &second), -EIO);
	ck_assert_int_eq(cache_file_error_check(file, &second), 0);
	ck_assert_int_eq(cache_file_error_check(file, &later), 0);
	ck_assert_int_eq(flush(), 0);
}
END_TEST

START_TEST(an_fsync_of_the_backing_that_fails_once_is_told_to_each_descriptor)
{
	uint32_t first = cache_file_error_sample(file), second = first, third = first;
	struct cache_sync sync = {.file = file};

	make_resident();
	atomic_store(&fail_fsyncs, 1);
	ck_assert_int_eq(CACHE_WAIT(cache_sync, &sync), -EIO);
	ck_assert_int_eq(cache_file_error_check(file, &first), -EIO);
	ck_assert_int_eq(cache_file_error_check(file, &first), 0);
	ck_assert_int_eq(cache_file_error_check(file, &second), -EIO);
	cache_file_error_met(file, -ENOSPC, &second); /* by its own fsync(2) */
	ck_assert_int_eq(cache_file_error_check(file, &second), 0);
	ck_assert_int_eq(cache_file_error_check(file, &first), -ENOSPC);
	ck_assert_int_eq(cache_file_error_check(file, &third), -ENOSPC);
	ck_assert_int_eq(cache_file_error_check(file, &third), 0);
	ck_assert_int_eq(CACHE_WAIT(cache_sync, &sync), 0);
}
END_TEST

START_TEST(a_writeback_that_fails_again_and_again_is_logged_once_for_each_cause)
{
	make_resident();
	for (int round = 1; round <= 2; round++) {
		ck_assert_int_eq(store(0, 1), 0);
		atomic_store(&lines_logged, 0);
		atomic_store(&fail_writes, 1000);
		for (int i = 0; i < 4; i++)
			ck_assert_int_lt(flush(), 0);
		ck_assert_int_eq(atomic_load(&lines_logged), 1);
		atomic_store(&error_to_give, -ENOSPC);
		ck_assert_int_lt(flush(), 0);
		ck_assert_int_eq(atomic_load(&lines_logged), 2);
		atomic_store(&error_to_give, -EIO);
		atomic_store(&fail_writes, 0);
		ck_assert_int_eq(flush(), 0);
	}
}
END_TEST

START_TEST(eviction_of_what_cant_be_written_is_refused_and_loses_nothing)
{
	struct cache_place place = {.file = file, .off = 0, .len = INT64_MAX};

	make_resident();
	ck_assert_int_eq(store(7, 0x77), 0);
	atomic_store(&fail_writes, 1000);
	ck_assert_int_eq(CACHE_WAIT(cache_evict, &place), -EIO);
	atomic_store(&fail_writes, 0);
	ck_assert_int_eq(CACHE_WAIT(cache_evict, &place), 0);
	ck_assert_int_eq(on_disk(7), 0x77);
}
END_TEST

static int truncate_to_half(struct cache_mutation *mutation)
{
	(void)mutation;
	return truncate(path, 2 * CHUNK + 5) < 0 ? -errno : 0;
}

START_TEST(a_truncation_that_cant_write_back_first_changes_nothing)
{
	struct cache_mutation mutation = {.file = file, .off = 2 * CHUNK + 5, .len = INT64_MAX - 2 * CHUNK - 5, .discards = true,
					  .apply = truncate_to_half};
	uint8_t byte = 0;

	make_resident();
	ck_assert_int_eq(store(2 * CHUNK, 0x55), 0); /* in the chunk that is cut */
	atomic_store(&fail_writes, 1000);
	ck_assert_int_eq(CACHE_WAIT(cache_mutate, &mutation), -EIO);
	ck_assert_int_eq(load(FILE_BYTES - 1, &byte), 0);
	ck_assert_int_eq(byte, content[FILE_BYTES - 1]);
	atomic_store(&fail_writes, 0);
	ck_assert_int_eq(CACHE_WAIT(cache_mutate, &mutation), 0);
	ck_assert_int_eq(on_disk(2 * CHUNK), 0x55);
}
END_TEST

START_TEST(a_write_is_refused_when_its_blocks_cant_be_had)
{
	make_resident();
	atomic_store(&error_to_give, -ENOSPC);
	atomic_store(&fail_fallocates, 1);
	ck_assert_int_eq(store(3 * CHUNK, 1), -ENOSPC);
	atomic_store(&error_to_give, -EIO);
	ck_assert_int_eq(store(3 * CHUNK, 1), 0);
}
END_TEST

START_TEST(a_write_past_the_end_leaves_zeros_between)
{
	struct cache_lease lease = whole(CACHE_LEASE_EXCLUSIVE);
	uint8_t byte = 1;

	ck_assert_int_eq(acquire(&lease), 0);
	release(&lease);
	ck_assert_int_eq(store(FILE_BYTES + 100, 9), 0);
	ck_assert_int_eq(load(FILE_BYTES + 50, &byte), 0);
	ck_assert_int_eq(byte, 0);
	ck_assert_int_eq(load(FILE_BYTES + 100, &byte), 0);
	ck_assert_int_eq(byte, 9);
	ck_assert_int_eq(flush(), 0);
	ck_assert_int_eq(on_disk(FILE_BYTES + 50), 0);
	ck_assert_int_eq(on_disk(FILE_BYTES + 100), 9);
}
END_TEST

START_TEST(an_abandoned_exclusive_lease_leaves_other_memory)
{
	struct cache_lease lease = whole(CACHE_LEASE_EXCLUSIVE);
	uint64_t before, after;
	uint8_t byte = 0;

	ck_assert_int_eq(acquire(&lease), 0);
	cache_lease_chunk(&lease, 0, &before);
	lease.is_abandoned = true;
	release(&lease);
	lease.is_abandoned = false;
	ck_assert_int_eq(acquire(&lease), 0);
	cache_lease_chunk(&lease, 0, &after);
	release(&lease);
	ck_assert(before != after);
	ck_assert_int_eq(load(12345, &byte), 0);
	ck_assert_int_eq(byte, content[12345]);
}
END_TEST

START_TEST(a_lease_larger_than_the_capacity_is_refused)
{
	struct cache_lease lease = {.file = file, .first_chunk = 0, .n_chunks = 17, .mode = CACHE_LEASE_SHARED};

	ck_assert_int_eq(acquire(&lease), -ENOMEM);
}
END_TEST

static int apply_nothing(struct cache_mutation *mutation)
{
	(void)mutation;
	return 0;
}

START_TEST(owners_who_wait_when_told_that_a_file_is_idle_keep_no_other_file_waiting)
{
	/* Such as one that destroys the file, which another has made active again: that is a mutation, too. */
	struct cache_file *others[16];
	struct cache_mutation mutation = {.file = file, .off = 0, .len = INT64_MAX, .discards = true, .apply = apply_nothing};

	make_resident();
	pthread_mutex_lock(&owners);
	for (int i = 0; i < 16; i++) {
		struct cache_place place = {.off = 0, .len = INT64_MAX};

		ck_assert_int_eq(cache_file_create(cache, NULL, &others[i]), 0);
		place.file = others[i];
		ck_assert_int_eq(CACHE_WAIT(cache_prefetch, &place), 0);
		ck_assert_int_eq(CACHE_WAIT(cache_evict, &place), 0);
	}
	ck_assert_int_eq(CACHE_WAIT(cache_mutate, &mutation), 0);
	pthread_mutex_unlock(&owners);
	for (int i = 0; i < 16; i++)
		cache_file_destroy(others[i]);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cache errors");
	TCase *tcase = tcase_create("made-up failures");
	SRunner *runner;
	int failed;

	tcase_add_checked_fixture(tcase, set_up, tear_down);
	tcase_set_timeout(tcase, 60);
	tcase_add_test(tcase, a_fill_that_fails_ends_the_acquire_and_the_next_one_succeeds);
	tcase_add_test(tcase, no_space_refuses_the_exclusive_lease_before_a_byte_is_dirty);
	tcase_add_test(tcase, dirty_chunk_survives_failed_writeback_and_is_written_later);
	tcase_add_test(tcase, an_error_is_told_once_to_each_descriptor_that_was_open);
	tcase_add_test(tcase, an_fsync_of_the_backing_that_fails_once_is_told_to_each_descriptor);
	tcase_add_test(tcase, a_writeback_that_fails_again_and_again_is_logged_once_for_each_cause);
	tcase_add_test(tcase, eviction_of_what_cant_be_written_is_refused_and_loses_nothing);
	tcase_add_test(tcase, a_truncation_that_cant_write_back_first_changes_nothing);
	tcase_add_test(tcase, a_write_is_refused_when_its_blocks_cant_be_had);
	tcase_add_test(tcase, a_write_past_the_end_leaves_zeros_between);
	tcase_add_test(tcase, an_abandoned_exclusive_lease_leaves_other_memory);
	tcase_add_test(tcase, a_lease_larger_than_the_capacity_is_refused);
	tcase_add_test(tcase, owners_who_wait_when_told_that_a_file_is_idle_keep_no_other_file_waiting);
	suite_add_tcase(suite, tcase);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
