/*
 * run.c - hmmfs run: GPU compute on files, in place.
 *
 * A built-in kernel takes a file larger than the device's capacity as a stream of regions, one after the other; a user's own
 * kernel sees one region, or nothing.
 */
#include "tools/run.h"

#include "tools/commands.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPTION_RANGE = 256, OPTION_OUT, OPTION_ARG, OPTION_ITEMS, OPTION_TIMEOUT, OPTION_SHARED, OPTION_JSON };

static const struct argp_option options[] = {
	{"range", OPTION_RANGE, "OFF:LEN", 0, "only these bytes of each file", 0},
	{"out", OPTION_OUT, "FILE", 0, "write the result, as bytes, to FILE", 0},
	{"json", OPTION_JSON, NULL, 0, "print JSON", 0},
	{"arg", OPTION_ARG, "TYPE:VALUE", 0, "an argument of your own kernel: int, uint, long, ulong, float, double, or out:BYTES", 0},
	{"items", OPTION_ITEMS, "N", 0, "work items of your own kernel (one a byte)", 0},
	{"timeout", OPTION_TIMEOUT, "SECONDS", 0, "end a kernel that runs longer", 0},
	{"shared", OPTION_SHARED, NULL, 0, "your own kernel only reads the file", 0},
	{0}};

static const char doc[] =
	"Run a kernel on files of an hmmfs mount, where they are: in device memory.\v"
	"KERNEL is one of\n"
	"  sum               the sum of all bytes\n"
	"  histogram         how often each byte occurs\n"
	"  count PATTERN     how often a string occurs, overlapping occurrences too\n"
	"  xor BYTE          in place\n"
	"  fill BYTE         in place\n"
	"  FILE.cl:ENTRY     your own OpenCL C: __kernel void ENTRY(__global uchar *data, ulong len, ...),\n"
	"                    with one more parameter for each --arg\n"
	"  FILE.cu:ENTRY     on cuda, your own CUDA C (compiled by NVRTC):\n"
	"                    __global__ void ENTRY(unsigned char *data, unsigned long long len, ...)\n"
	"  FILE.ptx:ENTRY, FILE.cubin:ENTRY  on cuda, the same compiled before\n"
	"Exit status: 0, 1 failure, 2 misuse.";

/* ---- parsing ---- */

static bool parse_number(const char *text, uint64_t *number)
{
	char *end;

	errno = 0;
	*number = strtoull(text, &end, 0);
	return isdigit((unsigned char)text[0]) && *end == '\0' && errno == 0;
}

static void parse_range(struct argp_state *state, const char *text, struct run_arguments *arguments)
{
	char *copy = strdup(text), *colon = copy == NULL ? NULL : strchr(copy, ':');

	if (colon != NULL)
		*colon = '\0';
	if (colon == NULL || !parse_number(copy, &arguments->off) || !parse_number(colon + 1, &arguments->len) ||
	    arguments->len == 0 || arguments->off > INT64_MAX - arguments->len)
		argp_error(state, "--range %s: write OFF:LEN, such as 0:4096, with LEN not 0", text);
	free(copy);
}

static bool set_scalar(struct hmmfs_arg *arg, const char *type, const char *value)
{
	char *end;
	union {
		int32_t i;
		uint32_t u;
		int64_t l;
		uint64_t ul;
		float f;
		double d;
	} scalar = {.ul = 0};

	errno = 0;
	if (strcmp(type, "int") == 0) {
		long n = strtol(value, &end, 0);

		scalar.i = (int32_t)n;
		arg->bytes = 4;
		if (n != scalar.i)
			return false;
	} else if (strcmp(type, "uint") == 0) {
		unsigned long n = strtoul(value, &end, 0);

		scalar.u = (uint32_t)n;
		arg->bytes = 4;
		if (n != scalar.u)
			return false;
	} else if (strcmp(type, "long") == 0) {
		scalar.l = strtoll(value, &end, 0);
		arg->bytes = 8;
	} else if (strcmp(type, "ulong") == 0) {
		scalar.ul = strtoull(value, &end, 0);
		arg->bytes = 8;
	} else if (strcmp(type, "float") == 0) {
		scalar.f = strtof(value, &end);
		arg->bytes = 4;
	} else if (strcmp(type, "double") == 0) {
		scalar.d = strtod(value, &end);
		arg->bytes = 8;
	} else {
		return false;
	}
	memcpy(arg->scalar, &scalar, sizeof(arg->scalar));
	return *value != '\0' && *end == '\0' && errno == 0;
}

