/* control_lease.c - a client's regions, their leases, and the descriptors of their chunks. */
#include "fusefs/control_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct region *region_find(struct session *session, uint32_t id)
{
	struct region *region;

	HASH_FIND(hh, session->regions, &id, sizeof(id), region);
	return region;
}

static bool is_in_capacity(const struct session *session, uint64_t off, uint64_t len, uint64_t *first, uint64_t *n)
{
	struct cache_status status;

	if (len == 0 || off > INT64_MAX || len > INT64_MAX - off)
		return false;
	cache_get_status(session->control->fs->cache, &status);
	*first = off / status.chunk_bytes;
	*n = (off + len - 1) / status.chunk_bytes - *first + 1;
	return *n * status.chunk_bytes <= status.capacity_bytes;
}

static int file_bytes(const struct session *session, uint64_t *bytes)
{
	struct stat st;
	int err;

	if (session->file == NULL)
		return -EINVAL;
	err = inode_stat(session->inode, &st);
	if (err < 0)
		return err;
	*bytes = (uint64_t)st.st_size;
	return 0;
}

static void revoked(struct cache_lease *lease)
{
	struct region *region = (struct region *)(void *)((char *)lease - offsetof(struct region, held.lease));
	uint64_t one = 1;
	ssize_t n;

	atomic_store(&region->is_revoked, true);
	atomic_store(&region->session->has_revoked, true);
	n = write(region->session->wake_fd, &one, sizeof(one));
	(void)n;
}

int region_open(struct session *session, const struct wire_request *request, struct wire_reply *reply)
{
	uint64_t bytes, first, n;
	struct region *region;
	int err = file_bytes(session, &bytes);

	if (err < 0)
		return err;
	if (request->len == 0 || request->off >= bytes || request->len > bytes - request->off)
		return -EINVAL;
	if (!is_in_capacity(session, request->off, request->len, &first, &n))
		return -ENOMEM;
	if (HASH_COUNT(session->regions) >= REGIONS_MAX)
		return -EMFILE;
	region = calloc(1, sizeof(*region));
	if (region == NULL)
		return -ENOMEM;
	region->sent = calloc(n, sizeof(*region->sent));
	if (region->sent == NULL) {
		free(region);
		return -ENOMEM;
	}
	region->id = ++session->next_region;
	region->off = request->off;
	region->len = request->len;
	region->session = session;
	region->held.lease = (struct cache_lease){.file = session->file, .first_chunk = first, .n_chunks = n, .revoked = revoked};
	HASH_ADD(hh, session->regions, id, sizeof(region->id), region);
	reply->region = region->id;
	return 0;
}

/* ---- leases ---- */

static void start_acquire(void *argument)
{
	cache_acquire(argument);
}

static void cancel_acquire(void *argument)
{
	cache_acquire_cancel(argument);
}

static void start_release(void *argument)
{
	cache_release(argument);
}

static void start_evict(void *argument)
{
	cache_evict(argument);
}

static void start_sync(void *argument)
{
	cache_sync(argument);
}

static int evict(struct session *session, const struct cache_lease *lease)
{
	struct cache_status status;
	struct cache_place place = {.file = lease->file};
	bool is_gone;

	cache_get_status(session->control->fs->cache, &status);
	place.off = (off_t)(lease->first_chunk * status.chunk_bytes);
	place.len = (off_t)(lease->n_chunks * status.chunk_bytes);
	return session_wait(session, &place.op, start_evict, NULL, &place, 0, &is_gone);
}

/* On a file that the kernel passes to the backing, what an earlier lease left is dropped first: the CPU may have stored since.
 * If it can't be, others hold it. */
static int acquire(struct session *session, struct session_lease *held, unsigned timeout_ms)
{
	struct fusefs *fs = session->control->fs;
	bool is_gone;
	int err = passthrough_lease_begin(fs->passthrough, session->inode, session->handle_id,
					  held->lease.mode == CACHE_LEASE_EXCLUSIVE, &held->pass);

	if (err < 0)
		return err;
	if (held->pass.is_passed && held->pass.may_be_old)
		err = evict(session, &held->lease);
	if (err == 0)
		err = session_wait(session, &held->lease.op, start_acquire, cancel_acquire, &held->lease, timeout_ms, &is_gone);
	if (err < 0)
		passthrough_lease_end(fs->passthrough, session->inode, &held->pass);
	return err;
}

