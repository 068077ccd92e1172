/*
 * task.h - what the engine thread runs: continuations, on lists.
 *
 * A request that can't go on is parked as a task on the list of what it waits for (a chunk, device memory, a bounce
 * buffer) and is made ready by whoever completes that (R4). A task is on one list at a time.
 */
#ifndef HMMFS_TASK_H
#define HMMFS_TASK_H

#include <stddef.h>
#include <utlist.h>

struct cache;
struct task_list;

struct task {
	struct task *prev, *next;
	struct task_list *on; /* the list it is on, or NULL */
	void (*run)(struct cache *cache, struct task *task);
};

struct task_list {
	struct task *head;
};

static inline void task_list_append(struct task_list *list, struct task *task)
{
	DL_APPEND(list->head, task);
	task->on = list;
}

static inline void task_remove(struct task *task)
{
	if (task->on == NULL)
		return;
	DL_DELETE(task->on->head, task);
	task->on = NULL;
}

static inline struct task *task_list_take(struct task_list *list)
{
	struct task *task = list->head;

	if (task != NULL)
		task_remove(task);
	return task;
}

/* The struct that a member is embedded in. */
#define CONTAINER_OF(pointer, type, member) ((type *)(void *)((char *)(pointer) - offsetof(type, member)))

#endif