static void parse_arg(struct argp_state *state, const char *text, struct run_arguments *arguments)
{
	struct hmmfs_arg arg = {0};
	char type[16] = "";
	const char *colon = strchr(text, ':');
	bool is_right = colon != NULL && (size_t)(colon - text) < sizeof(type);

	if (arguments->n_args == sizeof(arguments->args) / sizeof(arguments->args[0]))
		argp_error(state, "--arg %s: no more than 16", text);
	if (is_right) {
		memcpy(type, text, (size_t)(colon - text));
		arg.is_out = strcmp(type, "out") == 0;
		is_right = arg.is_out ? parse_number(colon + 1, &arg.out_bytes) && arg.out_bytes > 0 && arg.out_bytes <= 1u << 30
				      : set_scalar(&arg, type, colon + 1);
	}
	if (!is_right)
		argp_error(state, "--arg %s: write TYPE:VALUE with int, uint, long, ulong, float or double, or out:BYTES (at most 1 GiB)",
			   text);
	arguments->args[arguments->n_args++] = arg;
}

/* All of a file, and a 0 behind it. */
static char *read_source(struct argp_state *state, const char *path)
{
	FILE *file = fopen(path, "re");
	char *text = NULL;
	size_t n = 0, more = 0;

	if (file == NULL)
		argp_error(state, "%s: %s", path, strerror(errno));
	do {
		n += more;
		text = realloc(text, n + 65536 + 1);
		if (text == NULL)
			argp_error(state, "%s: %s", path, strerror(ENOMEM));
		more = fread(text + n, 1, 65536, file);
	} while (more > 0);
	text[n] = '\0';
	fclose(file);
	if (n == 0)
		argp_error(state, "%s: empty", path);
	return text;
}

static enum run_language language_of(const char *path)
{
	const char *dot = strrchr(path, '.');

	if (dot != NULL && strcmp(dot, ".cu") == 0)
		return RUN_CUDA_C;
	if (dot != NULL && (strcmp(dot, ".ptx") == 0 || strcmp(dot, ".cubin") == 0))
		return RUN_CUDA_IMAGE;
	return RUN_OPENCL_C;
}

static void parse_byte(struct argp_state *state, const char *kernel, const char *text, struct run_arguments *arguments)
{
	uint64_t number = 0;

	if (text == NULL || !parse_number(text, &number) || number > 255)
		argp_error(state, "%s %s: a byte is needed, 0 to 255", kernel, text == NULL ? "" : text);
	arguments->byte = (uint8_t)number;
}

