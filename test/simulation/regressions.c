/*
 * regressions.c - each bug that the simulation or the model found, as a scenario of its own.
 *
 * A scenario drives the simulated cache (scheduler.h, disk.h, device.h) with fixed latencies, so that what it sets up comes
 * about whatever seeds draw. Each failed before its bug was fixed (docs/reliability.md). A scenario whose moment is narrow is
 * run with the moment moved in small steps.
 *
 *     hmmfs_regressions [NAME]
 */
#include "test/simulation/scenario.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- mutations ---- */

static void a_mutation_keeps_what_a_lease_that_ended_meanwhile_stored(void)
{
	struct cache_lease lease;
	struct cache_mutation punch;
	struct pending pending;

	begin(2 * CHUNK);
	lease = lease_of(0, 1, CACHE_LEASE_EXCLUSIVE);
	punch = (struct cache_mutation){.file = file, .off = 0, .len = PAGE, .apply = apply_slowly};
	acquire(&lease);
	START(cache_mutate, &punch, &pending);
	sim_sleep(7 * SIM_MS); /* its snapshot of the chunk is over, the change under way */
	memory_of(&lease, 0)[5 * PAGE] = 9;
	release(&lease);
	CHECK(!pending.is_done);
	CHECK(await(&pending) == 0);
	sync_file();
	CHECK(on_disk(5 * PAGE) == 9);
	end();
}

static void an_acquire_given_up_while_a_mutation_ends_takes_no_memory_from_under_a_copy(void)
{
	for (uint64_t at = 11 * SIM_MS; at < 20 * SIM_MS; at += SIM_MS / 4) {
		struct cache_lease lease;
		struct cache_mutation change;
		struct pending changing, acquiring;

		begin(2 * CHUNK);
		make_resident(1); /* the file is active */
		lease = lease_of(0, 1, CACHE_LEASE_SHARED);
		change = (struct cache_mutation){.file = file, .off = 0, .len = 2 * CHUNK, .apply = apply_slowly};
		START(cache_mutate, &change, &changing);
		sim_sleep(5 * SIM_MS);
		disk_plan.latency_ns = 3 * SIM_MS;
		START(cache_acquire, &lease, &acquiring); /* takes memory, and waits for the chunk to thaw */
		sim_sleep(at - 5 * SIM_MS);
		cache_acquire_cancel(&lease);
		if (await(&acquiring) == 0)
			release(&lease);
		CHECK(await(&changing) == 0);
		end();
	}
}

static void a_chunk_first_wanted_while_a_mutation_reloads_is_not_frozen_for_ever(void)
{
	struct cache_lease held, other;
	struct cache_mutation change;
	struct pending pending;

	begin(4 * CHUNK);
	held = lease_of(0, 1, CACHE_LEASE_SHARED);
	other = lease_of(1, 1, CACHE_LEASE_SHARED);
	change = (struct cache_mutation){.file = file, .off = 0, .len = 4 * CHUNK, .apply = apply_at_once};
	acquire(&held);
	disk_plan.latency_ns = 20 * SIM_MS;
	START(cache_mutate, &change, &pending);
	sim_sleep(10 * SIM_MS);
	CHECK(!pending.is_done);
	acquire(&other);
	release(&other);
	release(&held);
	end();
}

static void blocks_reserved_across_a_punched_hole_are_reserved_again(void)
{
	struct cache_lease lease;
	struct cache_mutation punch;
	struct pending acquiring;

	begin(2 * CHUNK);
	make_resident(0);
	lease = lease_of(0, 1, CACHE_LEASE_EXCLUSIVE);
	punch = (struct cache_mutation){.file = file, .off = 0, .len = PAGE, .apply = apply_at_once};
	disk_plan.latency_ns = 20 * SIM_MS;
	START(cache_acquire, &lease, &acquiring);
	sim_sleep(5 * SIM_MS);
	disk_plan.latency_ns = SIM_MS;
	CHECK(disk_plan.fallocates == 1);
	CHECK(CACHE_WAIT(cache_mutate, &punch) == 0);
	CHECK(!acquiring.is_done);
	CHECK(await(&acquiring) == 0);
	CHECK(disk_plan.fallocates == 2);
	release(&lease);
	end();
}

