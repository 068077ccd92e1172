/* log.c - log lines: to stderr in the foreground, to syslog as a daemon. */
#include "fusefs/fusefs.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <syslog.h>

static bool is_to_stderr = true;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* one line at a time */
static bool has_progress; /* mutex; stderr's last line is log_progress's, and not ended yet */

void log_open(bool is_foreground)
{
	is_to_stderr = is_foreground;
	if (!is_foreground)
		openlog("hmmfs", LOG_PID, LOG_DAEMON);
}

void log_line(int priority, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (is_to_stderr) {
		pthread_mutex_lock(&mutex);
		fputs(has_progress ? "\nhmmfs: " : "hmmfs: ", stderr);
		has_progress = false;
		vfprintf(stderr, format, args);
		fputc('\n', stderr);
		pthread_mutex_unlock(&mutex);
	} else {
		vsyslog(priority, format, args);
	}
	va_end(args);
}

void log_progress(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	pthread_mutex_lock(&mutex);
	fputs("\rhmmfs: ", stderr);
	vfprintf(stderr, format, args);
	has_progress = true;
	pthread_mutex_unlock(&mutex);
	va_end(args);
}

void log_progress_end(void)
{
	pthread_mutex_lock(&mutex);
	if (has_progress)
		fputc('\n', stderr);
	has_progress = false;
	pthread_mutex_unlock(&mutex);
}
