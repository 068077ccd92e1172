/*
 * hmmfs_cuda_program.c - a program that knows nothing of hmmfs: maps a file, copies it to the GPU and back, and compares.
 *
 *     hmmfs_cuda_program FILE HOW     HOW: linked, dlsym, proc: how it comes to cuMemcpyHtoD; private: a private mapping that was
 *                                     stored to; async: on a stream; anonymous: memory of no file; next: dlsym(RTLD_NEXT)
 *     and, about what it keeps in between: twice: copied again; unmapped: the mapping goes; short: more memory is needed;
 *     closed: copied again, when all descriptors have been closed and files of its own have their numbers
 */
#include "gpu/cuda_abi.h"
#include "test/descriptors.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

CUresult cuInit(unsigned), cuDevicePrimaryCtxRetain(CUcontext *, CUdevice), cuCtxSetCurrent(CUcontext), cuMemAlloc_v2(CUdeviceptr *, size_t),
	cuMemcpyHtoD_v2(CUdeviceptr, const void *, size_t), cuMemcpyDtoH_v2(void *, CUdeviceptr, size_t),
	cuMemcpyHtoDAsync_v2(CUdeviceptr, const void *, size_t, CUstream), cuStreamCreate(CUstream *, unsigned), cuStreamSynchronize(CUstream),
	cuMemsetD8_v2(CUdeviceptr, unsigned char, size_t), cuGetProcAddress_v2(const char *, void **, int, unsigned long long, CUdriverProcAddressQueryResult *);

static void *file_mapping(int fd, size_t len, const char *how)
{
	bool is_private = strcmp(how, "private") == 0;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, is_private ? MAP_PRIVATE : MAP_SHARED, fd, 0);

	if (strcmp(how, "anonymous") == 0) {
		char *copy = malloc(len);

		memcpy(copy, p, len);
		return copy;
	}
	if (is_private)
		p[len / 2] ^= 0x55; /* the process's own page from here on */
	return p;
}

static CUresult copy(const char *how, CUdeviceptr to, const void *from, size_t len)
{
	CUresult (*found)(CUdeviceptr, const void *, size_t) = NULL;
	CUresult (*get)(const char *, void **, int, unsigned long long, CUdriverProcAddressQueryResult *) = NULL;
	CUdriverProcAddressQueryResult status;
	CUstream stream;
	CUresult result;

	if (strcmp(how, "dlsym") == 0) {
		*(void **)&found = dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuMemcpyHtoD_v2");
		return found(to, from, len);
	}
	if (strcmp(how, "next") == 0) { /* of the program's: libcuda's, or what is preloaded */
		*(void **)&found = dlsym(RTLD_NEXT, "cuMemcpyHtoD_v2");
		return found(to, from, len);
	}
	if (strcmp(how, "proc") == 0) { /* as the CUDA runtime does */
		*(void **)&get = dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuGetProcAddress_v2");
		if (get("cuGetProcAddress", (void **)&get, 12000, 0, &status) != CUDA_SUCCESS ||
		    get("cuMemcpyHtoD", (void **)&found, 12000, 0, &status) != CUDA_SUCCESS)
			return CUDA_ERROR_UNKNOWN;
		return found(to, from, len);
	}
	if (strcmp(how, "async") != 0)
		return cuMemcpyHtoD_v2(to, from, len);
	result = cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
	if (result == CUDA_SUCCESS)
		result = cuMemcpyHtoDAsync_v2(to, from, len, stream);
	return result == CUDA_SUCCESS ? cuStreamSynchronize(stream) : result;
}

enum { FIRST = 3, OWN_FILES = 32 };

static void replace_descriptors(void)
{
	for (int i = FIRST; i < 1024; i++)
		close(i);
	for (int i = 0; i < OWN_FILES; i++)
		open("/dev/null", O_RDWR);
}

static bool has_own_files(void)
{
	for (int i = FIRST; i < FIRST + OWN_FILES; i++) {
		if (fcntl(i, F_GETFD) < 0)
			return false;
	}
	return true;
}

/* Are there more descriptors before it happens, and fewer after? */
static bool is_let_go(const char *how, void *p, size_t len, int n_before)
{
	int n_kept = count_descriptors();
	CUdeviceptr more;

	if (strcmp(how, "unmapped") == 0)
		return n_kept > n_before && munmap(p, len) == 0 && count_descriptors() == n_before;
	if (strcmp(how, "short") == 0)
		return n_kept > n_before && cuMemAlloc_v2(&more, len) == CUDA_SUCCESS && count_descriptors() < n_kept;
	return true;
}

int main(int argc, char **argv)
{
	int fd = argc == 3 ? open(argv[1], O_RDWR) : -1;
	CUdeviceptr memory;
	CUcontext context;
	struct stat st;
	size_t len;
	char *p, *back;
	bool is_closed;
	int n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return 2;
	len = (size_t)st.st_size;
	p = file_mapping(fd, len, argv[2]);
	back = malloc(len);
	if (cuInit(0) != CUDA_SUCCESS || cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS || cuCtxSetCurrent(context) != CUDA_SUCCESS ||
	    cuMemAlloc_v2(&memory, len) != CUDA_SUCCESS)
		return 3;
	n = count_descriptors();
	is_closed = strcmp(argv[2], "closed") == 0;
	for (int i = is_closed || strcmp(argv[2], "twice") == 0 ? 2 : 1; i > 0; i--) {
		if (cuMemsetD8_v2(memory, 0, len) != CUDA_SUCCESS || copy(argv[2], memory, p, len) != CUDA_SUCCESS ||
		    cuMemcpyDtoH_v2(back, memory, len) != CUDA_SUCCESS)
			return 4;
		if (memcmp(back, p, len) != 0)
			return 5;
		if (is_closed && i == 2)
			replace_descriptors();
	}
	if (is_closed && !has_own_files())
		return 7;
	if (!is_let_go(argv[2], p, len, n))
		return 6;
	puts("same");
	return 0;
}
