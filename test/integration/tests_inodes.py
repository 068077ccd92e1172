"""tests_inodes.py - which file an inode is: few descriptors, many filesystems, handles, changes by others."""
import ctypes, errno, mmap, os, stat, subprocess, sys
from harness import CHUNK, HMMFS, command, data_of, mounted, raises, wait_until
from user import mounted_by_an_ordinary_user

libc = ctypes.CDLL(None, use_errno=True)


def remount(m, descriptors=None):
    m.umount()
    m.descriptors = descriptors
    m.start()


def descriptors_of(m): return len(os.listdir(f"/proc/{m.daemon.pid}/fd"))


def known_inodes_need_no_descriptor_each():
    """A thousand files and symbolic links in forty directories, 256 descriptors."""
    with mounted() as m:
        remount(m, 256)
        for d in range(40):
            os.mkdir(m.path(f"d{d}"))
            for i in range(12):
                with open(m.path(f"d{d}/f{i}"), "w") as f:
                    f.write(f"{d} {i}")
                os.symlink(f"f{i}", m.path(f"d{d}/l{i}"))
        held = [os.open(m.path(f"d{d}"), os.O_PATH) for d in range(0, 40, 10)]
        before = [os.stat(m.path(f"d{d}/f{i}")).st_ino for d in range(40) for i in range(12)]
        for turn in range(2):
            assert [os.stat(m.path(f"d{d}/f{i}")).st_ino for d in range(40) for i in range(12)] == before
            assert all(open(m.path(f"d{d}/l{i}")).read() == f"{d} {i}" for d in range(40) for i in range(12))
            assert descriptors_of(m) < 256
        for d in range(40):
            os.rename(m.path(f"d{d}/f0"), m.path(f"d{(d + 1) % 40}/moved")), os.link(m.path(f"d{d}/f1"), m.path(f"d{d}/linked"))
            os.setxattr(m.path(f"d{d}/f2"), "user.a", b"%d" % d), os.chmod(m.path(f"d{d}/f3"), 0o600), os.truncate(m.path(f"d{d}/f4"), 1)
        for d in range(40):
            assert open(m.path(f"d{(d + 1) % 40}/moved")).read() == f"{d} 0" and os.stat(m.path(f"d{d}/f1")).st_nlink == 2
            assert os.getxattr(m.path(f"d{d}/f2"), "user.a") == b"%d" % d and os.stat(m.path(f"d{d}/f3")).st_mode & 0o777 == 0o600
            assert sorted(os.listdir(m.path(f"d{d}"))) == sorted(os.listdir(os.path.join(m.source, f"d{d}")))
        assert all(os.listdir(f"/proc/self/fd/{fd}") for fd in held)
        for fd in held:
            os.close(fd)
        command("rm", "-rf", *[m.path(f"d{d}") for d in range(40)])
        assert os.listdir(m.source) == []
        m.umount()


def chunks_take_no_descriptors_from_files():
    """On devices that have one for each chunk."""
    with mounted(capacity=str(1024 * CHUNK)) as m:
        remount(m, descriptors=400)
        chunks = m.status()["capacity_bytes"] // CHUNK
        if chunks == 1024:
            return "the device's chunks have no descriptors"
        assert chunks == 100 and "100 chunks, not 1024" in m.said, m.said
        m.put("f", bytes(chunks * CHUNK))
        command(HMMFS, "prefetch", m.path("f"))
        assert m.status()["resident_bytes"] == chunks * CHUNK
        files = [open(m.put(f"f{i}", b"open")) for i in range(50)]
        assert all(f.read() == "open" for f in files)
        for f in files:
            f.close()
        m.umount()


def open_files_take_the_descriptors_of_inodes():
    """An application is never told EMFILE, which would be about itself."""
    with mounted() as m:
        remount(m, 256)
        for i in range(400):
            with open(m.path(f"f{i}"), "w") as f:
                f.write(str(i))
        os.listdir(m.point), [os.stat(m.path(f"f{i}")) for i in range(400)]
        fds = []
        try:
            for i in range(400):
                fds.append(os.open(m.path(f"f{i}"), os.O_RDWR))
        except OSError as e:
            assert e.errno == errno.ENFILE, e
        n = len(fds)
        assert n > 150, n
        assert all(os.pread(fd, 9, 0) == b"%d" % i for i, fd in enumerate(fds))
        for fd in fds:
            os.close(fd)
        with open(m.path("f399")) as f:
            assert f.read() == "399"
        m.umount()


