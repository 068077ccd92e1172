/*
 * control.h - the control socket: clients' way to the device. See client/protocol.h for what is said on it.
 *
 * One thread listens, one serves each session. Session threads may wait for the cache; they hold no lock then (R4).
 */
#ifndef HMMFS_CONTROL_H
#define HMMFS_CONTROL_H

#include "fusefs/fusefs.h"

int control_start(struct fusefs *fs, struct control **control); /* 0 or negative errno */
/* Ends all sessions, and their leases; waits for that. Then no new ones are let in. */
void control_stop(struct control *control);
void control_destroy(struct control *control);
/* Answers HMMFS_IOC_TICKET; ENOTTY for others. handle: NULL for a directory. */
void control_ioctl(struct control *control, fuse_req_t req, struct inode *inode, const struct handle *handle, unsigned int cmd,
		   size_t out_bytes);

#endif
