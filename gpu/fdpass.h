/* fdpass.h - messages with descriptors over a SOCK_SEQPACKET socket. */
#ifndef HMMFS_FDPASS_H
#define HMMFS_FDPASS_H

#include <stddef.h>
#include <sys/types.h>

/* flags as in sendmsg(2). 0 or negative errno. */
int fdpass_send(int socket, const void *message, size_t bytes, const int *fds, size_t n_fds, int flags);
/* Bytes received; 0: the other end is gone; negative errno. *n_fds: how many descriptors fds has room for, and got. */
ssize_t fdpass_receive(int socket, void *message, size_t bytes, int *fds, size_t *n_fds);

#endif
