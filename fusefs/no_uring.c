/* no_uring.c - in place of uring.c where the kernel's headers do not know of FUSE over io_uring. */
#include "fusefs/uring.h"

#include <errno.h>

const char *uring_obstacle(void)
{
	return "this hmmfs was built without FUSE over io_uring";
}

int uring_create(struct uring **uring, struct fuse_session *session, size_t payload_bytes)
{
	(void)uring;
	(void)session;
	(void)payload_bytes;
	return -EOPNOTSUPP;
}

void uring_accept(struct uring *uring)
{
	(void)uring;
}

bool uring_is_serving(struct uring *uring)
{
	(void)uring;
	return false;
}

void uring_stop(struct uring *uring)
{
	(void)uring;
}

void uring_destroy(struct uring *uring)
{
	(void)uring;
}

char *uring_payload(void)
{
	return NULL;
}

bool uring_is_crowded(void)
{
	return false;
}
