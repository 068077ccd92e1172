"""tests_passthrough.py - opens that the kernel passes to the backing by itself, and leases of such files."""
import errno, mmap, os, subprocess
from device import EXCLUSIVE, SHARED, Region, leased, states
from harness import CHUNK, HMMFS, command, data_of, mounted, raises, wait_until

SMALL = 3 * CHUNK + 7  # less than 1 MiB


def passing(**options):
    return mounted(migrate_min="1M", **options)


def passed_opens(m):
    return m.status()["passthrough_opens"]


def _cannot_pass(m):
    """Why nothing is passed here: to be returned. The kernel wants CAP_SYS_ADMIN, and a backing that is not stacked."""
    fd = os.open(m.put("probe", b"probe"), os.O_RDONLY)
    n = passed_opens(m)
    os.close(fd)
    return None if n else "the kernel has no passthrough for this backing"


def files_that_are_never_resident_are_passed():
    with passing() as m:
        if why_not := _cannot_pass(m):
            return why_not
        for name, size, policy, passes in (("small", SMALL, None, 1), ("empty", 0, None, 0), ("large", 1 << 20, None, 0),
                                           ("never", 1 << 20, "never", 1), ("always", SMALL, "always", 0)):
            path = m.put(name, data_of(size))
            if policy:
                os.setxattr(path, "user.hmmfs.migrate", policy.encode())
            fd = os.open(path, os.O_RDWR)
            assert passed_opens(m) == passes, name
            assert os.pread(fd, size + 1, 0) == data_of(size)
            os.close(fd)
        fd = os.open(m.path("new"), os.O_RDWR | os.O_CREAT)
        assert passed_opens(m) == 0
        os.close(fd)
        m.umount()


def every_open_of_a_read_only_mount_is_passed_and_its_chunks_stay():
    with passing(ro=True) as m:
        if why_not := _cannot_pass(m):
            return why_not
        fd = os.open(m.put("f", data_of(40 * CHUNK)), os.O_RDONLY)
        assert passed_opens(m) == 1
        with leased(fd, SHARED, 0, 3 * CHUNK) as r:
            assert r.load() == data_of(3 * CHUNK)
        assert set(states(fd).values()) == {"CLEAN"}
        assert os.pread(fd, 100, CHUNK) == data_of(CHUNK + 100)[CHUNK:]
        raises(errno.EACCES, Region(fd, 0, 10).begin, EXCLUSIVE)
        os.close(fd)


def lease_of_a_passed_file_sees_the_cpus_stores_and_is_seen():
    with passing() as m:
        if why_not := _cannot_pass(m):
            return why_not
        fd = os.open(m.put("f", data_of(SMALL)), os.O_RDWR)
        p = mmap.mmap(fd, 0)
        assert passed_opens(m) == 1
        want = bytearray(data_of(SMALL))
        for turn in range(4):
            p[5] = want[5] = turn  # dirty in the backing's page cache
            os.pwrite(fd, bytes([turn]), CHUNK)
            want[CHUNK] = turn
            with leased(fd, EXCLUSIVE) as r:
                assert r.load() == want
                r.store(SMALL - 1, bytes([turn + 100]))
                r.store(6, bytes([turn + 50]))
            want[SMALL - 1], want[6] = turn + 100, turn + 50
            assert p[:] == want and os.pread(fd, SMALL, 0) == want and m.backing("f") == want
            assert states(fd) == {}
            p[7] = want[7] = turn
            with leased(fd, SHARED) as r:
                assert r.load() == want
        p.close(), os.close(fd)
        m.umount()
        assert m.backing("f") == want


def exclusive_lease_and_other_writers_of_a_passed_file_exclude_each_other():
    with passing() as m:
        if why_not := _cannot_pass(m):
            return why_not
        fd = os.open(m.put("f", data_of(SMALL)), os.O_RDWR)
        other = os.open(m.path("f"), os.O_RDWR)
        reader = os.open(m.path("f"), os.O_RDONLY)
        raises(errno.EBUSY, Region(fd, 0, SMALL).begin, EXCLUSIVE)
        with leased(fd, SHARED, 0, CHUNK):
            os.pwrite(other, b"other", 0)
            with leased(fd, SHARED, CHUNK, CHUNK) as r:  # another chunk: loaded anew
                assert r.load() == data_of(2 * CHUNK)[CHUNK:]
            raises(errno.EBUSY, Region(fd, 0, CHUNK).begin, SHARED)  # what is held may be old
        with leased(fd, SHARED) as r:
            assert r.load()[:5] == b"other"
        os.close(other)
        r = Region(fd, 0, SMALL)
        # Nobody knows whether the closed one left a mapping while others have the file open.
        raises(errno.EBUSY, r.begin, EXCLUSIVE)
        os.close(reader), os.close(fd)
        wait_until(lambda: passed_opens(m) == 0, "the kernel has told of both closes")  # it does after they have returned
        r.begin(EXCLUSIVE)  # the session alone is left
        os.close(os.open(m.path("f"), os.O_RDWR))  # so it is not passed: the lease is one like any other
        assert passed_opens(m) == 0
        r.end(), r.close()
        command(HMMFS, "evict", m.path("f"))
        fd = os.open(m.path("f"), os.O_RDWR)
        with leased(fd, EXCLUSIVE) as r:
            raises(errno.ETXTBSY, os.open, m.path("f"), os.O_RDWR)
            reader = os.open(m.path("f"), os.O_RDONLY)
            assert os.pread(reader, 5, 0) == b"other"  # the backing, until the lease ends
            r.store(0, b"lease")
        assert os.pread(reader, 5, 0) == b"lease"
        os.close(os.open(m.path("f"), os.O_RDWR))
        os.close(reader), os.close(fd)
        m.umount()


