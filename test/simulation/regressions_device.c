/* regressions_device.c - scenarios of a device that loses memory, and of invalidations. The list is in regressions.c. */
#include "test/simulation/scenario.h"

#include <errno.h>
#include <string.h>

static void make_dirty(uint64_t chunk, uint8_t byte)
{
	struct cache_lease lease = lease_of(chunk, 1, CACHE_LEASE_EXCLUSIVE);

	acquire(&lease);
	memory_of(&lease, 0)[0] = byte;
	release(&lease);
}

static void lose_everything(void)
{
	device_lose(true, false);
	sim_sleep(200 * SIM_MS);
}

void bytes_lost_with_the_device_are_told_to_each_descriptor_once(void)
{
	uint32_t first, second;

	begin(2 * CHUNK);
	first = second = cache_file_error_sample(file);
	make_dirty(0, 9);
	sync_file();
	make_dirty(0, 8);
	lose_everything();
	CHECK(log_lines == 1 && strstr(log_last, "bytes 0..65536 were lost") != NULL);
	CHECK(cache_file_error_check(file, &first) == -EIO);
	CHECK(cache_file_error_check(file, &second) == -EIO);
	CHECK(cache_file_error_check(file, &first) == 0);
	CHECK(load(0) == 9); /* as of the last fsync */
	end();
}

/* It had made the chunk DIRTY, though all that it changes was still to come. */
void a_write_that_a_lost_copy_did_not_get_goes_to_the_backing(void)
{
	struct cache_io write;
	struct pending writing;
	uint32_t sample;

	begin(2 * CHUNK);
	sample = cache_file_error_sample(file);
	make_resident(0);
	write = (struct cache_io){.file = file, .off = 0, .len = 1, .data = "\7"};
	device_latency_ns = 20 * SIM_MS;
	START(cache_write, &write, &writing);
	sim_sleep(10 * SIM_MS);
	device_latency_ns = SIM_MS;
	lose_everything();
	CHECK(await(&writing) == 0);
	CHECK(on_disk(0) == 7);
	CHECK(load(0) == 7);
	CHECK(cache_file_error_check(file, &sample) == 0 && log_lines == 0);
	end();
}

void clean_bytes_lost_with_the_device_are_read_from_the_backing(void)
{
	struct cache_io read;
	struct pending reading;
	uint32_t sample;

	begin(2 * CHUNK);
	sample = cache_file_error_sample(file);
	make_resident(0);
	read = (struct cache_io){.file = file, .off = 0, .len = 1};
	device_latency_ns = 20 * SIM_MS;
	START(cache_read, &read, &reading);
	sim_sleep(10 * SIM_MS);
	device_latency_ns = SIM_MS;
	device_lose(false, true);
	CHECK(await(&reading) == 0);
	CHECK(*(uint8_t *)read.data == 1);
	cache_read_free(&read);
	sim_sleep(200 * SIM_MS);
	CHECK(load(0) == 1);
	CHECK(cache_file_error_check(file, &sample) == 0 && log_lines == 0);
	end();
}

void what_a_lease_stores_to_lost_memory_is_told_when_it_is_over(void)
{
	struct cache_lease lease;
	uint32_t sample;

	begin(2 * CHUNK);
	lease = lease_of(0, 1, CACHE_LEASE_EXCLUSIVE);
	acquire(&lease);
	lose_everything();
	sample = cache_file_error_sample(file);
	CHECK(log_lines == 0);
	release(&lease);
	sim_sleep(200 * SIM_MS);
	CHECK(log_lines == 1);
	CHECK(cache_file_error_check(file, &sample) == -EIO);
	CHECK(load(0) == 1);
	end();
}

/* write(2) fills a page, an acquire invalidates it, somebody reads it again, and only then comes the WRITE. */
void pages_read_again_before_the_write_of_them_came_are_removed_again(void)
{
	struct cache_io write;

	begin(2 * CHUNK);
	cache_file_add_writer(file);
	make_resident(0);
	CHECK(invalidations == 1);
	CHECK(load(0) == 1);
	write = (struct cache_io){.file = file, .off = 0, .len = 1, .data = "\7"};
	CHECK(CACHE_WAIT(cache_write, &write) == 0);
	CHECK(invalidations == 2);
	CHECK(load(0) == 7);
	CHECK(CACHE_WAIT(cache_write, &write) == 0); /* no write(2) was under way then */
	CHECK(invalidations == 2);
	cache_file_remove_writer(file);
	end();
}
