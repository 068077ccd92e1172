/*
 * find.c - what lies behind an address. Asked at each large copy, so it is quick for what is none of ours: one ioctl on
 * /proc/self/maps (PROCMAP_QUERY, Linux 6.11), or where the kernel has none, the maps read through.
 */
#include "client/exec/exec.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <unistd.h>

/* linux/fs.h has it from 6.11 on. */
struct query {
	uint64_t size, flags, address, start, end, vma_flags, page_size, offset, inode;
	uint32_t major_number, minor_number, name_size, build_id_size;
	uint64_t name, build_id;
};
#define QUERY _IOWR('f', 17, struct query)
enum { QUERY_FILE_BACKED = 0x20, VMA_SHARED = 8 };

struct found {
	uintptr_t start, end;
	dev_t dev;
	uint64_t inode, offset; /* of start */
	bool is_shared;
};

static bool read_maps(uintptr_t address, struct found *found)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	bool is_found = false;
	char line[4608];

	while (maps != NULL && !is_found && fgets(line, sizeof(line), maps) != NULL) {
		unsigned major_number, minor_number;
		char sharing;

		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*3s%c %" SCNx64 " %x:%x %" SCNu64, &found->start, &found->end, &sharing,
			   &found->offset, &major_number, &minor_number, &found->inode) < 7)
			continue;
		is_found = address >= found->start && address < found->end;
		found->dev = makedev(major_number, minor_number);
		found->is_shared = sharing == 's';
	}
	if (maps != NULL)
		fclose(maps);
	return is_found;
}

static bool look_up(uintptr_t address, struct found *found)
{
	struct query query = {.size = sizeof(query), .flags = QUERY_FILE_BACKED, .address = address};
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	bool is_known, is_found;

	if (fd < 0)
		return false;
	is_found = ioctl(fd, QUERY, &query) == 0;
	is_known = is_found || errno == ENOENT;
	close(fd);
	if (!is_known)
		return read_maps(address, found);
	*found = (struct found){.start = (uintptr_t)query.start, .end = (uintptr_t)query.end,
				.dev = makedev(query.major_number, query.minor_number), .inode = query.inode, .offset = query.offset,
				.is_shared = query.vma_flags & VMA_SHARED};
	return is_found;
}

/* ---- which filesystems are ours ---- */

enum { KNOWN_MAX = 16 };
static struct {
	dev_t dev;
	bool is_hmmfs;
} known[KNOWN_MAX];                                             /* known_mutex */
static size_t n_known;                                          /* known_mutex */
static pthread_mutex_t known_mutex = PTHREAD_MUTEX_INITIALIZER; /* not held while mountinfo is read */

static bool ask_mountinfo(dev_t dev)
{
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	bool is_hmmfs = false;
	char line[8192];

	while (mounts != NULL && !is_hmmfs && fgets(line, sizeof(line), mounts) != NULL) {
		unsigned major_number, minor_number;

		is_hmmfs = sscanf(line, "%*d %*d %u:%u", &major_number, &minor_number) == 2 &&
			   makedev(major_number, minor_number) == dev && strstr(line, " - fuse.hmmfs ") != NULL;
	}
	if (mounts != NULL)
		fclose(mounts);
	return is_hmmfs;
}

/* What is remembered may have been unmounted since: then the ticket is refused, or a copy is the driver's that needn't be. */
static bool is_hmmfs(dev_t dev)
{
	bool is_known = false, answer = false;

	pthread_mutex_lock(&known_mutex);
	for (size_t i = 0; i < n_known && i < KNOWN_MAX; i++) {
		if (known[i].dev == dev) {
			is_known = true;
			answer = known[i].is_hmmfs;
		}
	}
	pthread_mutex_unlock(&known_mutex);
	if (is_known)
		return answer;
	answer = ask_mountinfo(dev);
	pthread_mutex_lock(&known_mutex);
	known[n_known % KNOWN_MAX].dev = dev;
	known[n_known++ % KNOWN_MAX].is_hmmfs = answer;
	pthread_mutex_unlock(&known_mutex);
	return answer;
}

/* ---- private mappings ---- */

/* A page of a private mapping that was stored to is the process's own, not the file's. */
static bool has_own_pages(uintptr_t start, uintptr_t end)
{
	const uint64_t is_present = UINT64_C(1) << 63, is_swapped = UINT64_C(1) << 62, is_files = UINT64_C(1) << 61;
	size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	uint64_t first = start / page_bytes, last = (end - 1) / page_bytes;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bool has_own = fd < 0;

	while (!has_own && first <= last) {
		uint64_t pages[512];
		size_t wanted = last - first + 1 < 512 ? last - first + 1 : 512;
		ssize_t n = pread(fd, pages, wanted * sizeof(pages[0]), (off_t)(first * sizeof(pages[0])));

		has_own = n < (ssize_t)sizeof(pages[0]);
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(pages[0]); i++)
			has_own |= (pages[i] & is_swapped) || ((pages[i] & is_present) && !(pages[i] & is_files));
		first += n > 0 ? (uint64_t)n / sizeof(pages[0]) : 0;
	}
	if (fd >= 0)
		close(fd);
	return has_own;
}

static bool is_files_own(const struct found *found, uintptr_t at, uintptr_t end)
{
	return major(found->dev) == 0 && is_hmmfs(found->dev) &&
	       (found->is_shared || !has_own_pages(at, found->end < end ? found->end : end));
}

bool exec_find(const void *address, size_t bytes, struct exec_range *range)
{
	uintptr_t start = (uintptr_t)address, end = start + bytes;

	/* mprotect splits a mapping into several: of one file, in order. */
	for (uintptr_t at = start; at < end;) {
		struct found found;

		if (!look_up(at, &found) || !is_files_own(&found, at, end))
			return false;
		if (at == start)
			*range = (struct exec_range){start, bytes, found.dev, found.inode, found.offset + (at - found.start)};
		else if (found.dev != range->dev || found.inode != range->inode || found.offset != range->offset + (at - start))
			return false;
		at = found.end;
	}
	return end > start;
}
