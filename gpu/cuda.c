/*
 * cuda.c - the cuda device: chunks as CUDA's virtual memory, in this process, in a context that can be rebuilt.
 *
 * The driver is loaded at run time (cuda_api.c): one binary with and without it. The daemon runs copies and fills only, never a
 * kernel of anybody's: a client maps the chunks into a context of its own process and launches there.
 *
 * A chunk's memory (cuda_chunk.c)
 *
 *     chunk_create        a record; nothing is asked of the driver on the caller's thread
 *     first operation     cuMemCreate at the device's granularity, cuMemExportToShareableHandle (the descriptor is kept),
 *                         cuMemMap into the chunk's slot of one reserved range, cuMemSetAccess, zeroed: on the queue's thread.
 *                         No memory: the operation ends with -ENOMEM, and the cache makes do with less (cache/memory.c)
 *     chunk_export        a duplicate of the kept descriptor, for a client to cuMemImportFromShareableHandle
 *     chunk_destroy       cuMemUnmap, cuMemRelease, close, on a queue's thread
 *
 * Memory is never pooled: every cuMemCreate is for one chunk of one file and goes back to the driver with it. The driver frees
 * memory when all mappings, handles and descriptors of it in all processes are gone (cuda.h on cuMemRelease), so that what a
 * client still maps, revoked or not, is never anybody else's while that client lives.
 *
 * Copies (cuda_queue.c): a stream and a thread for each gpu_queue. The thread alone submits to its stream, records an event
 * behind each operation and sleeps in cuEventSynchronize (CU_EVENT_BLOCKING_SYNC) for the oldest. Not cuLaunchHostFunc: host
 * functions do not run any more once the context is poisoned, and then nobody would learn of it.
 *
 * The context is the primary one, retained: there is one for each device, it is the one that cuDevicePrimaryCtxReset can
 * tear down whatever state it is in, and its calls have had one ABI since CUDA 11, while cuCtxCreate's changed with 13.
 * An error of any copy, fill or wait: all queues stop, the context is torn down and built again, the chunks are mapped again from
 * their handles (memory of cuMemCreate is associated with no context: cuda.h on cuCtxDestroy) or, where a handle is not
 * taken any more, from the kept descriptor, and what was in flight is repeated, one operation at a time until all of it is
 * done. An operation that fails again when it is alone shows that its chunk's memory is gone: that chunk is lost. If the
 * context can't be rebuilt, or is broken again and again with nothing done in between, the device is lost with all chunks.
 */
