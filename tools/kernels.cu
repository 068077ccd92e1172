/*
 * kernels.cu - the built-in kernels on cuda. Compiled to PTX by nvcc at build time where there is one, else by NVRTC at run time;
 * their twins for tests are in test/simcuda/kernel.c.
 *
 * Results are added to with atomics: the caller has zeroed them. Threads go through the data with the grid as their stride, 16
 * bytes at a time where it is aligned, byte by byte before and behind.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

struct parts {
	u64 head, vectors, tail; /* bytes before the first 16 that are aligned; 16s; bytes behind */
};

static __device__ parts split(const u8 *data, u64 len)
{
	u64 head = (16 - (u64)data % 16) % 16;

	if (head > len)
		head = len;
	parts p = {head, (len - head) / 16, (len - head) % 16};
	return p;
}

static __device__ u64 first(void)
{
	return (u64)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ u64 stride(void)
{
	return (u64)gridDim.x * blockDim.x;
}

extern "C" __global__ void hmmfs_sum(const u8 *data, u64 len, u64 *result)
{
	parts p = split(data, len);
	const uint4 *vectors = (const uint4 *)(data + p.head);
	u64 sum = 0;

	for (u64 i = first(); i < p.vectors; i += stride()) {
		uint4 v = vectors[i];
		u32 of_vector = __dp4a(v.x, 0x01010101u, 0u);

		of_vector = __dp4a(v.y, 0x01010101u, of_vector);
		of_vector = __dp4a(v.z, 0x01010101u, of_vector);
		sum += __dp4a(v.w, 0x01010101u, of_vector);
	}
	if (first() < p.head)
		sum += data[first()];
	if (first() < p.tail)
		sum += data[len - p.tail + first()];
	for (int lane = 16; lane > 0; lane /= 2)
		sum += __shfl_down_sync(0xffffffffu, sum, lane);
	if (threadIdx.x % 32 == 0)
		atomicAdd(result, sum);
}

extern "C" __global__ void hmmfs_histogram(const u8 *data, u64 len, u64 *result)
{
	__shared__ u32 counts[256];
	parts p = split(data, len);
	const uint4 *vectors = (const uint4 *)(data + p.head);

	for (u32 i = threadIdx.x; i < 256; i += blockDim.x)
		counts[i] = 0;
	__syncthreads();
	for (u64 i = first(); i < p.vectors; i += stride()) {
		uint4 v = vectors[i];
		u32 words[4] = {v.x, v.y, v.z, v.w};

		for (int k = 0; k < 4; k++) {
			for (int byte = 0; byte < 4; byte++)
				atomicAdd(&counts[words[k] >> 8 * byte & 255], 1u);
		}
	}
	if (first() < p.head)
		atomicAdd(&counts[data[first()]], 1u);
	if (first() < p.tail)
		atomicAdd(&counts[data[len - p.tail + first()]], 1u);
	__syncthreads();
	for (u32 i = threadIdx.x; i < 256; i += blockDim.x)
		atomicAdd(&result[i], (u64)counts[i]);
}

extern "C" __global__ void hmmfs_count(const u8 *data, u64 len, const u8 *pattern, u32 n, u64 *result)
{
	u64 count = 0;

	for (u64 i = first(); i + n <= len; i += stride()) {
		u32 k = 0;

		while (k < n && data[i + k] == pattern[k])
			k++;
		count += k == n;
	}
	if (count > 0)
		atomicAdd(result, count);
}

extern "C" __global__ void hmmfs_xor(u8 *data, u64 len, u8 byte)
{
	parts p = split(data, len);
	uint4 *vectors = (uint4 *)(data + p.head);
	u32 word = byte * 0x01010101u;

	for (u64 i = first(); i < p.vectors; i += stride()) {
		uint4 v = vectors[i];

		vectors[i] = make_uint4(v.x ^ word, v.y ^ word, v.z ^ word, v.w ^ word);
	}
	if (first() < p.head)
		data[first()] ^= byte;
	if (first() < p.tail)
		data[len - p.tail + first()] ^= byte;
}

extern "C" __global__ void hmmfs_fill(u8 *data, u64 len, u8 byte)
{
	parts p = split(data, len);
	uint4 *vectors = (uint4 *)(data + p.head);
	u32 word = byte * 0x01010101u;

	for (u64 i = first(); i < p.vectors; i += stride())
		vectors[i] = make_uint4(word, word, word, word);
	if (first() < p.head)
		data[first()] = byte;
	if (first() < p.tail)
		data[len - p.tail + first()] = byte;
}
