/* locate.c - see locate.h. What /proc/self/maps and /proc/self/fd tell, checked by device and inode number. */
#include "client/locate.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

struct mapping {
	uintptr_t start, end;
	off_t off;
	dev_t dev;
	ino_t ino;
	char path[4096];
};

static int parse_line(const char *line, struct mapping *mapping)
{
	unsigned major_number, minor_number;
	uint64_t off, ino;
	int at = 0;

	if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*4s %" SCNx64 " %x:%x %" SCNu64 " %n", &mapping->start, &mapping->end, &off,
		   &major_number, &minor_number, &ino, &at) < 6)
		return -EINVAL;
	mapping->off = (off_t)off;
	mapping->dev = makedev(major_number, minor_number);
	mapping->ino = ino;
	snprintf(mapping->path, sizeof(mapping->path), "%s", line + at);
	mapping->path[strcspn(mapping->path, "\n")] = '\0';
	return 0;
}

/* One mapping may be shown as several lines (mprotect splits it): they count as one while file and offset go on. */
static int find_mapping(uintptr_t start, uintptr_t end, struct mapping *found)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[4608];
	bool has_start = false;
	uintptr_t covered = start;

	if (maps == NULL)
		return -errno;
	while (covered < end && fgets(line, sizeof(line), maps) != NULL) {
		struct mapping mapping;

		if (parse_line(line, &mapping) < 0 || mapping.end <= covered || mapping.start > covered)
			continue;
		if (mapping.ino == 0)
			break;
		if (!has_start)
			*found = mapping;
		else if (mapping.dev != found->dev || mapping.ino != found->ino ||
			 mapping.off - found->off != (off_t)(mapping.start - found->start))
			break;
		has_start = true;
		covered = mapping.end;
	}
	fclose(maps);
	return covered >= end ? 0 : -EFAULT;
}

static bool is_file(int fd, const struct mapping *mapping)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_dev == mapping->dev && st.st_ino == mapping->ino;
}

/* An open descriptor of the file, duplicated; one open for writing if there is. */
static int find_descriptor(const struct mapping *mapping)
{
	DIR *directory = opendir("/proc/self/fd");
	struct dirent *entry;
	int best = -1;
	bool is_best_writable = false;

	if (directory == NULL)
		return -errno;
	while (!is_best_writable && (entry = readdir(directory)) != NULL) {
		int fd = atoi(entry->d_name);
		int flags;

		if (entry->d_name[0] == '.' || fd == dirfd(directory) || !is_file(fd, mapping))
			continue;
		flags = fcntl(fd, F_GETFL);
		if (flags < 0 || (flags & O_PATH) || (best >= 0 && (flags & O_ACCMODE) != O_RDWR))
			continue;
		is_best_writable = (flags & O_ACCMODE) == O_RDWR;
		best = fd;
	}
	closedir(directory);
	if (best < 0)
		return -ENOENT;
	best = fcntl(best, F_DUPFD_CLOEXEC, 0);
	return best < 0 ? -errno : best;
}

static int open_path(const struct mapping *mapping)
{
	int fd = open(mapping->path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fd = open(mapping->path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && !is_file(fd, mapping)) {
		close(fd);
		return -ENOENT; /* another file has the name now */
	}
	return fd < 0 ? -ENOENT : fd;
}

int locate_mapping(const void *address, size_t len, off_t *off)
{
	struct mapping mapping;
	uintptr_t start = (uintptr_t)address;
	int fd, err;

	if (len == 0 || start + len < start)
		return -EINVAL;
	err = find_mapping(start, start + len, &mapping);
	if (err < 0)
		return err;
	*off = mapping.off + (off_t)(start - mapping.start);
	fd = find_descriptor(&mapping);
	return fd == -ENOENT ? open_path(&mapping) : fd;
}
