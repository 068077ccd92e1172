/* gpu_compute_something.cu - adds 1 to every float of a mapped file, on the GPU, in place. nvcc gpu_compute_something.cu -lhmmfs */
#include <hmmfs.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

__global__ void compute_something(float *p, size_t n) { for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) p[i] += 1; }

int main(int argc, char **argv)
{
	int fd = open(argv[argc - 1], O_RDWR);
	struct stat st;
	fstat(fd, &st);
	float *ptr = (float *)mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct hmmfs_region *region;
	cudaFree(0); /* any call of the CUDA runtime makes a context */
	if (hmmfs_map(ptr, st.st_size, &region) < 0 || hmmfs_begin(region, HMMFS_EXCLUSIVE, 0) < 0)
		return 1;
	compute_something<<<1024, 256>>>((float *)hmmfs_device_pointer(region), st.st_size / sizeof(float));
	hmmfs_end_stream(region, NULL); /* returns at once; the lease ends when the kernel is done */
	printf("%f\n", ptr[0]);         /* waits for that, and sees what the GPU stored */
	return hmmfs_wait(region) == 0 ? 0 : 1;
}
