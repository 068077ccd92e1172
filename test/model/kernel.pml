/*
 * kernel.pml - the kernel's page cache of a FUSE file, as it behaves (Linux 6.18, writeback cache off).
 *
 * A folio is locked from before its READ is sent until the answer. A store to a cached page sends nothing. write(2), all
 * under the inode's lock, copies into the folio; if it is up to date then, it unlocks it and only then sends WRITE
 * (fuse_fill_write_pages); if not, because only a part was written, it is locked until the answer and not up to date after it. A flush marks the folio as under writeback until its WRITE is answered; stores wait for that. Removing
 * a page (an invalidation, a truncation) locks the folio, waits for writeback, flushes it if dirty and waits for that.
 * During SETATTR of a truncation the WRITEs of flushes are kept back (FUSE_NOWRITE); those of pages behind the
 * new end are forgotten.
 */
#define ABSENT 0
#define READING 1
#define UPTODATE 2

/* The kernel hands both locks over in the order of their waiters; who has a folio read is one of them. Only progress
 * depends on it. */
#ifdef NPROGRESS
chan inode_queue = [4] of {byte};
chan folio_queue[2] = [4] of {byte};
byte wants[N_ACTORS]; /* 1 + a page that it loads and has not sent a READ for */
#define WANTS(a, what) wants[a] = what;
#define INODE_QUEUE_UP(a) inode_queue!a;
#define INODE_IS_NEXT(a) inode_queue?[eval(a)]
#define INODE_QUEUE_LEAVE(a) inode_queue?eval(a);
#define FOLIO_QUEUE_UP(a, p) folio_queue[p]!a;
#define FOLIO_IS_NEXT(a, p) folio_queue[p]?[eval(a)]
#define FOLIO_QUEUE_LEAVE(a, p) folio_queue[p]??eval(a);
#else
#define WANTS(a, what)
#define INODE_QUEUE_UP(a)
#define INODE_IS_NEXT(a) true
#define INODE_QUEUE_LEAVE(a)
#define FOLIO_QUEUE_UP(a, p)
#define FOLIO_IS_NEXT(a, p) true
#define FOLIO_QUEUE_LEAVE(a, p)
#endif

bit inode_lock, nowrite;
byte n_flushes;           /* their WRITEs are sent and not answered */
bit is_cut[2];            /* behind the end of file: a WRITE of it is forgotten (fuse_send_writepage) */

c_code {
	static void forget_page(int p)
	{
		now.page[p] = 0;
		copy(&now.kernel, 0, 1 << p);
	}

	static void answer_pages(int a)
	{
		for (int p = 0; p < 2; p++) {
			if (now.reading[a] & 1 << p)
				now.page[p] = 2;
		}
		copy(&now.kernel, now.data[a], now.reading[a]);
		now.reading[a] = now.data[a] = now.step[a] = 0;
	}
}

/* Locks the absent folio (and perhaps the other: readahead), and has it read. */
inline read_page(a, p)
{
	atomic { page[p] == ABSENT && MISSES_THE_CALL(p) ->
		WANTS(a, 0)
		page[p] = READING;
		reading[a] = 1 << p;
		if
		:: (FEATURES & READAHEAD) && page[1 - p] == ABSENT && !locked[1 - p] -> page[1 - p] = READING; reading[a] = 3
		:: true
		fi };
	daemon_read(a);
	atomic { self = a; c_code { answer_pages(now.self); }; self = 0; CHECK }
}

/* A load from a mapping, or read(2). What its READ brings is read even if the page is removed at once: read(2) has a
 * reference to the folio. */
inline load(a, p)
{
	FOLIO_QUEUE_UP(a, p)
	WANTS(a, 1 + p)
	do
	:: atomic { page[p] == UPTODATE -> FOLIO_QUEUE_LEAVE(a, p) WANTS(a, 0) CHECK; break }
	:: read_page(a, p); FOLIO_QUEUE_LEAVE(a, p) break
	od
}

inline store_page(a, p)
{
	FOLIO_QUEUE_UP(a, p)
	do
	:: atomic { page[p] == UPTODATE && !locked[p] && !writeback[p] && !app_busy[p] && FOLIO_IS_NEXT(a, p) ->
		FOLIO_QUEUE_LEAVE(a, p)
		assert(kernel & (1 << p)); /* or bytes beside the stored ones were lost */
		self = p; c_code { store(&now.kernel, 1 << now.self); }; self = 0;
		dirty[p] = 1;
		CHECK;
		break }
	:: read_page(a, p)
	od
}

