/*
 * keep.c - regions between copies.
 *
 * A region of one's own is two connections to the daemon and five calls of the driver for each chunk. So it is kept when its copy is
 * done, with no lease, for the next copy of the same bytes, which then maps nothing unless chunks moved. What is mapped is memory of
 * the GPU that the cache can't give to others any more when it evicts the chunks. Therefore regions go
 *
 *   - with the mapping that they were made for (munmap),
 *   - when an allocation of the program finds no memory,
 *   - the oldest first, when there are more than KEPT_MAX, or than half of the cache's capacity.
 *
 * One that is taken for a copy is on no list: two copies of the same bytes at once have a region each. Nothing is unmapped while the
 * mutex is held: that leads back here, by munmap.
 */
#include "client/exec/exec.h"

#include "client/session.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEPT_MAX = 16 }; /* a connection each, of which the daemon allows a user's processes 256 together */

struct kept {
	struct exec_range range;
	struct hmmfs_region *region; /* NULL: the place is free */
	uint64_t limit, used;
	struct stat socket; /* the program may have closed all descriptors, and have something else there by now */
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct kept kept[KEPT_MAX]; /* mutex */
static uint64_t n_used;            /* mutex; counts */
static _Atomic pid_t owner;        /* a forked child has neither their driver nor, maybe, the mutex */
static atomic_uint n_kept;         /* changed under the mutex; read without, so that munmap is quick for others */

static bool is_usable(const struct kept *place)
{
	struct stat now;

	return atomic_load(&owner) == getpid() && fstat(region_socket(place->region), &now) == 0 && now.st_dev == place->socket.st_dev &&
	       now.st_ino == place->socket.st_ino;
}

/* NULL: it is not usable any more, and not to be touched. */
static struct hmmfs_region *take_locked(struct kept *place)
{
	struct hmmfs_region *region = is_usable(place) ? place->region : NULL;

	place->region = NULL;
	atomic_fetch_sub(&n_kept, 1);
	return region;
}

static bool is_same(const struct exec_range *a, const struct exec_range *b)
{
	return a->dev == b->dev && a->inode == b->inode && a->offset == b->offset && a->bytes == b->bytes;
}

struct hmmfs_region *exec_keep_take(const struct exec_range *range, uint64_t *limit)
{
	struct hmmfs_region *region = NULL;

	pthread_mutex_lock(&mutex);
	for (size_t i = 0; i < KEPT_MAX && region == NULL; i++) {
		if (kept[i].region != NULL && is_same(&kept[i].range, range)) {
			*limit = kept[i].limit;
			region = take_locked(&kept[i]);
		}
	}
	pthread_mutex_unlock(&mutex);
	return region;
}

/* The place of the new one: a free one, or that of the oldest, which is *old then. */
static struct kept *find_place_locked(struct hmmfs_region **old)
{
	struct kept *place = &kept[0];

	for (size_t i = 0; i < KEPT_MAX && place->region != NULL; i++) {
		if (kept[i].region == NULL || kept[i].used < place->used)
			place = &kept[i];
	}
	*old = place->region == NULL ? NULL : take_locked(place);
	return place;
}

static struct hmmfs_region *take_oldest_over_locked(uint64_t limit)
{
	struct kept *oldest = NULL;
	uint64_t bytes = 0;

	for (size_t i = 0; i < KEPT_MAX; i++) {
		if (kept[i].region == NULL)
			continue;
		bytes += kept[i].range.bytes;
		if (oldest == NULL || kept[i].used < oldest->used)
			oldest = &kept[i];
	}
	return oldest != NULL && bytes > limit ? take_locked(oldest) : NULL;
}

void exec_keep_put(const struct exec_range *range, struct hmmfs_region *region, uint64_t limit)
{
	struct hmmfs_region *old;
	struct kept *place;

	pthread_mutex_lock(&mutex);
	place = find_place_locked(&old);
	*place = (struct kept){.range = *range, .region = region, .limit = limit, .used = ++n_used};
	atomic_store(&owner, getpid());
	fstat(region_socket(region), &place->socket);
	atomic_fetch_add(&n_kept, 1);
	pthread_mutex_unlock(&mutex);
	do {
		hmmfs_unmap(old);
		pthread_mutex_lock(&mutex);
		old = take_oldest_over_locked(limit);
		pthread_mutex_unlock(&mutex);
	} while (old != NULL);
}

static bool overlaps(const struct exec_range *range, uintptr_t address, size_t bytes)
{
	return address < range->address ? range->address - address < bytes : address - range->address < range->bytes;
}

static bool drop(uintptr_t address, size_t bytes, bool is_all)
{
	struct hmmfs_region *gone[KEPT_MAX];
	size_t n = 0;

	if (atomic_load(&n_kept) == 0 || atomic_load(&owner) != getpid())
		return false;
	pthread_mutex_lock(&mutex);
	for (size_t i = 0; i < KEPT_MAX; i++) {
		if (kept[i].region != NULL && (is_all || overlaps(&kept[i].range, address, bytes))) {
			gone[n] = take_locked(&kept[i]);
			n += gone[n] != NULL;
		}
	}
	pthread_mutex_unlock(&mutex);
	for (size_t i = 0; i < n; i++)
		hmmfs_unmap(gone[i]);
	return n > 0;
}

bool exec_keep_drop(uintptr_t address, size_t bytes)
{
	return drop(address, bytes, false);
}

bool exec_keep_drop_all(void)
{
	return drop(0, 0, true);
}