/* Takes the kernel and its own argument; returns how many words that were. */
static int parse_kernel(struct argp_state *state, char **words, int n, struct run_arguments *arguments)
{
	const char *name = words[0], *next = n > 1 ? words[1] : NULL;
	const char *colon = strrchr(name, ':');

	arguments->kernel_name = name;
	if (strcmp(name, "sum") == 0 || strcmp(name, "histogram") == 0) {
		arguments->kernel = name[0] == 's' ? HMMFS_SUM : HMMFS_HISTOGRAM;
		return 1;
	}
	if (strcmp(name, "count") == 0) {
		if (next == NULL || *next == '\0' || strlen(next) > 256)
			argp_error(state, "count %s: a pattern of 1 to 256 bytes is needed", next == NULL ? "" : next);
		arguments->kernel = HMMFS_COUNT;
		arguments->pattern = next;
		return 2;
	}
	if (strcmp(name, "xor") == 0 || strcmp(name, "fill") == 0) {
		arguments->kernel = name[0] == 'x' ? HMMFS_XOR : HMMFS_FILL;
		parse_byte(state, name, next, arguments);
		return 2;
	}
	if (colon == NULL || colon == name || colon[1] == '\0')
		argp_error(state, "%s: no such kernel; use sum, histogram, count PATTERN, xor BYTE, fill BYTE, FILE.cl:ENTRY or, on cuda, "
			   "FILE.cu:ENTRY, FILE.ptx:ENTRY or FILE.cubin:ENTRY",
			   name);
	arguments->kernel = HMMFS_SOURCE;
	arguments->entry = strdup(colon + 1);
	char *path = strndup(name, (size_t)(colon - name));

	arguments->source = read_source(state, path);
	arguments->language = language_of(path);
	free(path);
	return 1;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct run_arguments *arguments = state->input;
	uint64_t number;
	int used;

	switch (key) {
	case OPTION_RANGE: parse_range(state, arg, arguments); return 0;
	case OPTION_OUT: arguments->out = arg; return 0;
	case OPTION_JSON: arguments->is_json = true; return 0;
	case OPTION_ARG: parse_arg(state, arg, arguments); return 0;
	case OPTION_ITEMS:
		if (!parse_number(arg, &arguments->items) || arguments->items == 0)
			argp_error(state, "--items %s: a number from 1 on is needed", arg);
		return 0;
	case OPTION_TIMEOUT:
		if (!parse_number(arg, &number) || number == 0 || number > 1000000)
			argp_error(state, "--timeout %s: seconds are needed, 1 to 1000000", arg);
		arguments->timeout_ms = (unsigned)number * 1000;
		return 0;
	case OPTION_SHARED: arguments->is_shared = true; return 0;
	case ARGP_KEY_ARGS:
		used = parse_kernel(state, state->argv + state->next, state->argc - state->next, arguments);
		arguments->files = state->argv + state->next + used;
		arguments->n_files = (size_t)(state->argc - state->next - used);
		if (arguments->n_files == 0)
			argp_error(state, "name at least one FILE");
		state->next = state->argc;
		return 0;
	case ARGP_KEY_NO_ARGS: argp_error(state, "KERNEL and FILE are needed"); return 0;
	default: return ARGP_ERR_UNKNOWN;
	}
}

/* ---- running ---- */

static int merge(const struct run_arguments *arguments, struct run_outcome *total, struct run_outcome *part)
{
	total->times.fill_bytes += part->times.fill_bytes;
	total->times.acquire_ns += part->times.acquire_ns;
	total->times.fill_ns += part->times.fill_ns;
	total->kernel_ns += part->kernel_ns;
	total->release_ns += part->release_ns;
	total->bytes += part->bytes;
	if (total->result == NULL || arguments->kernel == HMMFS_SOURCE) {
		free(total->result);
		total->result = part->result;
		total->result_bytes = part->result_bytes;
	} else if (part->result != NULL && part->result_bytes == total->result_bytes) {
		uint64_t *sum = total->result;
		const uint64_t *more = part->result;

		for (size_t i = 0; i < total->result_bytes / sizeof(uint64_t); i++)
			sum[i] += more[i];
		free(part->result);
	}
	free(total->log);
	total->log = part->log;
	return 0;
}

/* Zeros in the form of the kernel's result, for a range of no bytes. */
static int empty_result(const struct run_arguments *arguments, struct run_outcome *total)
{
	size_t bytes = arguments->kernel == HMMFS_HISTOGRAM ? 256 * sizeof(uint64_t) : sizeof(uint64_t);

	if (total->result != NULL || run_writes(arguments) || arguments->kernel == HMMFS_SOURCE)
		return 0;
	total->result = calloc(1, bytes);
	total->result_bytes = bytes;
	return total->result == NULL ? -ENOMEM : 0;
}

