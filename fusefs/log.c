/* log.c - log lines: to stderr in the foreground, to syslog as a daemon. */
#include "fusefs/fusefs.h"

#include <stdarg.h>
#include <stdio.h>
#include <syslog.h>

static bool is_to_stderr = true;
static bool has_progress; /* stderr's lock; its last line is log_progress's, and not ended yet */

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
		flockfile(stderr);
		fputs(has_progress ? "\nhmmfs: " : "hmmfs: ", stderr);
		has_progress = false;
		vfprintf(stderr, format, args);
		fputc('\n', stderr);
		funlockfile(stderr);
	} else {
		vsyslog(priority, format, args);
	}
	va_end(args);
}

void log_progress(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	flockfile(stderr);
	fputs("\rhmmfs: ", stderr);
	vfprintf(stderr, format, args);
	has_progress = true;
	funlockfile(stderr);
	va_end(args);
}

void log_progress_end(void)
{
	flockfile(stderr);
	if (has_progress)
		fputc('\n', stderr);
	has_progress = false;
	funlockfile(stderr);
}
