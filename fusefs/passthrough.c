/*
 * passthrough.c - see passthrough.h for who is passed and why.
 *
 * A record exists for an inode that has a user, or may have mappings left. Its kind follows from its counts:
 *
 *     PASSED   passed opens or leases, or may_have_mappings
 *     CACHED   cached opens or leases
 *     neither  the next user settles it
 *
 * Lock: passthrough->mutex guards all of it; a leaf, held over no system call.
 */
#include "fusefs/passthrough.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utlist.h>

struct record {
	struct inode *inode;
	unsigned cached_opens, cached_leases;
	unsigned passed_opens, passed_leases;
	unsigned passed_exclusive;  /* of passed_leases */
	struct handle *writers;     /* of passed_opens, those that may store */
	bool may_have_mappings;     /* of passed opens for writing that are closed */
	unsigned long n_writers;    /* that there were so far */
	int backing_id;             /* the kernel's, while there are passed_opens */
	UT_hash_handle hh;
};

struct passthrough {
	struct fusefs *fs;
	pthread_mutex_t mutex;
	struct record *records; /* mutex */
	uint64_t n_opens;       /* mutex */
	atomic_bool is_enabled; /* set once before the first open, cleared when the kernel refuses */
};

struct passthrough *passthrough_create(struct fusefs *fs)
{
	struct passthrough *passthrough = calloc(1, sizeof(*passthrough));

	if (passthrough == NULL)
		return NULL;
	passthrough->fs = fs;
	pthread_mutex_init(&passthrough->mutex, NULL);
	return passthrough;
}

void passthrough_destroy(struct passthrough *passthrough)
{
	struct record *record, *next;

	HASH_ITER(hh, passthrough->records, record, next) {
		HASH_DEL(passthrough->records, record);
		free(record);
	}
	pthread_mutex_destroy(&passthrough->mutex);
	free(passthrough);
}

void passthrough_enable(struct passthrough *passthrough)
{
	atomic_store(&passthrough->is_enabled, true);
}

uint64_t passthrough_count(struct passthrough *passthrough)
{
	uint64_t n;

	pthread_mutex_lock(&passthrough->mutex);
	n = passthrough->n_opens;
	pthread_mutex_unlock(&passthrough->mutex);
	return n;
}

/* ---- records ---- */

static struct record *find_locked(struct passthrough *passthrough, struct inode *inode)
{
	struct record *record;

	HASH_FIND_PTR(passthrough->records, &inode, record);
	return record;
}

/* NULL: no memory. */
static struct record *get_locked(struct passthrough *passthrough, struct inode *inode)
{
	struct record *record = find_locked(passthrough, inode);

	if (record != NULL)
		return record;
	record = calloc(1, sizeof(*record));
	if (record != NULL) {
		record->inode = inode;
		HASH_ADD_PTR(passthrough->records, inode, record);
	}
	return record;
}

static bool has_passed_users(const struct record *record)
{
	return record->passed_opens > 0 || record->passed_leases > 0;
}

static bool is_passed(const struct record *record)
{
	return has_passed_users(record) || record->may_have_mappings;
}

static bool is_cached(const struct record *record)
{
	return record->cached_opens > 0 || record->cached_leases > 0;
}

static void free_if_unused_locked(struct passthrough *passthrough, struct record *record)
{
	if (is_passed(record) || is_cached(record))
		return;
	HASH_DEL(passthrough->records, record);
	free(record);
}

void passthrough_forget(struct passthrough *passthrough, struct inode *inode)
{
	struct record *record;

	pthread_mutex_lock(&passthrough->mutex);
	record = find_locked(passthrough, inode);
	if (record != NULL) { /* with users, if the connection was aborted: their RELEASE never came */
		HASH_DEL(passthrough->records, record);
		free(record);
	}
	pthread_mutex_unlock(&passthrough->mutex);
}

/* ---- mappings that outlive their descriptor ---- */

