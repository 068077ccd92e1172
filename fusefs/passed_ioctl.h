/* passed_ioctl.h - the ioctls that are the backing's. */
#ifndef HMMFS_PASSED_IOCTL_H
#define HMMFS_PASSED_IOCTL_H

#include "fusefs/fusefs.h"

bool ioctl_is_passed(unsigned int cmd);
/* Answers the request; fd: the open file or directory. */
void ioctl_pass(fuse_req_t req, struct inode *inode, int fd, unsigned int cmd, const void *in, size_t in_bytes, size_t out_bytes);

#endif
