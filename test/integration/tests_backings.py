"""tests_backings.py - a backing that is a filesystem of its own: what it can do is passed on, and what becomes of it is told."""
import contextlib, errno, fcntl, os, shutil, struct, subprocess
from harness import CHUNK, HMMFS, command, data_of, mounted, raises, wait_until

FICLONE, FIEMAP, SHUT_DOWN = 0x40049409, 0xC020660B, 0x8004587D
SHARED_EXTENT, LAST_EXTENT = 0x2000, 1


@contextlib.contextmanager
def _on_a_disk(kind, size, **options):
    """A mount whose source is a new filesystem; None where there can't be one."""
    with mounted(**options) as m:
        m.umount()
        image = os.path.join(os.path.dirname(m.source), "image")
        with open(image, "wb") as f:
            f.truncate(size)
        command(f"mkfs.{kind}", "-q", image)
        if subprocess.run(["mount", "-o", "loop", image, m.source], stderr=subprocess.DEVNULL).returncode:
            yield None
            return
        try:
            m.start()
            yield m
        finally:
            m.clean()
            subprocess.run(["umount", "-l", m.source])


def _is_shared(path):
    """Whether each extent of a file is another file's, too."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    said = fcntl.ioctl(fd, FIEMAP, struct.pack("QQIIII", 0, 1 << 62, 1, 0, 16, 0) + bytes(16 * 56))
    os.close(fd)
    n, = struct.unpack_from("I", said, 20)
    flags = [struct.unpack_from("I", said, 32 + 56 * i + 40)[0] for i in range(n)]
    assert n > 0 and flags[-1] & LAST_EXTENT
    return all(f & SHARED_EXTENT for f in flags)


def copies_are_reflinks_where_the_backing_can():
    """copy_file_range(2), of a file that is DIRTY on the device, too; FICLONE the kernel refuses."""
    if os.geteuid() or not shutil.which("mkfs.xfs"):
        return "needs root and mkfs.xfs"
    with _on_a_disk("xfs", 320 << 20) as m:
        if m is None:
            return "this kernel mounts no xfs image"
        p, size = m.path("f"), 2 * CHUNK
        with open(p, "wb") as f:
            f.write(data_of(size))
        for is_resident in (False, True):
            if is_resident:
                command(HMMFS, "prefetch", p)
                with open(p, "r+b") as f:
                    f.write(b"!")
            want = (b"!" if is_resident else data_of(1)) + data_of(size)[1:]
            name = f"copy{is_resident}"
            with open(p, "rb") as source, open(m.path(name), "wb") as to:
                assert os.copy_file_range(source.fileno(), to.fileno(), size) == size
            assert open(m.path(name), "rb").read() == want and _is_shared(os.path.join(m.source, name)), name
            with open(m.path(name), "r+b") as f:
                f.write(b"?")
            assert open(p, "rb").read() == want and open(m.path(name), "rb").read() == b"?" + want[1:]
        command("cp", "--reflink=auto", p, m.path("by cp"))
        assert open(m.path("by cp"), "rb").read() == want
        with open(p, "rb") as source, open(m.path("clone"), "wb") as to:
            raises(errno.EOPNOTSUPP, fcntl.ioctl, to.fileno(), FICLONE, source.fileno())
        m.umount()


def seek_finds_data_and_holes():
    """Also of a file that is on the device. Dirty pages of the kernel are data on the backing and through the mount."""
    with mounted() as m:
        for name in ("f", "twin"):
            with open(os.path.join(m.source, name), "wb") as f:
                f.truncate(6 * CHUNK)
                for at in (CHUNK, 4 * CHUNK):
                    f.seek(at), f.write(data_of(CHUNK))
        twin, fd = os.open(os.path.join(m.source, "twin"), os.O_RDWR), os.open(m.path("f"), os.O_RDWR)

        def seek(f, off, whence):
            try:
                return os.lseek(f, off, whence)
            except OSError as e:
                return e.errno
        for is_resident in (False, True):
            if is_resident:
                command(HMMFS, "prefetch", m.path("f"))
            for off in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 4 * CHUNK, 5 * CHUNK - 1, 5 * CHUNK, 6 * CHUNK - 1, 6 * CHUNK, 9 * CHUNK, -1):
                for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                    assert seek(fd, off, whence) == seek(twin, off, whence), (is_resident, off, whence)
        for f in (fd, twin):
            os.pwrite(f, b"x" * 4096, 3 * CHUNK)
        assert seek(fd, 2 * CHUNK, os.SEEK_DATA) == seek(twin, 2 * CHUNK, os.SEEK_DATA) == 3 * CHUNK
        os.close(fd), os.close(twin)
        m.umount()


def disk_that_is_gone_is_an_error_and_loses_nothing_that_is_read():
    """The filesystem below is shut down: EIO, nothing made up; what is on the device stays readable, and its loss is told."""
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        return "needs root and mkfs.ext4"
    with _on_a_disk("ext4", 64 << 20, writeback_interval="0", cpu_access="copy") as m:
        if m is None:
            return "this kernel mounts no ext4 image"
        for name in ("resident", "cold"):
            with open(os.path.join(m.source, name), "wb") as f:
                f.write(data_of(2 * CHUNK)), f.flush(), os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.mkdir(m.path("d"))
        fd, cold = os.open(m.path("resident"), os.O_RDWR), os.open(m.path("cold"), os.O_RDWR)
        command(HMMFS, "prefetch", m.path("resident"))
        assert os.pwrite(fd, b"dirty", 0) == 5
        top = os.open(m.source, os.O_RDONLY)
        fcntl.ioctl(top, SHUT_DOWN, struct.pack("I", 2))
        os.close(top)
        raises(errno.EIO, os.pread, cold, 10, CHUNK)
        raises(errno.EIO, os.pwrite, cold, b"x", 0)
        for call in (lambda: os.mkdir(m.path("new")), lambda: os.unlink(m.path("cold")), lambda: os.rename(m.path("cold"), m.path("new")),
                     lambda: os.close(os.open(m.path("new"), os.O_CREAT | os.O_WRONLY)), lambda: os.fsync(cold), lambda: os.fsync(fd)):
            raises(errno.EIO, call)
        assert os.pread(fd, CHUNK, 0) == b"dirty" + data_of(CHUNK)[5:] and os.pread(fd, 9, CHUNK) == data_of(2 * CHUNK)[CHUNK:CHUNK + 9]
        for f in (fd, cold):
            with contextlib.suppress(OSError):  # told by fsync, or told here
                os.close(f)
        assert command(HMMFS, "umount", m.point, ok=(1,)).count("\n") == 1 and os.path.ismount(m.point)
        m.daemon.terminate()
        assert m.wait() == 1 and "could not be written back and are lost" in m.said, m.said


def source_that_is_removed_or_replaced_is_gone():
    with mounted() as m:
        p = m.put("f", data_of(CHUNK + 5))
        os.mkdir(m.path("d"))
        fd, d = os.open(p, os.O_RDWR), os.open(m.path("d"), os.O_RDONLY)
        aside = m.source + ".aside"
        os.rename(m.source, aside), os.mkdir(m.source)
        # The directory is what was mounted, not its name.
        with open(m.path("g"), "w") as f:
            f.write("g")
        assert sorted(os.listdir(aside)) == ["d", "f", "g"] and os.listdir(m.source) == []
        shutil.rmtree(aside)
        wait_until(lambda: not os.path.lexists(m.path("f")) and not os.path.lexists(m.path("g")), "all names are gone")
        assert os.listdir(m.point) == [] == os.listdir(d)
        for call in (lambda: os.mkdir(m.path("new")), lambda: os.open(m.path("new"), os.O_CREAT | os.O_WRONLY), lambda: os.symlink("x", m.path("new")),
                     lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=d)):
            raises(errno.ENOENT, call)
        assert os.pread(fd, CHUNK + 5, 0) == data_of(CHUNK + 5) and os.pwrite(fd, b"x", 0) == 1 and os.pread(fd, 1, 0) == b"x"
        os.close(fd), os.close(d)
        m.umount()


def a_directory_replaced_by_a_file_is_a_file():
    with mounted() as m:
        os.mkdir(m.path("d"))
        with open(m.path("d/f"), "w") as f:
            f.write("below")
        d = os.open(m.path("d"), os.O_RDONLY)
        fd = os.open("f", os.O_RDONLY, dir_fd=d)
        shutil.rmtree(os.path.join(m.source, "d"))
        m.put("d", b"a file now")
        wait_until(lambda: os.path.isfile(m.path("d")), "the file is seen")
        assert open(m.path("d")).read() == "a file now" and os.read(fd, 9) == b"below" and os.listdir(d) == []
        raises(errno.ENOTDIR, os.open, m.path("d/f"), os.O_RDONLY)
        raises(errno.ENOENT, lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=d))
        os.close(fd), os.close(d)
        m.umount()