/* write(2): of a whole page, or of a part of one that is not there. */
inline write_page(a, p)
{
	INODE_QUEUE_UP(a)
	atomic { !inode_lock && INODE_IS_NEXT(a) -> INODE_QUEUE_LEAVE(a) inode_lock = 1; app_busy[p] = 1 };
	FOLIO_QUEUE_UP(a, p)
	atomic { page[p] != READING && !locked[p] && !writeback[p] && FOLIO_IS_NEXT(a, p) ->
		FOLIO_QUEUE_LEAVE(a, p)
		writing[a] = 1 << p;
		if
		:: page[p] == ABSENT -> page[p] = READING; is_part[a] = 1
		:: true ->
			page[p] = UPTODATE;
			self = p; c_code { store(&now.kernel, 1 << now.self); }; self = 0;
			data[a] = kernel & BITS(1 << p)
		fi };
	daemon_write(a, false);
	atomic {
		if
		:: is_part[a] -> is_part[a] = 0; page[p] = ABSENT
		:: else
		fi;
		app_busy[p] = 0; inode_lock = 0; CHECK }
}

/* The WRITE of a dirty page, whose folio is under writeback now. */
inline flush_page(a, p)
{
	if
	:: atomic { !nowrite && is_cut[p] -> skip }
	:: atomic { !nowrite && !is_cut[p] ->
		writing[a] = 1 << p;
		data[a] = kernel & BITS(1 << p);
		n_flushes++ };
		daemon_write(a, true);
		n_flushes--
	fi;
	atomic { writeback[p] = 0; CHECK }
}

/* Flushes what is dirty, and waits for what others flush: msync, fsync, munmap. */
inline flush_pages(a, p)
{
	p = 0;
	do
	:: atomic { p < 2 && dirty[p] && !locked[p] && !writeback[p] -> dirty[p] = 0; writeback[p] = 1 };
		flush_page(a, p)
	:: atomic { p < 2 && !dirty[p] && !writeback[p] -> p++ }
	:: atomic { p == 2 -> p = 0; break }
	od
}

inline fsync_file(a, p)
{
	INODE_QUEUE_UP(a)
	atomic { !inode_lock && INODE_IS_NEXT(a) ->
		INODE_QUEUE_LEAVE(a)
		inode_lock = 1;
		if
		:: MAY_STOP && tracked == 0 -> self = a; c_code { track(now.self); }; self = 0
		:: true
		fi };
	flush_pages(a, p);
	daemon_fsync(a);
	atomic { inode_lock = 0;
		if
		:: tracked == 1 + a -> c_code { untrack(); }
		:: else
		fi }
}

/* folio lock, unmap, launder, remove: truncate_pagecache (which does not launder) and invalidate_inode_pages2_range. */
inline remove_page(a, p, launders)
{
	FOLIO_QUEUE_UP(a, p)
	if
	:: atomic { page[p] == ABSENT -> FOLIO_QUEUE_LEAVE(a, p) HAS_FOLIO(a, p) }
	:: atomic { page[p] == UPTODATE && !locked[p] && FOLIO_IS_NEXT(a, p) ->
		FOLIO_QUEUE_LEAVE(a, p)
		locked[p] = 1;
		HAS_FOLIO(a, p) };
		atomic { !writeback[p] ->
			if
			:: launders && dirty[p] -> writeback[p] = 1
			:: else
			fi;
			dirty[p] = 0 };
		if
		:: atomic { writeback[p] -> skip }; flush_page(a, p)
		:: atomic { !writeback[p] -> skip }
		fi;
		atomic { self = p; c_code { forget_page(now.self); }; self = 0; locked[p] = 0; CHECK }
	fi
}

/* ftruncate that zeroes page p (shortens the file and extends it again). */
inline truncate_page(a, p, q, has_failed)
{
	INODE_QUEUE_UP(a)
	atomic { !inode_lock && INODE_IS_NEXT(a) -> INODE_QUEUE_LEAVE(a) inode_lock = 1; app_busy[p] = 1; nowrite = 1 };
	n_flushes == 0;
	daemon_truncate(a, p, has_failed);
	atomic { nowrite = 0; is_cut[p] = !has_failed };
	if
	:: atomic { !has_failed -> skip };
		remove_page(a, p, false);
		atomic { is_cut[p] = 0; q = 0 };
		do
		:: atomic { q < 2 -> skip }; remove_page(a, q, true); q++
		:: atomic { q == 2 -> q = 0; break }
		od
	:: atomic { has_failed -> has_failed = false }
	fi;
	atomic { app_busy[p] = 0; inode_lock = 0; CHECK }
}
