"""tests_failures.py - a backing that is full or fails."""
import contextlib, errno, glob, os, signal, subprocess, threading
from device import EXCLUSIVE, SHARED, Region, leased, states
from harness import BUILD, CHUNK, CPU_ACCESS, HMMFS, command, data_of, mounted, raises, wait_until


def full_disk_refuses_the_exclusive_lease():
    if os.geteuid() != 0:
        return "only root can mount a disk that is full"
    with mounted() as m:
        command("mount", "-t", "tmpfs", "-o", f"size={2 * CHUNK}", "none", m.source)
        try:
            m.umount()
            m.start()
            fd = os.open(m.path("f"), os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 4 * CHUNK)
            r = Region(fd, 0, 4 * CHUNK)
            raises(errno.ENOSPC, r.begin, EXCLUSIVE)
            assert r.begin(SHARED).load() == bytes(4 * CHUNK)
            r.end(), r.close(), os.close(fd)
            m.umount()
        finally:
            m.clean()
            subprocess.run(["umount", "-l", m.source])


# ---- a backing that fails when told to ----

class Disk:
    """The directory behind failing_fs (failing_fs.c), which is the mount's source."""
    def __init__(self, scratch):
        self.files, self.control = os.path.join(scratch, "disk"), os.path.join(scratch, "control")
        os.mkdir(self.files), os.mkdir(self.control)

    @contextlib.contextmanager
    def failing(self, call, number):
        path = os.path.join(self.control, call)
        with open(path + ".new", "w") as f:
            f.write(str(number))
        os.rename(path + ".new", path)
        try:
            yield
        finally:
            os.unlink(path)

    def waiting(self):
        """How many of its threads wait for somebody at a named pipe."""
        return sum("wait_for_partner" in open(path).read() for path in glob.glob(f"/proc/{self.server}/task/*/wchan"))

    def put(self, name, data):
        with open(os.path.join(self.files, name), "wb") as f:
            f.write(data)

    def get(self, name):
        with open(os.path.join(self.files, name), "rb") as f:
            return f.read()


@contextlib.contextmanager
def mounted_on_a_disk(**options):
    with mounted(**options) as m:
        m.umount()
        disk = Disk(os.path.dirname(m.source))
        server = subprocess.Popen([os.path.join(BUILD, "test/integration/failing_fs"), disk.files, disk.control, m.source])
        disk.server = server.pid
        try:
            wait_until(lambda: os.path.ismount(m.source) or server.poll() is not None, "failing_fs serves")
            m.start()
            yield m, disk
        finally:
            m.clean()
            subprocess.run(["fusermount3", "-u", "-z", m.source])
            server.wait()


def failed_writeback_is_told_to_each_descriptor_once_and_loses_nothing():
    """In this process alone: a child that ends closes its copies of the descriptors, which writes back."""
    if not BUILD:
        return "needs failing_fs, which is built and not installed"
    for number in (errno.EIO, errno.ENOSPC):
        with mounted_on_a_disk(writeback_interval="0") as (m, disk):
            old, new = data_of(2 * CHUNK + 5), bytearray(data_of(2 * CHUNK + 5))
            disk.put("f", old)
            a, b, c, d = (os.open(m.path("f"), os.O_RDWR) for _ in range(4))
            reader = os.open(m.path("f"), os.O_RDONLY)
            with leased(a, EXCLUSIVE) as r:
                for at in (0, CHUNK, 2 * CHUNK + 4):
                    r.store(at, b"!")
                    new[at] = ord("!")
            with disk.failing("write", number):
                raises(number, os.fsync, a)
                assert set(states(a).values()) == {"DIRTY"} and disk.get("f") == old
                raises(number, os.close, d)
                assert set(states(a).values()) == {"DIRTY"} and disk.get("f") == old
                assert os.pread(reader, len(new), 0) == new
                late = os.open(m.path("f"), os.O_RDWR)
            raises(number, os.fsync, a)  # the attempt that the close made
            assert set(states(a).values()) == {"CLEAN"} and disk.get("f") == new
            os.fsync(a), os.fsync(late)
            raises(number, os.close, os.dup(b))  # a copy, such as a child's
            for fd in (b, reader):
                raises(number, os.fdatasync, fd)
                os.fsync(fd)
            raises(number, os.close, c)
            for fd in (a, b, late, reader):
                os.close(fd)
            assert m.status()["counters"]["writeback_errors"] > 0
            m.umount()
            assert disk.get("f") == new


def failed_fsync_of_the_backing_is_told():
    if not BUILD:
        return "needs failing_fs, which is built and not installed"
    with mounted_on_a_disk(writeback_interval="0") as (m, disk):
        disk.put("f", data_of(2 * CHUNK))
        a, b = (os.open(m.path("f"), os.O_RDWR) for _ in range(2))
        with leased(a, EXCLUSIVE) as r:
            r.store(0, b"!")
        with disk.failing("fsync", errno.EIO):
            for fd in (a, b):
                raises(errno.EIO, os.fsync, fd)
        for fd in (a, b):
            os.fsync(fd)
        with disk.failing("fsync", errno.ENOSPC):
            raises(errno.ENOSPC, os.fsync, a)
            late = os.open(m.path("f"), os.O_RDWR)
        os.fsync(a), os.fsync(late)  # a has been told, and late was not there
        raises(errno.ENOSPC, os.fdatasync, b)
        for fd in (a, b, late):
            os.fsync(fd), os.close(fd)
        m.umount()
        assert disk.get("f") == b"!" + data_of(2 * CHUNK)[1:]


