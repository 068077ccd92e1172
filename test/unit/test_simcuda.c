/* test_simcuda.c - is the simulated driver as strict as the driver, and as asynchronous? */
#include "test/simcuda/simcuda.h"

#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { GRANULE = 2 << 20 };

/* The driver's, as simcuda has them. */
CUresult cuInit(unsigned int), cuCtxSetCurrent(CUcontext), cuDevicePrimaryCtxRetain(CUcontext *, CUdevice),
	cuDevicePrimaryCtxRelease_v2(CUdevice), cuDevicePrimaryCtxReset_v2(CUdevice), cuMemRelease(CUmemGenericAllocationHandle),
	cuMemCreate(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long),
	cuMemExportToShareableHandle(void *, CUmemGenericAllocationHandle, CUmemAllocationHandleType, unsigned long long),
	cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *, void *, CUmemAllocationHandleType),
	cuMemAddressReserve(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long), cuMemAddressFree(CUdeviceptr, size_t),
	cuMemMap(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long), cuMemUnmap(CUdeviceptr, size_t),
	cuMemSetAccess(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t), cuMemGetInfo_v2(size_t *, size_t *),
	cuMemcpyHtoD_v2(CUdeviceptr, const void *, size_t), cuMemcpyDtoH_v2(void *, CUdeviceptr, size_t),
	cuMemcpyHtoDAsync_v2(CUdeviceptr, const void *, size_t, CUstream), cuMemcpyDtoHAsync_v2(void *, CUdeviceptr, size_t, CUstream),
	cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, CUstream), cuMemHostRegister_v2(void *, size_t, unsigned),
	cuMemHostUnregister(void *), cuStreamCreate(CUstream *, unsigned), cuStreamSynchronize(CUstream), cuStreamDestroy_v2(CUstream),
	cuEventCreate(CUevent *, unsigned), cuEventRecord(CUevent, CUstream), cuEventSynchronize(CUevent), cuEventDestroy_v2(CUevent),
	cuStreamWaitEvent(CUstream, CUevent, unsigned), cuMemAlloc_v2(CUdeviceptr *, size_t), cuMemFree_v2(CUdeviceptr),
	cuModuleLoadData(CUmodule *, const void *), cuModuleGetFunction(CUfunction *, CUmodule, const char *),
	cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **);

static const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
					 .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
					 .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
static const CUmemAccessDesc read_only = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READ};
static const CUmemAccessDesc read_write = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

static void is(CUresult got, int wanted)
{
	ck_assert_int_eq((int)got, wanted);
}

static void start(void)
{
	CUcontext context;

	is(cuInit(0), 0);
	is(cuDevicePrimaryCtxRetain(&context, 0), 0);
	is(cuCtxSetCurrent(context), 0);
}

static CUdeviceptr mapped(const CUmemAccessDesc *access, CUmemGenericAllocationHandle *handle)
{
	CUdeviceptr address;

	is(cuMemCreate(handle, GRANULE, &prop, 0), 0);
	is(cuMemAddressReserve(&address, 2 * GRANULE, 0, 0, 0), 0);
	is(cuMemMap(address, GRANULE, 0, *handle, 0), 0);
	if (access != NULL)
		is(cuMemSetAccess(address, GRANULE, access, 1), 0);
	return address;
}

START_TEST(calls_need_a_driver_that_was_initialized_and_a_context)
{
	CUdeviceptr address;
	CUcontext context;

	is(cuDevicePrimaryCtxRetain(&context, 0), ERROR_NOT_INITIALIZED);
	is(cuInit(0), 0);
	is(cuMemAlloc_v2(&address, 1), ERROR_INVALID_CONTEXT);
	is(cuDevicePrimaryCtxRetain(&context, 7), ERROR_INVALID_DEVICE);
	is(cuDevicePrimaryCtxRetain(&context, 0), 0);
	is(cuCtxSetCurrent(context), 0);
	is(cuMemAlloc_v2(&address, 1), 0);
	is(cuDevicePrimaryCtxRelease_v2(0), 0);
	is(cuMemFree_v2(address), ERROR_CONTEXT_IS_DESTROYED);
}
END_TEST

