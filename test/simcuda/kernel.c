/*
 * kernel.c - modules and kernels. PTX can't be run here: the entries of a module are looked up by name among twins in C. Those of
 * tools/kernels.cu are here, and some that tests use.
 *
 * An image is PTX if it has a .version directive; its entries are what follows .entry. Anything else does not load, and the
 * JIT's log says why.
 */
#include "test/simcuda/simcuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <utlist.h>

enum { ENTRIES_MAX = 32, JIT_ERROR_LOG_BUFFER = 5, JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6 };

struct CUfunc_st {
	char name[128];
	const struct sim_twin *twin; /* NULL: none */
};

struct CUmod_st {
	struct CUmod_st *next;
	struct CUctx_st *context;
	bool is_unloaded;
	struct CUfunc_st functions[ENTRIES_MAX];
	size_t n;
};
static struct CUmod_st *modules; /* sim.mutex; never freed: a function of one that is unloaded is known as such */

/* ---- the twins ---- */

struct data {
	CUdeviceptr at;
	uint64_t len;
};

/* Parameters lie one behind the other, each on 8 bytes. */
static uint64_t parameter(const unsigned char *parameters, size_t i)
{
	uint64_t value;

	memcpy(&value, parameters + 8 * i, sizeof(value));
	return value;
}

static struct data data_of(const unsigned char *parameters)
{
	return (struct data){parameter(parameters, 0), parameter(parameters, 1)};
}

/* Applies to each byte of the range, in place or reading only. */
static CUresult each_part(struct data data, int rights, void (*apply)(unsigned char *bytes, size_t len, void *user), void *user)
{
	for (uint64_t done = 0; done < data.len;) {
		struct sim_part part;

		if (!sim_part_take(data.at + done, data.len - done, rights, &part))
			return (CUresult)ERROR_ILLEGAL_ADDRESS;
		apply((unsigned char *)part.bytes, part.len, user);
		done += part.len;
		sim_part_release(&part);
	}
	return CUDA_SUCCESS;
}

static CUresult add_result(CUdeviceptr at, const uint64_t *numbers, size_t n)
{
	uint64_t before[256];

	if (!sim_copy(at, before, n * sizeof(uint64_t), false))
		return (CUresult)ERROR_ILLEGAL_ADDRESS;
	for (size_t i = 0; i < n; i++)
		before[i] += numbers[i];
	return sim_copy(at, before, n * sizeof(uint64_t), true) ? CUDA_SUCCESS : (CUresult)ERROR_ILLEGAL_ADDRESS;
}

static void count_part(unsigned char *bytes, size_t len, void *user)
{
	uint64_t *histogram = user;

	for (size_t i = 0; i < len; i++)
		histogram[bytes[i]]++;
}

static CUresult run_histogram(const unsigned char *parameters)
{
	uint64_t histogram[256] = {0};
	CUresult result = each_part(data_of(parameters), MAY_READ, count_part, histogram);

	return result == CUDA_SUCCESS ? add_result(parameter(parameters, 2), histogram, 256) : result;
}

static CUresult run_sum(const unsigned char *parameters)
{
	uint64_t histogram[256] = {0}, sum = 0;
	CUresult result = each_part(data_of(parameters), MAY_READ, count_part, histogram);

	for (uint64_t i = 0; i < 256; i++)
		sum += i * histogram[i];
	return result == CUDA_SUCCESS ? add_result(parameter(parameters, 2), &sum, 1) : result;
}

static CUresult run_count(const unsigned char *parameters)
{
	struct data data = data_of(parameters);
	size_t n = (size_t)(uint32_t)parameter(parameters, 3);
	unsigned char *bytes = malloc(data.len + 1), pattern[256];
	CUresult result = CUDA_SUCCESS;
	uint64_t count = 0;

	if (n > sizeof(pattern) || !sim_copy(parameter(parameters, 2), pattern, n, false) || !sim_copy(data.at, bytes, data.len, false))
		result = (CUresult)ERROR_ILLEGAL_ADDRESS;
	for (uint64_t i = 0; result == CUDA_SUCCESS && i + n <= data.len; i++)
		count += memcmp(bytes + i, pattern, n) == 0;
	free(bytes);
	return result == CUDA_SUCCESS ? add_result(parameter(parameters, 4), &count, 1) : result;
}

