/*
 * transfer.h - a READ or WRITE of a file that the device has nothing of: between the kernel and the backing. Private to fusefs/.
 */
#ifndef HMMFS_TRANSFER_H
#define HMMFS_TRANSFER_H

#include "fusefs/fusefs.h"

void transfer_read(fuse_req_t req, struct inode *inode, struct fuse_file_info *fi, size_t size, off_t off);
/* Inside of the bracket cache_file_enter_write, which it leaves before it answers. from is libfuse's, and gone when this returns,
 * unless it is the request's own payload. */
void transfer_write(fuse_req_t req, struct inode *inode, struct fuse_file_info *fi, const char *from, size_t size, off_t off);

#endif