/* ---- the end of file ---- */

static void a_write_past_the_end_does_not_put_its_bytes_into_a_gap_whose_chunk_left(void)
{
	char bytes[2 * PAGE];
	struct cache_io write;
	struct cache_mutation change;
	struct pending changing;

	begin(PAGE);
	make_resident(0);
	memset(bytes, 7, sizeof(bytes));
	write = (struct cache_io){.file = file, .off = 4 * PAGE, .len = sizeof(bytes), .data = bytes};
	change = (struct cache_mutation){.file = file, .off = 0, .len = PAGE, .apply = apply_slowly};
	START(cache_mutate, &change, &changing);
	sim_sleep(5 * SIM_MS);
	CHECK(CACHE_WAIT(cache_write, &write) == 0); /* its gap waits for the chunk, which is dropped then */
	CHECK(await(&changing) == 0);
	CHECK(load(2 * PAGE) == 0);
	CHECK(load(4 * PAGE) == 7);
	end();
}

static void a_write_past_the_end_zeros_every_chunk_between(void)
{
	struct cache_lease lease;
	struct cache_io write;

	begin(PAGE + 11);
	lease = lease_of(0, 3, CACHE_LEASE_EXCLUSIVE);
	write = (struct cache_io){.file = file, .off = 2 * CHUNK + 5, .len = 1, .data = "\7"};
	acquire(&lease);
	memory_of(&lease, 0)[PAGE + 11] = 9; /* behind the end of file: nobody's */
	memory_of(&lease, 1)[100] = 9;
	memory_of(&lease, 2)[4] = 9;
	release(&lease);
	CHECK(CACHE_WAIT(cache_write, &write) == 0);
	CHECK(load(PAGE + 10) == 1);
	CHECK(load(PAGE + 11) == 0);
	CHECK(load(CHUNK + 100) == 0);
	CHECK(load(2 * CHUNK + 4) == 0);
	CHECK(load(2 * CHUNK + 5) == 7);
	sync_file();
	CHECK(on_disk(CHUNK + 100) == 0);
	end();
}

/* The page with the end of file is read in between: nothing behind the end is answered before it is zeros. */
static void read_while_a_write_moves_the_end(bool is_opened_meanwhile)
{
	static char bytes[PAGE];
	struct cache_lease lease;
	struct cache_io write, read;
	struct pending writing;

	begin(11);
	lease = lease_of(0, 1, CACHE_LEASE_EXCLUSIVE);
	write = (struct cache_io){.file = file, .off = 2 * PAGE, .len = sizeof(bytes), .data = bytes};
	acquire(&lease);
	memory_of(&lease, 0)[100] = 9;
	release(&lease);
	device_latency_ns = 20 * SIM_MS;
	START(cache_write, &write, &writing);
	sim_sleep(5 * SIM_MS);
	device_latency_ns = SIM_MS;
	if (is_opened_meanwhile) /* the file is longer already than it was at the last look */
		cache_file_backing_changed(file);
	read = (struct cache_io){.file = file, .off = 0, .len = PAGE};
	CHECK(CACHE_WAIT(cache_read, &read) == 0);
	CHECK(read.done_bytes <= 100 || ((uint8_t *)read.data)[100] == 0);
	cache_read_free(&read);
	CHECK(!writing.is_done);
	CHECK(await(&writing) == 0);
	end();
}

static void a_read_while_a_write_moves_the_end_shows_nothing_of_what_was_behind(void)
{
	read_while_a_write_moves_the_end(false);
}