/* The backing gives a read lease only if no descriptor or mapping of it may store. Where it knows no leases nothing is certain. */
static bool has_no_writer(struct inode *inode)
{
	int fd = inode_reopen(inode, O_RDONLY | O_NONBLOCK);
	bool has_none;

	if (fd < 0)
		return false;
	has_none = fcntl(fd, F_SETLEASE, F_RDLCK) == 0;
	if (has_none)
		fcntl(fd, F_SETLEASE, F_UNLCK); /* who opens it for writing meanwhile waits for this, and SIGIO is ignored */
	close(fd);
	return has_none;
}

void passthrough_settle(struct passthrough *passthrough, struct inode *inode)
{
	struct record *record;
	unsigned long n_writers = 0;
	bool is_open_question, has_none;

	pthread_mutex_lock(&passthrough->mutex);
	record = find_locked(passthrough, inode);
	is_open_question = record != NULL && record->may_have_mappings && !has_passed_users(record);
	if (is_open_question)
		n_writers = record->n_writers;
	pthread_mutex_unlock(&passthrough->mutex);
	if (!is_open_question)
		return;
	has_none = has_no_writer(inode);
	pthread_mutex_lock(&passthrough->mutex);
	record = find_locked(passthrough, inode);
	if (has_none && record != NULL && record->n_writers == n_writers) {
		record->may_have_mappings = false;
		free_if_unused_locked(passthrough, record);
	}
	pthread_mutex_unlock(&passthrough->mutex);
}

/* ---- opens ---- */

static bool will_pass_locked(struct passthrough *passthrough, const struct record *record, bool is_eligible)
{
	if (is_passed(record))
		return true;
	/* What is resident would not be seen by a passed open. */
	return is_eligible && atomic_load(&passthrough->is_enabled) && !is_cached(record) &&
	       !cache_file_is_active(inode_cache_file(record->inode));
}

static int count_open_locked(struct passthrough *passthrough, struct record *record, struct handle *handle, bool passes)
{
	if (!passes) {
		record->cached_opens++;
		return 0;
	}
	if (handle->is_writer) {
		if (record->passed_exclusive > 0)
			return -ETXTBSY;
		DL_APPEND(record->writers, handle);
		record->n_writers++;
	}
	handle->is_passed = true;
	record->passed_opens++;
	passthrough->n_opens++;
	return 0;
}

/* The kernel's ioctls of /dev/fuse (Linux 6.9). libfuse's own functions for them want a request, which an open that is
 * answered has no more. */
struct backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};
#define IOC_BACKING_OPEN _IOW(229, 1, struct backing_map)
#define IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

static int backing_open(struct passthrough *passthrough, const struct handle *handle)
{
	struct backing_map map = {.fd = handle->fd};
	int id, err;

	allow_keeping_set_ids(false); /* the kernel writes with the rights that we have now, whoever writes */
	id = ioctl(fuse_session_fd(passthrough->fs->session), IOC_BACKING_OPEN, &map);
	err = errno;
	allow_keeping_set_ids(true);
	if (id > 0)
		return id;
	if (atomic_exchange(&passthrough->is_enabled, false))
		log_line(LOG_INFO, "%s: no kernel passthrough: %s; this mount goes on without", inode_name(handle->inode),
			 strerror(err));
	return -EIO;
}

/* The kernel's open files have references of their own, which are gone before it sends RELEASE. */
static void backing_close(struct passthrough *passthrough, int id)
{
	uint32_t number = (uint32_t)id;

	if (id > 0 && ioctl(fuse_session_fd(passthrough->fs->session), IOC_BACKING_CLOSE, &number) < 0)
		log_line(LOG_WARNING, "closing the kernel's passthrough to backing file %d: %s", id, strerror(errno));
}

