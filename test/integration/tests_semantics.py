"""tests_semantics.py - what Linux programs rely on beyond names and bytes: each call as it is on the backing.

Most tests make the same calls in a twin directory of the backing and through the mount, and compare what came of them."""
import ctypes, errno, fcntl, os, shutil, stat, struct, subprocess, time
from harness import CHUNK, HMMFS, command, data_of, mounted, raises, wait_until
from user import mounted_by_an_ordinary_user

libc = ctypes.CDLL(None, use_errno=True)
ENTRIES = int(os.environ.get("HMMFS_TEST_ENTRIES", "20000"))  # of a large directory
ALICE, BOB = (10001, 20001), (10002, 20002)  # users and their groups, who need not exist


def outcome(call, *args):
    """What a call returned, or its errno's name."""
    try:
        return call(*args)
    except OSError as e:
        return errno.errorcode[e.errno]


def as_user(user, call, *args, groups=(), umask=0o22):
    """What the call said when a process of this user made it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(list(groups)), os.setresgid(*[user[1]] * 3), os.setresuid(*[user[0]] * 3), os.umask(umask)
            os.write(writer, repr(outcome(call, *args)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as f:
        said = f.read().decode()
    os.waitpid(child, 0)
    return eval(said)


def c(name, *args):
    """A call of the C library; its errno as an exception."""
    result = getattr(libc, name)(*[a.encode() if isinstance(a, str) else ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def mode_of(path): return oct(os.lstat(path).st_mode)


def put(path, data=b"", mode=0o644, owner=(0, 0)):
    with open(path, "wb") as f:
        f.write(data)
    os.chown(path, *owner), os.chmod(path, mode)


def each_is_as_on_the_backing(calls, **options):
    """calls(directory) in a twin directory and in the mount: what they return must be equal."""
    if os.geteuid():
        return "needs root"
    with mounted(**dict(allow_other=True, migrate_min=CHUNK) | options) as m:  # of smaller files the kernel reads and writes the backing itself
        os.chmod(os.path.dirname(m.source), 0o755)
        twin = os.path.join(os.path.dirname(m.source), "twin")
        os.mkdir(twin)
        want, got = calls(twin), calls(m.point)
        for i, (w, g) in enumerate(zip(want, got, strict=True)):
            assert w == g, f"result {i}: backing {w}, mount {g}"
        m.umount()


def set_id_bits_go_with_a_change_by_others():
    """By write, truncate, fallocate, copy_file_range, chown; a file that is on the device or passed through, too."""
    def calls(d):
        p, said = os.path.join(d, "f"), []

        def write(): fd = os.open(p, os.O_WRONLY); os.write(fd, b"x"); os.close(fd)
        def chown_nothing(): return outcome(os.chown, p, -1, -1) and None  # EPERM to BOB, of which FUSE's kernel side does not let us know
        def allocate(): fd = os.open(p, os.O_WRONLY); os.posix_fallocate(fd, 0, 9 * CHUNK); os.close(fd)
        def copy():
            fd, other = os.open(p, os.O_WRONLY), os.open(os.path.join(d, "other"), os.O_RDONLY)
            os.copy_file_range(other, fd, 5), os.close(fd), os.close(other)

        put(os.path.join(d, "other"), b"other")
        for size in (0, 10, 2 * CHUNK):
            for bits in (0o6777, 0o4766, 0o2776, 0o2767, 0o1777):
                for call in (write, allocate, copy, lambda: os.truncate(p, 5), lambda: os.close(os.open(p, os.O_WRONLY | os.O_TRUNC)),
                             lambda: os.chown(p, -1, BOB[1]), chown_nothing, lambda: os.utime(p), lambda: os.chmod(p, bits)):
                    for user, groups in ((ALICE, [BOB[1]]), (BOB, []), ((0, 0), [])):
                        put(p, data_of(size), bits, ALICE)
                        if d.endswith("/mount") and size > CHUNK and user == BOB and call in (write, copy):
                            command(HMMFS, "prefetch", p)
                        said.append((size, oct(bits), user, as_user(user, call, groups=groups), mode_of(p)))
        return said
    return each_is_as_on_the_backing(calls)


def writers_of_an_open_file_lose_set_id_bits_too():
    """The bits come while another has it open for writing."""
    def calls(d):
        p, said = os.path.join(d, "f"), []
        for size in (0, 10, 2 * CHUNK):
            put(p, data_of(size), 0o666)
            fds = {user: os.open(p, os.O_RDWR) for user in (ALICE, BOB)}
            for user in fds:
                os.chmod(p, 0o4777)
                said.append((size, as_user(user, os.pwrite, fds[user], b"new", 0), mode_of(p)))
                os.close(fds[user])
        return said
    return each_is_as_on_the_backing(calls)


def capabilities_of_a_file_go_with_a_change():
    """security.capability: root may set it, nobody else; each write takes it."""
    value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)

    def calls(d):
        p, said = os.path.join(d, "f"), []
        for size in (0, 10, 2 * CHUNK):
            for change in (lambda: os.close(os.open(p, os.O_WRONLY)), lambda: open(p, "ab").close(), lambda: os.truncate(p, 1),
                           lambda: subprocess.run(["dd", "if=/dev/zero", f"of={p}", "bs=1", "count=1", "conv=notrunc", "status=none"]).returncode,
                           lambda: os.chown(p, 0, 0)):
                put(p, data_of(size), 0o777)
                said.append(as_user(ALICE, os.setxattr, p, "security.capability", value))
                os.setxattr(p, "security.capability", value)
                change()
                said.append((size, outcome(os.getxattr, p, "security.capability")))
        return said
    return each_is_as_on_the_backing(calls)


def capability_that_was_not_there_is_seen_when_it_comes():
    """The daemon remembers for a moment that a file has none: not beyond a change through the mount, and of others' not for long."""
    value, name = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0), "security.capability"
    with mounted() as m:
        p = m.path("f")
        os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        for _ in range(2):
            assert outcome(os.getxattr, p, name) == "ENODATA"
            os.setxattr(p, name, value)
            assert os.getxattr(p, name) == value
            os.removexattr(p, name)
        assert outcome(os.getxattr, p, name) == "ENODATA"
        os.setxattr(os.path.join(m.source, "f"), name, value)
        wait_until(lambda: outcome(os.getxattr, p, name) == value, "a capability that others set")


