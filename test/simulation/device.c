/*
 * device.c - the simulated device behind gpu/gpu.h: memory that clients map, copies that take a random time, are done
 * in two halves and overtake each other, and fail now and then; other users of the device's memory, who come and go; and memory
 * that is lost.
 */
#include "test/simulation/device.h"

#include "gpu/gpu.h"
#include "test/simulation/scheduler.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct gpu_chunk {
	uint8_t *memory;
	unsigned in_flight;
	bool is_allocated; /* at its first operation */
	bool is_freed;
	bool is_lost;
	struct gpu_chunk *next; /* of the device's, freed ones too: a second free is seen */
};

struct device {
	struct gpu_device base;
	struct gpu_bounce bounce;
	size_t n_chunks, n_allocated, n_others; /* n_others: chunks that somebody else has */
	bool is_given_back;                     /* by those others, ever */
	struct gpu_chunk *chunks;
	size_t n_lost; /* and not freed yet */
	uint64_t lost_until;
	void (*lost)(void *user);
	void *user;
};

struct copy {
	struct device *dev;
	struct gpu_op *op;
	struct gpu_chunk *chunk, *from;
	uint8_t *to_bytes;
	const uint8_t *from_bytes; /* NULL: fill */
	uint8_t byte;
	size_t len;
	bool is_second_half;
	int status;
};

unsigned device_error_one_in, device_failing_copies;
size_t device_memory_chunks;
uint64_t device_latency_ns;
bool device_is_dead;
static struct device *the_device;

uint8_t *device_memory(struct gpu_chunk *chunk)
{
	static uint8_t nowhere[1 << 20]; /* a client's mapping outlives the chunk, and what it stores shows nowhere */

	return chunk->is_freed ? nowhere : chunk->memory;
}

static uint64_t latency(void)
{
	if (device_latency_ns > 0)
		return device_latency_ns;
	return sim_chance(16) ? sim_random(5 * SIM_MS) : sim_random(50 * SIM_US);
}

static void move(const struct copy *copy, size_t from, size_t to)
{
	if (copy->status < 0)
		return;
	if (copy->from_bytes == NULL)
		memset(copy->to_bytes + from, copy->byte, to - from);
	else
		memcpy(copy->to_bytes + from, copy->from_bytes + from, to - from);
}

static void copy_step(void *argument)
{
	struct copy *copy = argument;
	size_t half = copy->len / 2 & ~(size_t)4095;

	if (copy->chunk->is_lost || (copy->from != NULL && copy->from->is_lost))
		copy->status = -ENODEV;
	if (!copy->is_second_half) {
		move(copy, 0, half);
		copy->is_second_half = true;
		sim_after(latency(), copy_step, copy);
		return;
	}
	move(copy, half, copy->len);
	copy->chunk->in_flight--;
	if (copy->from != NULL)
		copy->from->in_flight--;
	copy->op->done(copy->op, copy->status);
	free(copy);
}

/* Whoever else uses the device takes and gives some, at random. */
static void move_others(struct device *device)
{
	size_t others = sim_chance(2) ? 0 : sim_random(device_memory_chunks + 1);

	if (sim_chance(40) && (device->is_given_back || others > device->n_others))
		device->n_others = others;
}

static int allocate(struct device *device, struct gpu_chunk *chunk)
{
	if (chunk->is_allocated)
		return 0;
	move_others(device);
	if (device_memory_chunks > 0 && device->n_allocated + device->n_others >= device_memory_chunks)
		return -ENOMEM;
	device->n_allocated++;
	chunk->is_allocated = true;
	return 0;
}

static void start(struct gpu_device *dev, struct copy copy)
{
	struct copy *started = malloc(sizeof(*started));

	*started = copy;
	started->dev = (struct device *)(void *)dev;
	started->status = allocate(started->dev, copy.chunk);
	if (started->status == 0 && sim_chance(device_error_one_in))
		started->status = -EIO;
	if (started->from != NULL && device_failing_copies > 0) {
		device_failing_copies--;
		started->status = -EIO;
	}
	started->chunk->in_flight++;
	if (started->from != NULL)
		started->from->in_flight++;
	sim_after(latency(), copy_step, started);
}

static int chunk_create(struct gpu_device *dev, struct gpu_chunk **out)
{
	struct device *device = (struct device *)(void *)dev;
	struct gpu_chunk *chunk;

	if (device_is_dead)
		return -ENODEV;
	chunk = malloc(sizeof(*chunk));
	*chunk = (struct gpu_chunk){.memory = calloc(1, dev->chunk_bytes), .next = device->chunks};
	device->chunks = chunk;
	device->n_chunks++;
	*out = chunk;
	return 0;
}

static void chunk_destroy(struct gpu_device *dev, struct gpu_chunk *chunk)
{
	if (chunk->in_flight > 0)
		sim_fail("device memory is freed with %u copies in flight on it", chunk->in_flight);
	if (chunk->is_freed)
		sim_fail("device memory is freed twice");
	((struct device *)(void *)dev)->n_chunks--;
	((struct device *)(void *)dev)->n_allocated -= chunk->is_allocated;
	if (chunk->is_lost) {
		((struct device *)(void *)dev)->n_lost--;
		((struct device *)(void *)dev)->lost_until = sim_tick();
	}
	free(chunk->memory);
	chunk->memory = NULL;
	chunk->is_freed = true;
}

static bool chunk_is_lost(struct gpu_device *dev, struct gpu_chunk *chunk)
{
	(void)dev;
	return chunk->is_lost;
}

