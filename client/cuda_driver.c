/* cuda_driver.c - see cuda_driver.h. */
#include "client/cuda_driver.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

static struct cuda_driver driver; /* driver_mutex, until is_found */
static bool is_found;             /* driver_mutex */
static pthread_mutex_t driver_mutex = PTHREAD_MUTEX_INITIALIZER;

static bool find(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD); /* stays referenced: the driver can't be unloaded */

	if (library == NULL)
		return false;
	/* POSIX has it that a pointer to a function fits into a void *, and C knows no way to say so. */
#define FIND(member, name, parameters) *(void **)&driver.member = dlsym(library, #name);
	CUDA_DRIVER_ENTRIES(FIND)
#undef FIND
#define IS_THERE(member, name, parameters) &&driver.member != NULL
	return true CUDA_DRIVER_ENTRIES(IS_THERE);
#undef IS_THERE
}

/* Asked again until it is there: the application may load it later. */
const struct cuda_driver *cuda_driver(void)
{
	bool is_there;

	pthread_mutex_lock(&driver_mutex);
	if (!is_found)
		is_found = find();
	is_there = is_found;
	pthread_mutex_unlock(&driver_mutex);
	return is_there ? &driver : NULL;
}

int cuda_errno(CUresult result)
{
	switch (result) {
	case CUDA_SUCCESS: return 0;
	case CUDA_ERROR_OUT_OF_MEMORY: return -ENOMEM;
	default: return -EIO;
	}
}
