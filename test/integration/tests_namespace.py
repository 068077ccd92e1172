"""tests_namespace.py - programs and system calls that have nothing to do with the device."""
import ctypes, ctypes.util, errno, fcntl, mmap, os, socket, stat
from harness import CHUNK, HMMFS, command, data_of, mounted


def ordinary_programs_work():
    with mounted() as m:
        here = os.path.dirname(os.path.abspath(__file__))
        command("cp", "-a", here, m.path("copy"))
        command("diff", "-r", here, m.path("copy"))
        command("rsync", "-a", m.path("copy") + "/", m.path("copy2"))
        command("diff", "-r", here, m.path("copy2"))
        with open(m.path("a.c"), "w") as f:
            f.write("int main(void){return 7;}\n")
        command("cc", "-o", m.path("a"), m.path("a.c"))
        command(m.path("a"), ok=(7,))
        command("git", "init", "-q", m.path("g"))
        git = ["git", "-C", m.path("g"), "-c", "user.name=t", "-c", "user.email=t@t"]
        command("cp", m.path("a.c"), m.path("g"))
        command(*git, "add", "a.c"), command(*git, "commit", "-qm", "one")
        command("git", "clone", "-q", m.path("g"), m.path("h"))
        command("git", "-C", m.path("h"), "fsck", "--strict")
        sql = "pragma journal_mode=wal; create table t(x); insert into t values(1),(2); pragma wal_checkpoint; select sum(x) from t;"
        assert command("sqlite3", m.path("db"), sql).split()[-1] == "3"
        assert command("sqlite3", m.path("db"), "pragma integrity_check").strip() == "ok"
        m.umount()