def mapping_that_outlives_its_descriptor_keeps_the_file_passed():
    with passing() as m:
        if why_not := _cannot_pass(m):
            return why_not
        m.put("f", data_of(SMALL))
        raw = subprocess.Popen(["python3", "-c", RAW_MAPPING, m.path("f")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert raw.stdout.readline() == b"mapped\n"
        os.truncate(m.path("f"), 40 * CHUNK)  # larger than migrate_min from here on: it would not be passed
        fd = os.open(m.path("f"), os.O_RDWR)
        assert passed_opens(m) == 1  # but that mapping can store
        raises(errno.EBUSY, Region(fd, 0, CHUNK).begin, EXCLUSIVE)
        raw.stdin.write(b"store\n"), raw.stdin.flush()
        assert raw.stdout.readline() == b"stored\n"
        with leased(fd, SHARED, 0, CHUNK) as r:
            assert r.load()[:6] == b"mapped"
        os.close(fd)
        raw.stdin.close()
        assert raw.wait() == 0
        fd = os.open(m.path("f"), os.O_RDWR)
        assert passed_opens(m) == 0  # nobody can store unseen any more
        with leased(fd, EXCLUSIVE, 0, CHUNK) as r:
            assert r.load()[:6] == b"mapped"
            r.store(0, b"device")
        assert os.pread(fd, 6, 0) == b"device"
        os.close(fd)
        m.umount()
        assert m.backing("f")[:6] == b"device"


RAW_MAPPING = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
fd = os.open(sys.argv[1], os.O_RDWR)
p = libc.mmap(None, 4096, 3, 1, fd, 0)
os.close(fd)
print("mapped", flush=True)
if sys.stdin.readline() == "store\\n":
    ctypes.memmove(p, b"mapped", 6)
    print("stored", flush=True)
sys.stdin.read()
"""


def file_that_grows_or_changes_its_policy_stays_passed_until_it_is_closed():
    with passing() as m:
        if why_not := _cannot_pass(m):
            return why_not
        fd = os.open(m.put("f", data_of(SMALL)), os.O_RDWR)
        os.ftruncate(fd, 20 * CHUNK)
        os.pwrite(fd, b"grown", 19 * CHUNK)
        second = os.open(m.path("f"), os.O_RDONLY)
        assert passed_opens(m) == 2
        with leased(fd, EXCLUSIVE, 18 * CHUNK, 2 * CHUNK) as r:
            assert r.load()[CHUNK:CHUNK + 5] == b"grown"
            r.store(0, b"device")
        assert os.pread(second, 6, 18 * CHUNK) == b"device" and states(fd) == {}
        os.close(fd), os.close(second)
        wait_until(lambda: passed_opens(m) == 0, "the kernel has told of both closes")
        fd = os.open(m.path("f"), os.O_RDWR)
        assert passed_opens(m) == 0
        with leased(fd, EXCLUSIVE, 0, CHUNK) as r:
            r.store(0, b"stays")
        assert states(fd) == {0: "DIRTY"} and os.pread(fd, 5, 0) == b"stays"
        os.setxattr(m.path("f"), "user.hmmfs.migrate", b"never")
        second = os.open(m.path("f"), os.O_RDWR)
        assert passed_opens(m) == 0  # the first open settled it
        os.pwrite(second, b"X", 1)
        assert os.pread(fd, 5, 0) == b"sXays"
        fds = [fd, second]

        def is_passed_when_opened_again():  # the kernel tells of closes after they have returned
            while fds:
                os.close(fds.pop())
            fds.append(os.open(m.path("f"), os.O_RDWR))
            return passed_opens(m) == 1
        wait_until(is_passed_when_opened_again, "it is passed when both are closed")
        fd = fds.pop()
        assert os.pread(fd, 5, 0) == b"sXays"
        raises(errno.EOPNOTSUPP, Region(fd, 0, CHUNK).begin, SHARED)
        os.setxattr(m.path("f"), "user.hmmfs.migrate", b"auto")
        with leased(fd, SHARED, 0, CHUNK) as r:
            assert r.load()[:5] == b"sXays"
        os.close(fd)
        m.umount()


def pages_of_an_open_through_the_daemon_are_not_seen_after_a_passed_one():
    with passing() as m:
        if why_not := _cannot_pass(m):
            return why_not
        path = m.put("f", data_of(20 * CHUNK))
        with open(path, "rb") as f:  # pages of our own inode
            assert f.read() == data_of(20 * CHUNK)
        os.setxattr(path, "user.hmmfs.migrate", b"never")
        fd = os.open(path, os.O_RDWR)
        assert passed_opens(m) == 1
        p = mmap.mmap(fd, 0)
        p[0:6] = b"passed"
        os.pwrite(fd, b"passed", CHUNK)
        p.close(), os.close(fd)
        os.setxattr(path, "user.hmmfs.migrate", b"auto")
        with open(path, "rb") as f:
            assert passed_opens(m) == 0
            got = f.read()
        assert got[:6] == b"passed" and got[CHUNK:CHUNK + 6] == b"passed"
        m.umount()


def commands_work_on_small_files():
    with passing() as m:
        path = m.put("f", data_of(1000))
        assert str(sum(data_of(1000))) in command(HMMFS, "run", "sum", path)
        command(HMMFS, "run", "xor", "255", path)
        assert m.backing("f") == bytes(255 ^ b for b in data_of(1000))
        command(HMMFS, "prefetch", path)
        command(HMMFS, "evict", path)
        m.umount()
