/* serve.h - the daemon, as the mount command sees it. */
#ifndef HMMFS_SERVE_H
#define HMMFS_SERVE_H

#include "cache/cache.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum fusefs_transport { TRANSPORT_AUTO, TRANSPORT_URING, TRANSPORT_DEV };
enum fusefs_policy { POLICY_AUTO, POLICY_NEVER, POLICY_ALWAYS };

struct fusefs_options {
	char *source, *mountpoint; /* absolute */
	char *device;
	uint64_t capacity_bytes, chunk_bytes, bounce_bytes; /* 0: the default */
	enum cache_cpu_access cpu_access;
	uint64_t migrate_min_bytes; /* smaller files stay off the device but for as long as they are leased */
	enum fusefs_transport transport;
	enum fusefs_policy policy; /* of files that have no user.hmmfs.migrate */
	unsigned writeback_interval_ms, read_timeout_ms, lease_timeout_ms;
	bool allow_all_kernels;
	bool allow_other, default_permissions, is_read_only;
	bool nfs_export;
	unsigned max_descriptors; /* 0: as many as may be */
	bool is_foreground, is_debug;
};

/* Serves until unmounted. tell is called once: when the mount is ready, with a line that says what it is, or with why there
 * is none (then the return value is a negative errno; as it is, -EIO, if bytes were lost at the end). */
typedef void (*fusefs_tell)(void *user, bool is_ready, const char *line);
int fusefs_serve(const struct fusefs_options *options, fusefs_tell tell, void *user);

/* options.c. 0, or -EINVAL with *error a line for the user, to be freed. */
int fusefs_options_parse(struct fusefs_options *options, const char *source, const char *mountpoint,
			 const char *const *lists, size_t n_lists, char **error);
void fusefs_options_finish(struct fusefs_options *options);

/* log.c */
__attribute__((format(printf, 2, 3))) void log_line(int priority, const char *format, ...);
/* On a terminal: a line that the next log_progress replaces, until log_progress_end or a log line ends it. */
__attribute__((format(printf, 1, 2))) void log_progress(const char *format, ...);
void log_progress_end(void);
void log_open(bool is_foreground);

#endif
