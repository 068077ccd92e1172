/*
 * run.c - one run: what each actor does, and what must hold at the end.
 *
 * What an actor does at its k-th step depends on the seed, the actor and k alone, so that a step can be left out
 * without changing the others: a failure is made small that way (main.c).
 */
#include "test/simulation/run.h"

#include "test/simulation/device.h"
#include "test/simulation/kernel.h"
#include "test/simulation/scheduler.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES = 2, CPUS = 3, CLIENTS = 3, CHUNK_BYTES = 64 << 10, CHUNK_CELLS = CHUNK_BYTES / PAGE_BYTES * PAGE_CELLS, CHUNKS = 6, CELLS = CHUNKS * CHUNK_CELLS };
#define LIMIT_NS (600 * SIM_S)

struct actor {
	unsigned number;
	pthread_t thread;
	uint64_t began; /* the tick its operation began at; UINT64_MAX: none */
	bool is_writer[FILES];
	struct descriptor descriptors[FILES];
	char doing[96];
	struct cache_lease *cancellable;
};

/* One operation's numbers. */
struct choice {
	uint64_t kind, file, cell, n, delay, variant;
};

static struct cache *cache;
static struct sim_file files[FILES];
static struct actor actors[ACTORS];
static uint64_t run_seed, next_stamp, *operations;
static const uint64_t *skipped;
static bool calls_fsync_under_lease, has_losses;
bool is_verbose, has_faults, had_faults;

uint64_t stamp_next(void)
{
	return ++next_stamp;
}

uint64_t history_horizon(void)
{
	uint64_t horizon = UINT64_MAX;

	for (size_t i = 0; i < ACTORS; i++) {
		if (actors[i].began < horizon)
			horizon = actors[i].began;
	}
	return horizon;
}

struct sim_file *file_named(const char *name, size_t len)
{
	for (size_t i = 0; i < FILES; i++) {
		if (strncmp(files[i].name, name, len) == 0 && files[i].name[len] == '\0')
			return &files[i];
	}
	sim_fail("there is no file %.*s", (int)len, name);
}

static void tolerate(const struct actor *actor, int err, const char *what)
{
	if (err == -EIO && device_had_lost_since(actor->began))
		return;
	if (err == -ENODEV && (device_had_lost_since(0) || device_is_dead)) /* ever: who joins others that wait for a chunk hears of their fill's error */
		return;
	if (err == -ENOMEM && device_memory_chunks > 0)
		return; /* not a single chunk could be had, or fewer than wanted */
	if (err < 0 && !has_faults && err != -ECANCELED && err != -EBUSY)
		sim_fail("%s failed with %d (%s), and no error was injected", what, err, strerror(-err));
}

/* Whether a loss was to be told, descriptor_check has looked; a direct read fails, too, after a dirty page could not be flushed. */
static void tolerate_told(const struct actor *actor, int err, const char *what)
{
	if (err != -EIO || !has_losses)
		tolerate(actor, err, what);
}

static void describe(struct actor *actor, const char *what, const struct choice *c)
{
	snprintf(actor->doing, sizeof(actor->doing), "%s %s cell %llu n %llu", what, files[c->file].name,
		 (unsigned long long)c->cell, (unsigned long long)c->n);
	sim_doing(actor->doing, LIMIT_NS);
	if (is_verbose)
		fprintf(stderr, "  %.6f actor %u: %s\n", (double)sim_now() / 1e9, actor->number, actor->doing);
}

/* ---- processors ---- */

static void open_for_writing(struct actor *actor, size_t f)
{
	if (actor->is_writer[f])
		return;
	cache_file_add_writer(files[f].cached);
	descriptor_open(&files[f], &actor->descriptors[f]);
	actor->is_writer[f] = true;
}

static void close_file(struct actor *actor, size_t f)
{
	struct cache_sync sync = {.file = files[f].cached, .is_flush = true};

	if (!actor->is_writer[f])
		return;
	kernel_flush(&files[f]);
	if (cache_file_is_active(files[f].cached))
		tolerate(actor, CACHE_WAIT(cache_sync, &sync), "flush");
	tolerate_told(actor, descriptor_check(&files[f], &actor->descriptors[f]), "close");
	descriptor_close(&files[f], &actor->descriptors[f]);
	cache_file_remove_writer(files[f].cached);
	actor->is_writer[f] = false;
}

