/* request.c - requests of the kernel to the filesystem (fusefs/data.c, range.c, file.c), and what the cache asks of it. */
#include "test/simulation/kernel_internal.h"
#include "test/simulation/scheduler.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* ---- to the filesystem ---- */

static ssize_t send_read(struct sim_file *file, void *buffer, size_t len, off_t off, bool is_direct)
{
	struct cache_io io = {.file = file->cached, .off = off, .len = len, .is_direct = is_direct};
	int err;

	if (!cache_file_is_active(file->cached))
		return disk_pread(&file->disk, buffer, len, off);
	err = CACHE_WAIT(cache_read, &io);
	if (err < 0)
		return err;
	sim_sleep(sim_random(20 * SIM_US)); /* the answer may be a replier's to give */
	memcpy(buffer, io.data, io.done_bytes);
	cache_read_free(&io);
	return (ssize_t)io.done_bytes;
}

/* fuse_short_read takes a short answer for the end of file, unless the size was changed meanwhile. */
ssize_t request_read(struct sim_file *file, void *buffer, size_t len, off_t off, bool is_direct)
{
	unsigned n_size_changes = file->n_size_changes;
	bool was_unstable = file->is_size_unstable;
	off_t size = file->size;
	ssize_t n = send_read(file, buffer, len, off, is_direct);

	if (n >= 0 && !has_faults && !was_unstable && !file->is_size_unstable && n_size_changes == file->n_size_changes &&
	    n < size - off && n < (ssize_t)len)
		sim_fail("a READ of %zu bytes at %lld of %lld was answered with %zd", len, (long long)off, (long long)size, n);
	if (n >= 0)
		memset((char *)buffer + n, 0, len - (size_t)n);
	return n;
}

int request_write(struct sim_file *file, void *buffer, size_t len, off_t off, bool is_direct, bool is_writepage)
{
	struct cache_io io = {.file = file->cached, .off = off, .len = len, .data = buffer, .is_direct = is_direct,
			      .is_writepage = is_writepage};
	ssize_t n;

	if (cache_file_enter_write(file->cached)) {
		n = disk_pwrite(&file->disk, buffer, len, off);
		cache_file_leave_write(file->cached);
	} else {
		n = CACHE_WAIT(cache_write, &io);
		if (n == 0)
			n = (ssize_t)io.done_bytes;
	}
	if (n < 0)
		return (int)n;
	return n == (ssize_t)len ? 0 : -EIO;
}

static int change_call(struct cache_mutation *mutation)
{
	struct change *change = (struct change *)(void *)mutation;

	return change->is_punch ? disk_punch(&change->file->disk, change->off, change->len)
				: disk_truncate(&change->file->disk, change->off);
}

int request_change(struct change *change, off_t off, off_t len)
{
	struct cache_file *cached = change->file->cached;

	if (cache_file_enter_write(cached)) {
		int status = change_call(&change->mutation);

		cache_file_leave_write(cached);
		return status;
	}
	change->mutation = (struct cache_mutation){.file = cached, .off = off, .len = len,
						   .discards = !change->is_punch, .apply = change_call};
	return CACHE_WAIT(cache_mutate, &change->mutation);
}

/* ---- what the cache asks ---- */

static int on_invalidate(void *fs, void *owner, off_t off, off_t len)
{
	size_t first = (size_t)off / PAGE_BYTES;
	size_t end = ((size_t)(off + len) + PAGE_BYTES - 1) / PAGE_BYTES;

	(void)fs;
	invalidate_range(owner, first, (end < PAGES_MAX ? end : PAGES_MAX) - first);
	return 0;
}

static int on_open_backing(void *fs, void *owner, int flags)
{
	struct sim_file *file = owner;

	(void)fs;
	sim_sleep(sim_random(50 * SIM_US));
	return disk_file_open(&file->disk, flags);
}

static void on_file_idle(void *fs, void *owner)
{
	(void)fs;
	(void)owner;
}

static void on_log(void *fs, int priority, const char *line)
{
	const char *rest = strchr(line, ':');
	long long off, end;
	int n = 0;

	(void)fs;
	if (rest != NULL && sscanf(rest, ": bytes %lld..%lld were lost%n", &off, &end, &n) == 2 && n > 0)
		note_lost(file_named(line, (size_t)(rest - line)), off, end);
	if (is_verbose)
		fprintf(stderr, "  %.6f <%d> %s\n", (double)sim_now() / 1e9, priority, line);
}

static const char *on_file_name(void *fs, void *owner)
{
	const struct sim_file *file = owner;

	(void)fs;
	return file->name;
}

const struct cache_callbacks kernel_callbacks = {
	.invalidate = on_invalidate,
	.open_backing = on_open_backing,
	.file_idle = on_file_idle,
	.log = on_log,
	.file_name = on_file_name,
};
