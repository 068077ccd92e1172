/* test_cuda_mapping.c - what a client makes of descriptors that are no chunks, and of drivers that refuse. On the simulated driver. */
#include "client/cuda_mapping.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 2 << 20 };

CUresult cuInit(unsigned), cuDevicePrimaryCtxRetain(CUcontext *, CUdevice), cuCtxSetCurrent(CUcontext), cuDeviceGetUuid_v2(CUuuid *, CUdevice),
	cuMemCreate(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long),
	cuMemExportToShareableHandle(void *, CUmemGenericAllocationHandle, CUmemAllocationHandleType, unsigned long long),
	cuMemcpyHtoD_v2(CUdeviceptr, const void *, size_t), cuMemcpyDtoH_v2(void *, CUdeviceptr, size_t);

static struct hmmfs_info info = {.chunk_bytes = CHUNK, .is_cuda = true};

static void start(void)
{
	CUcontext context;
	CUuuid uuid;

	ck_assert_int_eq(cuInit(0), 0);
	ck_assert_int_eq(cuDevicePrimaryCtxRetain(&context, 0), 0);
	ck_assert_int_eq(cuCtxSetCurrent(context), 0);
	ck_assert_int_eq(cuDeviceGetUuid_v2(&uuid, 0), 0);
	memcpy(info.device_uuid, uuid.bytes, sizeof(info.device_uuid));
}

static int chunk(size_t bytes)
{
	CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0},
				    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR};
	CUmemGenericAllocationHandle handle;
	int fd;

	ck_assert_int_eq(cuMemCreate(&handle, bytes, &prop, 0), 0);
	ck_assert_int_eq(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0), 0);
	return fd;
}

START_TEST(what_is_no_chunk_is_refused_and_the_rest_works)
{
	struct cuda_mapping mapping = {.base = 0};
	int file = open("/dev/null", O_RDWR), closed = dup(file), pipes[2];
	char byte = 'x';

	ck_assert_int_eq(pipe(pipes), 0);
	close(closed);
	ck_assert_int_eq(cuda_mapping_prepare(&mapping, &info, 2), -ENXIO);
	start();
	ck_assert_int_eq(cuda_mapping_prepare(&mapping, &info, 2), 0);
	ck_assert_int_eq(cuda_mapping_put(&mapping, 0, file), -EPROTO);
	ck_assert_int_eq(cuda_mapping_put(&mapping, 0, closed), -EPROTO);
	ck_assert_int_eq(cuda_mapping_put(&mapping, 0, -1), -EPROTO);
	ck_assert_int_eq(cuda_mapping_put(&mapping, 0, pipes[0]), -EPROTO);
	ck_assert_int_lt(cuda_mapping_put(&mapping, 0, chunk(2 * CHUNK)), 0); /* of another size */
	ck_assert_int_eq(cuda_mapping_put(&mapping, 2, chunk(CHUNK)), -EPROTO);
	ck_assert_int_eq(cuda_mapping_allow(&mapping, true), -EPROTO); /* chunks are missing */
	ck_assert_int_eq(cuda_mapping_put(&mapping, 0, chunk(CHUNK)), 0);
	ck_assert_int_eq(cuda_mapping_put(&mapping, 1, chunk(CHUNK)), 0);
	ck_assert_int_eq(cuda_mapping_allow(&mapping, true), 0);
	ck_assert_int_eq(cuMemcpyHtoD_v2(mapping.base + CHUNK - 1, &byte, 1), 0);
	ck_assert_int_eq(cuda_mapping_allow(&mapping, false), 0);
	ck_assert_int_ne(cuMemcpyHtoD_v2(mapping.base, &byte, 1), 0);
	ck_assert_int_eq(cuMemcpyDtoH_v2(&byte, mapping.base + CHUNK - 1, 1), 0);
	cuda_mapping_finish(&mapping);
	ck_assert_int_ne(cuMemcpyDtoH_v2(&byte, mapping.base, 1), 0);
}
END_TEST

START_TEST(a_context_of_another_gpu_is_refused)
{
	struct cuda_mapping mapping = {.base = 0};

	start();
	info.device_uuid[15] = 99;
	ck_assert_int_eq(cuda_mapping_prepare(&mapping, &info, 1), -EXDEV);
}
END_TEST

START_TEST(a_driver_without_read_only_mappings_gives_writable_ones)
{
	struct cuda_mapping mapping = {.base = 0};
	char byte = 'x';

	setenv("HMMFS_SIMCUDA_NO_READ_ONLY", "1", 1);
	start();
	ck_assert_int_eq(cuda_mapping_prepare(&mapping, &info, 1), 0);
	ck_assert_int_eq(cuda_mapping_put(&mapping, 0, chunk(CHUNK)), 0);
	ck_assert_int_eq(cuda_mapping_allow(&mapping, false), 0);
	ck_assert(mapping.has_no_read_only);
	ck_assert_int_eq(cuMemcpyHtoD_v2(mapping.base, &byte, 1), 0);
	ck_assert_int_eq(cuda_mapping_allow(&mapping, false), 0);
	cuda_mapping_finish(&mapping);
}
END_TEST

/* Each call fails once: an error, and nothing that a second attempt can't do. */
START_TEST(every_call_may_fail)
{
	static const char *const calls[] = {"cuCtxGetCurrent", "cuCtxGetDevice", "cuDeviceGetUuid", "cuMemAddressReserve",
					    "cuMemImportFromShareableHandle", "cuMemMap"};
	struct cuda_mapping mapping = {.base = 0};
	char rule[64];
	int fd, err;

	snprintf(rule, sizeof(rule), "%s:%d:2", calls[_i], _i == 2 ? 2 : 1); /* start() asks for the UUID, too */
	setenv("HMMFS_SIMCUDA_FAIL", rule, 1);
	start();
	fd = chunk(CHUNK);
	err = cuda_mapping_prepare(&mapping, &info, 1);
	if (err == 0)
		err = cuda_mapping_put(&mapping, 0, fd);
	ck_assert_int_lt(err, 0);
	ck_assert_int_eq(cuda_mapping_prepare(&mapping, &info, 1), 0);
	ck_assert_int_eq(cuda_mapping_put(&mapping, 0, fd), 0);
	ck_assert_int_eq(cuda_mapping_allow(&mapping, false), 0);
	cuda_mapping_finish(&mapping);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cuda_mapping");
	TCase *tests = tcase_create("all");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_test(tests, what_is_no_chunk_is_refused_and_the_rest_works);
	tcase_add_test(tests, a_context_of_another_gpu_is_refused);
	tcase_add_test(tests, a_driver_without_read_only_mappings_gives_writable_ones);
	tcase_add_loop_test(tests, every_call_may_fail, 0, 6);
	suite_add_tcase(suite, tests);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
