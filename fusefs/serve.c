/*
 * serve.c - a mount's life: open the device, mount, serve, write everything back, go.
 *
 * Unmounted by fusermount3 -u or umount: the kernel has ended the session, every file is closed; what is still DIRTY
 * (a client that was killed) is written back.
 *
 * SIGTERM, SIGINT, SIGHUP: taken by a thread of their own while requests are still served, because ending leases and
 * flushing the kernel's dirty pages need WRITEs to be answered: clients' sessions end, the kernel flushes its pages,
 * everything is written back; only then the session ends and the mount goes away. Further signals change nothing.
 */
#include "fusefs/coherent.h"
#include "fusefs/control.h"
#include "fusefs/fusefs.h"
#include "fusefs/loop.h"
#include "fusefs/passthrough.h"
#include "fusefs/uring.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/sysmacros.h>
#include <syslog.h>
#include <unistd.h>

enum { THREADS_MIN = 2, THREADS_MAX = 10, WRITEBACK_TRIES = 3, PROGRESS_MS = 200 };

/* ---- what the cache asks of us ---- */

static int invalidate(void *user, void *owner, off_t off, off_t len)
{
	struct fusefs *fs = user;

	return fuse_lowlevel_notify_inval_inode(fs->session, inode_number(owner), off, len);
}

static int open_backing(void *user, void *owner, int flags)
{
	(void)user;
	return inode_reopen(owner, flags);
}

static void log_cache(void *user, int priority, const char *line)
{
	(void)user;
	log_line(priority, "%s", line);
}

static const char *file_name(void *user, void *owner)
{
	(void)user;
	return inode_name(owner);
}

static const struct cache_callbacks callbacks = {
	.invalidate = invalidate,
	.open_backing = open_backing,
	.file_idle = inode_idle,
	.log = log_cache,
	.file_name = file_name,
};

/* ---- init ---- */

static void op_init(void *user, struct fuse_conn_info *conn)
{
	struct fusefs *fs = user;

	if (fs->is_root && fuse_set_feature_flag(conn, FUSE_CAP_PASSTHROUGH)) /* the kernel wants CAP_SYS_ADMIN for it */
		passthrough_enable(fs->passthrough);
	conn->max_write = CACHE_IO_MAX;
	conn->max_readahead = CACHE_IO_MAX;
	conn->max_background = UINT16_MAX; /* READs that a lease holds count: they must not keep readahead and writeback of others waiting */
	/* Pages are dropped when the backing is found changed at open. By mtime the kernel would drop them for our own
	 * writebacks too, and wait for the pages of READs that a lease holds, in the middle of a stat. */
	fuse_unset_feature_flag(conn, FUSE_CAP_AUTO_INVAL_DATA);
	fuse_set_feature_flag(conn, FUSE_CAP_EXPLICIT_INVAL_DATA);
	fuse_unset_feature_flag(conn, FUSE_CAP_WRITEBACK_CACHE);
	fuse_unset_feature_flag(conn, FUSE_CAP_ATOMIC_O_TRUNC); /* truncation comes as SETATTR, through the cache */
	fuse_set_feature_flag(conn, FUSE_CAP_IOCTL_DIR);
	fuse_set_feature_flag(conn, FUSE_CAP_POSIX_ACL);
	fuse_set_feature_flag(conn, FUSE_CAP_DONT_MASK); /* a default ACL may take the umask's place */
	/* Otherwise each write is preceded by a request for security.capability. */
	fuse_set_feature_flag(conn, FUSE_CAP_HANDLE_KILLPRIV_V2);
	if (fs->options->nfs_export)
		fuse_set_feature_flag(conn, FUSE_CAP_EXPORT_SUPPORT);
	fuse_unset_feature_flag(conn, FUSE_CAP_SPLICE_READ); /* a WRITE's bytes are to be in memory, aligned */
	conn->no_interrupt = 1; /* no operation looks at it, and each request would be kept in a list for it */
	if (fs->uring != NULL && fuse_set_feature_flag(conn, FUSE_CAP_OVER_IO_URING))
		uring_accept(fs->uring);
}