START_TEST(sizes_and_addresses_are_multiples_of_the_granularity)
{
	CUmemGenericAllocationHandle handle;
	CUdeviceptr address;

	start();
	is(cuMemCreate(&handle, GRANULE + 4096, &prop, 0), ERROR_INVALID_VALUE);
	is(cuMemCreate(&handle, 0, &prop, 0), ERROR_INVALID_VALUE);
	is(cuMemCreate(&handle, GRANULE, &prop, 0), 0);
	is(cuMemAddressReserve(&address, 4096, 0, 0, 0), ERROR_INVALID_VALUE);
	is(cuMemAddressReserve(&address, 2 * GRANULE, 0, 0, 0), 0);
	is(cuMemMap(address + 4096, GRANULE, 0, handle, 0), ERROR_INVALID_VALUE);
	is(cuMemMap(address, GRANULE, 4096, handle, 0), ERROR_INVALID_VALUE);
	is(cuMemMap(address, 2 * GRANULE, 0, handle, 0), ERROR_INVALID_VALUE);
	is(cuMemMap(address + 2 * GRANULE, GRANULE, 0, handle, 0), ERROR_INVALID_VALUE);
	is(cuMemMap(address + GRANULE, GRANULE, 0, handle, 0), 0);
	is(cuMemMap(address + GRANULE, GRANULE, 0, handle, 0), ERROR_INVALID_VALUE);
	is(cuMemSetAccess(address, 2 * GRANULE, &read_write, 1), ERROR_INVALID_VALUE);
	is(cuMemAddressFree(address, 2 * GRANULE), ERROR_INVALID_VALUE);
	is(cuMemUnmap(address, 2 * GRANULE), ERROR_INVALID_VALUE);
	is(cuMemUnmap(address + GRANULE, GRANULE), 0);
	is(cuMemAddressFree(address, 2 * GRANULE), 0);
	is(cuMemRelease(handle), 0);
	is(cuMemRelease(handle), ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(memory_lives_while_anything_holds_it)
{
	CUmemGenericAllocationHandle handle, imported;
	size_t before, now, total;
	CUdeviceptr address;
	char byte = 'x';
	int fd;

	start();
	is(cuMemGetInfo_v2(&before, &total), 0);
	address = mapped(&read_write, &handle);
	is(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0), 0);
	is(cuMemRelease(handle), 0);
	is(cuMemGetInfo_v2(&now, &total), 0);
	ck_assert_uint_eq(before - now, GRANULE);
	is(cuMemcpyHtoD_v2(address, &byte, 1), 0);
	is(cuMemUnmap(address, GRANULE), 0);
	is(cuMemImportFromShareableHandle(&imported, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), 0);
	close(fd);
	is(cuMemImportFromShareableHandle(&imported, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), ERROR_INVALID_VALUE);
	is(cuMemImportFromShareableHandle(&imported, (void *)0, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), ERROR_INVALID_VALUE);
	is(cuMemMap(address, GRANULE, 0, imported, 0), 0);
	is(cuMemcpyDtoH_v2(&byte, address, 1), ERROR_INVALID_VALUE); /* no access yet */
	is(cuMemSetAccess(address, GRANULE, &read_only, 1), 0);
	byte = 0;
	is(cuMemcpyDtoH_v2(&byte, address, 1), 0);
	ck_assert_int_eq(byte, 'x');
	is(cuMemcpyHtoD_v2(address, &byte, 1), ERROR_INVALID_VALUE);
}
END_TEST

START_TEST(the_cpu_cant_touch_device_memory)
{
	CUmemGenericAllocationHandle handle;
	CUdeviceptr address;

	start();
	address = mapped(&read_write, &handle);
	signal(SIGSEGV, SIG_DFL); /* a sanitizer has its own */
	*(volatile char *)(uintptr_t)address = 1;
}
END_TEST

START_TEST(a_forked_child_has_no_driver)
{
	int status;
	pid_t child;

	start();
	child = fork();
	if (child == 0) {
		size_t n;

		_exit(cuMemGetInfo_v2(&n, &n) == (CUresult)ERROR_NOT_INITIALIZED ? 0 : 1);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
}
END_TEST

/* Two streams, and no event between them: some run of many reads before it was written. With the event none does. */
static int count_wrong(bool waits)
{
	CUmemGenericAllocationHandle handle;
	CUdeviceptr address = mapped(&read_write, &handle);
	CUstream a, b;
	CUevent event;
	int wrong = 0;
	char *host = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	is(cuMemHostRegister_v2(host, 4096, 0), 0);
	is(cuStreamCreate(&a, CU_STREAM_NON_BLOCKING), 0);
	is(cuStreamCreate(&b, CU_STREAM_NON_BLOCKING), 0);
	is(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING), 0);
	for (int i = 1; i <= 100; i++) {
		is(cuMemsetD8Async(address, (unsigned char)i, 1, a), 0);
		is(cuEventRecord(event, a), 0);
		if (waits)
			is(cuStreamWaitEvent(b, event, 0), 0);
		is(cuMemcpyDtoHAsync_v2(host, address, 1, b), 0);
		is(cuStreamSynchronize(b), 0);
		wrong += *host != (char)i;
		is(cuStreamSynchronize(a), 0);
	}
	is(cuStreamDestroy_v2(a), 0);
	is(cuStreamDestroy_v2(a), ERROR_INVALID_HANDLE);
	is(cuEventDestroy_v2(event), 0);
	is(cuEventSynchronize(event), ERROR_INVALID_HANDLE);
	is(cuMemHostUnregister(host), 0);
	return wrong;
}

START_TEST(a_missing_event_wait_shows_as_wrong_bytes)
{
	start();
	ck_assert_int_eq(count_wrong(true), 0);
	ck_assert_int_gt(count_wrong(false), 0);
}
END_TEST

START_TEST(an_access_without_a_mapping_poisons_the_context_and_no_memory)
{
	CUmemGenericAllocationHandle handle;
	CUdeviceptr address, other;
	CUcontext context;
	char byte = 7;
	CUstream stream;

	start();
	address = mapped(&read_write, &handle);
	is(cuMemcpyHtoD_v2(address, &byte, 1), 0);
	is(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), 0);
	for (int i = 0; i < 100; i++)
		is(cuMemsetD8Async(address, 7, GRANULE, stream), 0);
	is(cuMemUnmap(address, GRANULE), 0); /* while work that needs it is queued */
	is(cuStreamSynchronize(stream), ERROR_ILLEGAL_ADDRESS);
	is(cuMemAlloc_v2(&other, 1), ERROR_ILLEGAL_ADDRESS);
	is(cuDevicePrimaryCtxReset_v2(0), 0);
	is(cuStreamSynchronize(stream), ERROR_CONTEXT_IS_DESTROYED);
	is(cuDevicePrimaryCtxRetain(&context, 0), 0);
	is(cuCtxSetCurrent(context), 0);
	is(cuMemMap(address, GRANULE, 0, handle, 0), 0);
	is(cuMemSetAccess(address, GRANULE, &read_only, 1), 0);
	byte = 0;
	is(cuMemcpyDtoH_v2(&byte, address, 1), 0);
	ck_assert_int_eq(byte, 7);
}
END_TEST

