/*
 * fusefs.h - the FUSE side of the daemon. Private to fusefs/; serve.h is what others see.
 *
 * Inodes: a fuse_ino_t is the address of a struct inode, found by (volume, inode number) of the backing in one hash.
 * An inode lives while the kernel knows it, someone holds a reference, something of it is on the device, or NFS handles
 * are to outlive all that (nfs_export). Its O_PATH descriptor keeps the backing's inode number from being used again.
 * Where descriptors run short an inode has a file handle instead (descriptor.c), and who finds its number again compares.
 *
 * Locks: fs->table_lock guards the hash, the lookup counts and the references, and is never held over I/O. Under it may
 * be taken an inode's lock and a cache_file's gate. An inode's lock is one of fs->locks, shared by many inodes; it guards
 * the descriptor and what the inode remembers of its backing's attributes; nothing is taken under it.
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

/* One filesystem of the backing: SOURCE's own, or one that is mounted below SOURCE. */
struct volume {
	struct volume *next;
	dev_t dev;
	unsigned index;      /* 0: SOURCE's own */
	atomic_bool was_tried; /* whether it has handles */
	atomic_int mount_fd; /* open_by_handle_at wants one; -1: no file handles here, or no directory seen yet */
};

struct inode {
	struct fusefs *fs;
	struct inode_key {
		struct volume *volume;
		ino_t ino;
	} key;               /* table_lock; of no volume once the backing has used the number again */
	struct volume *volume;
	uint64_t generation; /* tells it from others that had its address, or its number, before */
	uint64_t lookups;    /* table_lock */
	unsigned refs;       /* table_lock */
	unsigned opens;      /* table_lock: open files that use file */
	mode_t type;         /* S_IFMT bits */
	bool is_hashed;      /* table_lock */
	_Atomic(struct cache_file *) file; /* of a regular file; comes and goes under table_lock, see inode_cache_file */
	int fd;                     /* lock; O_PATH. -1: given up */
	unsigned fd_users;          /* lock */
	struct watch *watch;        /* coherent.c's, of a directory */
	struct file_handle *handle; /* lock; stays when it is there: made when the descriptor is given up */
	/* Changes that we made to the backing's attributes other than through the cache, counted after each is made.
	 * Atomic: only compared for equality, by an open that has looked at the attributes after it. */
	atomic_uint own_changes;
	/* CLOCK_MONOTONIC in seconds: until then it counts as having no security.capability; see xattr.c. Atomic: each value that it
	 * ever had stands by itself. */
	atomic_uint no_capability_until;
	struct {
		bool is_known, is_adopted; /* is_adopted: seen since, together with changes of our own */
		unsigned own_changes;
		off_t size;
		struct timespec mtime, ctime;
		uint64_t write_generation;
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
	/* For requests of O_DIRECT opens; 0: not opened yet, -1: the backing has no O_DIRECT. Atomic: opened by whoever needs it first. */
	atomic_int direct_fd;
};

struct passthrough;
struct repliers;
struct coherent;
struct pruner;
struct exported;
struct watch;

enum { INODE_LOCKS = 64 };
struct loop;
struct uring;

struct fusefs {
	const struct fusefs_options *options;
	struct fuse_session *session;
	struct cache *cache;
	struct control *control;
	struct repliers *repliers;
	struct passthrough *passthrough;
	atomic_ullong n_handles; /* that there were so far */
	struct repliers *disk_workers; /* for calls that wait for the backing's disk for long */
	struct repliers *notifiers; /* the only threads outside of the cache that notify the kernel (R2) */
	struct loop *loop;   /* the backing's I/O of requests that come over /dev/fuse */
	struct uring *uring; /* NULL: all requests do */
	atomic_uint n_transfers; /* under way with the backing; atomic: only a hint */
	struct inode root;
	int proc_fd; /* /proc/self/fd; O_PATH */
	uid_t owner;
	bool is_root; /* the daemon may act for other users */
	struct coherent *coherent; /* NULL: without */
	/* How long the kernel may trust names and attributes. Atomic: any value it ever had will do. */
	atomic_uint timeout_ms;
	pthread_mutex_t table_lock;
	_Atomic(struct volume *) volumes; /* added to under table_lock, read without: none is ever removed */
	struct inode *inodes;     /* table_lock */
	struct exported *exported; /* table_lock; with nfs_export */
	struct inode *next_victim; /* table_lock: whose descriptor is given up next; NULL: the first one's */
	/* made so far; under table_lock, and read without it to learn what was made since */
	atomic_ullong n_made;
	atomic_size_t n_fds;      /* of inodes. Atomic: only compared with max_fds, which is no sharp bound */
	size_t max_fds;
	struct pruner *pruner;    /* NULL: handles take the place of descriptors */
	pthread_mutex_t locks[INODE_LOCKS];
	pthread_cond_t fd_given[INODE_LOCKS]; /* an inode's fd_users came to 0 */
	atomic_uint n_prefetches; /* of policy always, under way; atomic: only a bound */
	size_t n_refs;        /* table_lock; of all inodes */
	pthread_cond_t refs_are_gone; /* n_refs came to 0 */
};

/* inode.c */
struct fusefs *fs_of(fuse_req_t req);
struct inode *inode_of(fuse_req_t req, fuse_ino_t ino);
int inode_table_init(struct fusefs *fs);
/* Finds or makes the inode behind an O_PATH descriptor, which it takes; counts a lookup. NULL: errno. */
struct inode *inode_look_up(struct fusefs *fs, int fd, const struct stat *st);
/* The same for attributes that were just got by name: only if the inode is known, and its descriptor shows that the
 * number was not used again since n_made was read, before the attributes. NULL: not so. */
struct inode *inode_look_up_known(struct fusefs *fs, const struct stat *st, uint64_t n_made);
/* Whether there is one of that number at the moment. */
bool inode_number_is_known(struct fusefs *fs, struct volume *volume, ino_t ino);
/* The known inode of a name in a directory, with a reference; NULL if it is not known. */
struct inode *inode_find(struct fusefs *fs, int parent_fd, const char *name);
/* The inode that the kernel means, with a lookup; NULL: there is none. For numbers that come from file handles. */
struct inode *inode_look_up_number(struct fusefs *fs, fuse_ino_t ino);
/* What stat(2) shows: numbers of several filesystems are told apart. */
ino_t inode_shown_number(const struct volume *volume, ino_t ino);
void inode_forget(struct inode *inode, uint64_t lookups);
void inode_ref(struct inode *inode);
void inode_unref(struct inode *inode);
/* False: it is on its way out, and there is no reference. */
bool inode_ref_if_known(struct inode *inode);
/* The cache's file of a regular file, made if need be; there as long as the caller has the file open, or holds a
 * reference. NULL: no memory. */
struct cache_file *inode_cache_file(struct inode *inode);
/* The same if there is one already, with a reference to the inode. NULL: there is none, and no reference. */
struct cache_file *inode_ref_cache_file(struct inode *inode);
/* An open file that uses the cache's file is there, or gone. */
struct cache_file *inode_open_file(struct inode *inode);
void inode_close_file(struct inode *inode);
/* To be called after each change of the backing's times or size that does not go through the cache: what was seen of
 * them is no yardstick for others' changes then. */
static inline void inode_own_change(struct inode *inode)
{
	atomic_fetch_add(&inode->own_changes, 1);
}
const char *inode_name(struct inode *inode);  /* thread-local */
fuse_ino_t inode_number(struct inode *inode); /* the kernel's name for it */
static inline pthread_mutex_t *inode_lock(struct inode *inode)
{
	return &inode->fs->locks[((uintptr_t)inode >> 6) % INODE_LOCKS];
}
static inline pthread_cond_t *inode_fd_given(struct inode *inode)
{
	return &inode->fs->fd_given[((uintptr_t)inode >> 6) % INODE_LOCKS];
}
/* Waits until nobody holds a reference: prefetches and evictions of our own have ended. */
void inodes_wait(struct fusefs *fs);
void inodes_destroy(struct fusefs *fs);
size_t inodes_count(struct fusefs *fs);
enum fusefs_policy inode_policy(struct inode *inode);
/* The same of a file that is open. */
enum fusefs_policy policy_of_descriptor(const struct fusefs *fs, int fd);
void inode_idle(void *fs, void *owner); /* cache_callbacks.file_idle */

/* descriptor.c */
/* An inode's descriptor, for the scope that it is declared in. fd: O_PATH, or negative errno. The scope may end after the
 * request is answered, and the kernel may forget the inode then: it is not freed before. */
struct inode_fd {
	struct inode *inode;
	int fd;
};
struct inode_fd inode_fd_take(struct inode *inode);
void inode_fd_give(struct inode_fd *fd);
#define INODE_FD(name, of) __attribute__((cleanup(inode_fd_give))) struct inode_fd name = inode_fd_take(of)
/* What follows to the file of a descriptor: a path, and, a third faster where the call takes a directory, a name below fs->proc_fd. */
struct proc_path {
	char text[40];
};
struct proc_path proc_path_of(int fd);
struct proc_name {
	char text[12];
};
struct proc_name proc_name_of(int fd);
int inode_stat(struct inode *inode, struct stat *st); /* 0 or negative errno */
/* descriptor or negative errno */
int inode_reopen(struct inode *inode, int flags);
/* Whether a call that failed, with errno, for want of descriptors is worth another try. Otherwise errno is what the
 * application is told: EMFILE would speak of a table of its own. */
bool descriptors_freed(struct fusefs *fs);
/* Whether the descriptor's file is the one that an inode with a handle, and no descriptor, stands for. */
bool inode_is_behind(struct inode *inode, int fd);
/* Gives the inode a descriptor if it has none; takes fd. */
void inode_adopt_fd(struct inode *inode, int fd);
void inode_fd_made(struct fusefs *fs); /* an inode was made with one */
/* For an inode that is about to be freed: waits for the ends of scopes, which wait for nothing, and closes it. */
void inode_fd_close(struct inode *inode);
void volumes_destroy(struct fusefs *fs);
/* The volume of a device, found or made; fd: a file on it. NULL: no memory. */
struct volume *volume_of(struct fusefs *fs, dev_t dev, int fd);
/* Inodes with no reference that is_good, called with table_lock held, likes; each gets a reference. The search goes on
 * where the last one ended, the longest known first. */
enum { VICTIMS_MAX = 64 };
size_t inodes_choose_victims(struct fusefs *fs, bool (*is_good)(struct inode *inode), struct inode *victims[VICTIMS_MAX]);

/* prune.c. Without file handles: a thread that has the kernel forget inodes when descriptors run short. */
int pruner_start(struct fusefs *fs);
void pruner_wake(struct pruner *pruner);
/* Waits, for a second at most, until a descriptor is closed. False: none was. */
bool pruner_wait(struct pruner *pruner);
void pruner_tell_freed(struct pruner *pruner);
void pruner_stop(struct fusefs *fs);
void pruner_destroy(struct pruner *pruner); /* no inode is destroyed any more */

/* operations, by file */
void namespace_operations(struct fuse_lowlevel_ops *ops);
void directory_operations(struct fuse_lowlevel_ops *ops);
void attribute_operations(struct fuse_lowlevel_ops *ops);
void xattr_operations(struct fuse_lowlevel_ops *ops);
void file_operations(struct fuse_lowlevel_ops *ops);
void data_operations(struct fuse_lowlevel_ops *ops);
void range_operations(struct fuse_lowlevel_ops *ops);

/* namespace.c */
/* A name in a directory; is_known: the inode probably is. 0 or negative errno. */
int look_up(struct inode *parent, int parent_fd, const char *name, bool is_known, struct fuse_entry_param *entry);
void fill_entry(struct inode *inode, struct fuse_entry_param *entry);
/* How long the kernel may trust a file's attributes. A file of several names may be changed by one that nobody watches. */
double attr_timeout(const struct fusefs *fs, const struct stat *st);

/* freshness.c */
bool is_as_seen(const struct inode *inode, const struct stat *st); /* inode_lock held */
/* Whether the attributes, just read from the backing, show that others have changed what the kernel has pages of. */
bool others_changed(struct inode *inode, const struct stat *st);
/* Has the kernel's pages dropped before then(user) hands it the attributes, on a thread that may block. */
void drop_kernel_pages(struct inode *inode, const struct stat *st, void (*then)(void *user), void *user);
void reply_looked_up(fuse_req_t req, const struct fuse_entry_param *entry);

/* file.c */
static inline struct handle *handle_of(const struct fuse_file_info *fi)
{
	return (struct handle *)(uintptr_t)fi->fh;
}
/* Writes back what of the file is on the device, then calls then(user, status) on a thread that may block; at once if
 * the file is inactive. */
void flush_device(struct inode *inode, void (*then)(void *user, int status), void *user);

#define POLICY_XATTR "user.hmmfs.migrate"
#define CAPABILITY_XATTR "security.capability"

/* xattr.c: the file was just seen to have no security.capability, or it may have one now. */
void inode_has_no_capability(struct inode *inode);
void inode_may_have_capability(struct inode *inode);

/* credentials.c: creating calls are made as the caller, so that what is created is the caller's */
struct credentials {
	bool is_changed, has_groups;
};
/* For a call that creates: with the caller's umask, which the backing applies where no default ACL takes its place. */
struct credentials credentials_take(fuse_req_t req, mode_t *mode);
/* For a call that depends on the caller's groups. is_allowed: the kernel has seen that the caller may do what only the owner may. */
struct credentials credentials_take_groups(fuse_req_t req, bool is_allowed);
void credentials_restore(struct credentials *credentials);
/* The set-id bits that a change of the file by someone without CAP_FSETID takes from it, and taking them. fd: O_PATH will
 * do. 0 or negative errno. */
mode_t set_ids_to_drop(fuse_req_t req, int fd);
int drop_set_ids(int fd, mode_t bits);
bool may_keep_set_ids(fuse_req_t req);
void allow_keeping_set_ids(bool is_allowed); /* the daemon's own writes by this thread */
void allow_seeing_trusted(bool is_allowed); /* in listxattr(2), the thread */

/* range.c: changes a file's size, through the cache if anything of it is on the device, then calls then(user, status)
 * on a thread that may block. fd: open for writing, or -1 (by path). */
void set_size(struct inode *inode, int fd, off_t size, void (*then)(void *user, int status), void *user);

/* directory.c */
int directory_fd(const struct fuse_file_info *fi);

/* replier.c: threads that answer large READs, so that the engine does not copy them into the kernel, and other pools like that */
enum { REPLIERS_MAX = 4 };
struct repliers *repliers_start(const char *name, unsigned n_threads); /* NULL: not one thread */
void repliers_stop(struct repliers *repliers);
void repliers_give(struct repliers *repliers, void (*work)(void *argument), void *argument);

#endif