def directories_can_be_synced():
    def calls(d):
        fd = os.open(d, os.O_RDONLY | os.O_DIRECTORY)
        said = [outcome(os.fsync, fd), outcome(os.fdatasync, fd)]
        os.close(fd)
        return said
    return each_is_as_on_the_backing(calls)


def sticky_directories_protect_their_files():
    def calls(d):
        said = []
        for owner in ((0, 0), ALICE, BOB):
            top = os.path.join(d, f"t{owner[0]}")
            os.mkdir(top), os.chown(top, *owner), os.chmod(top, 0o1777)
            at = lambda name: os.path.join(top, name)
            for name in ("a", "b", "c"):
                put(at(name), b"x", 0o666, ALICE)
            os.mkdir(at("dir")), os.chown(at("dir"), *ALICE), os.chmod(at("dir"), 0o777)
            put(at("bobs"), b"", 0o666, BOB)
            said += [as_user(BOB, os.unlink, at("a")), as_user(BOB, os.rename, at("b"), at("d")), as_user(BOB, os.rmdir, at("dir")),
                     as_user(BOB, os.rename, at("bobs"), at("c")), as_user(ALICE, os.rename, at("c"), at("e")),
                     as_user(ALICE, os.unlink, at("bobs")), as_user(ALICE, os.link, at("e"), at("l")), as_user(BOB, os.link, at("e"), at("m"))]
            said.append(sorted((n, os.lstat(at(n)).st_uid) for n in os.listdir(top)))
        return said
    return each_is_as_on_the_backing(calls)


