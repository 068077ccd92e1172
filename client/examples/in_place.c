/*
 * in_place.c - the 2016 question, answered: mmap a file, compute on it in device memory, look at it through the same pointer.
 *
 *     in_place FILE      adds 1 to every byte of FILE, on the device, and shows that the mapping sees it
 */
#include <hmmfs.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* On a device whose memory this program can address, it computes there itself. */
static int add_one(unsigned char *p, size_t len)
{
	struct hmmfs_region *region;
	int err = hmmfs_map(p, len, &region); /* from the pointer alone */
	unsigned char *on_device;

	if (err < 0)
		return err;
	err = hmmfs_begin(region, HMMFS_EXCLUSIVE, 0);
	if (err == 0) {
		on_device = hmmfs_data(region);
		for (size_t i = 0; on_device != NULL && i < len; i++)
			on_device[i]++;
		err = hmmfs_end(region);
		if (err == 0 && on_device == NULL)
			err = -EOPNOTSUPP;
	}
	hmmfs_unmap(region);
	return err;
}

/* On others the device runs a kernel. */
static int add_one_by_kernel(int fd, size_t len)
{
	struct hmmfs_run run = {.kernel = HMMFS_SOURCE, .writes = true, .entry = "add_one",
				.source = "__kernel void add_one(__global uchar *d, ulong n) { d[get_global_id(0)]++; }"};
	struct hmmfs_session *session;
	int err = hmmfs_open_fd(fd, &session);

	if (err < 0)
		return err;
	err = hmmfs_run(session, 0, len, &run);
	free(run.log);
	hmmfs_close(session);
	return err;
}

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size == 0) {
		fprintf(stderr, "usage: in_place FILE (on an hmmfs mount, not empty)\n");
		return 2;
	}
	size_t len = (size_t)st.st_size;
	unsigned char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	p[0] = 41; /* a store of the CPU: the device must see it */
	int err = add_one(p, len);

	if (err == -EOPNOTSUPP)
		err = add_one_by_kernel(fd, len);
	if (err < 0) {
		fprintf(stderr, "%s: %s\n", argv[1], strerror(-err));
		return 1;
	}
	printf("the CPU stored 41, the device added 1, the same pointer reads %d\n", p[0]);
	return p[0] == 42 ? 0 : 1;
}
