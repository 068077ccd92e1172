/*
 * hooks.c - the entry points that are ours, and how the program comes to them.
 *
 * A hook is given out only for what is libcuda's own, so that a program (or another preloaded library) with functions of
 * these names keeps them. cuGetProcAddress may give another address than the symbol's: each hook remembers what it stands for.
 */
#include "client/exec/exec.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { BYTES_MIN = 1 << 20, V2_VERSION = 3020, PROC_V2_VERSION = 12000, FLAG_PER_THREAD = 2 };

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes);
EXPORT CUresult cuMemcpyHtoD_v2_ptds(CUdeviceptr to, const void *from, size_t bytes);
EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream);
EXPORT CUresult cuMemcpyHtoDAsync_v2_ptsz(CUdeviceptr to, const void *from, size_t bytes, CUstream stream);
EXPORT CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes);
EXPORT CUresult cuMemcpy_ptds(CUdeviceptr to, CUdeviceptr from, size_t bytes);
EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream);
EXPORT CUresult cuMemcpyAsync_ptsz(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream);
EXPORT CUresult cuGetProcAddress(const char *name, void **address, int version, unsigned long long flags);
EXPORT CUresult cuGetProcAddress_v2(const char *name, void **address, int version, unsigned long long flags,
				    CUdriverProcAddressQueryResult *found);
EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes);
EXPORT CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream stream);
EXPORT CUresult cuMemAllocAsync_ptsz(CUdeviceptr *address, size_t bytes, CUstream stream);
EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *prop, unsigned long long flags);
EXPORT void *dlsym(void *handle, const char *name);
EXPORT int munmap(void *address, size_t bytes);

enum which {
	HTOD, HTOD_PTDS, HTOD_ASYNC, HTOD_ASYNC_PTSZ, COPY, COPY_PTDS, COPY_ASYNC, COPY_ASYNC_PTSZ, ALLOC, ALLOC_ASYNC, ALLOC_ASYNC_PTSZ,
	CREATE, PROC, PROC_V2, HOOKS
};

static struct hook {
	const char *symbol, *name; /* as exported, and as cuGetProcAddress knows it */
	bool is_per_thread;
	void *ours;
	_Atomic(void *) real; /* set once or twice, to what does the same */
	bool has_one_form;    /* it has no stream */
} hooks[HOOKS] = {
	[HTOD] = {"cuMemcpyHtoD_v2", "cuMemcpyHtoD", false, (void *)cuMemcpyHtoD_v2, NULL, false},
	[HTOD_PTDS] = {"cuMemcpyHtoD_v2_ptds", "cuMemcpyHtoD", true, (void *)cuMemcpyHtoD_v2_ptds, NULL, false},
	[HTOD_ASYNC] = {"cuMemcpyHtoDAsync_v2", "cuMemcpyHtoDAsync", false, (void *)cuMemcpyHtoDAsync_v2, NULL, false},
	[HTOD_ASYNC_PTSZ] = {"cuMemcpyHtoDAsync_v2_ptsz", "cuMemcpyHtoDAsync", true, (void *)cuMemcpyHtoDAsync_v2_ptsz, NULL, false},
	[COPY] = {"cuMemcpy", "cuMemcpy", false, (void *)cuMemcpy, NULL, false},
	[COPY_PTDS] = {"cuMemcpy_ptds", "cuMemcpy", true, (void *)cuMemcpy_ptds, NULL, false},
	[COPY_ASYNC] = {"cuMemcpyAsync", "cuMemcpyAsync", false, (void *)cuMemcpyAsync, NULL, false},
	[COPY_ASYNC_PTSZ] = {"cuMemcpyAsync_ptsz", "cuMemcpyAsync", true, (void *)cuMemcpyAsync_ptsz, NULL, false},
	[ALLOC] = {"cuMemAlloc_v2", "cuMemAlloc", false, (void *)cuMemAlloc_v2, NULL, true},
	[ALLOC_ASYNC] = {"cuMemAllocAsync", "cuMemAllocAsync", false, (void *)cuMemAllocAsync, NULL, false},
	[ALLOC_ASYNC_PTSZ] = {"cuMemAllocAsync_ptsz", "cuMemAllocAsync", true, (void *)cuMemAllocAsync_ptsz, NULL, false},
	[CREATE] = {"cuMemCreate", "cuMemCreate", false, (void *)cuMemCreate, NULL, true},
	[PROC] = {"cuGetProcAddress", NULL, false, (void *)cuGetProcAddress, NULL, false},
	[PROC_V2] = {"cuGetProcAddress_v2", NULL, false, (void *)cuGetProcAddress_v2, NULL, false},
};

