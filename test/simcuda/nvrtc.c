/*
 * nvrtc.c - a libnvrtc.so that compiles nothing: its "PTX" names the kernels of the source, for whose names kernel.c has twins.
 * It refuses what has an #error in it, or lacks the kernel that is asked for, with a log.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

struct program {
	char *source, name[128], log[256], ptx[8192];
};

EXPORT int nvrtcCreateProgram(struct program **out, const char *source, const char *name, int n, const char *const *headers,
			      const char *const *names)
{
	(void)name;
	(void)n;
	(void)headers;
	(void)names;
	*out = calloc(1, sizeof(**out));
	if (*out == NULL)
		return 1;
	(*out)->source = strdup(source);
	return 0;
}

EXPORT int nvrtcDestroyProgram(struct program **program)
{
	free((*program)->source);
	free(*program);
	return 0;
}

EXPORT int nvrtcAddNameExpression(struct program *program, const char *name)
{
	return snprintf(program->name, sizeof(program->name), "%s", name) < (int)sizeof(program->name) ? 0 : 4;
}

EXPORT int nvrtcCompileProgram(struct program *program, int n, const char *const *options)
{
	const char *at = program->source;
	size_t used = (size_t)snprintf(program->ptx, sizeof(program->ptx), ".version 8.0\n");
	int is_found = 0;

	if (n != 1 || strncmp(options[0], "--gpu-architecture=compute_", 27) != 0)
		return 5;
	at = strstr(program->source, "#error");
	if (at != NULL) {
		snprintf(program->log, sizeof(program->log), "kernel.cu(1): catastrophic error: %.60s", at);
		return 6;
	}
	for (at = program->source; (at = strstr(at, "__global__ void ")) != NULL; at++) {
		char name[128];

		if (sscanf(at, "__global__ void %127[A-Za-z0-9_]", name) != 1)
			continue;
		is_found |= strcmp(name, program->name) == 0;
		if (used + 200 < sizeof(program->ptx))
			used += (size_t)snprintf(program->ptx + used, sizeof(program->ptx) - used, ".visible .entry %s(\n", name);
	}
	if (is_found)
		return 0;
	snprintf(program->log, sizeof(program->log), "error: identifier \"%.100s\" is undefined", program->name);
	return 6;
}

EXPORT int nvrtcGetProgramLogSize(struct program *program, size_t *bytes)
{
	*bytes = strlen(program->log) + 1;
	return 0;
}

EXPORT int nvrtcGetProgramLog(struct program *program, char *log)
{
	strcpy(log, program->log);
	return 0;
}

EXPORT int nvrtcGetPTXSize(struct program *program, size_t *bytes)
{
	*bytes = strlen(program->ptx) + 1;
	return 0;
}

EXPORT int nvrtcGetPTX(struct program *program, char *ptx)
{
	strcpy(ptx, program->ptx);
	return 0;
}

EXPORT int nvrtcGetLoweredName(struct program *program, const char *name, const char **lowered)
{
	(void)name;
	*lowered = program->name;
	return 0;
}

EXPORT int nvrtcGetNumSupportedArchs(int *n)
{
	*n = 1;
	return 0;
}

EXPORT int nvrtcGetSupportedArchs(int *architectures)
{
	architectures[0] = 75;
	return 0;
}