static void cpu_step(struct actor *actor, const struct choice *c)
{
	struct sim_file *file = &files[c->file];
	size_t n = 1 + c->n % IO_CELLS_MAX, cell = c->cell % (CELLS - IO_CELLS_MAX);

	if (c->kind >= 30)
		open_for_writing(actor, c->file);
	if (c->kind < 28) {
		describe(actor, "load", c);
		for (size_t i = 0; i < 1 + n / 12; i++)
			tolerate(actor, kernel_load(file, cell / PAGE_CELLS + i), "load");
	} else if (c->kind < 30) {
		describe(actor, "direct read", c);
		tolerate_told(actor, kernel_read_direct(file, cell, n), "direct read");
	} else if (c->kind < 60) {
		describe(actor, "store", c);
		for (size_t i = 0; i < 1 + n / 12; i++)
			tolerate(actor, kernel_store(file, cell + 2 * i), "store");
	} else if (c->kind < 80) {
		describe(actor, c->variant % 4 == 0 ? "direct write" : "write", c);
		tolerate(actor, kernel_write(file, cell, n, c->variant % 4 == 0), "write");
	} else if (c->kind < 88) {
		describe(actor, "fsync", c);
		tolerate_told(actor, kernel_fsync(file, &actor->descriptors[c->file]), "fsync");
	} else if (c->kind < 92) {
		describe(actor, "truncate", c);
		tolerate(actor, kernel_truncate(file, c->cell), "truncate");
	} else if (c->kind < 96) {
		describe(actor, "punch", c);
		tolerate(actor, kernel_punch(file, cell, n), "punch");
	} else {
		describe(actor, "close", c);
		close_file(actor, c->file);
	}
}

/* ---- clients of the device ---- */

struct holding {
	struct cache_lease lease;
	struct sim_file *file;
	bool is_revoked, is_released;
};

static void on_revoked(struct cache_lease *lease)
{
	((struct holding *)(void *)lease)->is_revoked = true;
}

static void on_released(struct cache_op *op, int status)
{
	struct holding *holding = (struct holding *)(void *)op;

	(void)status;
	holding->is_released = true;
	sim_wake(holding);
}

static void cancel(void *argument)
{
	struct actor *actor = argument;

	if (actor->cancellable != NULL)
		cache_acquire_cancel(actor->cancellable);
}

static struct gpu_chunk *chunk_of_cell(struct holding *holding, size_t cell)
{
	uint64_t generation;

	return cache_lease_chunk(&holding->lease, cell / CHUNK_CELLS - holding->lease.first_chunk, &generation);
}

static uint8_t *device_cell(struct holding *holding, size_t cell)
{
	return device_memory(chunk_of_cell(holding, cell)) + cell_offset(cell) % CHUNK_BYTES;
}

static void device_store(struct holding *holding, size_t cell, const void *lease)
{
	uint64_t stamp = stamp_next();

	history_store(&holding->file->histories[cell], stamp, sim_tick(), STORE_OPEN, lease, history_horizon());
	cell_fill(device_cell(holding, cell), cell, stamp);
}

/* Loads and stores of a kernel, also behind the end of file, where nobody is to see them. */
static void compute(struct holding *holding, const struct choice *c, uint64_t acquire_tick)
{
	bool is_exclusive = holding->lease.mode == CACHE_LEASE_EXCLUSIVE;
	size_t first = holding->lease.first_chunk * CHUNK_CELLS, n = holding->lease.n_chunks * CHUNK_CELLS;

	for (size_t i = 0; i < 8 && !holding->is_revoked; i++) {
		size_t cell = first + sim_mix(c->delay, i, 1) % n;
		bool is_inside = cell_offset(cell + 1) <= holding->file->size;

		if (is_inside && !device_is_lost(chunk_of_cell(holding, cell)))
			check_seen(holding->file, cell, cell_stamp(device_cell(holding, cell), cell), acquire_tick, "the device");
		if (is_exclusive && is_inside && i % 2 == 1)
			device_store(holding, cell, &holding->lease);
		else if (is_exclusive && is_behind_end(holding->file, cell) && !holding->file->is_size_unstable)
			cell_fill(device_cell(holding, cell), cell, stamp_next());
		if (i % 3 == 0)
			sim_sleep(sim_random(c->variant % 32 == 1 ? 2 * SIM_S : 2 * SIM_MS));
	}
}

