/* run_child.h - work in a child process, which a time limit, a crash or Ctrl-C ends without harm to anything else. */
#ifndef HMMFS_RUN_CHILD_H
#define HMMFS_RUN_CHILD_H

#include "tools/run.h"

/* Calls work(argument, outcome) in a child and brings the outcome back; result_bytes: the most that its result has. -ETIMEDOUT;
 * -EFAULT: it crashed (outcome->log tells); else what work returned. */
int run_child(int (*work)(const void *argument, struct run_outcome *outcome), const void *argument, size_t result_bytes,
	      unsigned timeout_ms, struct run_outcome *outcome);

#endif