/* Errors of a writeback are kept for fsync and close (R6). */
static void release(struct session *session, struct session_lease *held)
{
	struct fusefs *fs = session->control->fs;
	bool is_gone;

	session_wait(session, &held->lease.op, start_release, NULL, &held->lease, 0, &is_gone);
	if (held->pass.is_passed && !fs->options->is_read_only) {
		struct cache_sync sync = {.file = held->lease.file, .is_flush = true};

		if (held->pass.is_exclusive)
			session_wait(session, &sync.op, start_sync, NULL, &sync, 0, &is_gone);
		evict(session, &held->lease); /* -EBUSY: the lease that holds it will */
	}
	passthrough_lease_end(fs->passthrough, session->inode, &held->pass);
}

/* What one message of descriptors holds. */
struct batch {
	struct wire_chunks chunks;
	int fds[WIRE_CHUNKS_MAX];
	size_t n;
};

static int send_batch(struct session *session, const struct region *region, const struct batch *batch)
{
	struct wire_reply header = {.magic = WIRE_MAGIC, .op = WIRE_CHUNKS, .region = region->id, .count = (uint32_t)batch->n};

	return batch->n == 0 ? 0 : session_send(session, &header, &batch->chunks, sizeof(batch->chunks), batch->fds, batch->n);
}

/* What was not sent is sent by the next acquire. */
static void end_batch(struct region *region, struct batch *batch, bool is_sent)
{
	while (batch->n > 0) {
		close(batch->fds[--batch->n]);
		if (!is_sent)
			region->sent[batch->chunks.indexes[batch->n]] = 0;
	}
}

/* Sends the descriptors of chunks whose memory is not what the client has mapped. */
static int send_chunks(struct session *session, struct region *region, bool is_writable)
{
	struct gpu_device *dev = cache_device(session->control->fs->cache);
	struct batch batch = {.chunks.is_writable = is_writable};
	int err = 0;

	for (size_t i = 0; i < region->held.lease.n_chunks && err == 0; i++) {
		uint64_t generation, wanted;
		struct gpu_chunk *chunk = cache_lease_chunk(&region->held.lease, i, &generation);

		/* CUDA's handles know no read-only: a client that has one need not be sent it again to write. */
		wanted = generation << 1 | (is_writable || dev->info.exports_cuda);
		if (region->sent[i] == wanted || region->sent[i] == (generation << 1 | 1))
			continue;
		err = dev->ops->chunk_export(dev, chunk, is_writable, &batch.fds[batch.n]);
		if (err < 0)
			break;
		region->sent[i] = wanted;
		batch.chunks.indexes[batch.n++] = i;
		if (batch.n == WIRE_CHUNKS_MAX) {
			err = send_batch(session, region, &batch);
			end_batch(region, &batch, err == 0);
		}
	}
	if (err == 0)
		err = send_batch(session, region, &batch);
	end_batch(region, &batch, err == 0);
	return err;
}

/* Whoever is given a handle that knows no read-only can change what everyone reads. The owner could anyway. */
static bool may_have_memory(const struct session *session)
{
	const struct fusefs *fs = session->control->fs;

	return session->is_writable || !cache_device(fs->cache)->info.exports_cuda || session->peer.uid == fs->owner ||
	       session->peer.uid == 0;
}

