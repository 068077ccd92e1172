/* control.c - tickets, and the listening side of the control socket. */
#include "fusefs/control_internal.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/un.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* ---- tickets ---- */

/* The oldest goes if all are taken: whoever asks for thousands hurts other tickets of the last seconds at most. */
static struct ticket *choose_slot_locked(struct control *control)
{
	struct ticket *oldest = &control->tickets[0];

	for (size_t i = 0; i < TICKETS_MAX; i++) {
		struct ticket *ticket = &control->tickets[i];

		if (ticket->inode == NULL)
			return ticket;
		if (ticket->expires_ns < oldest->expires_ns)
			oldest = ticket;
	}
	return oldest;
}

void control_ioctl(struct control *control, fuse_req_t req, struct inode *inode, const struct handle *handle, unsigned int cmd,
		   size_t out_bytes)
{
	struct wire_ticket answer = {.version = WIRE_VERSION};
	struct ticket *ticket;
	struct inode *old;

	if (cmd != HMMFS_IOC_TICKET || out_bytes < sizeof(answer)) {
		fuse_reply_err(req, ENOTTY);
		return;
	}
	if (getrandom(answer.token, sizeof(answer.token), 0) != sizeof(answer.token)) {
		fuse_reply_err(req, EIO);
		return;
	}
	memcpy(answer.socket_path, control->path, sizeof(control->path));
	inode_ref(inode);
	pthread_mutex_lock(&control->mutex);
	ticket = choose_slot_locked(control);
	old = ticket->inode;
	*ticket = (struct ticket){.inode = inode, .is_writable = handle != NULL && handle->is_writer,
				  .handle_id = handle != NULL ? handle->id : 0, .uid = fuse_req_ctx(req)->uid,
				  .expires_ns = clock_ns() + UINT64_C(1000000000) * TICKET_SECONDS};
	memcpy(ticket->token, answer.token, sizeof(ticket->token));
	pthread_mutex_unlock(&control->mutex);
	if (old != NULL)
		inode_unref(old);
	fuse_reply_ioctl(req, 0, &answer, sizeof(answer));
}

/* Takes as long for a wrong token as for a right one. */
static bool is_same_token(const uint8_t *a, const uint8_t *b)
{
	uint8_t difference = 0;

	for (size_t i = 0; i < WIRE_TOKEN_BYTES; i++)
		difference |= a[i] ^ b[i];
	return difference == 0;
}

bool control_redeem(struct control *control, const uint8_t *token, uid_t uid, struct ticket *redeemed)
{
	struct inode *found = NULL;
	bool has_expired = false;

	pthread_mutex_lock(&control->mutex);
	for (size_t i = 0; i < TICKETS_MAX; i++) {
		struct ticket *ticket = &control->tickets[i];

		if (ticket->inode != NULL && is_same_token(ticket->token, token) && ticket->uid == uid) {
			found = ticket->inode;
			*redeemed = *ticket;
			has_expired = clock_ns() > ticket->expires_ns;
			*ticket = (struct ticket){0};
		}
	}
	pthread_mutex_unlock(&control->mutex);
	if (found != NULL && has_expired) {
		inode_unref(found);
		found = NULL;
	}
	return found != NULL;
}

/* ---- sessions ---- */

static unsigned count_of_user_locked(const struct control *control, uid_t uid)
{
	const struct session *session;
	unsigned n = 0;

	DL_FOREACH(control->sessions, session)
		n += session->peer.uid == uid;
	return n;
}

static bool admit(struct control *control, struct session *session)
{
	bool is_admitted;

	pthread_mutex_lock(&control->mutex);
	is_admitted = !control->is_stopping && control->n_sessions < SESSIONS_MAX &&
		      count_of_user_locked(control, session->peer.uid) < SESSIONS_OF_USER_MAX;
	if (is_admitted) {
		DL_APPEND(control->sessions, session);
		control->n_sessions++;
	}
	pthread_mutex_unlock(&control->mutex);
	return is_admitted;
}

void control_session_ended(struct session *session)
{
	struct control *control = session->control;

	pthread_mutex_lock(&control->mutex);
	DL_DELETE(control->sessions, session);
	control->n_sessions--;
	close(session->socket);
	pthread_cond_broadcast(&control->session_ended);
	pthread_mutex_unlock(&control->mutex);
	close(session->wake_fd);
	free(session);
}

