/* nvrtc.h - compiling CUDA C at run time, where NVRTC is installed. */
#ifndef HMMFS_NVRTC_H
#define HMMFS_NVRTC_H

/* PTX for the architecture (75: compute capability 7.5). lowered: the name of the entry in it. All three are to be freed; *log may
 * be NULL. -ENOENT: no NVRTC; -ENOEXEC: it does not compile (log tells). */
int nvrtc_compile(const char *source, const char *entry, int architecture, char **ptx, char **lowered, char **log);

#endif
