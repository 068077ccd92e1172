/* status.c - hmmfs status, map, devices: showing what there is. */
#include "tools/commands.h"

#include "gpu/gpu.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct show_arguments {
	char **paths;
	size_t n;
	bool is_json;
};

static const struct argp_option options[] = {{"json", 'j', NULL, 0, "print JSON", 0}, {0}};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct show_arguments *arguments = state->input;

	(void)arg;
	switch (key) {
	case 'j': arguments->is_json = true; return 0;
	case ARGP_KEY_ARGS:
		arguments->paths = state->argv + state->next;
		arguments->n = (size_t)(state->argc - state->next);
		state->next = state->argc;
		return 0;
	default: return ARGP_ERR_UNKNOWN;
	}
}

/* ---- status ---- */

#define COUNTERS(X)                                                                                                  \
	X(fills) X(fill_bytes) X(writebacks) X(writeback_bytes) X(writeback_errors) X(migrations_back) X(evictions)  \
	X(invalidations) X(held_reads) X(device_read_bytes) X(device_write_bytes) X(hits) X(misses) X(revocations)   \
	X(lost_chunks)

static json_t *number(uint64_t n)
{
	return json_integer((json_int_t)n);
}

static void status_as_json(const struct hmmfs_status *s)
{
	json_t *counters = json_object();

#define SET(name) json_object_set_new(counters, #name, number(s->name));
	COUNTERS(SET)
#undef SET
	print_json(json_pack("{s:{s:s,s:s},s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "device", "backend", s->backend, "name", s->device_name,
			     "transport", s->transport, "chunk_bytes", number(s->chunk_bytes), "capacity_bytes", number(s->capacity_bytes),
			     "resident_bytes", number(s->resident_bytes), "dirty_bytes", number(s->dirty_bytes), "leases",
			     number(s->leases), "passthrough_opens", number(s->passthrough_opens), "inodes",
			     number(s->inodes), "inode_descriptors", number(s->inode_descriptors), "counters", counters));
}

static void status_as_text(const struct hmmfs_status *s)
{
	printf("device            %s (%s)\n", s->backend, s->device_name);
	printf("transport         %s\n", s->transport);
	printf("chunk             %llu KiB\n", (unsigned long long)s->chunk_bytes >> 10);
	printf("capacity          %llu MiB\n", (unsigned long long)s->capacity_bytes >> 20);
	printf("resident          %.1f MiB\n", (double)s->resident_bytes / (1 << 20));
	printf("dirty             %.1f MiB\n", (double)s->dirty_bytes / (1 << 20));
	printf("leases            %llu\n", (unsigned long long)s->leases);
	printf("passthrough_opens %llu\n", (unsigned long long)s->passthrough_opens);
	printf("inodes            %llu\n", (unsigned long long)s->inodes);
	printf("inode_descriptors %llu\n", (unsigned long long)s->inode_descriptors);
#define SHOW(name) printf("%-18s%llu\n", #name, (unsigned long long)s->name);
	COUNTERS(SHOW)
#undef SHOW
}

int command_status(int argc, char **argv)
{
	static const struct argp argp = {options, parse, "MOUNTPOINT", "Show what is on the device, and counters.", NULL, NULL, NULL};
	struct show_arguments arguments = {0};
	struct hmmfs_session *session;
	struct hmmfs_status status;
	int fd, err, exit_status;

	parse_arguments(&argp, argc, argv, &arguments);
	if (arguments.n != 1)
		return misuse("status: name one mount point");
	exit_status = open_session(arguments.paths[0], O_RDONLY, &fd, &session);
	if (exit_status != 0)
		return exit_status;
	err = hmmfs_get_status(session, &status);
	if (err < 0)
		exit_status = fail("%s: %s", arguments.paths[0], explain(err));
	else if (arguments.is_json)
		status_as_json(&status);
	else
		status_as_text(&status);
	hmmfs_close(session);
	close(fd);
	return exit_status;
}

/* ---- map ---- */

