/*
 * device_wire.h - what the daemon and its device process say to each other, over a SOCK_SEQPACKET pair.
 *
 * The device process (hmmfs-device --serve) holds the OpenCL context and a cl_mem for each chunk; it shares only the
 * bounce memory with the daemon, and the memfds of chunks on devices that work in host memory. The run process
 * (hmmfs-device --run) lives for one kernel of a user's, and has only that run's chunks. Both end when the socket does.
 */
#ifndef HMMFS_DEVICE_WIRE_H
#define HMMFS_DEVICE_WIRE_H

#include "gpu/gpu.h"

enum { DEVICE_SOCKET = 3, DEVICE_FDS_MAX = 64, DEVICE_RESULT_MAX = 2048, DEVICE_ENTRY_MAX = 128 };

struct device_setup { /* the first message, with the bounce memory's memfd */
	uint64_t chunk_bytes, bounce_bytes;
	char spec[32];    /* "opencl", "opencl:P.D", "opencl-gpu", "opencl-cpu" */
	bool is_private;  /* do not use host memory for chunks even where the device could */
};

struct device_setup_reply {
	int status;
	bool is_shared;   /* chunks are memfds, sent with DEVICE_CREATE */
	uint64_t memory_bytes;
	char name[128];
	char spec[32];    /* of the device taken: "opencl:P.D" */
	char error[256];
};

enum device_request_kind {
	DEVICE_CREATE, /* chunk; its memfd comes along if shared */
	DEVICE_DESTROY,
	DEVICE_TO,
	DEVICE_FROM,
	DEVICE_FILL,
	DEVICE_COPY,
	DEVICE_RUN,       /* a built-in; a memfd with the chunks' ids comes along */
	DEVICE_STAGE_OUT, /* all of the chunks, back to back, into the memfd that comes along as the second */
	DEVICE_STAGE_IN,
};

struct device_request {
	uint32_t kind, queue;
	uint64_t cookie; /* 0: no answer */
	uint64_t chunk, from;
	uint64_t chunk_off, bounce_off, len;
	uint32_t byte;
	/* DEVICE_RUN, DEVICE_STAGE_* */
	uint32_t kernel, n_chunks, pattern_bytes;
	uint8_t pattern[GPU_PATTERN_MAX];
};

struct device_reply {
	uint64_t cookie;
	int32_t status;
	uint32_t result_bytes;
	uint64_t kernel_ns;
	uint8_t result[DEVICE_RESULT_MAX];
};

/* To the run process, with the source's memfd and one for the result; then messages of one byte, each with up to
 * DEVICE_FDS_MAX of the chunks' memfds. */
struct run_job {
	uint64_t chunk_bytes, n_chunks, offset, len, source_bytes, result_bytes, items;
	uint32_t n_args;
	bool writes, is_shared;
	char spec[32];
	char entry[DEVICE_ENTRY_MAX];
	struct gpu_arg args[GPU_ARGS_MAX];
};

struct run_reply {
	int32_t status;
	uint64_t kernel_ns;
	uint64_t log_bytes; /* in the result's memfd, behind result_bytes */
};

enum { RUN_LOG_MAX = 64 << 10 };

#endif