def unlinked_files_outlive_their_descriptors():
    """Known to an application only by O_PATH; the daemon runs out of descriptors meanwhile."""
    with mounted() as m:
        remount(m, 256)
        for i in range(20):
            with open(m.path(f"held{i}"), "w") as f:
                f.write(str(i))
        held = [os.open(m.path(f"held{i}"), os.O_PATH) for i in range(20)]

        def crowd(tag):
            for i in range(600):
                os.close(os.open(m.path(f"{tag}{i}"), os.O_CREAT | os.O_WRONLY))

        crowd("a")
        for i in range(20):
            os.unlink(m.path(f"held{i}"))
        crowd("b")
        for i, fd in enumerate(held):
            assert os.fstat(fd).st_nlink == 0 and open(f"/proc/self/fd/{fd}").read() == str(i)
            os.close(fd)
        m.umount()


def number_used_again_is_another_file():
    """Others remove a file that the kernel knows and that has no descriptor; the backing gives its number to a new one."""
    with mounted() as m:
        remount(m, 256)
        old = {}
        for i in range(600):
            p = m.path(f"f{i}")
            with open(p, "w") as f:
                f.write(f"old {i}")
            old[os.stat(p).st_ino] = (i, os.open(p, os.O_PATH))
        for i in range(600):
            os.unlink(os.path.join(m.source, f"f{i}"))
        again = 0
        for i in range(600):
            with open(os.path.join(m.source, f"new{i}"), "w") as f:
                f.write(f"new {i}")
        for i in range(600):
            with open(m.path(f"new{i}")) as f:
                assert f.read() == f"new {i}"
            ino = os.stat(m.path(f"new{i}")).st_ino
            if ino in old:
                again += 1
                number, fd = old[ino]
                try:
                    with open(f"/proc/self/fd/{fd}") as f:
                        assert f.read() == f"old {number}"
                except OSError as e:
                    assert e.errno == errno.ESTALE, e
        for _, fd in old.values():
            os.close(fd)
        m.umount()
        if not again:
            return "the backing used no number again"


def ordinary_users_inodes_are_forgotten_in_time():
    """Without file handles the kernel is asked to forget: files that are open, and directories, stay. More files than the daemon
    keeps (a quarter of its descriptors), and fewer than it could: the pruner may fall behind."""
    script = """
import os, sys
at = lambda n: os.path.join(sys.argv[1], n)
os.mkdir(at("d")), os.chdir(at("d"))
held = open("held", "w+")
held.write("held"), held.flush()
for i in range(600):
    with open(at(f"f{i}"), "w") as f:
        f.write(str(i))
for turn in range(2):
    for i in range(600):
        assert os.stat(at(f"f{i}")).st_size == len(str(i))
assert all(open(at(f"f{i}")).read() == str(i) for i in range(600))
held.seek(0)
assert held.read() == "held" and os.getcwd() == at("d") and open("held").read() == "held"
"""

    def work(hmmfs, source, point, mine):
        r = mine(sys.executable if os.path.realpath(sys.executable).startswith("/usr") else "/usr/bin/python3", "-c", script, point)
        assert r.returncode == 0, r.stderr.decode()
        assert len(os.listdir(source)) == 601 and mine(hmmfs, "umount", point).returncode == 0
    return mounted_by_an_ordinary_user(work, descriptors=1000)


def inodes_are_forgotten_while_others_use_their_neighbours():
    """A directory is forgotten right after the answer to a call in it. Processes that make and remove trees, for a sanitizer to watch."""
    script = """
import os, sys
for turn in range(60):
    top = path = f"{sys.argv[1]}/{os.getpid()}"
    os.mkdir(top)
    for i in range(8):
        open(path + "/f", "w").close(), os.symlink("f", path + "/l"), os.mkdir(path + "/d")
        path += "/d"
    while path != os.path.dirname(top):
        for name in ("f", "l"):
            if os.path.lexists(f"{path}/{name}"):
                os.unlink(f"{path}/{name}")
        os.rmdir(path)
        path = os.path.dirname(path)
"""
    with mounted(coherent=True) as m:
        children = [subprocess.Popen([sys.executable, "-c", script, m.point]) for _ in range(4)]
        assert [c.wait() for c in children] == [0] * 4 and os.listdir(m.source) == []
        m.umount()


# ---- several filesystems ----

