/*
 * coherent.c - -o coherent: what others change in the backing is seen at once.
 *
 * Each directory that the kernel knows has a fanotify mark. A thread reads the events, skips those of this process, and has
 * the kernel look the name up again and drop the attributes and pages of the file. It holds no lock meanwhile: expiring a
 * name takes the directory's lock in the kernel, behind any request of that directory, so an answer that was on its way
 * comes first. In return the kernel may trust what it has for ten minutes.
 *
 * Not told: stores through others' mappings, changes of a file by a name in a directory that nobody looked at (files of
 * several names are trusted for a second only), and what happens while the queue overflows (then every name is looked up
 * again). Where the kernel has no marks left, a second is all that names and attributes are trusted for, as without.
 *
 * Lock: coherent->mutex guards the watches; table_lock may be taken under it.
 */
#include "fusefs/coherent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/statfs.h>
#include <syslog.h>
#include <unistd.h>

/* Our own changes make events, too. Where there were no others they are left to gather for so long: to be woken for each would cost
 * as much as the change. */
enum { OWN_EVENTS_US = 1000 };

static const uint64_t name_events = FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO;
static const uint64_t file_events = FAN_MODIFY | FAN_ATTRIB;

/* What an event calls a directory. */
struct watch_key {
	fsid_t fsid;
	int32_t type;
	uint32_t bytes;
	unsigned char handle[MAX_HANDLE_SZ];
};

struct watch {
	struct inode *inode;
	size_t key_bytes;
	UT_hash_handle hh;
	struct watch_key key; /* as long as key_bytes says */
};

struct coherent {
	struct fusefs *fs;
	int events, wake;
	pthread_t thread;
	pthread_mutex_t mutex;
	struct watch *watches; /* mutex */
};

/* ---- watches ---- */

static size_t key_size(uint32_t handle_bytes)
{
	return offsetof(struct watch_key, handle) + handle_bytes;
}

static void fill_key(struct watch_key *key, fsid_t fsid, const struct file_handle *handle)
{
	memset(key, 0, offsetof(struct watch_key, handle));
	key->fsid = fsid;
	key->type = handle->handle_type;
	key->bytes = handle->handle_bytes;
	memcpy(key->handle, handle->f_handle, handle->handle_bytes);
}

/* NULL: errno. */
static struct watch *watch_create(struct inode *inode, int fd)
{
	union {
		struct file_handle handle;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} at = {.handle.handle_bytes = MAX_HANDLE_SZ};
	struct statfs st;
	struct watch *watch;
	int mount_id;

	if (name_to_handle_at(fd, "", &at.handle, &mount_id, AT_EMPTY_PATH) < 0 || fstatfs(fd, &st) < 0)
		return NULL;
	watch = calloc(1, offsetof(struct watch, key) + key_size(at.handle.handle_bytes));
	if (watch == NULL)
		return NULL;
	watch->inode = inode;
	watch->key_bytes = key_size(at.handle.handle_bytes);
	fill_key(&watch->key, st.f_fsid, &at.handle);
	return watch;
}

static int mark(struct coherent *coherent, unsigned flags, int fd)
{
	struct proc_path path = proc_path_of(fd);

	return fanotify_mark(coherent->events, flags, name_events | file_events | FAN_EVENT_ON_CHILD | FAN_ONDIR, AT_FDCWD,
			     path.text);
}

void coherent_watch(struct coherent *coherent, struct inode *inode)
{
	struct fusefs *fs = coherent->fs;
	INODE_FD(at, inode);
	struct watch *watch = at.fd < 0 ? NULL : watch_create(inode, at.fd);

	if (watch == NULL || mark(coherent, FAN_MARK_ADD, at.fd) < 0) {
		if (atomic_exchange(&fs->timeout_ms, DEFAULT_TIMEOUT_MS) != DEFAULT_TIMEOUT_MS)
			log_line(LOG_WARNING, "%s: can't be watched: %s; see fs.fanotify.max_user_marks. From here on others' changes "
				 "are seen after a second", inode_name(inode), strerror(errno));
		free(watch);
		return;
	}
	pthread_mutex_lock(&coherent->mutex);
	HASH_ADD_KEYPTR(hh, coherent->watches, &watch->key, watch->key_bytes, watch);
	inode->watch = watch;
	pthread_mutex_unlock(&coherent->mutex);
}

void coherent_unwatch(struct coherent *coherent, struct inode *inode)
{
	struct watch *watch;

	pthread_mutex_lock(&coherent->mutex);
	watch = inode->watch;
	if (watch != NULL)
		HASH_DEL(coherent->watches, watch);
	pthread_mutex_unlock(&coherent->mutex);
	if (watch != NULL && inode->fd >= 0)
		mark(coherent, FAN_MARK_REMOVE, inode->fd); /* one that stays costs memory, and its events find no watch */
	free(watch);
}

/* The directory of an event, with a reference. NULL: nobody knows it any more. */
static struct inode *directory_of_event(struct coherent *coherent, const struct fanotify_event_info_fid *fid)
{
	struct watch_key key;
	struct watch *watch = NULL;
	struct inode *inode = NULL;
	union {
		struct file_handle handle;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} at;
	fsid_t fsid;

	memcpy(&at.handle, fid->handle, sizeof(at.handle));
	if (at.handle.handle_bytes > MAX_HANDLE_SZ)
		return NULL;
	memcpy(&at, fid->handle, sizeof(at.handle) + at.handle.handle_bytes);
	memcpy(&fsid, &fid->fsid, sizeof(fsid));
	fill_key(&key, fsid, &at.handle);
	pthread_mutex_lock(&coherent->mutex);
	HASH_FIND(hh, coherent->watches, &key, key_size(key.bytes), watch);
	if (watch != NULL && inode_ref_if_known(watch->inode))
		inode = watch->inode;
	pthread_mutex_unlock(&coherent->mutex);
	return inode;
}

