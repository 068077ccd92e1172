/* test_session.c - what libhmmfs makes of a daemon that lies: whose mount a file is on is not for the application to know. */
#include "client/hmmfs.h"
#include "client/protocol.h"
#include "test/descriptors.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { CHUNK = 1 << 16, ANSWERS_MAX = 8 };

int __wrap_ioctl(int fd, unsigned long request, ...);

/* In order; an answer to a request each, but for WIRE_CHUNKS, which comes before one. */
static struct answer {
	struct wire_reply reply;
	char more[sizeof(struct wire_chunks)];
	size_t more_bytes;
	int fd; /* 0: none */
} answers[ANSWERS_MAX];
static struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/tmp/hmmfs-test-session-XXXXXX"};
static int listener;
static pthread_t daemon_thread;

/* The ticket, which a mount would give. */
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	struct wire_ticket *ticket;
	va_list args;

	(void)fd;
	if (request != HMMFS_IOC_TICKET)
		return -1;
	va_start(args, request);
	ticket = va_arg(args, struct wire_ticket *);
	va_end(args);
	*ticket = (struct wire_ticket){.version = WIRE_VERSION};
	memcpy(ticket->socket_path, address.sun_path, sizeof(address.sun_path));
	return 0;
}

static void send_answer(int client, struct answer *answer)
{
	struct iovec iov[2] = {{&answer->reply, sizeof(answer->reply)}, {answer->more, answer->more_bytes}};
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {.bytes = {0}};
	struct msghdr header = {.msg_iov = iov, .msg_iovlen = answer->more_bytes > 0 ? 2 : 1};

	if (answer->fd > 0) {
		header.msg_control = &control;
		header.msg_controllen = sizeof(control);
		control.header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
		memcpy(CMSG_DATA(&control.header), &answer->fd, sizeof(int));
	}
	if (sendmsg(client, &header, MSG_NOSIGNAL) < 0)
		abort();
}

static void *daemon_main(void *argument)
{
	int client = accept(listener, NULL, NULL);
	struct answer *answer = answers;
	char message[4096];

	while (recv(client, message, sizeof(message), 0) > 0) {
		do {
			answer->reply.magic = WIRE_MAGIC;
			answer->reply.id = ((struct wire_request *)(void *)message)->id;
			answer->reply.op = answer->reply.op == 0 ? WIRE_REPLY : answer->reply.op;
			send_answer(client, answer);
		} while (answer++->reply.op != WIRE_REPLY);
	}
	close(client);
	return argument;
}

static void start(void)
{
	close(mkstemp(address.sun_path));
	unlink(address.sun_path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	ck_assert_int_eq(listen(listener, 1), 0);
	ck_assert_int_eq(pthread_create(&daemon_thread, NULL, daemon_main, NULL), 0);
}

static void finish(void)
{
	pthread_join(daemon_thread, NULL);
	unlink(address.sun_path);
}

static void set_hello(const struct wire_hello *hello, size_t bytes)
{
	memcpy(answers[0].more, hello, bytes);
	answers[0].more_bytes = bytes;
}

static const struct wire_hello good = {.chunk_bytes = CHUNK, .capacity_bytes = 64 * CHUNK, .file_bytes = 4 * CHUNK,
				       .flags = WIRE_CAN_EXPORT | WIRE_CAN_RUN, .backend = "host"};

START_TEST(a_greeting_that_makes_no_sense_is_refused)
{
	static const uint64_t chunks[] = {0, 1, 16, 3 << 20, UINT64_C(1) << 40, UINT64_C(1) << 63, UINT64_MAX};
	const int n_chunks = sizeof(chunks) / sizeof(chunks[0]);
	struct hmmfs_session *session;
	struct wire_hello hello = good;

	if (_i < n_chunks)
		hello.chunk_bytes = chunks[_i];
	if (_i == n_chunks)
		memset(hello.backend, 'x', sizeof(hello.backend));
	if (_i == n_chunks + 1)
		memset(hello.device_name, 'x', sizeof(hello.device_name));
	set_hello(&hello, _i == n_chunks + 2 ? 0 : sizeof(hello));
	ck_assert_int_eq(hmmfs_open_fd(0, &session), -EPROTO);
}
END_TEST

START_TEST(a_result_that_did_not_come_is_refused)
{
	static const uint64_t bytes[][2] = {{9, 0}, {0, 9}, {8, 1}, {UINT64_MAX, 0}, {8, UINT64_MAX}, {UINT64_MAX, 8}, {UINT64_MAX - 7, 8}};
	struct hmmfs_run run = {.kernel = HMMFS_SUM};
	struct hmmfs_session *session;

	set_hello(&good, sizeof(good));
	answers[1].fd = memfd_create("result", MFD_CLOEXEC);
	answers[1].reply.result_bytes = bytes[_i][0];
	answers[1].reply.log_bytes = bytes[_i][1];
	ck_assert_int_eq(ftruncate(answers[1].fd, 8), 0);
	ck_assert_int_eq(hmmfs_open_fd(0, &session), 0);
	ck_assert_int_eq(hmmfs_run(session, 0, CHUNK, &run), -EPROTO);
	free(run.result);
	free(run.log);
	hmmfs_close(session);
}
END_TEST

START_TEST(a_chunk_outside_of_the_region_is_refused_and_its_descriptor_closed)
{
	struct wire_chunks chunks = {.indexes = {_i == 0 ? 4 : UINT64_MAX}};
	struct hmmfs_region *region;
	int n;

	set_hello(&good, sizeof(good));
	answers[2].reply.op = WIRE_CHUNKS; /* behind REGION_OPEN's */
	answers[2].reply.count = 1;
	answers[2].fd = memfd_create("chunk", MFD_CLOEXEC);
	memcpy(answers[2].more, &chunks, sizeof(chunks));
	answers[2].more_bytes = sizeof(chunks);
	ck_assert_int_eq(hmmfs_map_fd(0, 0, 4 * CHUNK, &region), 0);
	n = count_descriptors();
	ck_assert_int_eq(hmmfs_begin(region, HMMFS_SHARED, 0), -EPROTO);
	ck_assert_int_eq(count_descriptors(), n);
	hmmfs_unmap(region);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("session");
	TCase *tests = tcase_create("all"); /* each in a process of its own */
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_checked_fixture(tests, start, finish);
	tcase_add_loop_test(tests, a_greeting_that_makes_no_sense_is_refused, 0, 10);
	tcase_add_loop_test(tests, a_result_that_did_not_come_is_refused, 0, 7);
	tcase_add_loop_test(tests, a_chunk_outside_of_the_region_is_refused_and_its_descriptor_closed, 0, 2);
	suite_add_tcase(suite, tests);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
