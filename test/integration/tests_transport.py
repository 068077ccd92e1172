"""tests_transport.py - how requests come (FUSE over io_uring, /dev/fuse), and the backing's I/O of files that the device has nothing of."""
import contextlib, mmap, os, subprocess, threading
from device import EXCLUSIVE, Region, cannot_address
from harness import CHUNK, HMMFS, SWITCH, command, data_of, mounted, switch, wait_until


def _over_both(test, **options):
    """Runs test(mount) over each transport that there is; why one was left out, to be returned."""
    with mounted(transport="dev", **options) as m:
        assert m.status()["transport"] == "dev"
        test(m)
        m.umount()
    with switch("Y") as is_on:
        if not is_on:
            return "over /dev/fuse only: needs root, and a kernel with FUSE over io_uring"
        with mounted(transport="uring", **options) as m:
            assert m.status()["transport"] == "uring"
            test(m)
            m.umount()
    return None


def direct_write_is_seen_by_a_buffered_read():
    """Through another descriptor, and through a mapping that has the page already."""
    def test(m):
        path = m.put("f", data_of(64 << 10))
        buffered, direct = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR | os.O_DIRECT)
        p = mmap.mmap(buffered, 0)
        for turn in range(40):
            at, new = 4096 * (turn % 16), mmap.mmap(-1, 4096)
            assert os.pread(buffered, 64 << 10, 0) == p[:]  # the kernel has all pages
            new[:] = data_of(4096, turn + 3)
            assert os.pwrite(direct, new, at) == 4096
            assert os.pread(buffered, 4096, at) == new[:] and p[at:at + 4096] == new[:]
            p[at:at + 5] = b"store"  # and the other way round
            assert os.preadv(direct, [new], at) == 4096 and new[:5] == b"store"
        p.close(), os.close(buffered), os.close(direct)
    return _over_both(test)


def unaligned_direct_requests_are_served():
    """The kernel checks no alignment for FUSE: what the backing could not do as it is goes through its page cache."""
    def test(m):
        size = 100_001
        fd = os.open(m.put("f", data_of(size)), os.O_RDWR | os.O_DIRECT)
        whole = mmap.mmap(-1, 128 << 10)
        for off, length in ((0, 4096), (1, 4096), (4096, 511), (8192, 128 << 10), (98304, 8192), (99_999, 5), (size, 4096), (1 << 20, 1)):
            n = os.preadv(fd, [memoryview(whole)[:length]], off)
            assert whole[:n] == data_of(size)[off:off + length], (off, length, n)
        whole[:7] = b"odd end"
        assert os.pwrite(fd, memoryview(whole)[:7], size - 3) == 7
        assert m.backing("f") == data_of(size)[:-3] + b"odd end"
        os.close(fd)
    return _over_both(test)


def verified_io_at_depth_is_what_was_written():
    """Reads and writes of many sizes in flight at once, direct and buffered, checked by fio and then against the backing."""
    def test(m):
        for name, direct in (("direct", 1), ("buffered", 0)):
            m.put(name, b"")
            command("fio", "--name=v", f"--filename={m.path(name)}", "--size=24M", "--rw=randrw", "--bsrange=4k-256k", f"--direct={direct}",
                    "--ioengine=libaio", "--iodepth=32", "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--verify_state_save=0", "--serialize_overlap=1")
            with open(m.path(name), "rb") as f:
                assert f.read() == m.backing(name)
    return _over_both(test)


def large_reads_see_what_the_backing_has_in_its_cache_only():
    """Read around the backing's page cache or through it: what was just written there is seen."""
    def test(m):
        path = m.put("f", data_of(4 << 20))
        for turn in range(6):
            with open(os.path.join(m.source, "f"), "r+b", buffering=0) as f:
                f.seek(turn << 19)
                f.write(b"behind our back %d" % turn)  # dirty, and not on the disk
            fd = os.open(path, os.O_RDONLY)
            got = b"".join(os.pread(fd, 1 << 20, off) for off in range(0, 4 << 20, 1 << 20))
            assert got == m.backing("f")
            os.close(fd)
    return _over_both(test)


def full_disk_is_reported_to_writes_of_every_kind():
    if os.geteuid() != 0:
        return "needs root for a filesystem of its own"

    def test(m):
        command("mount", "-t", "tmpfs", "-o", "size=2M", "none", os.path.join(m.source, "small"))
        try:
            for flags in (0, os.O_DIRECT):
                for size in (4096, 1 << 20):
                    fd = os.open(m.path("small/f"), os.O_RDWR | os.O_CREAT | os.O_TRUNC | flags)
                    block, written = mmap.mmap(-1, size), 0
                    try:
                        while True:
                            written += os.pwrite(fd, block, written)
                            assert written <= 2 << 20
                    except OSError as e:
                        assert e.errno == 28, e
                    os.close(fd)
        finally:
            command("umount", "-l", os.path.join(m.source, "small"))

    def with_directory(m):
        os.makedirs(os.path.join(m.source, "small"), exist_ok=True)
        test(m)
    return _over_both(with_directory)