static void register_lease(struct holding *holding, bool is_granted)
{
	struct sim_file *file = holding->file;
	unsigned i = 0;

	if (is_granted) {
		file->leases[file->n_leases].lease = &holding->lease;
		file->leases[file->n_leases].first = holding->lease.first_chunk * CHUNK_CELLS;
		file->leases[file->n_leases++].n = holding->lease.n_chunks * CHUNK_CELLS;
		return;
	}
	while (file->leases[i].lease != &holding->lease)
		i++;
	file->leases[i] = file->leases[--file->n_leases];
}

/* The stores of the lease are over; of a revoked one nobody knows which the others saw. */
static void end_stores(struct holding *holding)
{
	const void *lease = &holding->lease;

	for (size_t i = 0; i < CELLS_MAX; i++) {
		struct history *history = &holding->file->histories[i];

		for (size_t k = 0; k < history->n && holding->is_revoked; k++) {
			if (history->stores[k].lease == lease)
				history->stores[k].lease = history; /* stays open for ever */
		}
		history_end_lease(history, lease, sim_tick());
	}
}

/* A client that is killed stores on until its memory is taken away. */
static void release(struct holding *holding, bool is_killed)
{
	size_t cell = holding->lease.first_chunk * CHUNK_CELLS;

	holding->lease.is_abandoned = is_killed;
	holding->lease.op.done = on_released;
	cache_release(&holding->lease);
	while (!holding->is_released) {
		if (is_killed && holding->lease.mode == CACHE_LEASE_EXCLUSIVE && cell_offset(cell + 1) <= holding->file->size &&
		    holding->lease.internal != NULL) /* until then the memory is there: other clients' mappings aside */
			device_store(holding, cell, &holding->file->histories[cell]);
		sim_block_for(holding, 100 * SIM_US);
	}
}

static void client_step(struct actor *actor, const struct choice *c)
{
	size_t first = c->cell / CHUNK_CELLS % CHUNKS;
	struct holding holding = {.file = &files[c->file],
				  .lease = {.file = files[c->file].cached, .first_chunk = first,
					    .n_chunks = 1 + c->n % (CHUNKS - first < 3 ? CHUNKS - first : 3),
					    .mode = c->kind < 50 ? CACHE_LEASE_SHARED : CACHE_LEASE_EXCLUSIVE,
					    .revoked = on_revoked}};
	bool is_exclusive = holding.lease.mode == CACHE_LEASE_EXCLUSIVE;
	uint64_t start = sim_tick();
	struct descriptor descriptor;
	int err;

	describe(actor, is_exclusive ? "exclusive lease" : "shared lease", c);
	descriptor_open(&files[c->file], &descriptor);
	if (c->variant % 8 == 0) {
		actor->cancellable = &holding.lease;
		sim_after(c->delay % (2 * SIM_MS), cancel, actor);
	}
	if (is_exclusive)
		register_lease(&holding, true); /* from here on: when exactly it is granted, nobody sees */
	err = CACHE_WAIT(cache_acquire, &holding.lease);
	actor->cancellable = NULL;
	tolerate(actor, err, "acquire");
	if (err < 0) {
		if (is_exclusive) {
			register_lease(&holding, false);
			end_stores(&holding);
		}
		descriptor_close(&files[c->file], &descriptor);
		return;
	}
	compute(&holding, c, start);
	if (is_exclusive && calls_fsync_under_lease && c->variant % 4 == 1)
		tolerate_told(actor, kernel_fsync(holding.file, &descriptor), "fsync under a lease");
	descriptor_close(&files[c->file], &descriptor);
	release(&holding, c->variant % 8 == 2);
	if (is_exclusive) {
		register_lease(&holding, false);
		end_stores(&holding);
	}
}

/* ---- the rest of the world ---- */

/* After a power failure now the disk has what the last successful fsync promised, or something newer. */
static void check_power_loss(struct sim_file *file)
{
	static uint8_t bytes[DISK_FILE_MAX];

	disk_after_power_loss(&file->disk, bytes, DISK_FILE_MAX, 0);
	for (size_t i = 0; cell_offset(i) < file->size; i++)
		check_seen(file, i, cell_stamp(bytes + cell_offset(i), i), file->histories[i].synced,
			   "the disk, after a power failure,");
}

