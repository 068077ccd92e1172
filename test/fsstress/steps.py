"""steps.py - the calls of fsstress.py, and how a process makes them in both directories.

A step picks what it needs from the process's seed, and then makes its call in each directory. What is picked must not depend on what one of
the two said: only on what both did."""
import ctypes, errno, mmap, os, stat, struct
from tree import attributes

libc = ctypes.CDLL(None, use_errno=True)
ALICE = (10001, 20001)
FILE_SIZE, KNOWN, OPEN = 300000, 60, 6
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
# What a race for a name may end with. Never EIO, ESTALE, EMFILE or EBUSY.
LUCK = {"ENOENT", "EEXIST", "ENOTEMPTY", "ENOTDIR", "EISDIR", "EINVAL", "EACCES", "EPERM", "ENXIO", "ELOOP", "EMLINK"}


def outcome(call, *args):
    """What a call returned, or its errno's name."""
    try:
        return call(*args)
    except OSError as e:
        return errno.errorcode[e.errno]


def c(name, *args):
    result = getattr(libc, name)(*[a.encode() if isinstance(a, str) else ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def access_list(perms):
    """A posix_acl_access of owner, ALICE, group, mask and others."""
    tags = ((1, perms >> 6, -1), (2, perms >> 3, ALICE[0]), (4, perms, -1), (16, 7, -1), (32, perms >> 1, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", tag, perm & 7, who) for tag, perm, who in tags)


class Twins:
    def __init__(self, random, number, directory, twin, modes):
        self.modes, self.random, self.letter, self.tops = modes, random, chr(ord("a") + number), (twin, directory)
        self.known, self.open, self.wrong, self.n_succeeded, self.n_steps = [], [], None, 0, 0
        self.is_root = os.geteuid() == 0
        os.umask(0o22)

    # ---- picking ----

    def name(self):
        """One of the process's names: nearly always a known one, or a new one in a known directory or below none."""
        r = self.random
        if self.known and r.random() < 0.6:
            return r.choice(self.known)
        above = r.choice(self.known) if self.known and r.random() < 0.6 else f"top{r.randrange(3)}"
        return f"{above}/{self.letter}{r.choice('0123456789')}"

    def bytes(self):
        return self.random.randbytes(self.random.choice((1, 10, 4096, 5000, 70000)))

    def offset(self):
        return self.random.choice((0, 0, 1, 4096, 65536, self.random.randrange(FILE_SIZE)))

    # ---- making a step ----

    def step(self, call):
        """Makes it, as one user or another; a line about it."""
        self.n_steps += 1
        other = self.is_root and self.random.random() < 0.5
        if other:
            os.setegid(ALICE[1]), os.seteuid(ALICE[0])
        try:
            said = call(self)
        finally:
            if other:
                os.seteuid(0), os.setegid(0)
        return f"{self.n_steps}: {'other user: ' if other else ''}{said}"

    def both(self, what, call):
        """call(i, top) for both directories; whether it succeeded, and a line."""
        want, got = (outcome(call, i, top) for i, top in enumerate(self.tops))
        line = f"{what}: {want if len(repr(want)) < 200 else type(want).__name__}"
        if want != got:
            self.wrong = f"{what}: the twin {repr(want)[:500]}, here {repr(got)[:500]}"
        has_succeeded = not isinstance(want, str)
        self.n_succeeded += has_succeeded
        return has_succeeded, line

    def named(self, what, call, makes=False, removes=False):
        """A step on one name: call(path)."""
        name = self.name()
        has_succeeded, line = self.both(f"{what} {name}", lambda i, top: call(os.path.join(top, name)))
        if has_succeeded and makes:
            self.remember(name)
        if has_succeeded and removes:
            self.forget(name)
        return line

    def remember(self, name):
        if name not in self.known:
            self.known.append(name)
        if len(self.known) > KNOWN:
            self.known.pop(self.random.randrange(KNOWN))

    def forget(self, name):
        self.known = [k for k in self.known if k != name and not k.startswith(name + "/")]

    def opened(self, what, call):
        """A step on an open file: call(fd)."""
        if not self.open:
            return open_(self)
        pair = self.random.choice(self.open)
        return self.both(f"{what} of open file {self.open.index(pair)}", lambda i, top: call(pair[i]))[1]


# ---- names ----

def create(t):
    """O_RDWR, here and below: a fifo's writer would find a reader or not, as others have it."""
    mode, flags = t.random.choice((0o666, 0o640, 0o4755, 0o2770, 0)) & t.modes, t.random.choice((0, os.O_EXCL, os.O_TRUNC, os.O_DIRECTORY))
    return t.named(f"create {mode:o} {flags:x}", lambda p: os.close(os.open(p, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK | flags, mode)), makes=True)


def mkdir(t):
    mode = t.random.choice((0o777, 0o1777, 0o2775, 0o700, 0o555)) & t.modes
    return t.named(f"mkdir {mode:o}", lambda p: os.mkdir(p, mode), makes=True)


def mknod(t):
    kind = t.random.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR))
    return t.named(f"mknod {kind:o}", lambda p: os.mknod(p, kind | 0o644, 0x107 if kind == stat.S_IFCHR else 0), makes=True)


def symlink(t):
    """Whatever is made through one is the process's own again, and in the same tree."""
    target = t.random.choice((os.path.basename(t.name()), f"../top{t.random.randrange(3)}/{t.letter}0", t.letter * t.random.randrange(1, 4000)))
    return t.named(f"symlink {target[:20]}", lambda p: os.symlink(target, p), makes=True)


def link(t):
    old, new = t.name(), t.name()
    has_succeeded, line = t.both(f"link {old} {new}", lambda i, top: os.link(f"{top}/{old}", f"{top}/{new}", follow_symlinks=False))
    if has_succeeded:
        t.remember(new)
    return line


def rename(t):
    old, new, flags = t.name(), t.name(), t.random.choice((0, 0, 0, 1, 2))  # NOREPLACE, EXCHANGE
    has_succeeded, line = t.both(f"rename {old} {new} {flags}", lambda i, top: c("renameat2", -100, f"{top}/{old}", -100, f"{top}/{new}", flags))
    if has_succeeded:
        if flags != 2:
            t.forget(old)
        t.remember(new)
    return line


def unlink(t): return t.named("unlink", os.unlink, removes=True)


def rmdir(t): return t.named("rmdir", os.rmdir, removes=True)


def look(t): return t.named("look", attributes)


def list_(t):
    """Own names alone, with the kind that readdir(3) tells."""
    kind = lambda e: (e.is_symlink(), e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False))
    name = t.random.choice((t.name(), "top0", "top1", "top2"))
    return t.both(f"list {name}", lambda i, top: sorted((e.name, kind(e)) for e in os.scandir(os.path.join(top, name)) if e.name[0] == t.letter))[1]


# ---- attributes ----

def chmod(t):
    mode = t.random.choice((0o644, 0o600, 0o755, 0o4711, 0o2755, 0o1777, 0)) & t.modes
    return t.named(f"chmod {mode:o}", lambda p: os.chmod(p, mode))


def chown(t):
    """Not of (-1, -1): where the backing says EPERM to one who is not the owner, the kernel does not let a FUSE daemon know."""
    user, group = t.random.choice(((-1, 0), (-1, ALICE[1]), (0, -1), (ALICE[0], -1), (0, ALICE[1]), ALICE))
    return t.named(f"chown {user} {group}", lambda p: os.lchown(p, user, group))


def utime(t):
    times = (t.random.randrange(-(10**9), 2**33) * 10**9 + 7, t.random.randrange(2**31) * 10**9 + 123456789)

    def change(p):
        os.utime(p, ns=times, follow_symlinks=False)
        return os.lstat(p).st_mtime_ns
    return t.named(f"utime {times}", change)


def set_xattr(t):
    name = t.random.choice(("user.a", "user.b", "trusted.a", "security.a", "nonsense"))
    value, flags = t.random.randbytes(t.random.choice((0, 1, 100, 3000))), t.random.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
    return t.named(f"setxattr {name} {len(value)} {flags}", lambda p: os.setxattr(p, name, value, flags, follow_symlinks=False))


def remove_xattr(t):
    name = t.random.choice(("user.a", "user.b", "trusted.a", "system.posix_acl_access", "system.posix_acl_default"))
    return t.named(f"removexattr {name}", lambda p: os.removexattr(p, name, follow_symlinks=False))


def set_acl(t):
    kind, value = t.random.choice(("access", "default")), access_list(t.random.randrange(512))
    return t.named(f"set acl {kind}", lambda p: os.setxattr(p, f"system.posix_acl_{kind}", value, follow_symlinks=False))


# ---- bytes ----

def read_file(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        s = os.fstat(fd)
        return os.pread(fd, FILE_SIZE * 2, 0) if stat.S_ISREG(s.st_mode) else oct(s.st_mode).encode()
    finally:
        os.close(fd)


def read(t): return t.named("read", read_file)


def write(t):
    data, off, flags = t.bytes(), t.offset(), t.random.choice((0, os.O_APPEND, os.O_TRUNC))

    def change(p):
        fd = os.open(p, os.O_RDWR | os.O_NONBLOCK | flags)
        try:
            return (os.pwrite(fd, data, off), os.fstat(fd).st_size) if stat.S_ISREG(os.fstat(fd).st_mode) else "no file"
        finally:
            os.close(fd)
    return t.named(f"write {len(data)}@{off} {flags:x}", change)


def truncate(t):
    size = t.random.choice((0, 1, 4096, t.random.randrange(FILE_SIZE)))
    return t.named(f"truncate {size}", lambda p: os.truncate(p, size))


def open_(t):
    """Keeps it open, whatever becomes of its names."""
    if len(t.open) == OPEN:
        for fd in t.open.pop(t.random.randrange(OPEN)):
            os.close(fd)
    name, fds, flags = t.name(), [], t.random.choice((0, os.O_CREAT, os.O_TRUNC, os.O_APPEND))

    def keep(i, top):
        fd = os.open(f"{top}/{name}", os.O_RDWR | os.O_NONBLOCK | flags, 0o660)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return "no file"
        fds.append(fd)
    has_succeeded, line = t.both(f"open {name} {flags:x}", keep)
    if has_succeeded and not t.wrong:
        t.open.append(fds)
        t.remember(name)
    return line


def pread(t):
    off, n = t.offset(), t.random.choice((1, 5000, 100000))
    return t.opened(f"pread {n}@{off}", lambda fd: os.pread(fd, n, off))


def pwrite(t):
    data, off = t.bytes(), t.offset()
    return t.opened(f"pwrite {len(data)}@{off}", lambda fd: os.pwrite(fd, data, off))


def store(t):
    """Through a mapping."""
    at, data = t.offset(), t.bytes()[:4096]

    def change(fd):
        size = os.fstat(fd).st_size
        if at + len(data) > size:
            return None
        with mmap.mmap(fd, size) as m:
            m[at:at + len(data)] = data
    return t.opened(f"store {len(data)}@{at}", change)


def ftruncate(t):
    size = t.random.choice((0, 1, 4096, t.random.randrange(FILE_SIZE)))
    return t.opened(f"ftruncate {size}", lambda fd: os.ftruncate(fd, size))


def allocate(t):
    mode, off, n = t.random.choice((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE)), t.offset(), t.random.choice((1, 4096, 50000))
    return t.opened(f"fallocate {mode:x} {n}@{off}", lambda fd: c("fallocate", fd, mode, off, n))


def fstat(t):
    def say(fd):
        s = os.fstat(fd)
        return oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink, s.st_size
    return t.opened("fstat", say)


def fsync(t): return t.opened("fsync", t.random.choice((os.fsync, os.fdatasync)))


def copy(t):
    """From one open file to another, to the end of what was asked for, however the kernel cuts it."""
    if len(t.open) < 2:
        return open_(t)
    (a, b), off, to, n = t.random.sample(t.open, 2), t.offset(), t.offset(), t.random.choice((1, 5000, 70000))

    def change(i, top):
        done = 0
        while done < n:
            got = os.copy_file_range(a[i], b[i], n - done, off + done, to + done)
            if got == 0:
                break
            done += got
        return done
    return t.both(f"copy {n}@{off} to {to}", change)[1]


# ---- names that belong to everybody ----

def luck(t):
    """Made in the directory alone, by all processes, and so with any of the errors that a race can give."""
    r, top = t.random, f"{t.tops[1]}/everybodys"
    name = lambda: "/".join([top] + [r.choice("pqrs") for _ in range(r.choice((1, 1, 2, 3)))])
    p, q, data = name(), name(), t.bytes()

    def rewrite():
        fd = os.open(p, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            os.write(fd, data), os.pread(fd, 10, 0), os.fstat(fd)
        finally:
            os.close(fd)
    what, call = r.choice((("create and write", rewrite), ("mkdir", lambda: os.mkdir(p)), ("unlink", lambda: os.unlink(p)), ("rmdir", lambda: os.rmdir(p)),
                           ("rename", lambda: os.rename(p, q)), ("exchange", lambda: c("renameat2", -100, p, -100, q, 2)), ("link", lambda: os.link(p, q)),
                           ("symlink", lambda: os.symlink("p", p)), ("list", lambda: os.listdir(p)), ("look", lambda: os.lstat(p)), ("truncate", lambda: os.truncate(p, 5))))
    said = outcome(call)
    if isinstance(said, str) and said not in LUCK:
        t.wrong = f"{what} {p} {q}: {said}"
    return f"everybody's: {what} {p} {q}: {said if isinstance(said, str) else 'done'}"


CHANCES = [(8, create), (5, mkdir), (1, mknod), (3, symlink), (3, link), (6, rename), (4, unlink), (2, rmdir), (5, look), (3, list_), (3, chmod), (2, chown), (2, utime),
           (3, set_xattr), (1, remove_xattr), (1, set_acl), (4, read), (5, write), (3, truncate), (5, open_), (4, pread), (5, pwrite), (3, store), (2, ftruncate),
           (3, allocate), (2, fstat), (1, fsync), (2, copy), (12, luck)]
