/* run.c - asking the daemon to run a kernel on its device. */
#include "client/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int write_source(const char *source)
{
	size_t bytes = strlen(source);
	int fd;

	if (bytes == 0 || bytes > WIRE_SOURCE_MAX)
		return -E2BIG;
	fd = memfd_create("hmmfs-source", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (pwrite(fd, source, bytes, 0) != (ssize_t)bytes) {
		close(fd);
		return -ENOSPC;
	}
	return fd;
}

static int fill_in(struct wire_run *wire, const struct hmmfs_run *run)
{
	if (run->pattern_bytes > WIRE_PATTERN_MAX || run->n_args > WIRE_ARGS_MAX ||
	    (run->entry != NULL && strlen(run->entry) >= WIRE_ENTRY_MAX))
		return -EINVAL;
	*wire = (struct wire_run){.kind = run->kernel, .writes = run->writes, .byte = run->byte,
				  .pattern_bytes = (uint32_t)run->pattern_bytes, .n_args = (uint32_t)run->n_args,
				  .has_source = run->source != NULL, .items = run->items};
	if (run->pattern_bytes > 0)
		memcpy(wire->pattern, run->pattern, run->pattern_bytes);
	if (run->entry != NULL)
		memcpy(wire->entry, run->entry, strlen(run->entry));
	for (size_t i = 0; i < run->n_args; i++) {
		wire->args[i] = (struct wire_arg){.kind = run->args[i].is_out, .bytes = run->args[i].bytes,
						  .out_bytes = run->args[i].out_bytes};
		memcpy(wire->args[i].scalar, run->args[i].scalar, sizeof(wire->args[i].scalar));
	}
	return 0;
}

static int read_back(int fd, uint64_t off, uint64_t bytes, char **text)
{
	struct stat st;

	*text = NULL;
	if (bytes == 0)
		return 0;
	if (fstat(fd, &st) < 0 || off > (uint64_t)st.st_size || bytes > (uint64_t)st.st_size - off)
		return -EPROTO; /* the daemon sent less than it said */
	*text = calloc(1, bytes + 1);
	if (*text == NULL)
		return -ENOMEM;
	for (size_t done = 0; done < bytes;) {
		ssize_t n = pread(fd, *text + done, bytes - done, (off_t)(off + done));

		if (n <= 0)
			return -EIO;
		done += (size_t)n;
	}
	return 0;
}

int hmmfs_run(struct hmmfs_session *session, off_t off, uint64_t len, struct hmmfs_run *run)
{
	struct wire_request request = {.op = WIRE_RUN, .off = (uint64_t)off, .len = len, .timeout_ms = run->timeout_ms};
	struct wire_run wire;
	struct wire_reply reply = {.status = 0};
	int source_fd = -1, result_fd = -1;
	int err = fill_in(&wire, run);
	int read_err = 0;
	char *result = NULL;

	run->result = NULL;
	run->log = NULL;
	if (err == 0 && run->source != NULL) {
		source_fd = write_source(run->source);
		err = source_fd < 0 ? source_fd : 0;
	}
	if (err < 0)
		return err;
	err = session_ask(session, &request, &wire, source_fd, &reply, NULL, 0, &result_fd);
	if (source_fd >= 0)
		close(source_fd);
	run->times = (struct hmmfs_times){reply.fill_bytes, reply.acquire_ns, reply.fill_ns};
	run->kernel_ns = reply.kernel_ns;
	run->release_ns = reply.release_ns;
	if (result_fd >= 0) {
		read_err = read_back(result_fd, 0, reply.result_bytes, &result);
		if (read_err == 0)
			read_err = read_back(result_fd, reply.result_bytes, reply.log_bytes, &run->log);
		close(result_fd);
	}
	run->result = result;
	run->result_bytes = result == NULL ? 0 : reply.result_bytes;
	return err < 0 ? err : read_err;
}