static void world_step(struct actor *actor, const struct choice *c)
{
	struct sim_file *file = &files[c->file];
	struct cache_place place = {.file = file->cached, .off = (off_t)(c->cell / CHUNK_CELLS % CHUNKS * CHUNK_BYTES),
				    .len = (off_t)(1 + c->n % 4) * CHUNK_BYTES};
	struct cache_sync sync = {.cache = cache};
	struct cache_chunk_info infos[CHUNKS];
	struct cache_map map = {.file = file->cached, .max = CHUNKS, .chunks = infos};
	struct cache_status status;

	switch (c->kind / 10) {
	case 0: case 1:
		describe(actor, "prefetch", c);
		tolerate(actor, CACHE_WAIT(cache_prefetch, &place), "prefetch");
		break;
	case 2: case 3:
		describe(actor, "evict", c);
		tolerate(actor, CACHE_WAIT(cache_evict, &place), "evict");
		break;
	case 4:
		describe(actor, "sync everything", c);
		tolerate(actor, CACHE_WAIT(cache_sync_all, &sync), "sync");
		break;
	case 5:
		describe(actor, "map and status", c);
		CACHE_WAIT(cache_map, &map);
		break;
	case 6:
		describe(actor, "backing changed", c);
		cache_file_backing_changed(file->cached);
		cache_get_status(cache, &status);
		break;
	case 7:
		describe(actor, "the kernel flushes", c);
		kernel_flush(file);
		break;
	case 8:
		describe(actor, "memory pressure", c);
		kernel_drop_clean(file);
		break;
	default:
		if (has_losses && c->kind >= 95) {
			describe(actor, "the device loses memory", c);
			device_lose(c->variant % 4 == 0, c->variant % 32 == 0);
			break;
		}
		describe(actor, "power failure", c);
		check_power_loss(file);
	}
}

/* ---- a run ---- */

static void *actor_main(void *argument)
{
	struct actor *actor = argument;

	for (uint64_t k = 0; k < OPERATIONS; k++) {
		uint64_t r = sim_mix(run_seed, actor->number, k);
		struct choice c = {.kind = r % 100, .file = sim_mix(r, 0, 1) % 4 == 0, .cell = sim_mix(r, 0, 2) % CELLS,
				   .n = sim_mix(r, 0, 3) % 1000, .delay = sim_mix(r, 0, 4), .variant = sim_mix(r, 0, 5) % 1000};

		if (skipped[actor->number] & UINT64_C(1) << k)
			continue;
		sim_sleep(c.delay % (c.variant % 16 == 0 ? 50 * SIM_MS : SIM_MS));
		actor->began = sim_tick();
		if (actor->number < CPUS)
			cpu_step(actor, &c);
		else if (actor->number < CPUS + CLIENTS)
			client_step(actor, &c);
		else
			world_step(actor, &c);
		actor->began = UINT64_MAX;
		sim_doing(NULL, 0);
		++*operations;
	}
	return NULL;
}

static void file_start(struct sim_file *file, const char *name)
{
	static uint8_t bytes[DISK_FILE_MAX];
	size_t n_cells;

	memset(file, 0, sizeof(*file));
	memset(bytes, 0, sizeof(bytes));
	file->name = name;
	disk_file_init(&file->disk, !sim_chance(4), sim_chance(16));
	n_cells = sim_random(CELLS + 1);
	file->size = cell_offset(n_cells);
	for (size_t i = 0; i < CELLS_MAX; i++) {
		uint64_t stamp = i < n_cells && !sim_chance(4) ? stamp_next() : 0;

		history_init(&file->histories[i], stamp);
		cell_fill(bytes + cell_offset(i), i, stamp);
	}
	disk_file_put(&file->disk, bytes, file->size, sim_chance(2));
	if (cache_file_create(cache, file, &file->cached) < 0)
		abort();
}

/* Whoever has a file open still is told of what was lost, once; and nobody keeps lost memory. */
static void check_losses(void)
{
	for (size_t i = 0; i < CPUS; i++) {
		for (size_t f = 0; f < FILES; f++) {
			if (actors[i].is_writer[f])
				descriptor_check(&files[f], &actors[i].descriptors[f]);
		}
	}
	for (unsigned i = 0; i < 20; i++) /* once would not do: who is awake need not be let run before the next event */
		sim_sleep(100 * SIM_MS);
	if (device_had_lost_since(sim_tick()))
		sim_fail("lost memory is kept though nobody uses it");
}

/* Everything is on the disk, and the file is as long as the kernel thinks. */
static void file_end(struct sim_file *file)
{
	struct stat st;

	cache_file_destroy(file->cached);
	if (disk_fsync(&file->disk) < 0)
		abort();
	for (size_t i = 0; i < CELLS_MAX; i++)
		file->histories[i].synced = sim_tick();
	check_power_loss(file);
	/* A WRITE that failed half way may have moved the end of the backing. */
	if (fstat(file->disk.memfd, &st) < 0 || (!had_faults && !has_losses && st.st_size != file->size))
		sim_fail("%s has %lld bytes in the backing, %lld in the kernel", file->name, (long long)st.st_size,
			 (long long)file->size);
	for (size_t i = 0; i < CELLS_MAX; i++)
		history_finish(&file->histories[i]);
	disk_file_finish(&file->disk);
}

