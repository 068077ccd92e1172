/*
 * protocol.h - what libhmmfs and the daemon say to each other. The one header that both sides share.
 *
 * The way in is an ioctl on a file (or directory) of the mount that the application has open: FUSE tells the daemon which
 * inode it is and whether it is open for writing, so that the open file is the permission. The answer is a token that
 * works once, for ten seconds, for the user who asked, and the path of the control socket (SOCK_SEQPACKET). WIRE_HELLO with the token makes the
 * connection a session bound to that file. When the socket closes, all leases of the session end.
 *
 * Every request is one struct wire_request; WIRE_RUN is followed, in the same message, by struct wire_run. Every
 * request is answered by one struct wire_reply with its id, which other messages may come before: WIRE_CHUNKS (descriptors of
 * chunks, for an acquire) and WIRE_REVOKED (any time; region is set). One request at a time. All integers are in the
 * machine's order: both ends are on one machine. Anything malformed closes the session.
 *
 * A chunk's descriptor, of chunk_bytes, is one of two things:
 *   - a memfd (WIRE_EXPORTS_CUDA is not set), opened read-only for a shared lease;
 *   - a shareable handle of CUDA's (WIRE_EXPORTS_CUDA): for cuMemImportFromShareableHandle with
 *     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, on the device with device_uuid (cuDeviceGetUuid). It knows no read-only: whoever
 *     has it can map it writable, so that with WIRE_MAP a session of a file opened for reading only is the owner's, or is refused
 *     (-EPERM). A well-behaved client asks for read access alone if is_writable is 0.
 * Either way the memory is the client's until it has unmapped it: what the daemon has freed, and a client still maps, is never
 * used for anything else.
 */
#ifndef HMMFS_PROTOCOL_H
#define HMMFS_PROTOCOL_H

#include <linux/ioctl.h>
#include <stdint.h>

#define WIRE_TOKEN_BYTES 16

struct wire_ticket {
	uint8_t token[WIRE_TOKEN_BYTES];
	char socket_path[108];
	uint32_t version;
};
#define HMMFS_IOC_TICKET _IOR('h', 0x4d, struct wire_ticket)

#define WIRE_MAGIC 0x48464d48u
#define WIRE_VERSION 2u

enum wire_op {
	WIRE_HELLO = 1,  /* token. Answer: struct wire_hello behind the reply */
	WIRE_REGION_OPEN,  /* off, len. Answer: region */
	WIRE_REGION_CLOSE, /* region */
	WIRE_ACQUIRE,    /* region; flags: WIRE_EXCLUSIVE, WIRE_MAP; timeout_ms, 0: none. Answer: fill_bytes, acquire_ns, fill_ns */
	WIRE_RELEASE,    /* region */
	WIRE_PREFETCH,   /* off, len. Answer: moved_bytes */
	WIRE_EVICT,      /* off, len. Answer: moved_bytes */
	WIRE_SYNC,       /* the file; on a directory the whole mount */
	WIRE_STATUS,     /* Answer: struct wire_status behind the reply */
	WIRE_MAP_CHUNKS, /* off: the first chunk's index. Answer: up to WIRE_CHUNKS_MAX struct wire_chunk behind it */
	WIRE_RUN,        /* off, len. Answer: run times; a memfd with result_bytes of result and then log_bytes of log */
	/* from the daemon */
	WIRE_REPLY,
	WIRE_CHUNKS,
	WIRE_REVOKED,
};

enum { WIRE_EXCLUSIVE = 1, WIRE_MAP = 2 };
enum { WIRE_CHUNKS_MAX = 64, WIRE_ARGS_MAX = 16, WIRE_PATTERN_MAX = 256, WIRE_ENTRY_MAX = 128 };
#define WIRE_SOURCE_MAX (1u << 20)

struct wire_request {
	uint32_t magic, version;
	uint32_t op, id;
	uint32_t region, flags;
	uint32_t timeout_ms, reserved;
	uint64_t off, len;
	uint8_t token[WIRE_TOKEN_BYTES];
};

struct wire_arg {
	uint32_t kind; /* enum gpu_arg_kind */
	uint32_t bytes;
	uint8_t scalar[8];
	uint64_t out_bytes;
};

struct wire_run {
	uint32_t kind; /* enum gpu_kernel_kind */
	uint32_t writes;
	uint32_t byte;
	uint32_t pattern_bytes;
	uint32_t n_args;
	uint32_t has_source; /* a memfd with the source travels with the message */
	uint64_t items;
	uint8_t pattern[WIRE_PATTERN_MAX];
	char entry[WIRE_ENTRY_MAX];
	struct wire_arg args[WIRE_ARGS_MAX];
};

struct wire_reply {
	uint32_t magic, op, id;
	int32_t status; /* 0 or negative errno */
	uint32_t region;
	uint32_t count; /* of the structs behind it, or of the descriptors with it */
	uint64_t fill_bytes, acquire_ns, fill_ns;
	uint64_t moved_bytes;
	uint64_t kernel_ns, release_ns;
	uint64_t result_bytes, log_bytes;
};

enum { WIRE_CAN_EXPORT = 1, WIRE_CAN_RUN = 2, WIRE_IS_WRITABLE = 4, WIRE_IS_DIRECTORY = 8, WIRE_EXPORTS_CUDA = 16 };

struct wire_hello {
	uint64_t chunk_bytes, capacity_bytes, file_bytes;
	uint32_t flags, owner_uid;
	uint32_t daemon_pid, reserved;
	char backend[16];
	char device_name[128];
	uint8_t device_uuid[16]; /* WIRE_EXPORTS_CUDA */
};

/* Behind a wire_reply with op WIRE_CHUNKS: the index within the region of each chunk whose descriptor is attached. */
struct wire_chunks {
	uint32_t is_writable, reserved;
	uint64_t indexes[WIRE_CHUNKS_MAX];
};

struct wire_status {
	uint64_t chunk_bytes, capacity_bytes, resident_bytes, dirty_bytes, leases;
	uint64_t fills, fill_bytes, writebacks, writeback_bytes, writeback_errors, migrations_back, evictions, invalidations,
		held_reads, device_read_bytes, device_write_bytes, hits, misses, revocations, lost_chunks;
	uint64_t passthrough_opens, inodes, inode_descriptors;
	char backend[16], transport[8];
	char device_name[128];
};

struct wire_chunk {
	uint64_t index;
	uint32_t shared_leases;
	uint8_t has_exclusive_lease, has_kernel_copies, has_error, reserved;
	char state[8];
};

#endif