def what_is_made_is_its_makers():
    """Owner, group (a set-group-id directory's), mode and umask of everything that can be made."""
    def calls(d):
        said = []
        for name, mode, owner in (("plain", 0o777, (0, 0)), ("sgid", 0o2777, BOB)):
            top = os.path.join(d, name)
            os.mkdir(top), os.chown(top, *owner), os.chmod(top, mode)
            at = lambda n: os.path.join(top, n)
            for user, groups, mask in ((ALICE, [], 0o22), (ALICE, [BOB[1]], 0o27), (BOB, [], 0), ((0, 0), [], 0o77)):
                tag = f"{user[0]}-{len(groups)}-{mask}"
                makers = {"file": lambda n: os.close(os.open(n, os.O_CREAT | os.O_WRONLY, 0o2777)), "dir": lambda n: os.mkdir(n, 0o2777),
                          "fifo": lambda n: os.mkfifo(n, 0o666), "node": lambda n: os.mknod(n, stat.S_IFREG | 0o2711),
                          "link": lambda n: os.symlink("target", n), "char": lambda n: os.mknod(n, stat.S_IFCHR | 0o666, os.makedev(1, 3))}
                for kind, make in makers.items():
                    n = at(f"{kind}-{tag}")
                    said.append((as_user(user, make, n, groups=groups, umask=mask), outcome(lambda: (mode_of(n), os.lstat(n).st_uid, os.lstat(n).st_gid))))
        return said
    return each_is_as_on_the_backing(calls)


def supplementary_groups_count():
    def calls(d):
        p, top, said = os.path.join(d, "f"), os.path.join(d, "dir"), []
        put(p, b"secret", 0o640, (0, BOB[1]))
        os.mkdir(top), os.chown(top, 0, BOB[1]), os.chmod(top, 0o770)
        for groups in ([], [BOB[1]], list(range(30000, 30200)) + [BOB[1]]):
            read = lambda: open(p).read()
            make = lambda: os.close(os.open(os.path.join(top, f"made{len(groups)}"), os.O_CREAT | os.O_WRONLY))
            said += [as_user(ALICE, read, groups=groups), as_user(ALICE, make, groups=groups), as_user(ALICE, os.listdir, top, groups=groups)]
            put(os.path.join(d, "own"), b"", 0o644, ALICE)
            said.append((as_user(ALICE, os.chown, os.path.join(d, "own"), -1, BOB[1], groups=groups), os.stat(os.path.join(d, "own")).st_gid))
        return said
    return each_is_as_on_the_backing(calls)


def access_lists_are_obeyed_and_kept():
    """posix_acl_access and posix_acl_default: who may, what chmod and the umask do to them, what is inherited."""
    def calls(d):
        p, top, said = os.path.join(d, "f"), os.path.join(d, "dir"), []
        put(p, b"secret", 0o600)
        os.mkdir(top)
        list_of = lambda n: command("getfacl", "-n", "-p", "--omit-header", n)
        read = lambda: open(p).read()
        command("setfacl", "-m", f"u:{ALICE[0]}:r--,g:{BOB[1]}:rw-", p)
        said += [as_user(ALICE, read), as_user(BOB, read), as_user((10003, 20003), read), as_user(ALICE, open, p, "r+"), mode_of(p), list_of(p)]
        os.chmod(p, 0o610)
        said += [as_user(ALICE, read), list_of(p)]
        command("setfacl", "-m", f"d:u:{ALICE[0]}:rwx,d:o::---", top)
        for mask in (0o77, 0):
            at = lambda name: os.path.join(top, f"{name}{mask}")
            make = lambda: (os.close(os.open(at("f"), os.O_CREAT | os.O_WRONLY, 0o666)), os.mkdir(at("d"), 0o777), os.mkfifo(at("p"), 0o664))
            os.chmod(top, 0o777)
            said.append(as_user(BOB, make, umask=mask))
            said += [list_of(at(n)) for n in "fdp"]
        # an owner outside of the file's group loses set-group-id with a new list; one inside keeps it
        for groups in ([], [BOB[1]]):
            put(p, b"", 0o2755, (ALICE[0], BOB[1]))
            said.append(as_user(ALICE, lambda: command("setfacl", "-m", f"u:{BOB[0]}:rx", p), groups=groups))
            said.append(mode_of(p))
        said.append(as_user(BOB, lambda: subprocess.run(["setfacl", "-b", p], stderr=subprocess.DEVNULL).returncode))
        command("setfacl", "-b", p), command("setfacl", "-k", top)
        said += [list_of(p), list_of(top), sorted(os.listxattr(p))]
        return said
    if not shutil.which("setfacl"):
        return "needs setfacl"
    return each_is_as_on_the_backing(calls)