def filesystems_below_the_source_have_numbers_of_their_own():
    if os.geteuid():
        return "needs root"
    with mounted() as m:
        m.umount()
        parts = [os.path.join(m.source, n) for n in ("one", "two")]
        try:
            for p in parts:
                os.mkdir(p)
                command("mount", "-t", "tmpfs", "none", p)
                for name in ("a", "b"):
                    with open(os.path.join(p, name), "w") as f:
                        f.write(p + name)
            assert os.stat(parts[0] + "/a").st_ino == os.stat(parts[1] + "/a").st_ino
            m.start()
            names = [f"{d}/{n}" for d in ("one", "two") for n in ("a", "b")] + ["one", "two", ""]
            numbers = [os.stat(m.path(n)).st_ino for n in names]
            assert len(set(numbers)) == len(names), numbers
            assert [open(m.path(n)).read() for n in names[:4]] == [open(os.path.join(m.source, n)).read() for n in names[:4]]
            assert {e.inode() for e in os.scandir(m.path("one"))} == {os.stat(m.path(f"one/{n}")).st_ino for n in "ab"}
            raises(errno.EXDEV, os.rename, m.path("one/a"), m.path("two/c"))
            raises(errno.EXDEV, os.link, m.path("one/a"), m.path("c"))
            raises(errno.EBUSY, os.rmdir, m.path("one"))
            command("cp", "-a", m.path("one"), m.path("copy"))
            command("diff", "-r", m.path("one"), m.path("copy"))
            m.umount()
        finally:
            m.clean()
            for p in parts:
                subprocess.run(["umount", "-l", p])


# ---- handles ----

class Handle(ctypes.Structure):
    _fields_ = [("handle_bytes", ctypes.c_uint), ("handle_type", ctypes.c_int), ("f_handle", ctypes.c_ubyte * 128)]


