/* options.c - mount options: what is written after -o, and the two directories. */
#include "fusefs/fusefs.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct raw_options {
	char *device, *capacity, *chunk, *bounce, *cpu_access, *migrate, *migrate_min, *writeback_interval, *read_timeout, *lease_timeout, *allow_kernels, *transport;
	int allow_other, is_read_only, is_foreground, is_debug;
	char *unknown;
};

#define TEXT(name, field) {name "=%s", offsetof(struct raw_options, field), 0}
#define FLAG(name, field) {name, offsetof(struct raw_options, field), 1}
static const struct fuse_opt option_specs[] = {
	TEXT("device", device), TEXT("capacity", capacity), TEXT("chunk", chunk), TEXT("bounce", bounce),
	TEXT("cpu_access", cpu_access), TEXT("migrate", migrate), TEXT("migrate_min", migrate_min), TEXT("writeback_interval", writeback_interval),
	TEXT("read_timeout", read_timeout), TEXT("lease_timeout", lease_timeout), TEXT("allow_kernels", allow_kernels), TEXT("transport", transport),
	FLAG("allow_other", allow_other),
	FLAG("ro", is_read_only),
	/* what mount(8) and fstab add of their own */
	FUSE_OPT_KEY("rw", FUSE_OPT_KEY_DISCARD), FUSE_OPT_KEY("dev", FUSE_OPT_KEY_DISCARD),
	FUSE_OPT_KEY("nodev", FUSE_OPT_KEY_DISCARD), FUSE_OPT_KEY("suid", FUSE_OPT_KEY_DISCARD),
	FUSE_OPT_KEY("nosuid", FUSE_OPT_KEY_DISCARD), FUSE_OPT_KEY("exec", FUSE_OPT_KEY_DISCARD),
	FUSE_OPT_KEY("auto", FUSE_OPT_KEY_DISCARD), FUSE_OPT_KEY("noauto", FUSE_OPT_KEY_DISCARD),
	FUSE_OPT_KEY("user", FUSE_OPT_KEY_DISCARD), FUSE_OPT_KEY("nofail", FUSE_OPT_KEY_DISCARD),
	FUSE_OPT_KEY("defaults", FUSE_OPT_KEY_DISCARD), FUSE_OPT_KEY("default_permissions", FUSE_OPT_KEY_DISCARD),
	FUSE_OPT_END};

static int refuse(char **error, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int refuse(char **error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (vasprintf(error, format, args) < 0)
		*error = NULL;
	va_end(args);
	return -EINVAL;
}

static int keep_unknown(void *data, const char *arg, int key, struct fuse_args *args)
{
	struct raw_options *raw = data;

	(void)args;
	if (key == FUSE_OPT_KEY_OPT && raw->unknown == NULL)
		raw->unknown = strdup(arg);
	return 0;
}

/* A number and a power-of-1024 letter. 0 is allowed only if may_be_zero. */
static int parse_size(const char *name, const char *text, bool may_be_zero, uint64_t *bytes, char **error)
{
	static const char letters[] = "KMGT";
	char *end;
	unsigned long long number;
	const char *letter;
	unsigned shift = 0;

	if (text == NULL)
		return 0;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (*end != '\0' && (letter = strchr(letters, toupper((unsigned char)*end))) != NULL) {
		shift = 10 * (unsigned)(letter - letters + 1);
		end++;
	}
	if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || (number == 0 && !may_be_zero) ||
	    number > (UINT64_MAX >> 1) >> shift)
		return refuse(error, "%s=%s: not a size; write a number with K, M, G or T, such as 512M", name, text);
	*bytes = number << shift;
	return 0;
}

static int parse_duration(const char *name, const char *text, unsigned *milliseconds, char **error)
{
	char *end;
	unsigned long long number;
	unsigned unit = 1000;

	if (text == NULL)
		return 0;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (strcmp(end, "ms") == 0)
		unit = 1;
	else if (strcmp(end, "m") == 0)
		unit = 60000;
	else if (*end != '\0' && strcmp(end, "s") != 0)
		unit = 0;
	if (!isdigit((unsigned char)text[0]) || errno != 0 || unit == 0 || number > (unsigned)INT_MAX / unit)
		return refuse(error, "%s=%s: not a duration; write a number with ms, s or m, such as 5s", name, text);
	*milliseconds = (unsigned)number * unit;
	return 0;
}

/* The index of text among choices (separated by '|'); -1: none. */
static int parse_choice(const char *name, const char *text, const char *choices, int *choice, char **error)
{
	int index = 0;

	if (text == NULL)
		return 0;
	for (const char *c = choices; *c != '\0'; index++) {
		size_t n = strcspn(c, "|");

		if (strlen(text) == n && strncmp(text, c, n) == 0) {
			*choice = index;
			return 0;
		}
		c += n + (c[n] == '|');
	}
	return refuse(error, "%s=%s: must be one of %s", name, text, choices);
}