def attributes_of_each_namespace():
    def calls(d):
        p, link, said = os.path.join(d, "f"), os.path.join(d, "link"), []
        put(p, b"", 0o666, ALICE), os.symlink("f", link)
        set_ = lambda n, name, value, flags=0: os.setxattr(n, name, value, flags, follow_symlinks=False)
        for user in ((0, 0), ALICE, BOB):
            for name in ("user.a", "trusted.a", "security.a", "system.a", "nonsense", "user.", "user." + "n" * 251):
                for path in (p, link):
                    said.append((user, name, path == p, as_user(user, set_, path, name, b"v" * 100),
                                 as_user(user, lambda: os.getxattr(path, name, follow_symlinks=False)),
                                 as_user(user, lambda: sorted(os.listxattr(path, follow_symlinks=False))),
                                 as_user(user, lambda: os.removexattr(path, name, follow_symlinks=False))))
        said += [outcome(set_, p, "user.x", b"", os.XATTR_REPLACE), outcome(set_, p, "user.x", b"1", os.XATTR_CREATE),
                 outcome(set_, p, "user.x", b"2", os.XATTR_CREATE), outcome(set_, p, "user.big", bytes(65536)), outcome(set_, p, "user.bigger", bytes(65537)),
                 outcome(set_, p, "user.\xff\n", b"any bytes"), sorted(os.listxattr(p)), os.getxattr(p, "user.x")]
        os.setxattr(p, "trusted.left", b"root's"), os.setxattr(p, "security.left", b"all's")
        said += [(user, as_user(user, lambda: sorted(os.listxattr(p))), as_user(user, os.getxattr, p, "trusted.left")) for user in ((0, 0), ALICE)]
        small = ctypes.create_string_buffer(1)
        said += [outcome(c, "getxattr", p, "user.\xff\n", small, 1), outcome(c, "listxattr", p, small, 1)]
        return said
    return each_is_as_on_the_backing(calls)


def path_descriptors_hold_a_file_without_opening_it():
    def calls(d):
        p, said = os.path.join(d, "f"), []
        put(p, b"held", 0o600), os.symlink("f", os.path.join(d, "link"))
        fd = os.open(p, os.O_PATH)
        said += [outcome(os.read, fd, 1), outcome(os.fchmod, fd, 0o644), os.fstat(fd).st_size]
        os.chmod(f"/proc/self/fd/{fd}", 0o640)
        os.unlink(p)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        said += [os.read(again, 9), os.write(again, b"more"), os.fstat(fd).st_size, os.fstat(fd).st_nlink, oct(os.fstat(fd).st_mode)]
        os.close(again), os.close(fd)
        fd = os.open(os.path.join(d, "link"), os.O_PATH | os.O_NOFOLLOW)
        said += [stat.S_ISLNK(os.fstat(fd).st_mode), os.readlink("", dir_fd=fd)]
        os.close(fd)
        return said
    return each_is_as_on_the_backing(calls)


def hard_links_share_one_inode():
    def calls(d):
        at, said = lambda n: os.path.join(d, n), []
        put(at("a"), b"one")
        os.link(at("a"), at("b")), os.mkdir(at("d")), os.link(at("b"), at("d/c"))
        said.append(len({os.stat(at(n)).st_ino for n in ("a", "b", "d/c")}))
        with open(at("b"), "ab") as f:
            f.write(b" two")
        said += [open(at("d/c")).read(), os.stat(at("a")).st_nlink, outcome(os.link, at("d"), at("e"))]
        os.unlink(at("a"))
        said += [os.stat(at("b")).st_nlink, sorted((e.name, e.inode() == os.stat(at("b")).st_ino) for e in os.scandir(d))]
        os.rename(at("b"), at("d/c"))
        said += [os.path.exists(at("b")), c("renameat2", -100, at("b"), -100, at("d/c"), 2)]
        return said
    return each_is_as_on_the_backing(calls)


def let_time_pass():
    """Until the clock that file systems stamp with has moved."""
    start = time.clock_gettime_ns(5)  # CLOCK_REALTIME_COARSE
    while time.clock_gettime_ns(5) == start:
        pass