/* ---- libc's dlsym ---- */

typedef void *(*dlsym_function)(void *handle, const char *name);
static _Atomic(dlsym_function) real_dlsym;

static dlsym_function find_dlsym(void)
{
	static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.17", "GLIBC_2.2.5", "GLIBC_2.27"};
	dlsym_function found = atomic_load(&real_dlsym);

	for (size_t i = 0; found == NULL && i < sizeof(versions) / sizeof(versions[0]); i++)
		*(void **)&found = dlvsym(RTLD_NEXT, "dlsym", versions[i]);
	if (found == NULL)
		abort(); /* a libc without it can't have started this library */
	atomic_store(&real_dlsym, found);
	return found;
}

void *exec_driver_symbol(const char *name)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), *address;

	if (library == NULL)
		return NULL;
	address = find_dlsym()(library, name);
	dlclose(library);
	return address;
}

static void *real(enum which which)
{
	void *address = atomic_load(&hooks[which].real);

	if (address == NULL) {
		address = exec_driver_symbol(hooks[which].symbol);
		atomic_store(&hooks[which].real, address);
	}
	return address;
}

/* A call that is a jump, in a build without optimization, too. */
#ifdef __clang__
#define JUMPS
#define JUMP __attribute__((musttail)) return
#else
#define JUMPS __attribute__((optimize("O2")))
#define JUMP return
#endif

/* Jumps to libc's, which takes whoever called for the start of a RTLD_NEXT search. */
JUMPS void *dlsym(void *handle, const char *name)
{
	dlsym_function next = find_dlsym();

	if (name[0] == 'c' && name[1] == 'u') {
		for (int i = 0; i < HOOKS; i++) {
			if (strcmp(hooks[i].symbol, name) == 0) {
				void *address = next(handle, name);

				return address != NULL && (address == real((enum which)i) || address == hooks[i].ours) ? hooks[i].ours : address;
			}
		}
	}
	JUMP next(handle, name);
}

/* ---- cuGetProcAddress ---- */

/* A driver that calls an exported function of its own has called ours, which has done it then. */
static void take_place(struct hook *hook, void **address)
{
	if (*address == hook->ours)
		return;
	atomic_store(&hook->real, *address);
	*address = hook->ours;
}

static void replace(const char *name, void **address, int version, unsigned long long flags)
{
	bool is_per_thread = (flags & FLAG_PER_THREAD) != 0;

	if (*address == NULL || version < V2_VERSION)
		return;
	if (strcmp(name, "cuGetProcAddress") == 0)
		take_place(&hooks[version < PROC_V2_VERSION ? PROC : PROC_V2], address);
	for (int i = 0; i < PROC; i++) {
		if ((hooks[i].is_per_thread == is_per_thread || hooks[i].has_one_form) && strcmp(hooks[i].name, name) == 0) {
			take_place(&hooks[i], address);
			return;
		}
	}
}

CUresult cuGetProcAddress(const char *name, void **address, int version, unsigned long long flags)
{
	CUresult (*next)(const char *, void **, int, unsigned long long);
	CUresult result;

	*(void **)&next = real(PROC);
	if (next == NULL)
		return CUDA_ERROR_UNKNOWN;
	result = next(name, address, version, flags);
	if (result == CUDA_SUCCESS && name != NULL && address != NULL)
		replace(name, address, version, flags);
	return result;
}

CUresult cuGetProcAddress_v2(const char *name, void **address, int version, unsigned long long flags, CUdriverProcAddressQueryResult *found)
{
	CUresult (*next)(const char *, void **, int, unsigned long long, CUdriverProcAddressQueryResult *);
	CUresult result;

	*(void **)&next = real(PROC_V2);
	if (next == NULL)
		return CUDA_ERROR_UNKNOWN;
	result = next(name, address, version, flags, found);
	if (result == CUDA_SUCCESS && name != NULL && address != NULL)
		replace(name, address, version, flags);
	return result;
}

/* ---- copies ---- */