static void configure(struct cache_config *config)
{
	static const unsigned intervals[] = {0, 10, 1000};

	*config = (struct cache_config){.device = "sim", .chunk_bytes = CHUNK_BYTES, .bounce_bytes = 8 << 20,
					.capacity_bytes = (4 + sim_random(5)) * CHUNK_BYTES,
					.cpu_access = (enum cache_cpu_access)sim_random(3),
					.writeback_interval_ms = intervals[sim_random(3)],
					.read_timeout_ms = sim_chance(3) ? 0 : 1000,
					.lease_timeout_ms = sim_chance(4) ? 1000 : 0};
	calls_fsync_under_lease = config->read_timeout_ms > 0;
	has_losses = sim_mix(run_seed, 1, 2) % 4 == 0;
	had_faults = has_faults = sim_chance(4);
	disk_faults = (struct disk_faults){.error = has_faults ? 40 : 0, .short_io = sim_chance(2) ? 8 : 0,
					   .again = sim_chance(2) ? 16 : 0};
	device_error_one_in = has_faults && sim_chance(2) ? 60 : 0;
	device_memory_chunks = sim_chance(3) ? 16 : 0;
	if (device_memory_chunks > 0 && sim_chance(2))
		config->capacity_bytes = 0; /* auto: half of it, with a reserve */
	if (is_verbose)
		fprintf(stderr, "  capacity %llu chunks, cpu_access %d, writeback_interval %u ms, read_timeout %u ms, "
			"lease_timeout %u ms, memory %zu chunks, errors of the disk %u, of the device %u, short %u, again %u\n",
			(unsigned long long)(config->capacity_bytes / CHUNK_BYTES), config->cpu_access,
			config->writeback_interval_ms, config->read_timeout_ms, config->lease_timeout_ms, device_memory_chunks, disk_faults.error,
			device_error_one_in, disk_faults.short_io, disk_faults.again);
}

static void finish(void)
{
	struct cache_sync sync = {.cache = cache};
	struct cache_status status;

	has_faults = false;
	disk_faults = (struct disk_faults){0};
	device_error_one_in = 0;
	sim_doing("the end", LIMIT_NS);
	for (size_t i = 0; i < FILES; i++)
		kernel_flush(&files[i]);
	CACHE_WAIT(cache_sync_all, &sync); /* a failure from before may be told here */
	CACHE_WAIT(cache_sync_all, &sync);
	cache_get_status(cache, &status);
	if (status.dirty_bytes > 0)
		sim_fail("%llu bytes are DIRTY still after everything was synced", (unsigned long long)status.dirty_bytes);
	check_losses();
	for (size_t i = 0; i < FILES; i++)
		kernel_check_owed(&files[i]);
	for (size_t i = 0; i < FILES; i++)
		file_end(&files[i]);
	cache_destroy(cache);
}

void run_simulation(uint64_t seed, const uint64_t skip[ACTORS], uint64_t *n_operations)
{
	struct cache_config config;
	char *error;

	sim_init(seed);
	run_seed = seed;
	skipped = skip;
	operations = n_operations;
	next_stamp = 0;
	disk_faults = (struct disk_faults){0};
	for (unsigned i = 0; i < ACTORS; i++)
		actors[i] = (struct actor){.number = i, .began = UINT64_MAX};
	configure(&config);
	if (cache_create(&config, &kernel_callbacks, NULL, &cache, &error) < 0)
		sim_fail("cache_create: %s", error);
	if (cache_start(cache) < 0)
		sim_fail("cache_start");
	for (size_t i = 0; i < FILES; i++)
		file_start(&files[i], i == 0 ? "a" : "b");
	for (size_t i = 0; i < ACTORS; i++) {
		pthread_create(&actors[i].thread, NULL, actor_main, &actors[i]);
		pthread_setname_np(actors[i].thread, i < CPUS ? "processor" : i < CPUS + CLIENTS ? "client" : "world");
	}
	for (size_t i = 0; i < ACTORS; i++)
		pthread_join(actors[i].thread, NULL);
	finish();
}
