/* locate.h - finding the file behind an address. Private to client/. */
#ifndef HMMFS_CLIENT_LOCATE_H
#define HMMFS_CLIENT_LOCATE_H

#include <stddef.h>
#include <sys/types.h>

/* A new descriptor of the file that [address, address+len) maps, and the file offset of address. Negative errno: -EFAULT, no
 * one file mapping holds the range; -ENOENT, the file is gone and no descriptor of it is open. */
int locate_mapping(const void *address, size_t len, off_t *off);

#endif