/* As large as the capacity allows with its last chunk whole, so that two regions don't share one. */
static uint64_t stream_bytes(const struct hmmfs_info *info, uint64_t off)
{
	uint64_t whole = info->capacity_bytes / 2 / info->chunk_bytes * info->chunk_bytes;

	if (whole < info->chunk_bytes)
		whole = info->chunk_bytes;
	return whole - off % info->chunk_bytes;
}

static int run_stream(struct hmmfs_session *session, int fd, const struct run_arguments *arguments, uint64_t off, uint64_t len,
		      struct run_outcome *total)
{
	const struct hmmfs_info *info = hmmfs_info(session);
	uint64_t overlap = arguments->kernel == HMMFS_COUNT ? strlen(arguments->pattern) - 1 : 0;
	uint64_t end = off + len;
	bool fits = (end - 1) / info->chunk_bytes - off / info->chunk_bytes + 1 <= info->capacity_bytes / info->chunk_bytes;
	int err = 0;

	if (!fits && arguments->kernel == HMMFS_SOURCE)
		return -E2BIG;
	while (off < end && err == 0) {
		struct run_outcome part;
		uint64_t step = fits ? end - off : stream_bytes(info, off);
		uint64_t to = end - off < step ? end : off + step;
		/* Occurrences that begin before `to` may reach behind it. */
		uint64_t with_overlap = end - to < overlap ? end : to + overlap;

		err = run_region(session, fd, arguments, off, with_overlap - off, &part);
		part.bytes = to - off; /* the overlap is counted with the next part */
		merge(arguments, total, &part);
		off = to;
	}
	return err;
}

static double milliseconds(uint64_t ns)
{
	return (double)ns / 1e6;
}

static json_t *result_as_json(const struct run_arguments *arguments, const struct run_outcome *outcome)
{
	const uint64_t *numbers = outcome->result;
	json_t *list;

	if (outcome->result == NULL || arguments->kernel == HMMFS_SOURCE)
		return json_null();
	if (arguments->kernel != HMMFS_HISTOGRAM)
		return json_integer((json_int_t)numbers[0]);
	list = json_array();
	for (int byte = 0; byte < 256; byte++)
		json_array_append_new(list, json_integer((json_int_t)numbers[byte]));
	return list;
}

static json_t *outcome_as_json(const char *path, const struct run_arguments *arguments, const struct run_outcome *outcome)
{
	return json_pack("{s:s,s:s,s:I,s:I,s:o,s:{s:f,s:f,s:f,s:f},s:s?}", "file", path, "kernel", arguments->kernel_name, "bytes",
			 (json_int_t)outcome->bytes, "fill_bytes", (json_int_t)outcome->times.fill_bytes, "result",
			 result_as_json(arguments, outcome), "ms", "acquire",
			 milliseconds(outcome->times.acquire_ns - outcome->times.fill_ns), "fill",
			 milliseconds(outcome->times.fill_ns), "kernel", milliseconds(outcome->kernel_ns), "release",
			 milliseconds(outcome->release_ns), "log", outcome->log);
}

static void outcome_as_text(const char *path, const struct run_arguments *arguments, const struct run_outcome *outcome)
{
	const uint64_t *numbers = outcome->result;

	if (numbers != NULL && (arguments->kernel == HMMFS_SUM || arguments->kernel == HMMFS_COUNT))
		printf("%s: %llu\n", path, (unsigned long long)numbers[0]);
	for (int byte = 0; numbers != NULL && arguments->kernel == HMMFS_HISTOGRAM && byte < 256; byte++) {
		if (numbers[byte] > 0)
			printf("%s: %3d %llu\n", path, byte, (unsigned long long)numbers[byte]);
	}
	if (outcome->log != NULL)
		fprintf(stderr, "%s\n", outcome->log);
	fprintf(stderr, "%s: %llu bytes, acquire %.2f ms, fill %.2f ms (%llu bytes), kernel %.2f ms, release %.2f ms\n", path,
		(unsigned long long)outcome->bytes, milliseconds(outcome->times.acquire_ns - outcome->times.fill_ns),
		milliseconds(outcome->times.fill_ns), (unsigned long long)outcome->times.fill_bytes,
		milliseconds(outcome->kernel_ns), milliseconds(outcome->release_ns));
}

