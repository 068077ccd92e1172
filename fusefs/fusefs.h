/*
 * fusefs.h - the FUSE side of the daemon. Private to fusefs/; serve.h is what others see.
 *
 * Inodes: a fuse_ino_t is the address of a struct inode, found by (device, inode number) of the backing in one hash.
 * An inode lives while the kernel knows it, someone holds a reference, or something of it is on the device: then its
 * O_PATH descriptor keeps the backing's inode number from being used again.
 *
 * Locks: fs->table_lock guards the hash, the lookup counts and the references, and is never held over I/O.
 * inode->lock guards what the inode remembers of its backing's attributes; nothing else is taken under it.
 */
#ifndef HMMFS_FUSEFS_H
#define HMMFS_FUSEFS_H

#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 317
#endif
#include <fuse_lowlevel.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <uthash.h>

#include "cache/cache.h"
#include "fusefs/serve.h"

struct control;

struct inode {
	struct fusefs *fs;
	struct inode_key {
		dev_t dev;
		ino_t ino;
	} key;
	int fd;           /* O_PATH; -1 never */
	mode_t type;      /* S_IFMT bits */
	uint64_t lookups; /* table_lock */
	unsigned refs;    /* table_lock */
	bool is_hashed;   /* table_lock */
	_Atomic(struct cache_file *) file; /* made at the first open of a regular file */
	/* Changes that we made to the backing's attributes other than through the cache, counted after each is made.
	 * Atomic: only compared for equality, by an open that has looked at the attributes after it. */
	atomic_uint own_changes;
	pthread_mutex_t lock;
	struct {
		bool is_known;
		off_t size;
		struct timespec mtime, ctime;
		uint64_t write_generation;
		unsigned own_changes;
	} seen; /* lock: the backing when it was last opened */
	UT_hash_handle hh; /* table_lock */
};

struct handle {
	struct inode *inode;
	int fd;
	bool is_writer;
	bool is_passed; /* see passthrough.h; fixed once the open is answered */
	uint64_t id;    /* unique for the life of the mount */
	struct handle *prev, *next; /* passthrough.c's */
	pthread_mutex_t lock;
	uint32_t error_sample; /* lock */
};

struct passthrough;
struct repliers;

struct fusefs {
	const struct fusefs_options *options;
	struct fuse_session *session;
	struct cache *cache;
	struct control *control;
	struct repliers *repliers;
	struct passthrough *passthrough;
	atomic_ullong n_handles; /* that there were so far */
	struct inode root;
	uid_t owner;
	dev_t mount_dev;
	bool is_root; /* the daemon may act for other users */
	pthread_mutex_t table_lock;
	struct inode *inodes; /* table_lock */
	size_t n_inodes;      /* table_lock */
	atomic_uint n_prefetches; /* of policy always, under way; atomic: only a bound */
	size_t n_refs;        /* table_lock; of all inodes */
	pthread_cond_t refs_are_gone; /* n_refs came to 0 */
};

/* inode.c */
struct fusefs *fs_of(fuse_req_t req);
struct inode *inode_of(fuse_req_t req, fuse_ino_t ino);
/* Finds or makes the inode behind an O_PATH descriptor, which it takes; counts a lookup. NULL: errno. */
struct inode *inode_look_up(struct fusefs *fs, int fd, const struct stat *st);
/* The known inode of a name in a directory, with a reference; NULL if it is not known. */
struct inode *inode_find(struct fusefs *fs, struct inode *parent, const char *name);
void inode_forget(struct inode *inode, uint64_t lookups);
void inode_ref(struct inode *inode);
void inode_unref(struct inode *inode);
/* The cache's file of a regular file, made if need be. NULL: no memory. */
struct cache_file *inode_cache_file(struct inode *inode);
/* To be called after each change of the backing's times or size that does not go through the cache: what was seen of
 * them is no yardstick for others' changes then. */
static inline void inode_own_change(struct inode *inode)
{
	atomic_fetch_add(&inode->own_changes, 1);
}
int inode_reopen(struct inode *inode, int flags); /* descriptor or negative errno */
const char *inode_name(struct inode *inode);      /* thread-local */
fuse_ino_t inode_number(struct inode *inode);     /* the kernel's name for it */
/* Waits until nobody holds a reference: prefetches and evictions of our own have ended. */
void inodes_wait(struct fusefs *fs);
void inodes_destroy(struct fusefs *fs);
struct proc_path {
	char text[40];
};
struct proc_path inode_proc_path(const struct inode *inode);
enum fusefs_policy inode_policy(struct inode *inode);
void inode_idle(void *fs, void *owner); /* cache_callbacks.file_idle */

/* operations, by file */
void namespace_operations(struct fuse_lowlevel_ops *ops);
void directory_operations(struct fuse_lowlevel_ops *ops);
void attribute_operations(struct fuse_lowlevel_ops *ops);
void xattr_operations(struct fuse_lowlevel_ops *ops);
void file_operations(struct fuse_lowlevel_ops *ops);
void data_operations(struct fuse_lowlevel_ops *ops);
void range_operations(struct fuse_lowlevel_ops *ops);

/* namespace.c */
int reply_entry_of(fuse_req_t req, struct inode *parent, const char *name);
int look_up(struct fusefs *fs, struct inode *parent, const char *name, struct fuse_entry_param *entry);
#define TIMEOUT_SECONDS 1.0

/* file.c */
static inline struct handle *handle_of(const struct fuse_file_info *fi)
{
	return (struct handle *)(uintptr_t)fi->fh;
}
/* Writes back what of the file is on the device, then calls then(user, status) on a thread that may block; at once if
 * the file is inactive. */
void flush_device(struct inode *inode, void (*then)(void *user, int status), void *user);

/* credentials.c: creating calls are made as the caller, so that what is created is the caller's */
struct credentials {
	bool is_changed;
};
struct credentials credentials_take(fuse_req_t req);
void credentials_restore(struct credentials *credentials);

/* range.c: changes a file's size, through the cache if anything of it is on the device, then calls then(user, status)
 * on a thread that may block. fd: open for writing, or -1 (by path). */
void set_size(struct inode *inode, int fd, off_t size, void (*then)(void *user, int status), void *user);

/* replier.c: threads that answer large READs, so that the engine does not copy them into the kernel */
struct repliers *repliers_start(void);
void repliers_stop(struct repliers *repliers);
void repliers_give(struct repliers *repliers, void (*work)(void *argument), void *argument);

#endif
