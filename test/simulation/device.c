/*
 * device.c - the simulated device behind gpu/gpu.h: memory that clients map, copies that take a random time, are done
 * in two halves and overtake each other, and fail now and then.
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
};

struct device {
	struct gpu_device base;
	struct gpu_bounce bounce;
	size_t n_chunks;
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

unsigned device_error_one_in;

uint8_t *device_memory(struct gpu_chunk *chunk)
{
	return chunk->memory;
}

static uint64_t latency(void)
{
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

static void start(struct gpu_device *dev, struct copy copy)
{
	struct copy *started = malloc(sizeof(*started));

	*started = copy;
	started->dev = (struct device *)(void *)dev;
	started->status = sim_chance(device_error_one_in) ? -EIO : 0;
	started->chunk->in_flight++;
	if (started->from != NULL)
		started->from->in_flight++;
	sim_after(latency(), copy_step, started);
}

static int chunk_create(struct gpu_device *dev, struct gpu_chunk **out)
{
	struct gpu_chunk *chunk = malloc(sizeof(*chunk));

	*chunk = (struct gpu_chunk){.memory = calloc(1, dev->chunk_bytes)};
	((struct device *)(void *)dev)->n_chunks++;
	*out = chunk;
	return 0;
}

static void chunk_destroy(struct gpu_device *dev, struct gpu_chunk *chunk)
{
	if (chunk->in_flight > 0)
		sim_fail("device memory is freed with %u copies in flight on it", chunk->in_flight);
	((struct device *)(void *)dev)->n_chunks--;
	free(chunk->memory);
	free(chunk);
}

static bool chunk_is_lost(struct gpu_device *dev, struct gpu_chunk *chunk)
{
	(void)dev;
	(void)chunk;
	return false;
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

static void destroy(struct gpu_device *dev)
{
	struct device *device = (struct device *)(void *)dev;

	if (device->n_chunks > 0)
		sim_fail("%zu chunks of device memory leak", device->n_chunks);
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
};

int gpu_open(const struct gpu_config *config, struct gpu_device **dev, char **error)
{
	struct device *device = calloc(1, sizeof(*device));

	*error = NULL;
	*device = (struct device){.base = {.ops = &ops, .info = {.backend = "sim", .can_export = true},
					   .chunk_bytes = config->chunk_bytes},
				  .bounce = config->bounce};
	*dev = &device->base;
	return 0;
}

void gpu_close(struct gpu_device *dev)
{
	dev->ops->destroy(dev);
}
