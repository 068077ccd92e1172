/* cuda_values.h - see cuda_values.c */
#ifndef HMMFS_TEST_CUDA_VALUES_H
#define HMMFS_TEST_CUDA_VALUES_H

struct cuda_value {
	const char *name;
	long value;
};
extern const struct cuda_value cuda_values_of_header[], cuda_values_of_ours[]; /* each ends with a name of NULL */

#endif
