/* log.c - log lines: to stderr in the foreground, to syslog as a daemon. */
#include "fusefs/fusefs.h"

#include <stdarg.h>
#include <stdio.h>
#include <syslog.h>

static bool is_to_stderr = true;

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
		fputs("hmmfs: ", stderr);
		vfprintf(stderr, format, args);
		fputc('\n', stderr);
		funlockfile(stderr);
	} else {
		vsyslog(priority, format, args);
	}
	va_end(args);
}