static void serve(struct control *control, int fd)
{
	struct session *session = calloc(1, sizeof(*session));
	socklen_t size = sizeof(session->peer);
	pthread_attr_t attributes;
	pthread_t thread;

	if (session == NULL)
		goto refuse;
	session->control = control;
	session->socket = fd;
	session->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (session->wake_fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &session->peer, &size) < 0 ||
	    !admit(control, session)) {
		if (session->wake_fd >= 0)
			close(session->wake_fd);
		goto refuse;
	}
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attributes, session_main, session) != 0)
		control_session_ended(session);
	pthread_attr_destroy(&attributes);
	return;
refuse:
	free(session);
	close(fd);
}

static void *listener_main(void *argument)
{
	struct control *control = argument;

	for (;;) {
		int fd = accept4(control->listener, NULL, NULL, SOCK_CLOEXEC);

		if (fd >= 0) {
			serve(control, fd);
			continue;
		}
		if (errno == EINVAL || errno == EBADF)
			return NULL; /* shut down by control_stop */
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
			poll(NULL, 0, 100); /* until someone closes a descriptor */
	}
}

static int make_directory(struct control *control)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	const char *base = control->fs->is_root ? "/run" : runtime != NULL && !control->fs->options->allow_other ? runtime : "/tmp";

	if (snprintf(control->directory, sizeof(control->directory), "%s/hmmfs-%u-XXXXXX", base, (unsigned)getuid()) >=
	    (int)sizeof(control->directory))
		return -ENAMETOOLONG;
	if (mkdtemp(control->directory) == NULL)
		return -errno;
	if (control->fs->options->allow_other && chmod(control->directory, 0711) < 0)
		return -errno; /* others may connect: what they may do is in the token */
	snprintf(control->path, sizeof(control->path), "%s/control", control->directory);
	return 0;
}

static int listen_on(struct control *control)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	memcpy(address.sun_path, control->path, sizeof(address.sun_path));
	control->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (control->listener < 0 || bind(control->listener, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	if (chmod(control->path, control->fs->options->allow_other ? 0666 : 0600) < 0 || listen(control->listener, 64) < 0)
		return -errno;
	return 0;
}

int control_start(struct fusefs *fs, struct control **out)
{
	struct control *control = calloc(1, sizeof(*control));
	sigset_t all, before;
	int err;

	if (control == NULL)
		return -ENOMEM;
	control->fs = fs;
	control->listener = -1;
	pthread_mutex_init(&control->mutex, NULL);
	pthread_cond_init(&control->session_ended, NULL);
	err = make_directory(control);
	if (err == 0)
		err = listen_on(control);
	if (err == 0) {
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		err = -pthread_create(&control->thread, NULL, listener_main, control);
		control->has_thread = err == 0;
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	if (err < 0) {
		control_destroy(control);
		return err;
	}
	*out = control;
	return 0;
}

void control_stop(struct control *control)
{
	struct session *session;

	pthread_mutex_lock(&control->mutex);
	control->is_stopping = true;
	DL_FOREACH(control->sessions, session)
		shutdown(session->socket, SHUT_RDWR);
	while (control->n_sessions > 0)
		pthread_cond_wait(&control->session_ended, &control->mutex);
	pthread_mutex_unlock(&control->mutex);
	if (control->has_thread) {
		shutdown(control->listener, SHUT_RDWR);
		pthread_join(control->thread, NULL);
		control->has_thread = false;
	}
	for (size_t i = 0; i < TICKETS_MAX; i++) {
		if (control->tickets[i].inode != NULL)
			inode_unref(control->tickets[i].inode);
		control->tickets[i].inode = NULL;
	}
}

void control_destroy(struct control *control)
{
	control_stop(control);
	if (control->listener >= 0)
		close(control->listener);
	if (control->path[0] != '\0')
		unlink(control->path);
	if (control->directory[0] != '\0')
		rmdir(control->directory);
	pthread_cond_destroy(&control->session_ended);
	pthread_mutex_destroy(&control->mutex);
	free(control);
}