static void xor_part(unsigned char *bytes, size_t len, void *user)
{
	for (size_t i = 0; i < len; i++)
		bytes[i] ^= *(unsigned char *)user;
}

static CUresult run_xor(const unsigned char *parameters)
{
	unsigned char byte = (unsigned char)parameter(parameters, 2);

	return each_part(data_of(parameters), MAY_READ | MAY_WRITE, xor_part, &byte);
}

static CUresult run_fill(const unsigned char *parameters)
{
	unsigned char byte = (unsigned char)parameter(parameters, 2);
	struct data data = data_of(parameters);

	return sim_fill(data.at, data.len, &byte, 1) ? CUDA_SUCCESS : (CUresult)ERROR_ILLEGAL_ADDRESS;
}

static void add_part(unsigned char *bytes, size_t len, void *user)
{
	for (size_t i = 0; i < len; i++)
		bytes[i] = (unsigned char)(bytes[i] + *(unsigned char *)user);
}

/* inc(data, len), first(data, len, int add, out: 8 bytes), wild(data, len), spin(data, len) */
static CUresult run_inc(const unsigned char *parameters)
{
	unsigned char n = 1;

	return each_part(data_of(parameters), MAY_READ | MAY_WRITE, add_part, &n);
}

static CUresult run_first(const unsigned char *parameters)
{
	unsigned char bytes[8];

	if (!sim_copy(parameter(parameters, 0), bytes, sizeof(bytes), false))
		return (CUresult)ERROR_ILLEGAL_ADDRESS;
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (unsigned char)(bytes[i] + parameter(parameters, 2));
	return sim_copy(parameter(parameters, 3), bytes, sizeof(bytes), true) ? CUDA_SUCCESS : (CUresult)ERROR_ILLEGAL_ADDRESS;
}

static CUresult run_wild(const unsigned char *parameters)
{
	(void)parameters;
	return (CUresult)ERROR_ILLEGAL_ADDRESS;
}

static CUresult run_spin(const unsigned char *parameters)
{
	(void)parameters;
	while (pause() < 0)
		; /* until the process is ended */
	return CUDA_SUCCESS;
}

static const struct sim_twin twins[] = {{"hmmfs_sum", {8, 8, 8}, run_sum},
					{"hmmfs_histogram", {8, 8, 8}, run_histogram},
					{"hmmfs_count", {8, 8, 8, 4, 8}, run_count},
					{"hmmfs_xor", {8, 8, 1}, run_xor},
					{"hmmfs_fill", {8, 8, 1}, run_fill},
					{"inc", {8, 8}, run_inc},
					{"first", {8, 8, 4, 8}, run_first},
					{"wild", {8, 8}, run_wild},
					{"spin", {8, 8}, run_spin}};

CUresult sim_run_kernel(const struct sim_op *op)
{
	return op->twin->run(op->parameters);
}

/* ---- modules ---- */

static const char CUBIN[] = "\177ELFSIM";

static void find_entries(struct CUmod_st *module, const char *ptx)
{
	while ((ptx = strstr(ptx, ".entry ")) != NULL && module->n < ENTRIES_MAX) {
		struct CUfunc_st *function = &module->functions[module->n++];

		ptx += strlen(".entry ");
		if (sscanf(ptx, " %127[A-Za-z0-9_$]", function->name) != 1)
			module->n--;
		for (size_t i = 0; i < sizeof(twins) / sizeof(twins[0]); i++) {
			if (strcmp(twins[i].name, function->name) == 0)
				function->twin = &twins[i];
		}
	}
}