START_TEST(calls_fail_on_demand)
{
	CUmemGenericAllocationHandle handle;
	size_t n;

	setenv("HMMFS_SIMCUDA_FAIL", "cuMemCreate:2:2 cuMemGetInfo:3:999:lost", 1);
	start();
	is(cuMemCreate(&handle, GRANULE, &prop, 0), 0);
	is(cuMemCreate(&handle, GRANULE, &prop, 0), 2);
	is(cuMemCreate(&handle, GRANULE, &prop, 0), 0);
	is(cuMemGetInfo_v2(&n, &n), 0);
	is(cuMemGetInfo_v2(&n, &n), 0);
	is(cuMemGetInfo_v2(&n, &n), 999);
	is(cuMemCreate(&handle, GRANULE, &prop, 0), 999);
	is(cuInit(0), 999);
}
END_TEST

START_TEST(the_capacity_is_that_of_all_processes)
{
	CUmemGenericAllocationHandle handle;
	char path[] = "/tmp/simcuda-state-XXXXXX";
	int status;
	pid_t child;

	close(mkstemp(path));
	setenv("HMMFS_SIMCUDA_STATE", path, 1);
	setenv("HMMFS_SIMCUDA_MEMORY", "6M", 1);
	child = fork();
	if (child == 0) {
		start();
		is(cuMemCreate(&handle, 2 * GRANULE, &prop, 0), 0);
		kill(getpid(), SIGSTOP);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, &status, WUNTRACED), child);
	start();
	is(cuMemCreate(&handle, 2 * GRANULE, &prop, 0), 2);
	is(cuMemCreate(&handle, GRANULE, &prop, 0), 0);
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	is(cuMemCreate(&handle, 2 * GRANULE, &prop, 0), 0);
	unlink(path);
}
END_TEST