def times_move_as_on_the_backing():
    """Which of atime, mtime, ctime of a file and its directory each call moves."""
    def calls(d):
        top = os.path.join(d, "top")
        os.mkdir(top)
        p, said = os.path.join(top, "f"), []
        put(p, b"x" * 10), put(os.path.join(top, "victim"))
        times = lambda n: (os.lstat(n).st_mtime_ns, os.lstat(n).st_ctime_ns) if os.path.lexists(n) else (0, 0)

        def moved(call, n=p):
            before = times(n), times(top)
            let_time_pass()
            call()
            after = times(n), times(top)
            said.append([[a > b for a, b in zip(x, y)] for x, y in zip(after, before)])

        fd = os.open(p, os.O_RDWR)
        for call in (lambda: os.write(fd, b"1"), lambda: os.pwrite(fd, b"2", 100), lambda: os.ftruncate(fd, 3), lambda: os.ftruncate(fd, 3),
                     lambda: os.truncate(p, 3), lambda: os.chmod(p, 0o600), lambda: os.chown(p, 1, 1), lambda: os.link(p, p + "2"),
                     lambda: os.unlink(p + "2"), lambda: os.setxattr(p, "user.a", b"1"), lambda: os.removexattr(p, "user.a"), lambda: os.read(fd, 1),
                     lambda: os.posix_fallocate(fd, 0, 1000), lambda: os.utime(p, (1, 2)), lambda: os.utime(p), lambda: os.close(os.open(p, os.O_RDONLY)),
                     lambda: os.rename(p, p + "2"), lambda: os.rename(p + "2", p), lambda: os.rename(os.path.join(top, "victim"), p)):
            moved(call)
        os.close(fd)
        moved(lambda: os.mkdir(os.path.join(top, "dir")), top), moved(lambda: os.symlink("x", os.path.join(top, "s")), top)
        moved(lambda: os.rmdir(os.path.join(top, "dir")), top), moved(lambda: os.listdir(top), top)
        c("utimensat", -100, os.path.join(top, "s"), struct.pack("4q", 5, 6, 7, 8), 0x100)
        said.append((os.lstat(os.path.join(top, "s")).st_atime_ns, os.lstat(os.path.join(top, "s")).st_mtime_ns))
        for pair in ((1, 0x3FFFFFFE), (0x3FFFFFFF, 1), (0x3FFFFFFF, 0x3FFFFFFE), (-5, 1 << 31)):  # UTIME_OMIT, UTIME_NOW; before 1970, after 2038
            spec = struct.pack("4q", *((9, pair[0], 9, pair[1]) if pair[0] > 0 else (pair[0], 0, pair[1], 0)))
            said.append((outcome(c, "utimensat", -100, p, spec, 0), os.stat(p).st_mtime_ns if pair[0] < 0 else None, os.stat(p).st_atime_ns if pair[0] < 0 else None))
        return said
    return each_is_as_on_the_backing(calls)


def file_is_born_when_the_backing_says():
    """statx(2) with STATX_BTIME."""
    def birth(path):
        buf = ctypes.create_string_buffer(256)
        c("statx", -100, path, 0, 0xfff, buf)
        mask, = struct.unpack_from("I", buf, 0)
        ino, size = struct.unpack_from("QQ", buf, 32)
        return mask & 0x800, struct.unpack_from("qI", buf, 80), ino, size, struct.unpack_from("H", buf, 28)
    with mounted() as m:
        for name, make in (("f", lambda p: put(p, b"12345")), ("d", os.mkdir), ("l", lambda p: os.symlink("f", p))):
            make(m.path(name))
            assert birth(m.path(name)) == birth(os.path.join(m.source, name)) and birth(m.path(name))[0], name
        m.umount()


def file_flags_are_the_backings():
    """chattr and lsattr; a file made immutable while chunks of it are dirty loses none of them."""
    GET, SET, FSGET, VERSION = 0x80086601, 0x40086602, 0x801c581f, 0x80087601
    APPEND, IMMUTABLE, NODUMP = 0x20, 0x10, 0x40

    def calls(d):
        p, top, said = os.path.join(d, "f"), os.path.join(d, "dir"), []
        put(p, b"x", 0o666, ALICE), os.mkdir(top)

        def flags(path, set_=None):
            fd = os.open(path, os.O_RDONLY)
            try:
                if set_ is not None:
                    others, = struct.unpack("I", fcntl.ioctl(fd, GET, bytes(8))[:4])  # whether it has extents, say
                    fcntl.ioctl(fd, SET, struct.pack("l", others & ~(APPEND | IMMUTABLE | NODUMP) | set_))
                return struct.unpack("i", fcntl.ioctl(fd, GET, bytes(8))[:4])[0] & (APPEND | IMMUTABLE | NODUMP)
            finally:
                os.close(fd)

        for path in (p, top):
            said += [outcome(flags, path), outcome(flags, path, NODUMP), as_user(ALICE, flags, path, 0), as_user(BOB, flags, path, NODUMP),
                     as_user(ALICE, flags, path, IMMUTABLE)]
        try:
            said += [outcome(flags, p, APPEND), outcome(open, p, "r+"), outcome(lambda: open(p, "ab").write(b"y")), outcome(os.unlink, p), outcome(flags, p, IMMUTABLE),
                     outcome(open, p, "ab"), outcome(os.chmod, p, 0o600), outcome(os.link, p, p + "2")]
        finally:
            flags(p, 0)
        fd = os.open(p, os.O_RDONLY)
        said += [len(fcntl.ioctl(fd, FSGET, bytes(28))), outcome(fcntl.ioctl, fd, 0x40049409, fd), outcome(fcntl.ioctl, fd, 0x5401, bytes(64))]  # FICLONE onto itself, TCGETS
        os.close(fd)
        return said
    return each_is_as_on_the_backing(calls)