static struct fuse_session *new_session(struct fusefs *fs)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct fuse_lowlevel_ops ops = {.init = op_init};
	struct fuse_session *session = NULL;
	char *names = NULL, *name = NULL;

	namespace_operations(&ops);
	directory_operations(&ops);
	attribute_operations(&ops);
	xattr_operations(&ops);
	file_operations(&ops);
	data_operations(&ops);
	range_operations(&ops);
	/* escaped: a comma or a backslash of SOURCE's name is no separator */
	if (asprintf(&name, "fsname=%s", fs->options->source) < 0)
		name = NULL;
	if (name != NULL && fuse_opt_add_opt(&names, "subtype=hmmfs") == 0 && fuse_opt_add_opt_escaped(&names, name) == 0 &&
	    fuse_opt_add_arg(&args, "hmmfs") == 0 && fuse_opt_add_arg(&args, "-o") == 0 &&
	    fuse_opt_add_arg(&args, names) == 0 &&
	    fuse_opt_add_arg(&args, "-odefault_permissions") == 0 &&
	    (!fs->options->allow_other || fuse_opt_add_arg(&args, "-oallow_other") == 0) &&
	    (!fs->options->is_read_only || fuse_opt_add_arg(&args, "-oro") == 0) &&
	    (fs->options->kernel_options == NULL ||
	     (fuse_opt_add_arg(&args, "-o") == 0 && fuse_opt_add_arg(&args, fs->options->kernel_options) == 0)) &&
	    (!fs->options->is_debug || fuse_opt_add_arg(&args, "-d") == 0))
		session = fuse_session_new(&args, &ops, sizeof(ops), fs);
	fuse_opt_free_args(&args);
	free(names);
	free(name);
	return session;
}

/* ---- writing everything back ---- */

struct final_sync {
	struct fusefs *fs;
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	bool is_done; /* mutex */
};

static void *final_sync_main(void *argument)
{
	struct final_sync *final = argument;
	struct cache_status status;

	for (int i = 0; i < WRITEBACK_TRIES; i++) {
		struct cache_sync sync = {.cache = final->fs->cache};

		CACHE_WAIT(cache_sync_all, &sync);
		cache_get_status(final->fs->cache, &status);
		if (status.dirty_bytes == 0)
			break;
	}
	pthread_mutex_lock(&final->mutex);
	final->is_done = true;
	pthread_cond_signal(&final->cond);
	pthread_mutex_unlock(&final->mutex);
	return NULL;
}

static void show_progress(struct fusefs *fs, uint64_t total)
{
	struct cache_status status;
	uint64_t left;

	cache_get_status(fs->cache, &status);
	left = status.dirty_bytes < total ? status.dirty_bytes : total;
	log_progress("writing back: %.1f of %.1f MiB", (double)(total - left) / (1 << 20), (double)total / (1 << 20));
}