def handle_of(path):
    handle, mount_id = Handle(128), ctypes.c_int()
    if libc.name_to_handle_at(-100, path.encode(), ctypes.byref(handle), ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle


def open_handle(at, handle, flags=os.O_RDONLY):
    fd = libc.open_by_handle_at(at, ctypes.byref(handle), flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return fd


def make_the_kernel_forget(m, name):
    """Drops the one name that the kernel has of a file."""
    os.link(os.path.join(m.source, name), os.path.join(m.source, name + ".other"))
    os.unlink(os.path.join(m.source, name))
    wait_until(lambda: not os.path.lexists(m.path(name)), "the name is seen to be gone")


def handles_open_files_that_the_kernel_has_forgotten():
    """What an NFS server does, with nfs_export."""
    if os.geteuid():
        return "needs root"
    with mounted(nfs_export=True) as m:
        at = os.open(m.point, os.O_RDONLY)
        os.mkdir(m.path("d"))
        for name in ("f", "gone", "d/below"):
            with open(m.path(name), "w") as f:
                f.write(name)
        handles = {name: handle_of(m.path(name)) for name in ("f", "gone", "d", "d/below")}
        for name in handles:
            fd = open_handle(at, handles[name])
            assert name == "d" or os.read(fd, 99).decode() == name
            os.close(fd)
        make_the_kernel_forget(m, "f")
        fd = open_handle(at, handles["f"], os.O_RDWR)
        assert os.read(fd, 9) == b"f" and os.write(fd, b"more") == 4
        os.close(fd)
        assert open(os.path.join(m.source, "f.other")).read() == "fmore"
        os.unlink(m.path("gone"))
        raises(errno.ESTALE, open_handle, at, handles["gone"])
        made_up = handle_of(m.path("d"))
        for i in range(8):
            made_up.f_handle[i] ^= 0x5a
        raises(errno.ESTALE, open_handle, at, made_up)
        os.close(at)
        m.umount()


def handles_without_export_go_stale():
    if os.geteuid():
        return "needs root"
    with mounted() as m:
        at = os.open(m.point, os.O_RDONLY)
        with open(m.path("f"), "w") as f:
            f.write("f")
        handle = handle_of(m.path("f"))
        os.close(open_handle(at, handle))
        make_the_kernel_forget(m, "f")
        raises(errno.ESTALE, open_handle, at, handle)
        os.close(at)
        m.umount()


# ---- changes by others ----

def new_sizes_never_come_with_old_bytes():
    """Others replace a file's bytes in place; it is open, read and mapped here. A first stat(2) shows the new size; what is read then is new."""
    for how in ("stat", "readdir", "statx", "fstat"):
        with mounted() as m:
            p, back = m.put("f", b"A" * 8192), os.path.join(m.source, "f")
            fd = os.open(p, os.O_RDWR)
            mapped = mmap.mmap(fd, 8192)
            assert os.pread(fd, 8192, 0) == b"A" * 8192 and mapped[:] == b"A" * 8192
            with open(back, "r+b") as f:
                f.write(b"B" * 8192), f.truncate(5000)
            look = {"stat": lambda: os.stat(p).st_size, "fstat": lambda: os.fstat(fd).st_size, "statx": lambda: int(command("stat", "-c", "%W %s", p).split()[1]),
                    "readdir": lambda: [e.stat().st_size for e in os.scandir(m.point)][0]}[how]
            wait_until(lambda: look() == 5000, "the new size is seen")
            assert os.pread(fd, 8192, 0) == b"B" * 5000 and mapped[:5000] == b"B" * 5000, how
            mapped.close(), os.close(fd)
            m.umount()


def others_changes_are_seen_after_the_timeout():
    with mounted() as m:
        for name in ("f", "gone", "moved"):
            m.put(name, b"old")
            os.stat(m.path(name))
        raises(errno.ENOENT, os.stat, m.path("new"))
        back = lambda n: os.path.join(m.source, n)
        os.chmod(back("f"), 0o600), os.unlink(back("gone")), os.rename(back("moved"), back("here")), os.mkdir(back("new"))
        wait_until(lambda: os.stat(m.path("f")).st_mode & 0o777 == 0o600, "a new mode")
        wait_until(lambda: not os.path.lexists(m.path("gone")) and not os.path.lexists(m.path("moved")), "names that are gone")
        wait_until(lambda: os.path.isdir(m.path("new")), "a name that is new")
        assert sorted(os.listdir(m.point)) == ["f", "here", "new"]
        m.umount()


def a_file_replaced_by_a_directory_stays_open():
    with mounted() as m:
        p = m.put("f", data_of(2 * CHUNK))
        fd = os.open(p, os.O_RDWR)
        assert os.pread(fd, 9, 0) == data_of(9)
        command(HMMFS, "prefetch", p)
        os.unlink(os.path.join(m.source, "f")), os.mkdir(os.path.join(m.source, "f"))
        wait_until(lambda: stat.S_ISDIR(os.stat(p).st_mode), "the directory is seen")
        assert os.pread(fd, 2 * CHUNK, 0) == data_of(2 * CHUNK) and os.pwrite(fd, b"x", 1) == 1 and os.pread(fd, 2, 0) == data_of(1) + b"x"
        raises(errno.EISDIR, os.open, p, os.O_RDWR)
        os.close(os.open(os.path.join(p, "below"), os.O_CREAT | os.O_WRONLY))
        assert os.listdir(p) == ["below"] and os.fstat(fd).st_nlink == 0
        os.close(fd)
        m.umount()


def backing_that_vanishes_turns_read_only_or_is_full():
    if os.geteuid():
        return "needs root"
    with mounted() as m:
        m.umount()
        command("mount", "-t", "tmpfs", "-o", f"size={4 * CHUNK}", "none", m.source)
        try:
            m.start()
            put = lambda name, n: (open(m.path(name), "wb", buffering=0).write(data_of(n)))
            assert put("f", CHUNK) == CHUNK
            fd = os.open(m.path("f"), os.O_RDWR)
            # full
            full = os.open(m.path("full"), os.O_CREAT | os.O_RDWR)
            written = 0
            try:
                while written < 16 * CHUNK:
                    written += os.write(full, bytes(4096))
                raise AssertionError("no ENOSPC")
            except OSError as e:
                assert e.errno == errno.ENOSPC, e
            assert os.fstat(full).st_size == written == os.stat(os.path.join(m.source, "full")).st_size
            os.close(full), os.unlink(m.path("full"))
            assert put("after", CHUNK) == CHUNK and open(m.path("after"), "rb").read() == data_of(CHUNK)
            # read-only
            os.close(fd)
            wait_until(lambda: subprocess.run(["mount", "-o", "remount,ro", m.source], stderr=subprocess.DEVNULL).returncode == 0,
                       "the kernel has told the daemon of each close")
            for call in (lambda: put("f", 1), lambda: os.unlink(m.path("f")), lambda: os.mkdir(m.path("d")), lambda: os.chmod(m.path("f"), 0o600),
                         lambda: os.setxattr(m.path("f"), "user.a", b""), lambda: os.truncate(m.path("f"), 1), lambda: os.rename(m.path("f"), m.path("g"))):
                raises(errno.EROFS, call)
            assert open(m.path("f"), "rb").read() == data_of(CHUNK) and os.stat(m.path("f")).st_size == CHUNK
            command("mount", "-o", "remount,rw", m.source)
            # vanished: everything is removed by others
            fd = os.open(m.path("f"), os.O_RDWR)
            for name in os.listdir(m.source):
                os.unlink(os.path.join(m.source, name))
            wait_until(lambda: os.listdir(m.point) == [], "nothing is there")
            wait_until(lambda: not os.path.lexists(m.path("f")), "the file is gone")
            raises(errno.ENOENT, os.open, m.path("f"), os.O_RDONLY)
            assert os.pread(fd, CHUNK, 0) == data_of(CHUNK)
            os.close(fd)
            m.umount()
        finally:
            m.clean()
            subprocess.run(["umount", "-l", m.source])