static void an_open_while_a_write_moves_the_end_shows_nothing_of_what_was_behind(void)
{
	read_while_a_write_moves_the_end(true);
}

/* Whatever could leave is DIRTY, behind the end of file and being zeroed: its snapshot is nothing and cleans nothing, and the next
 * may start at once. The engine must look at what the device has done in between. */
static void room_is_made_while_chunks_behind_the_end_are_zeroed(void)
{
	struct cache_lease first, behind, other;
	struct cache_io write;
	struct pending writing, acquiring;

	begin(PAGE);
	first = lease_of(0, 1, CACHE_LEASE_SHARED); /* stays, so that all others are behind the end */
	behind = lease_of(1, 3, CACHE_LEASE_EXCLUSIVE);
	other = lease_of(5, 3, CACHE_LEASE_SHARED);
	write = (struct cache_io){.file = file, .off = 4 * CHUNK, .len = 1, .data = "\7"};
	acquire(&first);
	acquire(&behind);
	release(&behind);
	device_latency_ns = 20 * SIM_MS;
	START(cache_write, &write, &writing);
	sim_sleep(5 * SIM_MS);
	device_latency_ns = SIM_MS;
	sim_be_punctual(false); /* or time would stand still while the engine is busy */
	START(cache_acquire, &other, &acquiring);
	CHECK(await(&writing) == 0);
	CHECK(await(&acquiring) == 0);
	release(&other);
	release(&first);
	end();
}

static void evicting_a_dirty_chunk_behind_the_end_of_file_ends(void)
{
	struct cache_lease lease;
	struct cache_place place;

	begin(PAGE);
	lease = lease_of(1, 1, CACHE_LEASE_EXCLUSIVE);
	place = (struct cache_place){.file = file, .off = CHUNK, .len = CHUNK};
	acquire(&lease);
	release(&lease);
	CHECK(CACHE_WAIT(cache_evict, &place) == 0);
	end();
}

/* ---- leases that are revoked ---- */

struct revocable {
	struct cache_lease lease;
	bool is_revoked;
};

static void on_revoked(struct cache_lease *lease)
{
	((struct revocable *)(void *)lease)->is_revoked = true;
	sim_wake(lease);
}

/* first has the chunk, until it is revoked for second. */
static void begin_with_revocation(struct revocable *first, struct revocable *second)
{
	begin_with(2 * CHUNK, (struct cache_config){.capacity_bytes = 4 * CHUNK, .lease_timeout_ms = 100});
	*first = *second = (struct revocable){.lease = lease_of(0, 1, CACHE_LEASE_EXCLUSIVE)};
	first->lease.revoked = on_revoked;
	acquire(&first->lease);
}

static void memory_that_a_revoked_lease_could_not_be_relieved_of_is_freed_once(void)
{
	struct revocable first, second;
	struct pending pending;

	begin_with_revocation(&first, &second);
	device_failing_copies = 1;
	START(cache_acquire, &second.lease, &pending);
	while (!first.is_revoked)
		sim_block(&first.lease);
	CHECK(await(&pending) == 0); /* on the memory that the first one still maps */
	second.lease.is_abandoned = true;
	release(&second.lease);
	release(&first.lease);
	end();
}

static void a_release_that_crosses_the_revocation_is_told_of_it(void)
{
	struct revocable first, second;
	struct pending pending;

	begin_with_revocation(&first, &second);
	device_latency_ns = SIM_S; /* copying to other memory takes two seconds, and begins within 0.3 */
	START(cache_acquire, &second.lease, &pending);
	sim_sleep(SIM_S);
	CHECK(!pending.is_done);
	release(&first.lease);
	CHECK(first.is_revoked);
	device_latency_ns = SIM_MS;
	CHECK(await(&pending) == 0);
	release(&second.lease);
	end();
}

/* ---- acquires that are given up ---- */

