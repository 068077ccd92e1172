/* nvrtc.c - see nvrtc.h. */
#include "tools/nvrtc.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct _nvrtcProgram *nvrtcProgram;

#define ENTRIES(X)                                                                                                        \
	X(create, nvrtcCreateProgram,                                                                                     \
	  (nvrtcProgram * program, const char *source, const char *name, int n, const char *const *headers, const char *const *names)) \
	X(add_name, nvrtcAddNameExpression, (nvrtcProgram program, const char *name))                                     \
	X(compile, nvrtcCompileProgram, (nvrtcProgram program, int n, const char *const *options))                        \
	X(log_bytes, nvrtcGetProgramLogSize, (nvrtcProgram program, size_t *bytes))                                       \
	X(log, nvrtcGetProgramLog, (nvrtcProgram program, char *log))                                                     \
	X(ptx_bytes, nvrtcGetPTXSize, (nvrtcProgram program, size_t *bytes))                                              \
	X(ptx, nvrtcGetPTX, (nvrtcProgram program, char *ptx))                                                            \
	X(lowered, nvrtcGetLoweredName, (nvrtcProgram program, const char *name, const char **lowered))                   \
	X(destroy, nvrtcDestroyProgram, (nvrtcProgram * program))                                                         \
	X(n_architectures, nvrtcGetNumSupportedArchs, (int *n))                                                           \
	X(architectures, nvrtcGetSupportedArchs, (int *architectures))

static struct {
#define MEMBER(member, name, parameters) int(*member) parameters; /* 0: success */
	ENTRIES(MEMBER)
#undef MEMBER
} nvrtc;

static bool load(void)
{
	static const char *const names[] = {"libnvrtc.so",    "libnvrtc.so.13",	  "libnvrtc.so.12",
					    "libnvrtc.so.11.2", "/usr/local/cuda/lib64/libnvrtc.so", "/usr/local/cuda/lib/libnvrtc.so"};
	void *library = NULL;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && library == NULL; i++)
		library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
	if (library == NULL)
		return false;
#define FIND(member, name, parameters) *(void **)&nvrtc.member = dlsym(library, #name);
	ENTRIES(FIND)
#undef FIND
#define IS_THERE(member, name, parameters) &&nvrtc.member != NULL
	return true ENTRIES(IS_THERE);
#undef IS_THERE
}

/* A GPU that is newer than the compiler runs what is made for the newest that the compiler knows. */
static int choose_architecture(int wanted)
{
	int n = 0, best = 0;
	int *known;

	if (nvrtc.n_architectures(&n) != 0 || n <= 0)
		return wanted;
	known = calloc((size_t)n, sizeof(*known));
	if (known == NULL || nvrtc.architectures(known) != 0)
		n = 0;
	for (int i = 0; i < n; i++) {
		if (known[i] <= wanted && known[i] > best)
			best = known[i];
	}
	free(known);
	return best == 0 ? wanted : best;
}

static char *take(nvrtcProgram program, int (*size)(nvrtcProgram, size_t *), int (*get)(nvrtcProgram, char *))
{
	size_t bytes = 0;
	char *text;

	if (size(program, &bytes) != 0 || bytes <= 1)
		return NULL;
	text = calloc(1, bytes + 1);
	if (text != NULL && get(program, text) != 0) {
		free(text);
		return NULL;
	}
	return text;
}

int nvrtc_compile(const char *source, const char *entry, int architecture, char **ptx, char **lowered, char **log)
{
	char option[48];
	const char *options[] = {option}, *name = NULL;
	nvrtcProgram program;
	int err = 0;

	*ptx = *lowered = *log = NULL;
	if (!load())
		return -ENOENT;
	snprintf(option, sizeof(option), "--gpu-architecture=compute_%d", choose_architecture(architecture));
	if (nvrtc.create(&program, source, "kernel.cu", 0, NULL, NULL) != 0)
		return -ENOMEM;
	if (nvrtc.add_name(program, entry) != 0 || nvrtc.compile(program, 1, options) != 0)
		err = -ENOEXEC;
	*log = take(program, nvrtc.log_bytes, nvrtc.log);
	if (err == 0)
		*ptx = take(program, nvrtc.ptx_bytes, nvrtc.ptx);
	if (err == 0 && nvrtc.lowered(program, entry, &name) == 0)
		*lowered = strdup(name);
	if (err == 0 && (*ptx == NULL || *lowered == NULL))
		err = -ENOEXEC;
	nvrtc.destroy(&program);
	return err;
}
