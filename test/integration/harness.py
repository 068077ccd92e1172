"""harness.py - a real mount for a test: its own source, mount point and daemon, gone when the test ends, however it ends."""
import contextlib, ctypes, ctypes.util, json, os, shutil, signal, subprocess, tempfile

BUILD = os.environ.get("HMMFS_TEST_BUILD", "")
HMMFS = os.path.join(BUILD, "tools/hmmfs") if BUILD else "hmmfs"
DEVICE = os.environ.get("HMMFS_TEST_DEVICE", "host")
CPU_ACCESS = os.environ.get("HMMFS_TEST_CPU_ACCESS", "auto")
CAPACITY = os.environ.get("HMMFS_TEST_CAPACITY", "4M")
CHUNK_TEXT = os.environ.get("HMMFS_TEST_CHUNK", "64K")
CHUNK = int(CHUNK_TEXT[:-1]) * {"K": 1 << 10, "M": 1 << 20}[CHUNK_TEXT[-1]]


def command(*args, ok=(0,), **more):
    """Runs a command; its stdout. A status not in ok is a failure of the test."""
    r = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120, **more)
    assert r.returncode in ok, f"{args}: status {r.returncode}, not {ok}: {r.stdout.decode()} {r.stderr.decode()}"
    return r.stdout.decode(errors="replace") if r.returncode == 0 else r.stderr.decode(errors="replace")


def pattern(n, seed=1):
    return bytes((i * 131 + (i >> 8) * 7 + seed) & 255 for i in range(min(n, 65536))) * (n // 65536 + 1) if n else b""


def data_of(n, seed=1):
    return pattern(n, seed)[:n]


class Mount:
    def __init__(self, scratch, **options):
        self.source, self.point = os.path.join(scratch, "source"), os.path.join(scratch, "mount")
        os.makedirs(self.source, exist_ok=True)
        os.makedirs(self.point, exist_ok=True)
        o = dict(device=DEVICE, cpu_access=CPU_ACCESS, capacity=CAPACITY, chunk=CHUNK_TEXT, bounce="8M") | options
        self.options = ",".join(f"{k}={v}" for k, v in o.items() if v is not None)
        self.daemon = None

    def start(self):
        self.daemon = subprocess.Popen([HMMFS, "mount", self.source, self.point, "-f", "-o", self.options],
                                       stderr=subprocess.PIPE, start_new_session=True)
        for line in self.daemon.stderr:  # the daemon says when it serves
            self.first_line = line.decode()
            if os.path.ismount(self.point):
                break
        self.device_number = os.minor(os.stat(self.point).st_dev) if os.path.ismount(self.point) else 0
        assert os.path.ismount(self.point), "the daemon ended before it mounted: " + getattr(self, "first_line", "")

    def path(self, name):
        return os.path.join(self.point, name)

    def backing(self, name):
        with open(os.path.join(self.source, name), "rb") as f:
            return f.read()

    def put(self, name, data):
        """Puts a file into the backing, before the mount knows it."""
        with open(os.path.join(self.source, name), "wb") as f:
            f.write(data)
        return self.path(name)

    def status(self):
        return json.loads(command(HMMFS, "status", self.point, "--json"))

    def chunks(self, name):
        return json.loads(command(HMMFS, "map", self.path(name), "--json"))

    def umount(self, *how):
        command(*(how or (HMMFS, "umount", self.point)))
        assert self.wait() == 0, "the daemon's exit status"

    def wait(self):
        self.daemon.stderr.close()
        return self.daemon.wait(timeout=60)

    def clean(self):
        if not self.daemon or (self.daemon.poll() is not None and not os.path.ismount(self.point)):
            return
        # A daemon that dies while the kernel waits for it inside an invalidation takes its connection with it into
        # limbo: only aborting that frees whoever waits.
        abort = f"/sys/fs/fuse/connections/{self.device_number}/abort"
        if os.path.exists(abort):
            with open(abort, "w") as f:
                f.write("1")
        subprocess.run(["fusermount3", "-u", "-z", self.point], stderr=subprocess.DEVNULL)
        self.daemon.kill()
        self.daemon.wait()


@contextlib.contextmanager
def mounted(**options):
    scratch = tempfile.mkdtemp(prefix="hmmfs-test-")
    m = Mount(scratch, **options)
    try:
        m.start()
        yield m
    finally:
        m.clean()
        shutil.rmtree(scratch, ignore_errors=True)


# ---- libhmmfs ----

SHARED, EXCLUSIVE = 0, 1
_lib = None


def lib():
    global _lib
    if _lib is None:
        # HMMFS_TEST_CLIENT: a library without sanitizers, which this interpreter could not load
        _lib = ctypes.CDLL(os.environ.get("HMMFS_TEST_CLIENT") or
                           (os.path.join(BUILD, "client/libhmmfs.so.0") if BUILD else "libhmmfs.so.0"))
        _lib.hmmfs_map_fd.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)]
        _lib.hmmfs_map.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)]
        _lib.hmmfs_begin.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
        for f in (_lib.hmmfs_end, _lib.hmmfs_unmap, _lib.hmmfs_data):
            f.argtypes = [ctypes.c_void_p]
        _lib.hmmfs_data.restype = ctypes.c_void_p
        _lib.hmmfs_unmap.restype = None
    return _lib


class Region:
    """A region of an open file or, given address, of the file mapped there."""
    def __init__(self, fd, off, length, address=None):
        self.r, self.length = ctypes.c_void_p(), length
        e = lib().hmmfs_map(address, length, ctypes.byref(self.r)) if address is not None else \
            lib().hmmfs_map_fd(fd, off, length, ctypes.byref(self.r))
        if e:
            raise OSError(-e, os.strerror(-e))

    def begin(self, mode, timeout_ms=0):
        e = lib().hmmfs_begin(self.r, mode, timeout_ms)
        if e:
            raise OSError(-e, os.strerror(-e))
        return self

    def end(self):
        e = lib().hmmfs_end(self.r)
        if e:
            raise OSError(-e, os.strerror(-e))

    def load(self):
        return ctypes.string_at(lib().hmmfs_data(self.r), self.length)

    def store(self, off, data):
        ctypes.memmove(lib().hmmfs_data(self.r) + off, data, len(data))

    def close(self):
        lib().hmmfs_unmap(self.r)


@contextlib.contextmanager
def leased(fd, mode, off=0, length=None, address=None):
    r = Region(fd, off, os.fstat(fd).st_size if length is None else length, address)
    try:
        r.begin(mode)
        yield r
        r.end()
    finally:
        r.close()
