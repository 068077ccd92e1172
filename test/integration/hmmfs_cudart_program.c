/*
 * hmmfs_cudart_program.c - a program of the CUDA runtime that knows nothing of hmmfs: maps a file, copies it to the GPU with
 * cudaMemcpy and back, and compares.
 */
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

static int check(cudaError_t result, const char *call)
{
	if (result != cudaSuccess)
		printf("%s: %s\n", call, cudaGetErrorName(result));
	return result == cudaSuccess;
}

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;
	struct stat st;
	void *memory;
	char *p, *back;

	if (fd < 0 || fstat(fd, &st) < 0)
		return 2;
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	back = malloc((size_t)st.st_size);
	if (!check(cudaMalloc(&memory, (size_t)st.st_size), "cudaMalloc") ||
	    !check(cudaMemcpy(memory, p, (size_t)st.st_size, cudaMemcpyHostToDevice), "cudaMemcpy") ||
	    !check(cudaMemcpy(back, memory, (size_t)st.st_size, cudaMemcpyDeviceToHost), "cudaMemcpy"))
		return 3;
	if (memcmp(back, p, (size_t)st.st_size) != 0)
		return 4;
	puts("same");
	return 0;
}