/* 0, or -EIO: bytes are left that can't be written. */
static int write_everything_back(struct fusefs *fs)
{
	struct final_sync final = {.fs = fs, .mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	struct cache_status status;
	uint64_t total;
	pthread_t thread;
	bool shows;

	cache_get_status(fs->cache, &status);
	total = status.dirty_bytes;
	shows = total > 0 && fs->options->is_foreground && isatty(STDERR_FILENO);
	if (!shows || pthread_create(&thread, NULL, final_sync_main, &final) != 0) {
		final_sync_main(&final);
	} else {
		pthread_mutex_lock(&final.mutex);
		while (!final.is_done) {
			struct timespec until;

			clock_gettime(CLOCK_REALTIME, &until);
			until.tv_nsec += PROGRESS_MS * 1000000L;
			until.tv_sec += until.tv_nsec / 1000000000L;
			until.tv_nsec %= 1000000000L;
			pthread_cond_timedwait(&final.cond, &final.mutex, &until);
			pthread_mutex_unlock(&final.mutex);
			show_progress(fs, total);
			pthread_mutex_lock(&final.mutex);
		}
		pthread_mutex_unlock(&final.mutex);
		pthread_join(thread, NULL);
		log_progress_end();
	}
	cache_get_status(fs->cache, &status);
	return status.dirty_bytes > 0 ? -EIO : 0;
}

/* ---- signals ---- */

struct signal_watch {
	struct fusefs *fs;
	sigset_t set;
	pthread_t thread;
	atomic_bool is_over; /* SIGUSR2 is fusefs_serve's, and not just anybody's */
};

static void flush_kernel(struct fusefs *fs)
{
	int fd = open(fs->options->mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || syncfs(fd) < 0)
		log_line(LOG_WARNING, "%s: asking the kernel to flush its pages failed: %s", fs->options->mountpoint,
			 strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void *watch_signals(void *argument)
{
	struct signal_watch *watch = argument;
	struct fusefs *fs = watch->fs;
	int signal_number;

	do
		sigwait(&watch->set, &signal_number);
	while (signal_number == SIGUSR2 && !atomic_load(&watch->is_over));
	if (signal_number == SIGUSR2)
		return NULL; /* the mount is gone already */
	log_line(LOG_INFO, "%s: writing everything back before the end", strsignal(signal_number));
	control_stop(fs->control);
	flush_kernel(fs);
	(void)write_everything_back(fs); /* tried again, and told, when the loop has ended */
	fuse_session_exit(fs->session); /* the loop ends its threads; unmounting is left to the thread that runs it */
	return NULL;
}

static int watch_start(struct signal_watch *watch, struct fusefs *fs)
{
	watch->fs = fs;
	return -pthread_create(&watch->thread, NULL, watch_signals, watch);
}

/* ---- the life ---- */

/* As many descriptors as may be; see share_descriptors. How many that is. */
static size_t raise_descriptor_limit(struct fusefs *fs)
{
	struct rlimit limit, more = {1 << 20, 1 << 20};

	fs->max_fds = 512;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 1024;
	if (fs->is_root && limit.rlim_max < more.rlim_max && setrlimit(RLIMIT_NOFILE, &more) == 0)
		limit = more;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	fs->max_fds = limit.rlim_cur / 2;
	return limit.rlim_cur;
}

/* Of those that are left when everything is set up, half are for known inodes, a quarter is for chunks, the rest for open files. */
static void share_descriptors(struct fusefs *fs)
{
	struct rlimit limit;
	size_t n_used = 0;
	DIR *directory = opendir("/proc/self/fd");

	if (directory == NULL)
		return;
	while (readdir(directory) != NULL)
		n_used++;
	closedir(directory);
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && n_used < limit.rlim_cur)
		fs->max_fds = (limit.rlim_cur - n_used) / (fs->pruner == NULL ? 2 : 4); /* the pruner may fall behind */
}

/* One a CPU. The kernel gives requests to idle threads in turn, so that with more of them each request wakes one that has not run
 * for longest: 10 threads on 2 CPUs made files at half the rate of 2 (docs/measurements). What waits for a disk for long, fsync and
 * the bytes of files, is done by other threads. Over io_uring only FORGET comes this way. */
static unsigned worker_count(const struct fusefs *fs)
{
	int n = fs->uring != NULL ? 1 : get_nprocs();

	return n < THREADS_MIN ? THREADS_MIN : n > THREADS_MAX ? THREADS_MAX : (unsigned)n;
}

static int serve_requests(struct fusefs *fs)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int err;

	if (config == NULL)
		return -ENOMEM;
	fuse_loop_cfg_set_clone_fd(config, fs->uring == NULL);
	fuse_loop_cfg_set_max_threads(config, worker_count(fs));
	err = fuse_session_loop_mt(fs->session, config);
	fuse_loop_cfg_destroy(config);
	return err;
}

static struct cache_config cache_config_of(const struct fusefs_options *options)
{
	return (struct cache_config){.device = options->device,
				     .chunk_bytes = options->chunk_bytes,
				     .capacity_bytes = options->capacity_bytes,
				     .bounce_bytes = options->bounce_bytes,
				     .cpu_access = options->cpu_access,
				     .writeback_interval_ms = options->writeback_interval_ms,
				     .read_timeout_ms = options->read_timeout_ms,
				     .lease_timeout_ms = options->lease_timeout_ms,
				     .is_background = !options->is_foreground};
}

static void announce(struct fusefs *fs, fusefs_tell tell, void *user)
{
	struct cache_status status;
	char *line;

	cache_get_status(fs->cache, &status);
	if (asprintf(&line, "%s on %s: device %s (%s), capacity %llu MiB in chunks of %llu KiB", fs->options->source,
		     fs->options->mountpoint, status.device_backend, status.device_name,
		     (unsigned long long)status.capacity_bytes >> 20, (unsigned long long)status.chunk_bytes >> 10) < 0)
		line = NULL;
	log_line(LOG_INFO, "%s", line != NULL ? line : "mounted");
	tell(user, true, line != NULL ? line : "mounted");
	free(line);
}

static FILE *open_readahead(const char *directory, const char *mode, char path[64])
{
	struct stat st;

	if (stat(directory, &st) < 0)
		return NULL;
	snprintf(path, 64, "/sys/class/bdi/%u:%u/read_ahead_kb", major(st.st_dev), minor(st.st_dev));
	return fopen(path, mode);
}

enum { READAHEAD_KB_MIN = CACHE_IO_MAX >> 10, READAHEAD_KB_MAX = 4 * READAHEAD_KB_MIN };

/* The kernel reads 128 KiB ahead on a new mount, however much the daemon offers; only root may change that. As much as the backing's
 * device has, within bounds: at least one request of the largest size, and no more than a few at once. */
static void raise_readahead(struct fusefs *fs)
{
	int kb = READAHEAD_KB_MIN;
	char path[64] = "";
	FILE *file;
	bool is_set;

	if (!fs->is_root)
		return;
	file = open_readahead(fs->options->source, "re", path);
	if (file != NULL) {
		if (fscanf(file, "%d", &kb) != 1 || kb < READAHEAD_KB_MIN)
			kb = READAHEAD_KB_MIN;
		fclose(file);
	}
	file = open_readahead(fs->options->mountpoint, "we", path);
	is_set = file != NULL && fprintf(file, "%d", kb < READAHEAD_KB_MAX ? kb : READAHEAD_KB_MAX) > 0;
	if (file != NULL && fclose(file) != 0)
		is_set = false;
	if (!is_set)
		log_line(LOG_INFO, "%s: %s; sequential reads stay at 128 KiB each", path, strerror(errno));
}

static void *raise_readahead_main(void *fs)
{
	raise_readahead(fs);
	return NULL;
}

/* From here on the mount exists; errors before are told. -EIO: it ended with a loss. */
static int serve_mounted(struct fusefs *fs, struct signal_watch *watch, fusefs_tell tell, void *user)
{
	pthread_t readahead; /* its stat is a request that the loop answers */
	bool has_readahead = pthread_create(&readahead, NULL, raise_readahead_main, fs) == 0;
	struct cache_status status;
	int err;

	share_descriptors(fs);
	announce(fs, tell, user);
	serve_requests(fs);
	if (has_readahead)
		pthread_join(readahead, NULL);
	loop_stop(fs->loop); /* what is under way with the backing ends, and answers while the session is what it was */
	if (fs->uring != NULL)
		uring_stop(fs->uring);
	atomic_store(&watch->is_over, true);
	pthread_kill(watch->thread, SIGUSR2);
	pthread_join(watch->thread, NULL);
	control_stop(fs->control);
	err = write_everything_back(fs);
	if (err < 0) {
		cache_get_status(fs->cache, &status);
		log_line(LOG_CRIT, "%llu bytes could not be written back and are lost; the lines above name them",
			 (unsigned long long)status.dirty_bytes);
	}
	fuse_session_unmount(fs->session);
	return err;
}

static int tell_error(fusefs_tell tell, void *user, int err, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static int tell_error(fusefs_tell tell, void *user, int err, const char *format, ...)
{
	char line[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	tell(user, false, line);
	return err;
}

enum { LOOP_ENTRIES = 256 };

static int start_loop(struct fusefs *fs)
{
	int err = loop_create(&fs->loop, "hmmfs-io", LOOP_ENTRIES, 0, -1);

	return err < 0 ? err : loop_start(fs->loop);
}

/* auto goes on over /dev/fuse where there is no other way. */
static int open_transport(struct fusefs *fs, fusefs_tell tell, void *user)
{
	const char *obstacle = fs->options->transport == TRANSPORT_DEV ? "" : uring_obstacle();
	int err;

	if (fs->options->transport == TRANSPORT_DEV || (obstacle != NULL && fs->options->transport == TRANSPORT_AUTO))
		return 0;
	if (obstacle != NULL)
		return tell_error(tell, user, -EOPNOTSUPP, "-o transport=uring: %s; or mount with transport=auto", obstacle);
	err = uring_create(&fs->uring, fs->session, CACHE_IO_MAX);
	if (err == 0)
		return 0;
	if (fs->options->transport == TRANSPORT_AUTO) {
		log_line(LOG_NOTICE, "FUSE over io_uring: %s; going on over /dev/fuse", strerror(-err));
		return 0;
	}
	return tell_error(tell, user, err, "-o transport=uring: %s; or mount with transport=auto", strerror(-err));
}

int fusefs_serve(const struct fusefs_options *options, fusefs_tell tell, void *user)
{
	struct fusefs fs = {.options = options, .owner = getuid(), .is_root = geteuid() == 0, .timeout_ms = DEFAULT_TIMEOUT_MS};
	struct cache_config config = cache_config_of(options);
	struct signal_watch watch = {0};
	char *error = NULL;
	int err;

	umask(0); /* the kernel has applied the caller's */
	config.max_descriptors = raise_descriptor_limit(&fs) / 4;
	sigemptyset(&watch.set);
	sigaddset(&watch.set, SIGTERM);
	sigaddset(&watch.set, SIGINT);
	sigaddset(&watch.set, SIGHUP);
	sigaddset(&watch.set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &watch.set, NULL); /* in all threads made from here on */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGIO, SIG_IGN); /* passthrough.c's leases */
	err = inode_table_init(&fs);
	if (err < 0)
		return tell_error(tell, user, err, "SOURCE %s: %s", options->source, strerror(-err));
	fs.proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fs.proc_fd < 0)
		return tell_error(tell, user, -errno, "/proc/self/fd: %s; hmmfs needs proc mounted", strerror(errno));
	err = cache_create(&config, &callbacks, &fs, &fs.cache, &error);
	if (err < 0) {
		tell_error(tell, user, err, "%s", error != NULL ? error : strerror(-err));
		free(error);
		return err;
	}
	err = cache_start(fs.cache);
	if (err < 0) {
		tell_error(tell, user, err, "io_uring: %s; see kernel.io_uring_disabled and RLIMIT_MEMLOCK", strerror(-err));
		goto out_session;
	}
	fs.passthrough = passthrough_create(&fs);
	fs.repliers = repliers_start("hmmfs-replier", 2);
	fs.disk_workers = repliers_start("hmmfs-disk", REPLIERS_MAX);
	fs.notifiers = repliers_start("hmmfs-changes", 2);
	err = start_loop(&fs);
	if (err < 0) {
		tell_error(tell, user, err, "io_uring: %s; see kernel.io_uring_disabled and RLIMIT_MEMLOCK", strerror(-err));
		goto out_session;
	}
	fs.session = new_session(&fs);
	if (fs.passthrough == NULL || fs.repliers == NULL || fs.disk_workers == NULL || fs.notifiers == NULL || fs.session == NULL ||
	    (atomic_load(&fs.root.volume->mount_fd) < 0 && pruner_start(&fs) < 0)) {
		err = tell_error(tell, user, -ENOMEM, "out of memory");
		goto out_session;
	}
	if (options->nfs_export && atomic_load(&fs.root.volume->mount_fd) < 0) {
		err = tell_error(tell, user, -EOPNOTSUPP, "nfs_export: the filesystem of SOURCE %s has no file handles", options->source);
		goto out_session;
	}
	err = options->is_coherent ? coherent_start(&fs) : 0;
	if (err < 0) {
		tell_error(tell, user, err, "coherent: fanotify: %s; it needs Linux 5.13 or newer, and a kernel built with it",
			   strerror(-err));
		goto out_session;
	}
	err = control_start(&fs, &fs.control);
	if (err < 0) {
		tell_error(tell, user, err, "the control socket: %s", strerror(-err));
		goto out_session;
	}
	if (fuse_session_mount(fs.session, options->mountpoint) < 0) {
		err = tell_error(tell, user, -EPERM, "MOUNTPOINT %s: the mount was refused; see the line above", options->mountpoint);
		goto out_control;
	}
	err = open_transport(&fs, tell, user);
	if (err == 0)
		err = watch_start(&watch, &fs);
	if (err == 0)
		err = serve_mounted(&fs, &watch, tell, user);
	else
		fuse_session_unmount(fs.session);
out_control:
	control_destroy(fs.control);
out_session:
	if (fs.loop != NULL)
		loop_stop(fs.loop);
	pruner_stop(&fs);
	if (fs.coherent != NULL)
		coherent_stop(fs.coherent);
	if (fs.notifiers != NULL)
		repliers_stop(fs.notifiers);
	inodes_wait(&fs);
	if (fs.disk_workers != NULL)
		repliers_stop(fs.disk_workers);
	if (fs.repliers != NULL)
		repliers_stop(fs.repliers); /* they may be giving buffers back to the cache, or be on their way out of an answer */
	if (fs.session != NULL)
		fuse_session_destroy(fs.session);
	inodes_destroy(&fs);
	if (fs.coherent != NULL)
		coherent_destroy(fs.coherent);
	cache_destroy(fs.cache); /* its threads may be destroying inodes that went idle */
	/* After all threads that answer: one may still be on its way out of the call that woke a queue. */
	loop_destroy(fs.loop);
	uring_destroy(fs.uring);
	if (fs.pruner != NULL)
		pruner_destroy(fs.pruner);
	if (fs.passthrough != NULL)
		passthrough_destroy(fs.passthrough);
	return err;
}
