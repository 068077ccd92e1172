/* Adds 1 to every float of a mapped file, on the GPU, in place. nvcc gpu_compute_something.cu -lhmmfs */
#include <hmmfs.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

__global__ void compute_something(float *p, size_t n) {
	for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) p[i] += 1;
}

int main(int argc, char **argv) {
	int fd = open(argv[argc - 1], O_RDWR);
	size_t len = lseek(fd, 0, SEEK_END);
	float *ptr = (float *)mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct hmmfs_region *region;
	if (ptr == MAP_FAILED || cudaFree(0) != cudaSuccess || /* any call of the CUDA runtime makes a context */
	    hmmfs_map(ptr, len, &region) < 0 || hmmfs_begin(region, HMMFS_EXCLUSIVE, 0) < 0) return 1;
	compute_something<<<1024, 256>>>((float *)hmmfs_device_pointer(region), len / sizeof(float));
	if (cudaGetLastError() != cudaSuccess || hmmfs_end_stream(region, NULL) < 0) return 1; /* returns at once */
	printf("%f\n", ptr[0]); /* waits until the kernel is done, and sees what it stored */
	return hmmfs_wait(region) < 0;
}