int passthrough_open(struct passthrough *passthrough, struct handle *handle, bool is_eligible, int *backing_id)
{
	int fresh = 0, err = 0;

	*backing_id = 0;
	for (;;) {
		struct record *record;
		bool passes, needs_id;

		pthread_mutex_lock(&passthrough->mutex);
		record = get_locked(passthrough, handle->inode);
		if (record == NULL) {
			pthread_mutex_unlock(&passthrough->mutex);
			err = -ENOMEM;
			break;
		}
		passes = will_pass_locked(passthrough, record, is_eligible);
		needs_id = passes && record->backing_id == 0;
		if (needs_id && fresh > 0) {
			record->backing_id = fresh;
			fresh = 0;
			needs_id = false;
		}
		if (!needs_id) {
			err = count_open_locked(passthrough, record, handle, passes);
			*backing_id = err == 0 && passes ? record->backing_id : 0;
			if (record->passed_opens == 0) {
				fresh = record->backing_id; /* nobody took it */
				record->backing_id = 0;
			}
		} else if (fresh < 0) {
			err = fresh; /* it has to be passed, and can't be */
		}
		free_if_unused_locked(passthrough, record);
		pthread_mutex_unlock(&passthrough->mutex);
		if (!needs_id || fresh < 0)
			break;
		fresh = backing_open(passthrough, handle);
	}
	backing_close(passthrough, fresh);
	return err;
}

void passthrough_close(struct passthrough *passthrough, struct handle *handle)
{
	struct record *record;
	int unused_id = 0;

	pthread_mutex_lock(&passthrough->mutex);
	record = find_locked(passthrough, handle->inode);
	if (!handle->is_passed) {
		record->cached_opens--;
	} else {
		passthrough->n_opens--;
		record->passed_opens--;
		if (handle->is_writer) {
			DL_DELETE(record->writers, handle);
			record->may_have_mappings = true;
		}
		if (record->passed_opens == 0) {
			unused_id = record->backing_id;
			record->backing_id = 0;
		}
	}
	free_if_unused_locked(passthrough, record);
	pthread_mutex_unlock(&passthrough->mutex);
	backing_close(passthrough, unused_id);
}

/* ---- leases ---- */

static bool has_other_writers(const struct record *record, uint64_t handle_id)
{
	const struct handle *handle;

	DL_FOREACH(record->writers, handle) {
		if (handle->id != handle_id)
			return true;
	}
	return record->may_have_mappings;
}

int passthrough_lease_begin(struct passthrough *passthrough, struct inode *inode, uint64_t handle_id, bool is_exclusive,
			    struct passthrough_lease *lease)
{
	struct record *record;
	int err = 0;

	passthrough_settle(passthrough, inode);
	pthread_mutex_lock(&passthrough->mutex);
	record = get_locked(passthrough, inode);
	if (record == NULL) {
		pthread_mutex_unlock(&passthrough->mutex);
		return -ENOMEM;
	}
	*lease = (struct passthrough_lease){.is_passed = is_passed(record), .is_exclusive = is_exclusive,
					    .may_be_old = record->writers != NULL || record->may_have_mappings};
	if (!lease->is_passed) {
		record->cached_leases++;
	} else if (is_exclusive && has_other_writers(record, handle_id)) {
		err = -EBUSY;
	} else {
		record->passed_leases++;
		record->passed_exclusive += is_exclusive;
	}
	free_if_unused_locked(passthrough, record);
	pthread_mutex_unlock(&passthrough->mutex);
	return err;
}

void passthrough_lease_end(struct passthrough *passthrough, struct inode *inode, const struct passthrough_lease *lease)
{
	struct record *record;

	pthread_mutex_lock(&passthrough->mutex);
	record = find_locked(passthrough, inode);
	if (!lease->is_passed) {
		record->cached_leases--;
	} else {
		record->passed_leases--;
		record->passed_exclusive -= lease->is_exclusive;
	}
	free_if_unused_locked(passthrough, record);
	pthread_mutex_unlock(&passthrough->mutex);
}