int region_acquire(struct session *session, const struct wire_request *request, struct wire_reply *reply)
{
	struct region *region = region_find(session, request->region);
	bool is_exclusive = (request->flags & WIRE_EXCLUSIVE) != 0;
	uint64_t bytes;
	int err;

	if (region == NULL || region->is_held)
		return -EINVAL;
	if (is_exclusive && !session->is_writable)
		return -EACCES;
	if ((request->flags & WIRE_MAP) && !may_have_memory(session))
		return -EPERM;
	if (inode_policy(session->inode) == POLICY_NEVER)
		return -EOPNOTSUPP;
	err = file_bytes(session, &bytes);
	if (err < 0)
		return err;
	if (region->off + region->len > bytes)
		return -ERANGE; /* the file has been truncated */
	region->held.lease.mode = is_exclusive ? CACHE_LEASE_EXCLUSIVE : CACHE_LEASE_SHARED;
	region->held.lease.is_abandoned = false;
	atomic_store(&region->is_revoked, false);
	err = acquire(session, &region->held, request->timeout_ms);
	if (err < 0)
		return err;
	region->is_held = true;
	if (atomic_load(&region->is_revoked)) /* already: while it was not ours, nobody looked */
		atomic_store(&session->has_revoked, true);
	reply->fill_bytes = region->held.lease.fill_bytes;
	reply->acquire_ns = region->held.lease.acquire_ns;
	reply->fill_ns = region->held.lease.fill_ns;
	if (request->flags & WIRE_MAP) {
		err = cache_device(session->control->fs->cache)->info.can_export ? send_chunks(session, region, is_exclusive)
										  : -EOPNOTSUPP;
		if (err < 0) {
			region->is_held = false;
			release(session, &region->held);
		}
	}
	return err;
}

int region_release(struct session *session, uint32_t id)
{
	struct region *region = region_find(session, id);

	if (region == NULL)
		return -EINVAL;
	if (!region->is_held)
		return -ESTALE; /* it was revoked, and the client has been told */
	region->is_held = false;
	release(session, &region->held);
	return atomic_load(&region->is_revoked) ? -ESTALE : 0;
}

static void region_free(struct session *session, struct region *region, bool is_abandoned)
{
	if (region->is_held) {
		region->is_held = false;
		region->held.lease.is_abandoned = is_abandoned;
		release(session, &region->held);
	}
	HASH_DEL(session->regions, region);
	free(region->sent);
	free(region);
}

int region_close(struct session *session, uint32_t id)
{
	struct region *region = region_find(session, id);

	if (region == NULL)
		return -EINVAL;
	region_free(session, region, false);
	return 0;
}

void regions_end(struct session *session)
{
	struct region *region, *next;

	HASH_ITER(hh, session->regions, region, next)
		region_free(session, region, true);
}

static void tell_revoked(struct session *session)
{
	struct region *region, *next;

	HASH_ITER(hh, session->regions, region, next) {
		struct wire_reply message = {.magic = WIRE_MAGIC, .op = WIRE_REVOKED, .region = region->id};

		if (!region->is_held || !atomic_load(&region->is_revoked))
			continue;
		region->is_held = false;
		release(session, &region->held);
		if (session_send(session, &message, NULL, 0, NULL, 0) < 0)
			shutdown(session->socket, SHUT_RDWR); /* gone, or does not read: the next one is not waited for */
	}
}

void regions_tell_revoked(struct session *session)
{
	if (session->is_telling) /* in a wait of its release */
		return;
	session->is_telling = true;
	while (atomic_exchange(&session->has_revoked, false))
		tell_revoked(session);
	session->is_telling = false;
}

/* ---- for runs ---- */

int lease_range(struct session *session, uint64_t off, uint64_t len, bool is_exclusive, struct session_lease *held)
{
	uint64_t bytes, first, n;
	int err = file_bytes(session, &bytes);

	if (err < 0)
		return err;
	if (len == 0 || off >= bytes || len > bytes - off)
		return -ERANGE;
	if (!is_in_capacity(session, off, len, &first, &n))
		return -ENOMEM;
	if (is_exclusive && !session->is_writable)
		return -EACCES;
	if (inode_policy(session->inode) == POLICY_NEVER)
		return -EOPNOTSUPP;
	held->lease = (struct cache_lease){.file = session->file, .first_chunk = first, .n_chunks = n,
					   .mode = is_exclusive ? CACHE_LEASE_EXCLUSIVE : CACHE_LEASE_SHARED};
	return acquire(session, held, 0);
}

void lease_end(struct session *session, struct session_lease *held)
{
	release(session, held);
}
