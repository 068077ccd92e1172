/*
 * mount_helper.c - what mount(8) runs for the type fuse.hmmfs:
 *
 *     mount.fuse.hmmfs SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]
 *
 * There is no helper for umount(8): it asks the kernel for the type, which says no more than fuse.
 */
#include "tools/commands.h"

#include <getopt.h>
#include <stdbool.h>
#include <unistd.h>

int mount_helper(int argc, char **argv)
{
	/* mount(8) leaves out what it takes for the default, suid and dev; libfuse's is the opposite */
	char *command[8] = {"mount", "-o", geteuid() == 0 ? "suid,dev" : "rw"};
	bool is_fake = false;
	int n = 3, option;

	while ((option = getopt(argc, argv, "sfnvN:o:t:")) != -1) {
		if (option == '?')
			return EXIT_MISUSE;
		is_fake |= option == 'f';
		if (option == 'o') {
			command[3] = "-o";
			command[4] = optarg;
			n = 5;
		}
	}
	if (argc - optind != 2)
		return misuse("mount -t fuse.hmmfs: one SOURCE and one MOUNTPOINT are needed");
	command[n++] = argv[optind];
	command[n++] = argv[optind + 1];
	return is_fake ? 0 : command_mount(n, command);
}