START_TEST(ptx_loads_and_kernels_have_twins)
{
	CUmemGenericAllocationHandle handle;
	unsigned long long len = 1000, sum = 0;
	CUdeviceptr address, result;
	CUfunction function;
	CUmodule module;

	start();
	address = mapped(&read_write, &handle);
	is(cuMemAlloc_v2(&result, 8), 0);
	is(cuMemsetD8Async(address, 3, 1000, NULL), 0);
	is(cuMemsetD8Async(result, 0, 8, NULL), 0);
	is(cuModuleLoadData(&module, "nonsense"), ERROR_INVALID_PTX);
	is(cuModuleLoadData(&module, ".version 8.0\n.visible .entry hmmfs_sum(\n.visible .entry unknown("), 0);
	is(cuModuleGetFunction(&function, module, "hmmfs_xor"), ERROR_NOT_FOUND);
	is(cuModuleGetFunction(&function, module, "unknown"), 0);
	is(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL), ERROR_NOT_SUPPORTED);
	is(cuModuleGetFunction(&function, module, "hmmfs_sum"), 0);
	is(cuLaunchKernel(function, 1, 1, 1, 2048, 1, 1, 0, NULL, NULL, NULL), ERROR_INVALID_VALUE);
	is(cuLaunchKernel(function, 4, 1, 1, 256, 1, 1, 0, NULL, (void *[]){&address, &len, &result}, NULL), 0);
	is(cuMemcpyDtoH_v2(&sum, result, 8), 0);
	ck_assert_uint_eq(sum, 3000);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("simcuda");
	TCase *tests = tcase_create("all"); /* each in a process of its own: the driver is per process */
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, calls_need_a_driver_that_was_initialized_and_a_context);
	tcase_add_test(tests, sizes_and_addresses_are_multiples_of_the_granularity);
	tcase_add_test(tests, memory_lives_while_anything_holds_it);
	tcase_add_test_raise_signal(tests, the_cpu_cant_touch_device_memory, SIGSEGV);
	tcase_add_test(tests, a_forked_child_has_no_driver);
	tcase_add_test(tests, a_missing_event_wait_shows_as_wrong_bytes);
	tcase_add_test(tests, an_access_without_a_mapping_poisons_the_context_and_no_memory);
	tcase_add_test(tests, calls_fail_on_demand);
	tcase_add_test(tests, the_capacity_is_that_of_all_processes);
	tcase_add_test(tests, ptx_loads_and_kernels_have_twins);
	suite_add_tcase(suite, tests);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