/* ---- events ---- */

static void expire_name(struct inode *directory, const char *name)
{
	struct fuse_session *session = directory->fs->session;

	if (fuse_lowlevel_notify_expire_entry(session, inode_number(directory), name, strlen(name)) == -ENOSYS)
		fuse_lowlevel_notify_inval_entry(session, inode_number(directory), name, strlen(name));
}

static void file_changed(struct inode *inode, uint64_t mask)
{
	struct fuse_session *session = inode->fs->session;
	struct cache_file *file = mask & FAN_MODIFY ? inode_ref_cache_file(inode) : NULL;

	inode_may_have_capability(inode);
	if (file != NULL) {
		if (cache_file_is_active(file))
			cache_file_backing_changed(file);
		inode_unref(inode);
	}
	fuse_lowlevel_notify_inval_inode(session, inode_number(inode), mask & FAN_MODIFY ? 0 : -1, 0);
}

static void entry_changed(struct inode *directory, const char *name, uint64_t mask)
{
	struct inode *child;
	INODE_FD(at, directory);

	if (strcmp(name, ".") == 0) {
		fuse_lowlevel_notify_inval_inode(directory->fs->session, inode_number(directory), -1, 0);
		return;
	}
	expire_name(directory, name);
	if (mask & name_events) /* attributes, and the listing that it keeps: expiring a name that it does not know may leave both */
		fuse_lowlevel_notify_inval_inode(directory->fs->session, inode_number(directory), 0, 0);
	child = at.fd < 0 ? NULL : inode_find(directory->fs, at.fd, name);
	if (child == NULL)
		return;
	file_changed(child, mask);
	inode_unref(child);
}

static void overflowed(struct coherent *coherent)
{
	int err = fuse_lowlevel_notify_increment_epoch(coherent->fs->session);

	log_line(LOG_WARNING, "others change the backing faster than it can be followed; %s",
		 err < 0 ? "some changes are seen after ten minutes only" : "all names are looked up again");
}

/* Whether it was somebody else's. */
static bool handle_event(struct coherent *coherent, const struct fanotify_event_metadata *event)
{
	const struct fanotify_event_info_fid *fid = (const void *)((const char *)event + event->metadata_len);
	const struct file_handle *handle = (const void *)fid->handle;
	struct inode *directory;

	if (event->mask & FAN_Q_OVERFLOW) {
		overflowed(coherent);
		return true;
	}
	if (event->pid == getpid())
		return false;
	if (event->event_len <= event->metadata_len ||
	    fid->hdr.info_type != FAN_EVENT_INFO_TYPE_DFID_NAME)
		return true;
	directory = directory_of_event(coherent, fid);
	if (directory == NULL)
		return true;
	entry_changed(directory, (const char *)handle->f_handle + handle->handle_bytes, event->mask);
	inode_unref(directory);
	return true;
}

static void *coherent_main(void *argument)
{
	struct coherent *coherent = argument;
	_Alignas(struct fanotify_event_metadata) char event[16384];
	char buffer[sizeof(event)];

	for (;;) {
		struct pollfd fds[2] = {{coherent->events, POLLIN, 0}, {coherent->wake, POLLIN, 0}};
		struct fanotify_event_metadata head;
		bool are_ours = true;
		ssize_t n;

		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[1].revents != 0)
			return NULL;
		n = read(coherent->events, buffer, sizeof(buffer));
		/* Events follow one another without padding: each is copied to where it is aligned. */
		for (ssize_t at = 0; n - at >= (ssize_t)sizeof(head); at += head.event_len) {
			memcpy(&head, buffer + at, sizeof(head));
			if (head.event_len < sizeof(head) || head.event_len > (size_t)(n - at))
				break;
			memcpy(event, buffer + at, head.event_len);
			are_ours &= !handle_event(coherent, (const void *)event);
		}
		if (are_ours)
			usleep(OWN_EVENTS_US);
	}
}

/* ---- the life ---- */

int coherent_start(struct fusefs *fs)
{
	unsigned flags = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME;
	struct coherent *coherent = calloc(1, sizeof(*coherent));
	sigset_t all, before;
	int err = 0;

	if (coherent == NULL)
		return -ENOMEM;
	coherent->fs = fs;
	pthread_mutex_init(&coherent->mutex, NULL);
	coherent->events = fanotify_init(flags | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS, O_RDONLY);
	if (coherent->events < 0 && errno == EPERM)
		coherent->events = fanotify_init(flags, O_RDONLY);
	coherent->wake = eventfd(0, EFD_CLOEXEC);
	if (coherent->events < 0 || coherent->wake < 0)
		err = -errno;
	if (err == 0) {
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		err = -pthread_create(&coherent->thread, NULL, coherent_main, coherent);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	if (err < 0) {
		if (coherent->events >= 0)
			close(coherent->events);
		if (coherent->wake >= 0)
			close(coherent->wake);
		free(coherent);
		return err;
	}
	fs->coherent = coherent;
	atomic_store(&fs->timeout_ms, COHERENT_TIMEOUT_MS);
	coherent_watch(coherent, &fs->root);
	return 0;
}

void coherent_stop(struct coherent *coherent)
{
	uint64_t one = 1;

	if (write(coherent->wake, &one, sizeof(one)) == sizeof(one))
		pthread_join(coherent->thread, NULL);
}

void coherent_destroy(struct coherent *coherent)
{
	close(coherent->events);
	close(coherent->wake);
	pthread_mutex_destroy(&coherent->mutex);
	free(coherent);
}
