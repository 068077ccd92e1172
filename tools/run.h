/* run.h - hmmfs run: what its files share. */
#ifndef HMMFS_TOOLS_RUN_H
#define HMMFS_TOOLS_RUN_H

#include "client/hmmfs.h"

#include <stdbool.h>
#include <time.h>

/* What a kernel of one's own is written in, by the name of its file: .cl, .cu, .ptx or .cubin. */
enum run_language { RUN_OPENCL_C, RUN_CUDA_C, RUN_CUDA_IMAGE };

struct run_arguments {
	enum hmmfs_kernel kernel;
	const char *kernel_name; /* as typed */
	char *source, *entry;    /* HMMFS_SOURCE; a 0 behind the source */
	enum run_language language;
	uint8_t byte;
	const char *pattern;
	struct hmmfs_arg args[16];
	size_t n_args;
	uint64_t items;
	unsigned timeout_ms;
	uint64_t off, len; /* --range; len 0: to the end of the file */
	bool is_shared, is_json;
	const char *out;
	char **files;
	size_t n_files;
};

/* What one file's run came to: summed over its regions. */
struct run_outcome {
	struct hmmfs_times times;
	uint64_t kernel_ns, release_ns, bytes;
	void *result; /* to be freed */
	size_t result_bytes;
	char *log;    /* to be freed, or NULL */
};

/* run_region.c: runs the kernel on [off, off+len) of an open file, in the daemon's device or, where that has none, here. */
int run_region(struct hmmfs_session *session, int fd, const struct run_arguments *arguments, uint64_t off, uint64_t len,
	       struct run_outcome *outcome);

/* run_cuda.c: the same on a mount with device=cuda. */
int run_on_cuda(struct hmmfs_session *session, int fd, const struct run_arguments *arguments, uint64_t off, uint64_t len,
		struct run_outcome *outcome);

/* run_region.c: calls compute with the region of [off, off+len) mapped and held, as the kernel needs it. */
typedef int (*run_compute)(const void *user, struct hmmfs_region *region, struct run_outcome *outcome);
int run_leased(int fd, const struct run_arguments *arguments, uint64_t off, uint64_t len, run_compute compute, const void *user,
	       struct run_outcome *outcome);

/* run_region.c: the bytes that come back from a kernel of one's own. */
size_t run_out_bytes(const struct run_arguments *arguments);

static inline uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline bool run_writes(const struct run_arguments *arguments)
{
	return arguments->kernel == HMMFS_XOR || arguments->kernel == HMMFS_FILL ||
	       (arguments->kernel == HMMFS_SOURCE && !arguments->is_shared);
}

#endif