static void write_log(unsigned n, const int *options, void **values, const char *text)
{
	char *buffer = NULL;
	size_t size = 0;

	for (unsigned i = 0; i < n; i++) {
		if (options[i] == JIT_ERROR_LOG_BUFFER)
			buffer = values[i];
		if (options[i] == JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
			size = (size_t)(uintptr_t)values[i];
	}
	if (buffer != NULL && size > 0)
		snprintf(buffer, size, "%s", text);
}

EXPORT CUresult cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned n, int *options, void **values)
{
	struct CUmod_st *module;

	ENTER(cuModuleLoadDataEx, SIM_CONTEXT);
	if (strncmp(image, CUBIN, sizeof(CUBIN)) == 0) /* ours: PTX behind it. With a 0 in it, as a real one has */
		image = (const char *)image + sizeof(CUBIN);
	else if (strncmp(image, CUBIN, 4) == 0)
		return (CUresult)ERROR_NO_BINARY_FOR_GPU;
	if (strstr(image, ".version") == NULL) {
		write_log(n, options, values, "ptxas fatal: simcuda: missing .version directive");
		return (CUresult)ERROR_INVALID_PTX;
	}
	module = calloc(1, sizeof(*module));
	if (module == NULL)
		abort();
	module->context = sim_current();
	find_entries(module, image);
	pthread_mutex_lock(&sim.mutex);
	LL_PREPEND(modules, module);
	pthread_mutex_unlock(&sim.mutex);
	*out = module;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
	return cuModuleLoadDataEx(module, image, 0, NULL, NULL);
}

static bool is_loaded_locked(const struct CUmod_st *wanted)
{
	const struct CUmod_st *module;

	LL_FOREACH(modules, module) {
		if (module == wanted)
			return !module->is_unloaded && module->context == sim_current();
	}
	return false;
}

EXPORT CUresult cuModuleUnload(CUmodule module)
{
	bool is_loaded;

	ENTER(cuModuleUnload, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	is_loaded = is_loaded_locked(module);
	if (is_loaded)
		module->is_unloaded = true;
	pthread_mutex_unlock(&sim.mutex);
	return is_loaded ? CUDA_SUCCESS : (CUresult)ERROR_INVALID_HANDLE;
}

EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
	bool is_loaded;

	ENTER(cuModuleGetFunction, SIM_CONTEXT);
	pthread_mutex_lock(&sim.mutex);
	is_loaded = is_loaded_locked(module);
	pthread_mutex_unlock(&sim.mutex);
	if (!is_loaded)
		return (CUresult)ERROR_INVALID_HANDLE;
	for (size_t i = 0; i < module->n; i++) {
		if (strcmp(module->functions[i].name, name) == 0) {
			*function = &module->functions[i];
			return CUDA_SUCCESS;
		}
	}
	return (CUresult)ERROR_NOT_FOUND;
}

static const struct CUmod_st *module_of_locked(const struct CUfunc_st *function)
{
	const struct CUmod_st *module;

	LL_FOREACH(modules, module) {
		if (function >= module->functions && function < module->functions + module->n)
			return module;
	}
	return NULL;
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
			       unsigned block_z, unsigned shared_bytes, CUstream handle, void **parameters, void **extra)
{
	struct sim_op op = {.kind = OP_KERNEL};
	struct CUstream_st *stream;
	CUresult result;

	ENTER(cuLaunchKernel, SIM_CONTEXT);
	(void)shared_bytes;
	if (grid_x == 0 || grid_y == 0 || grid_z == 0 || block_x == 0 || block_x * block_y * block_z == 0 ||
	    (uint64_t)block_x * block_y * block_z > 1024 || extra != NULL || grid_x > 0x7fffffff)
		return (CUresult)ERROR_INVALID_VALUE;
	pthread_mutex_lock(&sim.mutex);
	if (module_of_locked(function) == NULL || !is_loaded_locked(module_of_locked(function))) {
		result = (CUresult)ERROR_INVALID_HANDLE;
	} else if (function->twin == NULL) {
		result = (CUresult)ERROR_NOT_SUPPORTED; /* real PTX: it takes a real GPU */
	} else {
		op.twin = function->twin;
		op.parameters = calloc(8, 8);
		for (size_t i = 0; i < 8 && op.twin->sizes[i] > 0; i++)
			memcpy(op.parameters + 8 * i, parameters[i], op.twin->sizes[i]);
		stream = sim_stream_find_locked(handle, &result);
		if (result == CUDA_SUCCESS)
			result = sim_submit_locked(stream, &op);
		else
			free(op.parameters);
	}
	pthread_mutex_unlock(&sim.mutex);
	return result;
}