def changes_through_the_mount_are_seen_by_inotify():
    def watched(d):
        fd = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(fd, d.encode(), 0xfff) >= 0
        p = os.path.join(d, "f")
        with open(p, "wb") as f:
            f.write(b"1"), f.flush()
        os.chmod(p, 0o600), os.truncate(p, 0), os.rename(p, p + "2"), os.mkdir(p), os.rmdir(p), os.link(p + "2", p), os.unlink(p), os.unlink(p + "2")
        events, buf = [], os.read(fd, 65536)
        while buf:
            wd, mask, cookie, n = struct.unpack_from("iIII", buf)
            events.append((hex(mask), buf[16:16 + n].rstrip(b"\0")))
            buf = buf[16 + n:]
        os.close(fd)
        return [events]
    return each_is_as_on_the_backing(watched)


def names_of_any_bytes_and_of_full_length():
    def calls(d):
        top, said = d.encode(), []
        for name in (bytes(set(range(1, 256)) - {ord("/")})[:250], b"\xff\xfe", b"\n", b" ", b"-rf", b"a" * 255, b"a" * 256, b"\\x00", "é".encode(), "é".encode()):
            p = top + b"/" + name
            said += [outcome(os.mkdir, p), outcome(lambda: os.close(os.open(p + b"/" + name, os.O_CREAT | os.O_WRONLY))), outcome(os.listdir, p),
                     outcome(os.symlink, name * (4095 // len(name)), p + b"/l"), outcome(os.readlink, p + b"/l"), outcome(os.rename, p + b"/" + name, p + b"/m")]
        said.append(sorted(os.listdir(top)))
        return said
    return each_is_as_on_the_backing(calls)


def paths_as_long_and_trees_as_deep_as_they_get():
    """PATH_MAX from the mount's root, and far deeper step by step."""
    DEPTH = 1500
    with mounted() as m:
        path = m.point
        while len(path) < 4095 - 256:
            path += "/" + "d" * 200
            os.mkdir(path)
        longest = path + "/" + "f" * (4095 - len(path) - 1)
        with open(longest, "w") as f:
            f.write("deep")
        assert len(longest) == 4095 and open(longest).read() == "deep"
        raises(errno.ENAMETOOLONG, os.open, longest + "f", os.O_RDONLY)
        fd = os.open(m.point, os.O_RDONLY)
        for i in range(DEPTH):
            os.mkdir("deep", dir_fd=fd)
            below = os.open("deep", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        for i in range(DEPTH):
            above = os.open("..", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = above
        assert os.path.samestat(os.fstat(fd), os.stat(m.point))
        os.close(fd)
        command("find", m.point, "-name", "bottom")
        command("rm", "-rf", m.path("deep"), m.path("d" * 200))
        assert os.listdir(m.source) == []
        m.umount()


def directory_is_read_once_through_while_entries_come_and_go():
    """What is there all the time is told exactly once, whatever else happens; seekdir(3) finds its place again."""
    with mounted() as m:
        d = os.path.join(m.source, "d")
        os.mkdir(d)
        for i in range(ENTRIES):
            os.close(os.open(os.path.join(d, f"stays{i}"), os.O_CREAT | os.O_WRONLY))
        for i in range(ENTRIES // 10):
            os.close(os.open(os.path.join(d, f"goes{i}"), os.O_CREAT | os.O_WRONLY))
        seen, n = [], 0
        for entry in os.scandir(m.path("d")):
            seen.append(entry.name)
            n += 1
            if n % 10 == 0 and n // 10 < ENTRIES // 10:
                os.unlink(m.path(f"d/goes{n // 10}"))
                os.close(os.open(m.path(f"d/comes{n}"), os.O_CREAT | os.O_WRONLY))
                os.rename(m.path(f"d/comes{n}"), m.path(f"d/came{n}"))
        stays = [s for s in seen if s.startswith("stays")]
        assert len(stays) == ENTRIES == len(set(stays)) and len(set(seen)) == len(seen)
        assert sorted(os.listdir(m.path("d"))) == sorted(os.listdir(d))
        libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
        libc.telldir.restype = ctypes.c_long
        stream = ctypes.c_void_p(libc.opendir(m.path("d").encode()))
        name = lambda: ctypes.string_at(libc.readdir(stream) + 19)
        for _ in range(ENTRIES * 3 // 4):
            name()
        here = libc.telldir(stream)
        next_one = name()
        for _ in range(ENTRIES // 8):
            name()
        libc.seekdir(stream, ctypes.c_long(here))
        assert name() == next_one
        libc.closedir(stream)
        m.umount()


def open_of_a_removed_or_replaced_file_goes_on():
    def calls(d):
        at, said = lambda n: os.path.join(d, n), []
        put(at("f"), b"old"), os.mkdir(at("dir")), put(at("dir/x"))
        fd, top = os.open(at("f"), os.O_RDWR), os.open(at("dir"), os.O_RDONLY)
        os.unlink(at("f"))
        said += [os.pread(fd, 9, 0), os.fstat(fd).st_nlink, os.pwrite(fd, b"new", 0), outcome(os.fchmod, fd, 0o600), outcome(os.ftruncate, fd, 2),
                 outcome(os.open, at("f"), os.O_RDONLY), os.fstat(fd).st_size, outcome(os.setxattr, fd, "user.a", b"1"), outcome(os.listxattr, fd)]
        os.mkdir(at("f"))
        said += [os.pread(fd, 9, 0), stat.S_ISREG(os.fstat(fd).st_mode)]
        os.unlink(at("dir/x")), os.rmdir(at("dir"))
        said += [outcome(lambda: os.open("y", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=top)), outcome(os.listdir, top), os.fstat(top).st_nlink]
        os.close(fd), os.close(top)
        return said
    return each_is_as_on_the_backing(calls)


def an_ordinary_users_mount_behaves_as_its_backing():
    """Without allow_other and without root: random calls of three processes, each beside the same call on a twin."""
    def work(hmmfs, source, point, mine):
        here, there = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../fsstress"), os.path.join(os.path.dirname(source), "fsstress")
        shutil.copytree(here, there)
        made = mine("mktemp", "-d")  # TMPDIR's own filesystem, as the source is
        twin = made.stdout.decode().strip()
        try:
            r = mine("/usr/bin/python3", os.path.join(there, "fsstress.py"), "--steps", "1500", "--processes", "3", point, twin)
            assert r.returncode == 0, r.stderr.decode()[-3000:] + r.stdout.decode()[-1000:]
            assert mine(hmmfs, "umount", point).returncode == 0
        finally:
            shutil.rmtree(twin, ignore_errors=True)
    return mounted_by_an_ordinary_user(work)


def a_callers_umask_is_no_other_callers():
    """Threads of the daemon begin as copies of one that has served a caller with another umask."""
    def create(m, who, umask):
        os.umask(umask)
        for i in range(50):
            os.close(os.open(m.path(f"{who} {i}"), os.O_CREAT | os.O_WRONLY, 0o666))

    def in_child(*args):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                create(*args)
                status = 0
            finally:
                os._exit(status)
        return child
    for _ in range(3):
        with mounted() as m:
            umasks = {"own": 0o77, "all": 0}
            children = [in_child(m, f"{kind} {who}", umasks[kind]) for who in range(8) for kind in umasks]
            assert [os.waitpid(child, 0)[1] for child in children] == [0] * 16
            assert {(name[:3], mode_of(m.path(name))) for name in os.listdir(m.point)} == {("own", "0o100600"), ("all", "0o100666")}
            m.umount()