/* ---- losing memory ---- */

bool device_is_lost(const struct gpu_chunk *chunk)
{
	return chunk->is_lost;
}

bool device_had_lost_since(uint64_t tick)
{
	return the_device->n_lost > 0 || the_device->lost_until > tick;
}

static void tell_lost(void *argument)
{
	struct device *device = argument;

	device->lost(device->user);
}

static void lose(struct device *device, struct gpu_chunk *chunk)
{
	chunk->is_lost = true;
	device->n_lost++;
	memset(chunk->memory, 0xEE, device->base.chunk_bytes);
}

void device_lose(bool is_all, bool is_for_good)
{
	size_t which = sim_random(the_device->n_chunks);

	device_is_dead |= is_for_good;
	for (struct gpu_chunk *chunk = the_device->chunks; chunk != NULL; chunk = chunk->next) {
		if (chunk->is_freed)
			continue;
		if ((is_all || is_for_good || which == 0) && !chunk->is_lost)
			lose(the_device, chunk);
		which--;
	}
	sim_after(latency(), tell_lost, the_device);
}

static uint8_t *bounce_at(struct gpu_device *dev, size_t off, size_t len)
{
	struct device *device = (struct device *)(void *)dev;

	if (off + len > device->bounce.bytes)
		sim_fail("a copy outside of the bounce memory");
	return (uint8_t *)device->bounce.base + off;
}

static uint8_t *chunk_at(struct gpu_device *dev, struct gpu_chunk *chunk, size_t off, size_t len)
{
	if (off + len > dev->chunk_bytes)
		sim_fail("a copy outside of a chunk");
	return chunk->memory + off;
}

static void copy_to_device(struct gpu_device *dev, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off,
			   size_t bounce_off, size_t len, struct gpu_op *op)
{
	(void)queue;
	start(dev, (struct copy){.op = op, .chunk = chunk, .to_bytes = chunk_at(dev, chunk, chunk_off, len),
				 .from_bytes = bounce_at(dev, bounce_off, len), .len = len});
}

static void copy_from_device(struct gpu_device *dev, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off,
			     size_t bounce_off, size_t len, struct gpu_op *op)
{
	(void)queue;
	start(dev, (struct copy){.op = op, .chunk = chunk, .to_bytes = bounce_at(dev, bounce_off, len),
				 .from_bytes = chunk_at(dev, chunk, chunk_off, len), .len = len});
}

static void fill(struct gpu_device *dev, enum gpu_queue queue, struct gpu_chunk *chunk, size_t chunk_off, size_t len,
		 uint8_t byte, struct gpu_op *op)
{
	(void)queue;
	start(dev, (struct copy){.op = op, .chunk = chunk, .to_bytes = chunk_at(dev, chunk, chunk_off, len), .byte = byte,
				 .len = len});
}

static void copy_chunk(struct gpu_device *dev, enum gpu_queue queue, struct gpu_chunk *to, struct gpu_chunk *from,
		       struct gpu_op *op)
{
	(void)queue;
	start(dev, (struct copy){.op = op, .chunk = to, .from = from, .to_bytes = to->memory, .from_bytes = from->memory,
				 .len = dev->chunk_bytes});
}

struct measurement {
	struct device *device;
	uint64_t *free_bytes;
	struct gpu_op *op;
};

static void measurement_step(void *argument)
{
	struct measurement *measurement = argument;
	struct device *device = measurement->device;
	size_t used = device->n_allocated + device->n_others;

	*measurement->free_bytes = (used < device_memory_chunks ? device_memory_chunks - used : 0) * device->base.chunk_bytes;
	measurement->op->done(measurement->op, 0);
	free(measurement);
}

static void measure(struct gpu_device *dev, uint64_t *free_bytes, struct gpu_op *op)
{
	struct measurement *measurement = malloc(sizeof(*measurement));

	*measurement = (struct measurement){(struct device *)(void *)dev, free_bytes, op};
	move_others(measurement->device);
	sim_after(latency(), measurement_step, measurement);
}

static void destroy(struct gpu_device *dev)
{
	struct device *device = (struct device *)(void *)dev;

	if (device->n_chunks > 0)
		sim_fail("%zu chunks of device memory leak", device->n_chunks);
	while (device->chunks != NULL) {
		struct gpu_chunk *chunk = device->chunks;

		device->chunks = chunk->next;
		free(chunk);
	}
	free(device);
}

static const struct gpu_ops ops = {
	.destroy = destroy,
	.chunk_create = chunk_create,
	.chunk_destroy = chunk_destroy,
	.chunk_is_lost = chunk_is_lost,
	.copy_to_device = copy_to_device,
	.copy_from_device = copy_from_device,
	.fill = fill,
	.copy_chunk = copy_chunk,
	.measure = measure,
};

int gpu_open(const struct gpu_config *config, struct gpu_device **dev, char **error)
{
	struct device *device = calloc(1, sizeof(*device));

	*error = NULL;
	*device = (struct device){.base = {.ops = &ops,
					   .info = {.backend = "sim", .can_export = true,
						    .memory_bytes = device_memory_chunks * config->chunk_bytes,
						    .free_bytes = device_memory_chunks * config->chunk_bytes},
					   .chunk_bytes = config->chunk_bytes},
				  .bounce = config->bounce, .is_given_back = sim_chance(2), .lost = config->lost,
				  .user = config->user};
	device_is_dead = false;
	the_device = device;
	*dev = &device->base;
	return 0;
}

void gpu_close(struct gpu_device *dev)
{
	dev->ops->destroy(dev);
}
