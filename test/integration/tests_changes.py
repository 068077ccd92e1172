"""tests_changes.py - files that change their size, place or policy while they are on the device."""
import errno, os
from device import EXCLUSIVE, SHARED, Region, cannot_address, leased
from harness import CAPACITY, CHUNK, command, data_of, mounted, raises, windows


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
