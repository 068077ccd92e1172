/* account.c - how much memory of the devices is in use, over all processes that name the same HMMFS_SIMCUDA_STATE. */
#include "test/simcuda/account.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PROCESSES_MAX = 256 };

struct entry {
	pid_t pid; /* 0: free; of one that has died: its memory is free */
	int device;
	uint64_t bytes;
};

static struct entry *entries; /* sim.mutex in this process, flock between them */
static int file = -1;

static void open_file(void)
{
	const char *path = getenv("HMMFS_SIMCUDA_STATE");
	size_t bytes = PROCESSES_MAX * sizeof(struct entry);

	if (entries != NULL)
		return;
	if (path != NULL) {
		file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
		if (file < 0 || ftruncate(file, (off_t)bytes) < 0)
			abort();
	}
	entries = mmap(NULL, bytes, PROT_READ | PROT_WRITE, file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, file, 0);
	if (entries == MAP_FAILED)
		abort();
}

static void lock(void)
{
	open_file();
	while (file >= 0 && flock(file, LOCK_EX) < 0 && errno == EINTR)
		;
}

static void unlock(void)
{
	if (file >= 0)
		flock(file, LOCK_UN);
}

static uint64_t count(int device)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < PROCESSES_MAX; i++) {
		if (entries[i].pid != 0 && kill(entries[i].pid, 0) < 0 && errno == ESRCH)
			entries[i].pid = 0;
		if (entries[i].pid != 0 && entries[i].device == device)
			bytes += entries[i].bytes;
	}
	return bytes;
}

static struct entry *own_entry(int device)
{
	struct entry *empty = NULL;

	for (size_t i = 0; i < PROCESSES_MAX; i++) {
		if (entries[i].pid == getpid() && entries[i].device == device)
			return &entries[i];
		if (entries[i].pid == 0)
			empty = &entries[i];
	}
	if (empty == NULL)
		abort();
	*empty = (struct entry){.pid = getpid(), .device = device};
	return empty;
}

uint64_t account_used(int device)
{
	uint64_t bytes;

	lock();
	bytes = count(device);
	unlock();
	return bytes;
}

bool account_take(int device, uint64_t bytes, uint64_t total)
{
	bool fits;

	lock();
	fits = count(device) + bytes <= total;
	if (fits)
		own_entry(device)->bytes += bytes;
	unlock();
	return fits;
}

void account_give(int device, uint64_t bytes)
{
	lock();
	own_entry(device)->bytes -= bytes;
	unlock();
}