static void an_acquire_given_up_while_its_file_drains_leaves_it_usable(void)
{
	struct cache_lease lease;
	struct pending pending;

	begin(CHUNK);
	lease = lease_of(0, 1, CACHE_LEASE_SHARED);
	CHECK(cache_file_enter_write(file)); /* a WRITE outside of the engine */
	START(cache_acquire, &lease, &pending);
	sim_sleep(SIM_MS);
	cache_acquire_cancel(&lease);
	CHECK(await(&pending) == -ECANCELED);
	sim_sleep(SIM_MS);
	cache_file_leave_write(file);
	make_resident(0);
	CHECK(load(0) == 1);
	end();
}

static void memory_of_a_fill_that_was_given_up_is_had_by_who_waits_for_it(void)
{
	struct cache_lease first, second;
	struct pending filling, waiting;

	begin(8 * CHUNK);
	first = lease_of(0, 4, CACHE_LEASE_SHARED); /* as many as there are */
	second = lease_of(4, 4, CACHE_LEASE_SHARED);
	disk_plan.latency_ns = 20 * SIM_MS;
	START(cache_acquire, &first, &filling);
	sim_sleep(5 * SIM_MS);
	cache_acquire_cancel(&first);
	CHECK(await(&filling) == -ECANCELED);
	START(cache_acquire, &second, &waiting);
	CHECK(await(&waiting) == 0);
	release(&second);
	end();
}

static void memory_taken_for_a_fill_that_never_began_is_given_back(void)
{
	struct cache_lease lease;
	struct cache_io write;
	struct pending writing, acquiring;

	begin(2 * CHUNK);
	make_resident(0); /* the file is active */
	lease = lease_of(1, 1, CACHE_LEASE_SHARED);
	write = (struct cache_io){.file = file, .off = CHUNK, .len = 1, .data = "\7"};
	disk_plan.latency_ns = 20 * SIM_MS;
	START(cache_write, &write, &writing);
	sim_sleep(5 * SIM_MS);
	START(cache_acquire, &lease, &acquiring); /* its fill waits for the WRITE */
	sim_sleep(5 * SIM_MS);
	cache_acquire_cancel(&lease);
	CHECK(await(&acquiring) == -ECANCELED);
	CHECK(await(&writing) == 0);
	sim_sleep(5 * SIM_MS);
	end();
}

/* ---- disk and clock ---- */

static void a_read_waits_for_the_write_of_its_page_that_is_under_way(void)
{
	struct cache_io write;
	struct pending writing;

	begin(2 * CHUNK);
	make_resident(0); /* the file is active */
	write = (struct cache_io){.file = file, .off = CHUNK, .len = 1, .data = "\7"};
	disk_plan.latency_ns = 20 * SIM_MS;
	START(cache_write, &write, &writing);
	sim_sleep(5 * SIM_MS);
	disk_plan.latency_ns = SIM_MS;
	CHECK(load(CHUNK) == 7);
	CHECK(await(&writing) == 0);
	end();
}

static void every_request_that_is_refused_direct_io_is_made_again(void)
{
	struct cache_lease lease;

	disk_file_init(&disk, true, true);
	begin(2 * CHUNK);
	lease = lease_of(0, 2, CACHE_LEASE_SHARED);
	acquire(&lease);
	release(&lease);
	end();
}

static void an_interrupted_fsync_is_no_error(void)
{
	begin(CHUNK);
	make_resident(0);
	disk_plan.interrupted_fsyncs = 2;
	sync_file();
	CHECK(disk_plan.interrupted_fsyncs == 0);
	end();
}