static int write_out(const char *path, const struct run_outcome *outcome, bool is_first)
{
	FILE *file = fopen(path, is_first ? "we" : "ae");
	bool is_written, is_closed;

	if (file == NULL)
		return misuse("--out %s: %s", path, strerror(errno));
	is_written = outcome->result_bytes == 0 || fwrite(outcome->result, outcome->result_bytes, 1, file) == 1;
	is_closed = fclose(file) == 0;
	if (!is_written || !is_closed)
		return fail("--out %s: %s", path, strerror(errno));
	return 0;
}

static int report_failure(const char *path, const struct run_arguments *arguments, const struct run_outcome *outcome, int err)
{
	if (err == -E2BIG)
		return misuse("%s: larger than the device's capacity, which a kernel of your own can't be; choose a part with --range", path);
	if (err == -EMEDIUMTYPE)
		return misuse("%s: %s", arguments->kernel_name,
			      arguments->language == RUN_OPENCL_C ? "OpenCL C does not run on a mount with device=cuda; bring a .cu, .ptx or .cubin"
								  : "CUDA runs on a mount with device=cuda only; bring a .cl");
	if (outcome->log != NULL)
		fprintf(stderr, "%s\n", outcome->log);
	if (err == -ENOEXEC)
		return misuse("%s: does not compile for this device; the compiler's log is above", arguments->kernel_name);
	if (err == -ENOENT && arguments->language == RUN_CUDA_C)
		return fail("%s: can't be compiled here", arguments->kernel_name);
	if (err == -ENODEV && arguments->kernel == HMMFS_SOURCE)
		return fail("%s: no OpenCL device to run it on", path);
	return fail("%s: %s: %s", arguments->kernel_name, path, explain(err));
}

static int run_file(const char *path, const struct run_arguments *arguments, json_t *all, bool is_first)
{
	struct run_outcome outcome = {0};
	struct hmmfs_session *session;
	struct stat st;
	uint64_t len;
	int fd, err = 0;
	int status = open_session(path, run_writes(arguments) ? O_RDWR : O_RDONLY, &fd, &session);

	if (status != 0)
		return status;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		status = misuse("%s: not a regular file", path);
		goto out;
	}
	if (arguments->off + arguments->len > (uint64_t)st.st_size || (arguments->len > 0 && arguments->off >= (uint64_t)st.st_size)) {
		status = misuse("--range %llu:%llu: %s has %lld bytes", (unsigned long long)arguments->off,
				(unsigned long long)arguments->len, path, (long long)st.st_size);
		goto out;
	}
	len = arguments->len > 0 ? arguments->len : (uint64_t)st.st_size - arguments->off;
	if (len > 0)
		err = run_stream(session, fd, arguments, arguments->off, len, &outcome);
	if (err == 0)
		err = empty_result(arguments, &outcome);
	if (err < 0)
		status = report_failure(path, arguments, &outcome, err);
	else if (arguments->is_json)
		json_array_append_new(all, outcome_as_json(path, arguments, &outcome));
	else
		outcome_as_text(path, arguments, &outcome);
	if (err == 0 && arguments->out != NULL)
		status = write_out(arguments->out, &outcome, is_first);
	free(outcome.result);
	free(outcome.log);
out:
	hmmfs_close(session);
	close(fd);
	return status;
}

int command_run(int argc, char **argv)
{
	static const struct argp argp = {options, parse, "KERNEL FILE...", doc, NULL, NULL, NULL};
	struct run_arguments arguments = {0};
	json_t *all = json_array();
	int worst = 0;

	parse_arguments(&argp, argc, argv, &arguments);
	for (size_t i = 0; i < arguments.n_files; i++) {
		int status = run_file(arguments.files[i], &arguments, all, i == 0);

		worst = status > worst ? status : worst;
	}
	if (arguments.is_json)
		print_json(all);
	else
		json_decref(all);
	free(arguments.source);
	free(arguments.entry);
	return worst;
}
