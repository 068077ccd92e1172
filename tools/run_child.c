/* run_child.c - see run_child.h. The answer comes back in memory shared with the child. */
#include "tools/run_child.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LOG_MAX = 64 << 10 };

struct child_answer {
	int status;
	struct run_outcome outcome; /* its pointers are the child's */
	size_t log_bytes;
	char bytes[]; /* the result, then the log */
};

static void be_child(int (*work)(const void *argument, struct run_outcome *outcome), const void *argument, struct child_answer *answer)
{
	struct run_outcome outcome = {.bytes = 0};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	answer->status = work(argument, &outcome);
	answer->outcome = outcome;
	if (outcome.result != NULL)
		memcpy(answer->bytes, outcome.result, outcome.result_bytes);
	else
		answer->outcome.result_bytes = 0;
	if (outcome.log != NULL) {
		answer->log_bytes = strnlen(outcome.log, LOG_MAX);
		memcpy(answer->bytes + answer->outcome.result_bytes, outcome.log, answer->log_bytes);
	}
	_exit(0);
}

/* True: the child ended by itself in time. */
static bool wait_for_child(pid_t child, unsigned timeout_ms, int *wait_status)
{
	struct pollfd polled = {.fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN};
	bool is_in_time = polled.fd < 0 || poll(&polled, 1, timeout_ms == 0 ? -1 : (int)timeout_ms) > 0;

	if (!is_in_time)
		kill(child, SIGKILL);
	while (waitpid(child, wait_status, 0) < 0 && errno == EINTR)
		;
	if (polled.fd >= 0)
		close(polled.fd);
	return is_in_time;
}

static int take_answer(const struct child_answer *answer, struct run_outcome *outcome)
{
	size_t bytes = answer->outcome.result_bytes;

	*outcome = answer->outcome;
	outcome->result = NULL;
	outcome->log = NULL;
	if (bytes > 0) {
		outcome->result = malloc(bytes);
		if (outcome->result == NULL)
			return -ENOMEM;
		memcpy(outcome->result, answer->bytes, bytes);
	}
	if (answer->log_bytes > 0)
		outcome->log = strndup(answer->bytes + bytes, answer->log_bytes);
	return answer->status;
}

int run_child(int (*work)(const void *argument, struct run_outcome *outcome), const void *argument, size_t result_bytes,
	      unsigned timeout_ms, struct run_outcome *outcome)
{
	size_t bytes = sizeof(struct child_answer) + result_bytes + LOG_MAX;
	struct child_answer *answer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child;
	int wait_status = 0, err;

	if (answer == MAP_FAILED)
		return -ENOMEM;
	answer->status = -EFAULT; /* until it says otherwise: a child that ends without a word has crashed */
	fflush(NULL);
	child = fork();
	if (child == 0)
		be_child(work, argument, answer);
	if (child < 0)
		err = -errno;
	else if (!wait_for_child(child, timeout_ms, &wait_status))
		err = -ETIMEDOUT;
	else if (WIFSIGNALED(wait_status))
		err = -EFAULT;
	else
		err = take_answer(answer, outcome);
	if (err == -EFAULT && WIFSIGNALED(wait_status) &&
	    asprintf(&outcome->log, "the kernel was ended by signal %d (%s)", WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status))) < 0)
		outcome->log = NULL;
	munmap(answer, bytes);
	return err;
}
