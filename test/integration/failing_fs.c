/*
 * failing_fs.c - a backing that fails when a test says so: failing_fs DIRECTORY CONTROL MOUNTPOINT
 *
 * Serves DIRECTORY. While a file CONTROL/read, CONTROL/write or CONTROL/fsync exists, that call fails, with the errno
 * that the file holds as a decimal number. Stays in the foreground; has what a source of a mount needs and no more.
 */
#define FUSE_USE_VERSION 317
#include <fuse.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int directory, control;

/* 0, or the negative errno with which this call is to fail. */
static int failure(const char *call)
{
	char text[16] = "";
	int fd = openat(control, call, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	return n > 0 ? -atoi(text) : -EIO;
}

static const char *relative(const char *path)
{
	return path[1] == '\0' ? "." : path + 1;
}

static int status(ssize_t result)
{
	return result < 0 ? -errno : (int)result;
}

static void *op_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
	(void)conn;
	config->use_ino = 1;
	config->hard_remove = 1;
	config->attr_timeout = config->entry_timeout = config->negative_timeout = 0;
	return NULL;
}

static int op_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	return status(fi != NULL ? fstat((int)fi->fh, st) : fstatat(directory, relative(path), st, AT_SYMLINK_NOFOLLOW));
}

static int op_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t off, struct fuse_file_info *fi,
		      enum fuse_readdir_flags flags)
{
	int fd = openat(directory, relative(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *stream = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	(void)off;
	(void)fi;
	(void)flags;
	if (stream == NULL)
		return -errno;
	while ((entry = readdir(stream)) != NULL)
		fill(buffer, entry->d_name, NULL, 0, FUSE_FILL_DIR_DEFAULTS);
	closedir(stream);
	return 0;
}

static int op_create(const char *path, mode_t mode, struct fuse_file_info *fi)
{
	int fd = openat(directory, relative(path), (fi->flags & ~O_DIRECT) | O_CREAT | O_CLOEXEC, mode);

	fi->fh = (uint64_t)fd;
	return fd < 0 ? -errno : 0;
}

static int op_open(const char *path, struct fuse_file_info *fi)
{
	int fd = openat(directory, relative(path), (fi->flags & ~O_DIRECT) | O_CLOEXEC);

	fi->fh = (uint64_t)fd;
	return fd < 0 ? -errno : 0;
}

static int op_release(const char *path, struct fuse_file_info *fi)
{
	(void)path;
	return status(close((int)fi->fh));
}

static int op_read(const char *path, char *data, size_t size, off_t off, struct fuse_file_info *fi)
{
	int err = failure("read");

	(void)path;
	return err < 0 ? err : status(pread((int)fi->fh, data, size, off));
}

static int op_write(const char *path, const char *data, size_t size, off_t off, struct fuse_file_info *fi)
{
	int err = failure("write");

	(void)path;
	return err < 0 ? err : status(pwrite((int)fi->fh, data, size, off));
}

static int op_fsync(const char *path, int is_datasync, struct fuse_file_info *fi)
{
	int err = failure("fsync");

	(void)path;
	return err < 0 ? err : status(is_datasync ? fdatasync((int)fi->fh) : fsync((int)fi->fh));
}

static int op_fallocate(const char *path, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
	(void)path;
	return status(fallocate((int)fi->fh, mode, off, len));
}

static int op_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
	int fd = fi != NULL ? dup((int)fi->fh) : openat(directory, relative(path), O_WRONLY | O_CLOEXEC);
	int err = fd < 0 || ftruncate(fd, size) < 0 ? -errno : 0;

	if (fd >= 0)
		close(fd);
	return err;
}

static int op_utimens(const char *path, const struct timespec times[2], struct fuse_file_info *fi)
{
	return status(fi != NULL ? futimens((int)fi->fh, times) : utimensat(directory, relative(path), times, AT_SYMLINK_NOFOLLOW));
}

static int op_unlink(const char *path)
{
	return status(unlinkat(directory, relative(path), 0));
}

static const struct fuse_operations operations = {
	.init = op_init,
	.getattr = op_getattr,
	.readdir = op_readdir,
	.create = op_create,
	.open = op_open,
	.release = op_release,
	.read = op_read,
	.write = op_write,
	.fsync = op_fsync,
	.fallocate = op_fallocate,
	.truncate = op_truncate,
	.utimens = op_utimens,
	.unlink = op_unlink,
};

int main(int argc, char **argv)
{
	char *arguments[] = {argv[0], argc == 4 ? argv[3] : NULL, (char *)"-f", NULL};

	if (argc != 4) {
		fprintf(stderr, "failing_fs: DIRECTORY, CONTROL and MOUNTPOINT are needed\n");
		return 2;
	}
	directory = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	control = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0 || control < 0) {
		perror("failing_fs");
		return 2;
	}
	return fuse_main(3, arguments, &operations, NULL);
}