def operations_beyond_the_ordinary_work():
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    with mounted() as m:
        at = lambda name: m.path(name)
        with open(at("a"), "wb") as f:
            f.write(data_of(3 * CHUNK))
        fd = os.open(m.point, os.O_TMPFILE | os.O_RDWR, 0o640)
        os.write(fd, b"tmpfile")
        assert libc.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, at("linked").encode(), 0x400) == 0  # AT_SYMLINK_FOLLOW
        os.close(fd)
        assert open(at("linked"), "rb").read() == b"tmpfile" and stat.S_IMODE(os.stat(at("linked")).st_mode) == 0o640
        rename = lambda a, b, flags: libc.renameat2(-100, at(a).encode(), -100, at(b).encode(), flags)
        assert rename("a", "linked", 1) == -1 and ctypes.get_errno() == errno.EEXIST
        assert rename("a", "linked", 2) == 0 and open(at("a"), "rb").read() == b"tmpfile"
        command(HMMFS, "prefetch", at("linked"))
        with open(at("linked"), "ab") as f:
            f.write(b"appended")
        assert open(at("linked"), "rb").read() == data_of(3 * CHUNK) + b"appended"
        with open(at("linked"), "rb") as source, open(at("copy"), "wb") as f:
            n = os.copy_file_range(source.fileno(), f.fileno(), CHUNK, CHUNK - 7, 0)
            assert n == CHUNK
        assert open(at("copy"), "rb").read() == data_of(3 * CHUNK)[CHUNK - 7:2 * CHUNK - 7]
        fd = os.open(at("linked"), os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(fd, 5 * CHUNK, CHUNK)
        assert os.fstat(fd).st_size == 6 * CHUNK and os.lseek(fd, 0, os.SEEK_HOLE) >= 3 * CHUNK
        os.ftruncate(fd, CHUNK + 1)
        os.ftruncate(fd, 2 * CHUNK)
        assert os.pread(fd, 2 * CHUNK, 0) == data_of(CHUNK + 1) + bytes(CHUNK - 1)
        os.close(fd)
        fd = os.open(at("linked"), os.O_RDWR | os.O_DIRECT)
        page = mmap.mmap(-1, 4096)
        page[:] = b"D" * 4096
        os.pwrite(fd, page, CHUNK)
        page[:] = bytes(4096)
        assert os.preadv(fd, [page], CHUNK) == 4096 and page[:] == b"D" * 4096
        os.close(fd)
        assert open(at("linked"), "rb").read()[CHUNK:CHUNK + 4096] == b"D" * 4096
        os.mkfifo(at("fifo")), os.symlink("linked", at("link")), os.mkdir(at("dir")), os.rmdir(at("dir"))
        os.utime(at("linked"), ns=(10**18, 10**18 + 5)), os.chmod(at("linked"), 0o4755)
        s = os.stat(at("link"))
        assert s.st_mtime_ns == 10**18 + 5 and stat.S_IMODE(s.st_mode) == 0o4755 and os.readlink(at("link")) == "linked"
        for i in range(1000):
            os.close(os.open(at(f"many{i}"), os.O_CREAT | os.O_WRONLY))
        assert sum(n.startswith("many") for n in os.listdir(m.point)) == 1000
        with open(at("many0"), "w") as f, open(at("many0")) as g:
            os.unlink(at("many0"))
            f.write("still here"), f.flush()
            assert g.read() == "still here"
        m.umount()


def special_files_and_whiteouts_are_what_they_are_on_the_backing():
    libc = ctypes.CDLL(None, use_errno=True)

    def outcome(call, *args):
        try:
            call(*args)
        except OSError as e:
            return e.errno

    def rename(a, b, flags):
        if libc.renameat2(-100, a.encode(), -100, b.encode(), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def calls_in(d):
        """What each call said, and then what is there."""
        at = lambda name: os.path.join(d, name)
        for name in ("a", "b", "victim"):
            with open(at(name), "wb") as f:
                f.write(data_of(CHUNK + 1, ord(name[0])))
        os.mkdir(at("dir"))
        if d == m.point:
            command(HMMFS, "prefetch", at("a"), at("b"), at("victim"))
        open_victim = os.open(at("victim"), os.O_RDONLY)
        said = [outcome(os.mknod, at("char"), stat.S_IFCHR | 0o640, os.makedev(1, 7)),
                outcome(os.mknod, at("block"), stat.S_IFBLK | 0o600, os.makedev(7, 1000)),
                outcome(os.mknod, at("fifo"), stat.S_IFIFO | 0o622), outcome(os.mknod, at("socket"), stat.S_IFSOCK | 0o755),
                outcome(os.mknod, at("file"), stat.S_IFREG | 0o604), outcome(os.mknod, at("file"), stat.S_IFREG | 0o604),
                outcome(os.mknod, at("zero"), stat.S_IFCHR | 0o666, os.makedev(0, 0)),
                outcome(rename, at("a"), at("a2"), WHITEOUT), outcome(rename, at("b"), at("victim"), WHITEOUT),
                outcome(rename, at("dir"), at("dir2"), WHITEOUT), outcome(rename, at("fifo"), at("fifo2"), WHITEOUT | NOREPLACE),
                outcome(rename, at("a2"), at("victim"), WHITEOUT | NOREPLACE), outcome(rename, at("none"), at("x"), WHITEOUT),
                outcome(rename, at("a2"), at("victim"), EXCHANGE | WHITEOUT), outcome(rename, at("a2"), at("x"), 64)]
        assert os.pread(open_victim, 9, 0) == data_of(9, ord("v"))
        os.close(open_victim)
        s = socket.socket(socket.AF_UNIX)
        s.bind(at("bound")), s.close()
        there = {}
        for name in sorted(os.listdir(d)):
            st = os.lstat(at(name))
            there[name] = (oct(st.st_mode), st.st_rdev, st.st_nlink, st.st_uid, st.st_gid, st.st_size if stat.S_ISREG(st.st_mode) else 0)
            if stat.S_ISREG(st.st_mode):
                with open(at(name), "rb") as f:
                    there[name] += (f.read(),)
        return said, there

    WHITEOUT, NOREPLACE, EXCHANGE = 4, 1, 2
    with mounted() as m:
        twin = os.path.join(os.path.dirname(m.source), "twin")
        os.mkdir(twin)
        want, got = calls_in(twin), calls_in(m.point)
        assert got == want, (got, want)
        # what a reader and a writer of a fifo say to each other is the kernel's; that it opens is ours
        fifo = os.open(m.path("fifo2"), os.O_RDWR)
        assert os.write(fifo, b"through") == 7 and os.read(fifo, 9) == b"through"
        os.close(fifo)
        m.umount()
        assert sorted(os.listdir(m.source)) == sorted(want[1])