static size_t least_bytes(void)
{
	static atomic_size_t least;
	size_t n = atomic_load(&least);

	if (n == 0) {
		const char *text = getenv("HMMFS_EXEC_MIN");

		n = text == NULL ? BYTES_MIN : strtoull(text, NULL, 0);
		n = n == 0 ? 1 : n;
		atomic_store(&least, n);
	}
	return n;
}

static bool is_copied(CUdeviceptr to, const void *from, size_t bytes, CUstream stream, bool is_per_thread)
{
	return bytes >= least_bytes() && exec_copy(to, from, bytes, stream, is_per_thread);
}

static CUresult copy(enum which which, CUdeviceptr to, const void *from, size_t bytes)
{
	CUresult (*next)(CUdeviceptr, const void *, size_t);

	*(void **)&next = real(which);
	if (next == NULL)
		return CUDA_ERROR_UNKNOWN;
	return is_copied(to, from, bytes, NULL, hooks[which].is_per_thread) ? CUDA_SUCCESS : next(to, from, bytes);
}

static CUresult copy_async(enum which which, CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
	CUresult (*next)(CUdeviceptr, const void *, size_t, CUstream);

	*(void **)&next = real(which);
	if (next == NULL)
		return CUDA_ERROR_UNKNOWN;
	return is_copied(to, from, bytes, stream, hooks[which].is_per_thread) ? CUDA_SUCCESS : next(to, from, bytes, stream);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes)
{
	return copy(HTOD, to, from, bytes);
}

CUresult cuMemcpyHtoD_v2_ptds(CUdeviceptr to, const void *from, size_t bytes)
{
	return copy(HTOD_PTDS, to, from, bytes);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
	return copy_async(HTOD_ASYNC, to, from, bytes, stream);
}

CUresult cuMemcpyHtoDAsync_v2_ptsz(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
	return copy_async(HTOD_ASYNC_PTSZ, to, from, bytes, stream);
}

/* Between any two addresses: a CUdeviceptr is as wide as a pointer, and passed as one. */
CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	return copy(COPY, to, (const void *)(uintptr_t)from, bytes);
}

CUresult cuMemcpy_ptds(CUdeviceptr to, CUdeviceptr from, size_t bytes)
{
	return copy(COPY_PTDS, to, (const void *)(uintptr_t)from, bytes);
}

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	return copy_async(COPY_ASYNC, to, (const void *)(uintptr_t)from, bytes, stream);
}

CUresult cuMemcpyAsync_ptsz(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	return copy_async(COPY_ASYNC_PTSZ, to, (const void *)(uintptr_t)from, bytes, stream);
}

/* ---- what regions that are kept would be in the way of ---- */

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
	CUresult (*next)(CUdeviceptr *, size_t);
	CUresult result;

	*(void **)&next = real(ALLOC);
	result = next == NULL ? CUDA_ERROR_UNKNOWN : next(address, bytes);
	return result == CUDA_ERROR_OUT_OF_MEMORY && exec_keep_drop_all() ? next(address, bytes) : result;
}

static CUresult alloc_async(enum which which, CUdeviceptr *address, size_t bytes, CUstream stream)
{
	CUresult (*next)(CUdeviceptr *, size_t, CUstream);
	CUresult result;

	*(void **)&next = real(which);
	result = next == NULL ? CUDA_ERROR_UNKNOWN : next(address, bytes, stream);
	return result == CUDA_ERROR_OUT_OF_MEMORY && exec_keep_drop_all() ? next(address, bytes, stream) : result;
}

CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream stream)
{
	return alloc_async(ALLOC_ASYNC, address, bytes, stream);
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr *address, size_t bytes, CUstream stream)
{
	return alloc_async(ALLOC_ASYNC_PTSZ, address, bytes, stream);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *prop, unsigned long long flags)
{
	CUresult (*next)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long);
	CUresult result;

	*(void **)&next = real(CREATE);
	result = next == NULL ? CUDA_ERROR_UNKNOWN : next(handle, bytes, prop, flags);
	return result == CUDA_ERROR_OUT_OF_MEMORY && exec_keep_drop_all() ? next(handle, bytes, prop, flags) : result;
}

int munmap(void *address, size_t bytes)
{
	static _Atomic(void *) found;
	int (*next)(void *, size_t), before = errno;

	if (atomic_load(&found) == NULL)
		atomic_store(&found, find_dlsym()(RTLD_NEXT, "munmap"));
	*(void **)&next = atomic_load(&found);
	exec_keep_drop((uintptr_t)address, bytes);
	errno = before;
	return next(address, bytes);
}