def readers_that_a_lease_holds_leave_room_for_others():
    """A queue of FUSE over io_uring has 64 places: held READs must not take them all."""
    with switch("Y") as is_on:
        if not is_on:
            return "needs root, and a kernel with FUSE over io_uring"
        with mounted(transport="uring", read_timeout="0", lease_timeout="0", cpu_access="copy", capacity=64 * CHUNK) as m:
            fd = os.open(m.put("f", data_of(16 * CHUNK)), os.O_RDWR)
            if why_not := cannot_address(fd):
                return why_not
            r = Region(fd, 0, 16 * CHUNK).begin(EXCLUSIVE)
            code = ("import os,sys,threading\nfd=os.open(sys.argv[1],os.O_RDONLY|os.O_DIRECT)\nimport mmap\n"
                    "def read(i):\n os.preadv(fd,[mmap.mmap(-1,4096)],4096*i)\n"
                    "t=[threading.Thread(target=read,args=(i,)) for i in range(100)]\n[x.start() for x in t]\n[x.join() for x in t]\n")
            readers = subprocess.Popen(["python3", "-c", code, m.path("f")], preexec_fn=lambda: os.sched_setaffinity(0, {0}))
            wait_until(lambda: m.status()["counters"]["held_reads"] >= 32, "readers are held")
            wait_until(lambda: m.status()["counters"]["device_read_bytes"] >= 60 * 4096, "those beyond are answered")
            command("taskset", "-c", "0", "sh", "-c", f"echo written > {m.path('other')}", timeout=30)
            assert m.backing("other") == b"written\n" and readers.poll() is None
            r.end()
            assert readers.wait(timeout=60) == 0
            r.close(), os.close(fd)
            m.umount()


def pages_read_ahead_that_a_lease_holds_keep_nobody_waiting():
    """The kernel sends a limited number of READs ahead and of WRITEs of pages at a time: held READs must not use it up."""
    n = 100
    with mounted(transport="dev", read_timeout="0", lease_timeout="0", cpu_access="copy", capacity=2 * n * CHUNK) as m:
        fd = os.open(m.put("f", data_of(n * CHUNK)), os.O_RDWR)
        other = os.open(m.put("other", data_of(CHUNK)), os.O_RDWR)
        if why_not := cannot_address(fd):
            return why_not
        r = Region(fd, 0, n * CHUNK).begin(EXCLUSIVE)
        code = ("import os,sys\nfd=os.open(sys.argv[1],os.O_RDONLY)\n"
                f"for i in range({n}): os.posix_fadvise(fd,i*{CHUNK},4096,os.POSIX_FADV_WILLNEED)\n")
        ahead = subprocess.Popen(["python3", "-c", code, m.path("f")])
        wait_until(lambda: m.status()["counters"]["held_reads"] >= n, "all are held")
        p = mmap.mmap(other, 0)
        p[5] = 0x77
        p.flush()
        assert m.backing("other")[5] == 0x77
        p.close(), r.end(), r.close()
        assert ahead.wait(timeout=60) == 0
        os.close(fd), os.close(other)
        m.umount()


def transport_that_is_not_there_is_one_line():
    with switch("N") as is_set:
        if not is_set and os.path.exists(SWITCH) and open(SWITCH).read() != "N\n":
            return "FUSE over io_uring is on, and only root can switch it off"
        with mounted(transport="auto") as m:
            assert m.status()["transport"] == "dev"
            m.umount()
            e = command(HMMFS, "mount", m.source, m.point, "-o", "device=host,transport=uring", ok=(2,))
            assert e.count("\n") == 1 and "transport=uring" in e and "transport=auto" in e, e
            assert not os.path.ismount(m.point)
            e = command(HMMFS, "mount", m.source, m.point, "-o", "device=host,transport=pigeon", ok=(2,))
            assert e.count("\n") == 1 and "transport=pigeon" in e, e


def auto_takes_io_uring_where_it_is_on():
    with switch("Y") as is_on:
        if not is_on:
            return "needs root, and a kernel with FUSE over io_uring"
        with mounted(transport="auto") as m:
            assert m.status()["transport"] == "uring"


def requests_end_when_the_connection_is_aborted():
    """And so do the daemon's threads and its process, whatever was under way."""
    def test(m):
        fd = os.open(m.put("f", data_of(8 << 20)), os.O_RDONLY | os.O_DIRECT)

        def read():
            block = mmap.mmap(-1, 1 << 20)
            with contextlib.suppress(OSError):
                while True:
                    for off in range(0, 8 << 20, 1 << 20):
                        os.preadv(fd, [block], off)
        readers = [threading.Thread(target=read) for _ in range(4)]
        for r in readers:
            r.start()
        subprocess.run(["umount", "-f", m.point], stderr=subprocess.DEVNULL)  # busy, but aborted
        for r in readers:
            r.join()
        os.close(fd)
        m.wait()
        subprocess.run(["umount", m.point], stderr=subprocess.DEVNULL)  # the daemon may have done it

    if os.geteuid() != 0:
        return "needs root"
    with mounted(transport="dev") as m:
        test(m)
    with switch("Y") as is_on:
        if not is_on:
            return "over /dev/fuse only: needs a kernel with FUSE over io_uring"
        with mounted(transport="uring") as m:
            test(m)
    return None