enum { MAP_STEP = 256 };

static const char *lease_word(const struct hmmfs_chunk *chunk)
{
	return chunk->has_exclusive_lease ? "exclusive" : chunk->shared_leases > 0 ? "shared" : "-";
}

static json_t *chunk_as_json(const struct hmmfs_chunk *chunk)
{
	return json_pack("{s:o,s:s,s:{s:i,s:b},s:b,s:b}", "index", number(chunk->index), "state", chunk->state, "leases", "shared",
			 (int)chunk->shared_leases, "exclusive", chunk->has_exclusive_lease, "kernel_copies",
			 chunk->has_kernel_copies, "error", chunk->has_error);
}

static int map_file(const char *path, bool is_json, json_t *all)
{
	struct hmmfs_session *session;
	struct hmmfs_chunk chunks[MAP_STEP];
	json_t *list = json_array();
	uint64_t first = 0;
	size_t n, total = 0;
	int fd, err;
	int status = open_session(path, O_RDONLY, &fd, &session);

	if (status != 0) {
		json_decref(list);
		return status;
	}
	do {
		err = hmmfs_get_chunks(session, first, chunks, MAP_STEP, &n);
		for (size_t i = 0; i < n; i++) {
			json_array_append_new(list, chunk_as_json(&chunks[i]));
			if (!is_json)
				printf("%s: chunk %llu %s lease %s kernel_copies %s%s\n", path, (unsigned long long)chunks[i].index,
				       chunks[i].state, lease_word(&chunks[i]), chunks[i].has_kernel_copies ? "yes" : "no",
				       chunks[i].has_error ? " writeback failed" : "");
			first = chunks[i].index + 1;
		}
		total += n;
	} while (err == 0 && n == MAP_STEP);
	if (err < 0)
		status = fail("%s: %s", path, explain(err));
	else if (!is_json && total == 0)
		printf("%s: nothing on the device\n", path);
	json_array_append_new(all, json_pack("{s:s,s:I,s:o}", "file", path, "chunk_bytes",
					     (json_int_t)hmmfs_info(session)->chunk_bytes, "chunks", list));
	hmmfs_close(session);
	close(fd);
	return status;
}

int command_map(int argc, char **argv)
{
	static const struct argp argp = {options, parse, "FILE...", "Show the state of each chunk of a file that is on the device.", NULL, NULL, NULL};
	struct show_arguments arguments = {0};
	json_t *all = json_array();
	int worst = 0;

	parse_arguments(&argp, argc, argv, &arguments);
	if (arguments.n == 0) {
		json_decref(all);
		return misuse("map: name at least one file");
	}
	for (size_t i = 0; i < arguments.n; i++) {
		int status = map_file(arguments.paths[i], arguments.is_json, all);

		worst = status > worst ? status : worst;
	}
	if (arguments.is_json)
		print_json(all);
	else
		json_decref(all);
	return worst;
}

/* ---- devices ---- */

static void add_device(void *user, const struct gpu_info *info, const char *spec)
{
	json_array_append_new(user, json_pack("{s:s,s:s,s:s,s:o}", "device", spec, "backend", info->backend, "name", info->name,
					      "memory_bytes", number(info->memory_bytes)));
}

int command_devices(int argc, char **argv)
{
	static const struct argp argp = {options, parse, NULL, "Show the devices that a mount could use (-o device=).", NULL, NULL, NULL};
	struct show_arguments arguments = {0};
	json_t *all = json_array(), *device;
	size_t i;

	parse_arguments(&argp, argc, argv, &arguments);
	gpu_list(add_device, all);
	if (arguments.is_json) {
		print_json(all);
		return 0;
	}
	json_array_foreach(all, i, device)
		printf("%-14s %8.1f GiB  %s\n", json_string_value(json_object_get(device, "device")),
		       (double)json_integer_value(json_object_get(device, "memory_bytes")) / (1 << 30),
		       json_string_value(json_object_get(device, "name")));
	json_decref(all);
	return 0;
}