static int interpret(struct fusefs_options *options, struct raw_options *raw, char **error)
{
	int cpu_access = CACHE_CPU_AUTO, policy = POLICY_AUTO, allow_kernels = 0, transport = TRANSPORT_AUTO;
	const char *capacity;
	int err;

	if (raw->unknown != NULL)
		return refuse(error, "-o %s: no such option; see hmmfs mount --help", raw->unknown);
	capacity = raw->capacity != NULL && strcmp(raw->capacity, "auto") == 0 ? NULL : raw->capacity;
	if ((err = parse_size("capacity", capacity, false, &options->capacity_bytes, error)) < 0 ||
	    (err = parse_size("chunk", raw->chunk, false, &options->chunk_bytes, error)) < 0 ||
	    (err = parse_size("bounce", raw->bounce, false, &options->bounce_bytes, error)) < 0 ||
	    (err = parse_size("migrate_min", raw->migrate_min, true, &options->migrate_min_bytes, error)) < 0 ||
	    (err = parse_duration("writeback_interval", raw->writeback_interval, &options->writeback_interval_ms, error)) < 0 ||
	    (err = parse_duration("read_timeout", raw->read_timeout, &options->read_timeout_ms, error)) < 0 ||
	    (err = parse_duration("lease_timeout", raw->lease_timeout, &options->lease_timeout_ms, error)) < 0 ||
	    (err = parse_choice("cpu_access", raw->cpu_access, "copy|migrate|auto", &cpu_access, error)) < 0 ||
	    (err = parse_choice("migrate", raw->migrate, "auto|never|always", &policy, error)) < 0 ||
	    (err = parse_choice("allow_kernels", raw->allow_kernels, "owner|all", &allow_kernels, error)) < 0 ||
	    (err = parse_choice("transport", raw->transport, "auto|uring|dev", &transport, error)) < 0)
		return err;
	options->cpu_access = (enum cache_cpu_access)cpu_access;
	options->transport = (enum fusefs_transport)transport;
	options->policy = (enum fusefs_policy)policy;
	options->allow_all_kernels = allow_kernels == 1;
	options->allow_other = raw->allow_other != 0;
	options->is_read_only = raw->is_read_only != 0;
	options->device = strdup(raw->device != NULL ? raw->device : "auto");
	return options->device == NULL ? -ENOMEM : 0;
}

static bool is_inside(const char *path, const char *directory)
{
	size_t n = strlen(directory);

	return strncmp(path, directory, n) == 0 && (path[n] == '\0' || path[n] == '/' || strcmp(directory, "/") == 0);
}

static int resolve_directory(const char *role, const char *path, char **absolute, char **error)
{
	struct stat st;

	*absolute = realpath(path, NULL);
	if (*absolute == NULL || stat(*absolute, &st) < 0) {
		if (errno == ENOTCONN)
			return refuse(error, "%s %s: a mount there has lost its daemon; run fusermount3 -u %s first", role, path, path);
		return refuse(error, "%s %s: %s; name an existing directory", role, path, strerror(errno));
	}
	if (!S_ISDIR(st.st_mode))
		return refuse(error, "%s %s: not a directory; name an existing directory", role, path);
	return 0;
}

static int check_directories(struct fusefs_options *options, const char *source, const char *mountpoint, char **error)
{
	int err = resolve_directory("SOURCE", source, &options->source, error);

	if (err == 0)
		err = resolve_directory("MOUNTPOINT", mountpoint, &options->mountpoint, error);
	if (err < 0)
		return err;
	if (is_inside(options->source, options->mountpoint))
		return refuse(error, "SOURCE %s is %s the mount point; mount on a directory outside of it", options->source,
			      strcmp(options->source, options->mountpoint) == 0 ? "itself" : "inside");
	if (is_inside(options->mountpoint, options->source))
		return refuse(error, "MOUNTPOINT %s is inside SOURCE %s; mount on a directory outside of it",
			      options->mountpoint, options->source);
	if (access("/dev/fuse", R_OK | W_OK) < 0)
		return refuse(error, "/dev/fuse: %s; load the fuse module (modprobe fuse), or give this user or container access to it",
			      strerror(errno));
	return 0;
}

static void raw_finish(struct raw_options *raw)
{
	free(raw->device);
	free(raw->capacity);
	free(raw->chunk);
	free(raw->bounce);
	free(raw->cpu_access);
	free(raw->migrate);
	free(raw->migrate_min);
	free(raw->writeback_interval);
	free(raw->read_timeout);
	free(raw->lease_timeout);
	free(raw->allow_kernels);
	free(raw->transport);
	free(raw->unknown);
}

int fusefs_options_parse(struct fusefs_options *options, const char *source, const char *mountpoint,
			 const char *const *lists, size_t n_lists, char **error)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct raw_options raw = {0};
	int err = 0;

	*error = NULL;
	options->migrate_min_bytes = 1 << 20;
	options->writeback_interval_ms = 5000;
	options->read_timeout_ms = 1000;
	options->lease_timeout_ms = 30000;
	options->default_permissions = true;
	fuse_opt_add_arg(&args, "hmmfs");
	for (size_t i = 0; i < n_lists; i++) {
		fuse_opt_add_arg(&args, "-o");
		fuse_opt_add_arg(&args, lists[i]);
	}
	if (fuse_opt_parse(&args, &raw, option_specs, keep_unknown) < 0)
		err = refuse(error, "the options after -o can't be understood; see hmmfs mount --help");
	if (err == 0)
		err = interpret(options, &raw, error);
	if (err == 0)
		err = check_directories(options, source, mountpoint, error);
	fuse_opt_free_args(&args);
	raw_finish(&raw);
	return err;
}

void fusefs_options_finish(struct fusefs_options *options)
{
	free(options->source);
	free(options->mountpoint);
	free(options->device);
}
