/* kernels_cpu.c - the built-in kernels on memory that the CPU addresses. */
#include "gpu/gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t sum_bytes(const uint8_t *data, uint64_t len)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < len; i++)
		sum += data[i];
	return sum;
}

/* Four tables, so that runs of one byte don't wait for their own counter. */
static void count_bytes(const uint8_t *data, uint64_t len, uint64_t *histogram)
{
	static const uint64_t lanes = 4;
	uint64_t tables[4][256] = {{0}};
	uint64_t i = 0;

	for (; i + lanes <= len; i += lanes) {
		tables[0][data[i]]++;
		tables[1][data[i + 1]]++;
		tables[2][data[i + 2]]++;
		tables[3][data[i + 3]]++;
	}
	for (; i < len; i++)
		tables[0][data[i]]++;
	for (int byte = 0; byte < 256; byte++)
		histogram[byte] = tables[0][byte] + tables[1][byte] + tables[2][byte] + tables[3][byte];
}

static uint64_t count_pattern(const uint8_t *data, uint64_t len, const uint8_t *pattern, size_t pattern_bytes)
{
	const uint8_t *end = data + len;
	uint64_t count = 0;

	while ((data = memmem(data, (size_t)(end - data), pattern, pattern_bytes)) != NULL) {
		count++;
		data++;
	}
	return count;
}

static int set_result(struct gpu_run *run, const void *bytes, size_t n)
{
	run->result = malloc(n);
	if (run->result == NULL)
		return -ENOMEM;
	memcpy(run->result, bytes, n);
	run->result_bytes = n;
	return 0;
}

static int compute(struct gpu_run *run, uint8_t *data)
{
	uint64_t len = run->range.len;
	uint64_t histogram[256];
	uint64_t number;

	switch (run->kind) {
	case GPU_KERNEL_SUM:
		number = sum_bytes(data, len);
		return set_result(run, &number, sizeof(number));
	case GPU_KERNEL_HISTOGRAM:
		count_bytes(data, len, histogram);
		return set_result(run, histogram, sizeof(histogram));
	case GPU_KERNEL_COUNT:
		number = count_pattern(data, len, run->pattern, run->pattern_bytes);
		return set_result(run, &number, sizeof(number));
	case GPU_KERNEL_XOR:
		for (uint64_t i = 0; i < len; i++)
			data[i] ^= run->byte;
		return 0;
	case GPU_KERNEL_FILL:
		memset(data, run->byte, len);
		return 0;
	case GPU_KERNEL_SOURCE:
		break;
	}
	return -EINVAL;
}

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

int gpu_run_builtin_on_cpu(struct gpu_run *run, uint8_t *data)
{
	uint64_t start = clock_ns();
	int err = compute(run, data);

	run->kernel_ns = clock_ns() - start;
	return err;
}
