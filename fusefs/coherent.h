/* coherent.h - others' changes of the backing, as they happen. See coherent.c. */
#ifndef HMMFS_COHERENT_H
#define HMMFS_COHERENT_H

#include "fusefs/fusefs.h"

enum { DEFAULT_TIMEOUT_MS = 1000, COHERENT_TIMEOUT_MS = 600000 };

/* Sets fs->coherent, and how long the kernel may trust what it has. 0 or negative errno. */
int coherent_start(struct fusefs *fs);
/* For a directory that is new to the kernel, before the kernel learns of anything in it; and when it has forgotten it. */
void coherent_watch(struct coherent *coherent, struct inode *inode);
void coherent_unwatch(struct coherent *coherent, struct inode *inode);
/* No more events are handled. */
void coherent_stop(struct coherent *coherent);
/* All inodes are destroyed. */
void coherent_destroy(struct coherent *coherent);

#endif