static void the_engine_sleeps_when_no_read_is_held_any_more(void)
{
	struct cache_lease lease;
	struct cache_io read;
	struct pending reading;

	begin_with(CHUNK, (struct cache_config){.capacity_bytes = 4 * CHUNK, .read_timeout_ms = 1000});
	lease = lease_of(0, 1, CACHE_LEASE_EXCLUSIVE);
	read = (struct cache_io){.file = file, .off = 0, .len = 1};
	acquire(&lease);
	START(cache_read, &read, &reading);
	sim_sleep(10 * SIM_MS);
	CHECK(!reading.is_done);
	release(&lease);
	CHECK(await(&reading) == 0);
	cache_read_free(&read);
	disk_plan.ring_runs = 0;
	sim_sleep(5 * SIM_S);
	CHECK(disk_plan.ring_runs < 100);
	end();
}

/* ---- all of them ---- */

#define SCENARIO(name) {#name, name}
static const struct scenario {
	const char *name;
	void (*run)(void);
} scenarios[] = {
	SCENARIO(a_mutation_keeps_what_a_lease_that_ended_meanwhile_stored),
	SCENARIO(an_acquire_given_up_while_a_mutation_ends_takes_no_memory_from_under_a_copy),
	SCENARIO(a_chunk_first_wanted_while_a_mutation_reloads_is_not_frozen_for_ever),
	SCENARIO(blocks_reserved_across_a_punched_hole_are_reserved_again),
	SCENARIO(a_write_past_the_end_does_not_put_its_bytes_into_a_gap_whose_chunk_left),
	SCENARIO(a_write_past_the_end_zeros_every_chunk_between),
	SCENARIO(a_read_while_a_write_moves_the_end_shows_nothing_of_what_was_behind),
	SCENARIO(an_open_while_a_write_moves_the_end_shows_nothing_of_what_was_behind),
	SCENARIO(room_is_made_while_chunks_behind_the_end_are_zeroed),
	SCENARIO(evicting_a_dirty_chunk_behind_the_end_of_file_ends),
	SCENARIO(memory_that_a_revoked_lease_could_not_be_relieved_of_is_freed_once),
	SCENARIO(a_release_that_crosses_the_revocation_is_told_of_it),
	SCENARIO(an_acquire_given_up_while_its_file_drains_leaves_it_usable),
	SCENARIO(memory_of_a_fill_that_was_given_up_is_had_by_who_waits_for_it),
	SCENARIO(memory_taken_for_a_fill_that_never_began_is_given_back),
	SCENARIO(a_read_waits_for_the_write_of_its_page_that_is_under_way),
	SCENARIO(every_request_that_is_refused_direct_io_is_made_again),
	SCENARIO(an_interrupted_fsync_is_no_error),
	SCENARIO(the_engine_sleeps_when_no_read_is_held_any_more),
	SCENARIO(pages_read_again_before_the_write_of_them_came_are_removed_again),
	SCENARIO(bytes_lost_with_the_device_are_told_to_each_descriptor_once),
	SCENARIO(a_write_that_a_lost_copy_did_not_get_goes_to_the_backing),
	SCENARIO(clean_bytes_lost_with_the_device_are_read_from_the_backing),
	SCENARIO(what_a_lease_stores_to_lost_memory_is_told_when_it_is_over),
};

static void give_up(int signal)
{
	(void)signal;
	sim_fail("the scenario has not come to an end");
}

static bool passes(const struct scenario *scenario)
{
	static const struct itimerval limit = {.it_value.tv_sec = 10};
	pid_t pid;
	int status;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		signal(SIGPROF, give_up);
		setitimer(ITIMER_PROF, &limit, NULL); /* CPU time: how busy the machine is does not matter */
		scenario->run();
		_exit(0);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int main(int argc, char **argv)
{
	unsigned n_run = 0, n_failed = 0;

	for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
		if (argc > 1 && strcmp(argv[1], scenarios[i].name) != 0)
			continue;
		n_run++;
		if (!passes(&scenarios[i])) {
			n_failed++;
			printf("FAIL %s\n", scenarios[i].name);
		}
	}
	printf("regressions: %u run, %u failed\n", n_run, n_failed);
	return n_failed == 0 && n_run > 0 ? 0 : 1;
}
