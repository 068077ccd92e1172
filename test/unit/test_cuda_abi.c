/* test_cuda_abi.c - our own declarations of the CUDA driver's ABI (gpu/cuda_abi.h) say what cuda.h says. */
#include "test/unit/cuda_values.h"

#include <check.h>
#include <stdlib.h>

START_TEST(our_declarations_are_those_of_cuda_h)
{
	for (size_t i = 0; cuda_values_of_header[i].name != NULL; i++) {
		ck_assert_str_eq(cuda_values_of_header[i].name, cuda_values_of_ours[i].name);
		ck_assert_msg(cuda_values_of_header[i].value == cuda_values_of_ours[i].value, "%s: %ld in cuda.h, %ld in ours",
			      cuda_values_of_ours[i].name, cuda_values_of_header[i].value, cuda_values_of_ours[i].value);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cuda abi");
	TCase *tcase = tcase_create("values");
	SRunner *runner;
	int failed;

	tcase_add_test(tcase, our_declarations_are_those_of_cuda_h);
	suite_add_tcase(suite, tcase);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
