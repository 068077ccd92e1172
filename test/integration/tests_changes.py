"""tests_changes.py - files that change their size, place or policy while they are on the device."""
import ctypes, errno, os
from device import EXCLUSIVE, SHARED, Region, cannot_address, leased, states
from harness import CAPACITY, CHUNK, HMMFS, command, data_of, mounted, raises, windows


def sparse_file_stays_sparse():
    with mounted() as m:
        p = m.path("f")
        fd = os.open(p, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 8 * CHUNK)
        for off, length in windows(8 * CHUNK):
            with leased(fd, SHARED, off, length) as r:
                assert r.load() == bytes(length)
        os.fsync(fd)
        assert os.stat(os.path.join(m.source, "f")).st_blocks == 0
        with leased(fd, EXCLUSIVE, 2 * CHUNK, CHUNK) as r:
            r.store(5, b"data")
        os.close(fd)
        m.umount()
        assert os.stat(os.path.join(m.source, "f")).st_blocks * 512 <= 2 * CHUNK
        assert m.backing("f") == bytes(2 * CHUNK + 5) + b"data" + bytes(6 * CHUNK - 9)


def truncate_and_punch_under_a_lease():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(4 * CHUNK)), os.O_RDWR)
        why_not = cannot_address(fd)
        if why_not:
            return why_not
        with leased(fd, EXCLUSIVE) as r:
            r.store(10, b"before")
            command("fallocate", "-p", "-o", CHUNK, "-l", CHUNK, m.path("f"))
            assert r.load()[CHUNK:2 * CHUNK] == bytes(CHUNK)
            os.ftruncate(fd, 3 * CHUNK + 9)
            r.store(3 * CHUNK, b"0123456789discarded")
        os.ftruncate(fd, 4 * CHUNK)
        want = bytearray(data_of(4 * CHUNK))
        want[10:16] = b"before"
        want[CHUNK:2 * CHUNK] = bytes(CHUNK)
        want[3 * CHUNK:] = b"012345678" + bytes(CHUNK - 9)
        assert os.pread(fd, 5 * CHUNK, 0) == want
        os.close(fd)
        m.umount()
        assert m.backing("f") == want


def unlinked_and_renamed_files_keep_their_pages():
    with mounted() as m:
        fd = os.open(m.put("a", data_of(2 * CHUNK)), os.O_RDWR)
        gone = os.open(m.put("b", data_of(2 * CHUNK, 5)), os.O_RDWR)
        for f in (fd, gone):
            with leased(f, EXCLUSIVE) as r:
                r.store(1, b"new")
        os.rename(m.path("a"), m.path("c"))
        os.unlink(m.path("b"))
        for f in (fd, gone):
            with leased(f, EXCLUSIVE) as r:
                assert r.load()[1:4] == b"new"
                r.store(CHUNK, b"N")
            assert os.pread(f, 1, CHUNK) == b"N"
            os.close(f)
        m.umount()
        assert os.listdir(m.source) == ["c"] and m.backing("c")[CHUNK] == ord("N") and m.backing("c")[1:4] == b"new"


def policy_never_keeps_a_file_off_the_device():
    with mounted() as m:
        p = m.put("f", data_of(CHUNK))
        os.setxattr(p, "user.hmmfs.migrate", b"never")
        assert os.getxattr(p, "user.hmmfs.migrate") == b"never" and "user.hmmfs.migrate" in os.listxattr(p)
        fd = os.open(p, os.O_RDWR)
        raises(errno.EOPNOTSUPP, Region(fd, 0, CHUNK).begin, SHARED)
        raises(errno.EINVAL, os.setxattr, p, "user.hmmfs.migrate", b"perhaps")
        os.close(fd)


def files_of_policy_always_come_and_go():
    """Their prefetch may be the last to hold an inode whose name and descriptors are gone."""
    with mounted(migrate="always", capacity=min(CAPACITY, 8 * CHUNK)) as m:
        for i in range(300):
            with open(m.path(f"f{i}"), "wb") as f:
                f.write(data_of(3000))
            with open(m.path(f"f{i}"), "rb") as f:
                os.unlink(m.path(f"f{i}"))
                assert f.read() == data_of(3000)
        m.umount()


KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = 1, 2, 8, 16, 32, 64
FUSE_PASSES_ON = KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE  # of any other mode the kernel says EOPNOTSUPP without asking us


def fallocate(fd, mode, off, length):
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.fallocate(fd, mode, ctypes.c_long(off), ctypes.c_long(length))
    return ctypes.get_errno() if result else 0


def fallocate_does_what_it_does_on_the_backing():
    size = 2 * CHUNK + 4096 + 5
    ranges = [(0, 4096), (0, CHUNK), (100, 5000), (CHUNK - 7, 14), (CHUNK, size), (size - 3, 10), (size + 3 * 4096, 4096), (0, 0), (5, -1)]
    with mounted(writeback_interval="0") as m:
        p, twin = m.put("f", b""), os.path.join(os.path.dirname(m.source), "twin")
        fd, twin_fd = os.open(p, os.O_RDWR), os.open(twin, os.O_RDWR | os.O_CREAT)

        def check(mode, off, length, state):
            """The state of the file's chunks before the call; None: nothing is on the device."""
            case = (hex(mode), off, length, state)
            for f in (fd, twin_fd):
                os.ftruncate(f, 0), os.pwrite(f, data_of(size, 3), 0)
            if state == "CLEAN":
                command(HMMFS, "prefetch", p)
            if state == "DIRTY":
                with leased(fd, EXCLUSIVE) as r:
                    for at in (110, CHUNK - 5, size - 2):
                        r.store(at, b"*")
                        os.pwrite(twin_fd, b"*", at)
            if state:
                assert states(fd) == {0: state, 1: state, 2: state}, (case, states(fd))
            got = fallocate(fd, mode, off, length)
            if mode & ~FUSE_PASSES_ON:
                assert got in (errno.EOPNOTSUPP, errno.EINVAL), (case, got)
            else:
                want = fallocate(twin_fd, mode, off, length)
                assert got == want, (case, got, want)
            with open(twin, "rb") as f:
                data = f.read()
            assert os.fstat(fd).st_size == len(data), case
            assert os.pread(fd, len(data) + 1, 0) == data, case
            os.fsync(fd)
            assert m.backing("f") == data, case

        for mode in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, COLLAPSE_RANGE,
                     INSERT_RANGE, UNSHARE_RANGE, KEEP_SIZE | UNSHARE_RANGE, 1 << 20):
            for off, length in ranges[:2] if mode & ~FUSE_PASSES_ON else ranges:
                for state in (None, "CLEAN", "DIRTY"):
                    check(mode, off, length, state)
        os.close(fd), os.close(twin_fd)
        m.umount()