def writers_that_the_disk_keeps_waiting_leave_room_for_others():
    """Over /dev/fuse, whose threads are one a CPU."""
    if not BUILD or os.geteuid() != 0:
        return "needs failing_fs, which is built and not installed, and root, who sees what its threads wait for"
    with mounted_on_a_disk(transport="dev") as (m, disk):
        names = [f"w{i}" for i in range(2 * os.cpu_count() + 2)]
        for name in ("other", *names):
            disk.put(name, b"written")
        fds = [os.open(m.path(name), os.O_WRONLY) for name in names]
        gate = os.path.join(disk.control, "write")
        os.mkfifo(gate)  # who opens it waits for us
        writers = [threading.Thread(target=raises, args=(errno.EIO, os.pwrite, fd, bytes(4096), 0)) for fd in fds]
        for writer in writers:
            writer.start()
        try:
            wait_until(lambda: disk.waiting() == len(fds), "all have come to the disk")
            assert command("cat", m.path("other"), timeout=30) == "written"
        finally:
            opened = os.open(gate, os.O_RDWR)
            os.unlink(gate)
            wait_until(lambda: disk.waiting() == 0, "they go on")
            os.close(opened)
            for writer in writers:
                writer.join()
        for fd in fds:
            os.close(fd)
        m.umount()


def failing_reads_fail_the_lease_and_the_mount_goes_on():
    if not BUILD:
        return "needs failing_fs, which is built and not installed"
    with mounted_on_a_disk() as (m, disk):
        data = data_of(3 * CHUNK)
        for name in ("f", "g", "other"):
            disk.put(name, data)
        f, g, other = (os.open(m.path(name), os.O_RDWR) for name in ("f", "g", "other"))
        with leased(other, EXCLUSIVE, 0, CHUNK) as r:
            r.store(0, b"!")
        with leased(f, SHARED, CHUNK, CHUNK):  # in the middle of it is a chunk on the device
            pass
        with disk.failing("read", errno.EIO):
            for mode in (SHARED, EXCLUSIVE):
                raises(errno.EIO, Region(f, 0, 3 * CHUNK).begin, mode)
                raises(errno.EIO, Region(g, 5, 1).begin, mode)
            raises(errno.EIO, os.pread, f, 10, 2 * CHUNK)
            said = command(HMMFS, "run", "sum", m.path("f"), ok=(1,))
            assert said.count("\n") == 1 and os.strerror(errno.EIO) in said, said
            if CPU_ACCESS != "migrate":  # that reads it from the disk on purpose
                assert os.pread(f, 10, CHUNK) == data[CHUNK:CHUNK + 10]
            with leased(other, EXCLUSIVE, 0, CHUNK) as r:
                assert r.load() == b"!" + data[1:CHUNK]
                r.store(1, b"!")
            os.fsync(other)
        assert m.status()["leases"] == 0
        for fd in (f, g):
            with leased(fd, SHARED) as r:
                assert r.load() == data
        for fd in (f, g, other):
            os.fsync(fd), os.close(fd)
        m.umount()
        assert disk.get("f") == disk.get("g") == data and disk.get("other") == b"!!" + data[2:]


def unmount_that_would_lose_bytes_is_refused_or_told():
    if not BUILD:
        return "needs failing_fs, which is built and not installed"
    with mounted_on_a_disk(writeback_interval="0") as (m, disk):
        disk.put("f", data_of(2 * CHUNK))
        fd = os.open(m.path("f"), os.O_RDWR)
        r = Region(fd, 0, 2 * CHUNK).begin(EXCLUSIVE)
        r.store(0, b"!")
        r.end(), r.close()
        with disk.failing("write", errno.EIO):
            raises(errno.EIO, os.close, fd)
            said = command(HMMFS, "umount", m.point, ok=(1,))
            assert said.count("\n") == 1 and os.strerror(errno.EIO) in said and os.path.ismount(m.point), said
        command(HMMFS, "umount", m.point)
        assert m.wait() == 0 and disk.get("f") == b"!" + data_of(2 * CHUNK)[1:]

        m.start()
        fd = os.open(m.path("f"), os.O_RDWR)
        r = Region(fd, 0, 2 * CHUNK).begin(EXCLUSIVE)
        with disk.failing("write", errno.EIO):
            raises(errno.EIO, os.close, fd)
            m.daemon.send_signal(signal.SIGTERM)
            said = m.daemon.stderr.read().decode()
            assert m.daemon.wait() == 1
        assert f"{2 * CHUNK} bytes could not be written back and are lost" in said and "source/f: " in said, said
        assert said.count("failed, they stay on the device") == 2, said  # chunks; the tries are many
