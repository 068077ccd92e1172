/* memfd.c - chunk memory as a memfd: exportable, sealed, private to its owner. */
#include "gpu/backends.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int memfd_create_for_chunk(size_t bytes)
{
	int fd = memfd_create("hmmfs-chunk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int err;

	if (fd < 0)
		return -errno;
	/* Mode 0600: a client of another user that was given a read-only descriptor can't reopen it for writing
	 * through /proc. Seals: nobody can shrink it under those who map it. */
	if (ftruncate(fd, (off_t)bytes) < 0 || fchmod(fd, 0600) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

int memfd_export(int memfd, bool is_writable, int *fd)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
	*fd = is_writable ? fcntl(memfd, F_DUPFD_CLOEXEC, 0) : open(path, O_RDONLY | O_CLOEXEC);
	return *fd < 0 ? -errno : 0;
}
