/*
 * passthrough.h - kernel passthrough: opens whose reads, writes and mappings the kernel sends to the backing file itself.
 *
 * Who is passed. Files that have no business on the device: policy never, not empty and smaller than migrate_min, and all
 * files of a read-only mount. The kernel wants all opens of an inode to be of one kind, so the first user of an inode,
 * open or lease, settles it, and later ones follow until nobody is left: CACHED (through the daemon, or resident) or
 * PASSED. A file that grows or changes its policy meanwhile stays what it is until it is closed.
 *
 * Leases on a PASSED inode. The daemon sees no READ and no WRITE of it, so nothing may stay on the device for longer than
 * a lease: what is there is dropped before an acquire, and after a release written back and dropped before the release
 * is answered. So the device sees what the CPU stored before the acquire, and the CPU sees the device's stores once the
 * lease has ended; under the lease it sees the backing. A store of the CPU under an exclusive lease would be lost in the
 * writeback of its chunk. So an exclusive lease is refused (EBUSY) while others than its own descriptor may store, and
 * an open for writing is refused (ETXTBSY) while there is one. On a read-only mount nobody stores: chunks stay.
 *
 * Mappings outlive their descriptor's RELEASE: a passed mapping holds the backing file, not ours. So after the last
 * descriptor that could store is closed, the inode counts as PASSED until the backing says that nobody has it open for
 * writing (a lease of fcntl(2), F_RDLCK, is given only then). The kernel does not forget an inode that is mapped.
 */
#ifndef HMMFS_PASSTHROUGH_H
#define HMMFS_PASSTHROUGH_H

#include "fusefs/fusefs.h"

struct passthrough;

struct passthrough *passthrough_create(struct fusefs *fs); /* NULL: no memory */
void passthrough_destroy(struct passthrough *passthrough);
/* The kernel and this process's rights allow it. Until then every inode is CACHED. */
void passthrough_enable(struct passthrough *passthrough);

/* To be called before the backing is opened for an open: asks the backing about mappings that are left. May block. */
void passthrough_settle(struct passthrough *passthrough, struct inode *inode);
/* Counts an open in. *backing_id > 0: it is passed, and that is for fuse_file_info. -ETXTBSY: see above; -EIO: it would have to
 * be passed, and the kernel refuses. */
int passthrough_open(struct passthrough *passthrough, struct handle *handle, bool is_eligible, int *backing_id);
/* For each handle that passthrough_open counted. */
void passthrough_close(struct passthrough *passthrough, struct handle *handle);
/* The inode is being freed. */
void passthrough_forget(struct passthrough *passthrough, struct inode *inode);
/* Opens that are passed now. */
uint64_t passthrough_count(struct passthrough *passthrough);

/* A lease, or a prefetch, of an inode. */
struct passthrough_lease {
	bool is_passed;
	bool is_exclusive;
	bool may_be_old; /* the CPU may have stored since another lease loaded what is on the device */
};
/* handle_id: the descriptor that the lease's session is bound to. -EBUSY: see above. May block. */
int passthrough_lease_begin(struct passthrough *passthrough, struct inode *inode, uint64_t handle_id, bool is_exclusive,
			    struct passthrough_lease *lease);
void passthrough_lease_end(struct passthrough *passthrough, struct inode *inode, const struct passthrough_lease *lease);

#endif
