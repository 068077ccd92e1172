/* descriptors.h - how many descriptors this process has, with what /proc/self/fd has beside them: to be compared with a later count. */
#ifndef HMMFS_TEST_DESCRIPTORS_H
#define HMMFS_TEST_DESCRIPTORS_H

#include <dirent.h>

static inline int count_descriptors(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(directory) != NULL)
		n++;
	closedir(directory);
	return n;
}

#endif
