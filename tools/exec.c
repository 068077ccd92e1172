/* exec.c - hmmfs exec: a program whose copies of mapped files to a GPU come from the device cache (client/exec). */
#include "tools/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
	"Usage: hmmfs exec [--] PROGRAM [ARGUMENT...]\n\n"
	"Run a program that copies files, mapped from a mount with device=cuda, to the GPU: cuMemcpyHtoD[Async], cuMemcpy[Async] and\n"
	"so cudaMemcpy[Async] of at least 1 MiB (HMMFS_EXEC_MIN=BYTES) from such a mapping come from the device cache: from device to\n"
	"device where the bytes are there already, else they are loaded into it. Everything else is the program's own.\n"
	"Exit status: the program's; 2 misuse; 126 it can't be started; 127 it isn't found.\n";

static const char *find_library(char *buffer, size_t size)
{
	static const char *const places[] = {"../client/libhmmfs_exec.so", "libhmmfs_exec.so"};
	char self[3072], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	self[n < 0 ? 0 : n] = '\0';
	slash = strrchr(self, '/');
	for (size_t i = 0; slash != NULL && i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(buffer, size, "%.*s/%s", (int)(slash - self), self, places[i]);
		if (access(buffer, R_OK) == 0)
			return buffer;
	}
	return HMMFS_EXEC_LIBRARY;
}

int command_exec(int argc, char **argv)
{
	const char *before = getenv("LD_PRELOAD"), *library;
	char path[4096], *preload;
	int first = argc > 1 && strcmp(argv[1], "--") == 0 ? 2 : 1;

	if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-?") == 0)) {
		fputs(usage, stdout);
		return 0;
	}
	if (argc <= first || (first == 1 && argv[1][0] == '-'))
		return misuse("exec: write hmmfs exec -- PROGRAM [ARGUMENT...]");
	library = find_library(path, sizeof(path));
	if (access(library, R_OK) < 0)
		return fail("exec: %s: %s; install hmmfs again", library, strerror(errno));
	/* First: other preloaded libraries of the user's come behind it, as they were. */
	if (asprintf(&preload, "%s%s%s", library, before == NULL ? "" : ":", before == NULL ? "" : before) < 0 ||
	    setenv("LD_PRELOAD", preload, 1) < 0)
		return fail("exec: %s", strerror(ENOMEM));
	execvp(argv[first], argv + first);
	fail("exec: %s: %s", argv[first], strerror(errno));
	return errno == ENOENT ? 127 : 126;
}
