"""device.py - libhmmfs: regions and leases, and what a test stores to a device and loads from it."""
import contextlib, ctypes, os
import cuda
from harness import BUILD, DEVICE

SHARED, EXCLUSIVE = 0, 1
FILL, SOURCE = 4, 5  # enum hmmfs_kernel
COPY = b"__kernel void copy(__global uchar *data, ulong len, __global uchar *to) { ulong i = get_global_id(0); if (i < len) to[i] = data[i]; }"


class Info(ctypes.Structure):
    _fields_ = [("chunk_bytes", ctypes.c_uint64), ("capacity_bytes", ctypes.c_uint64), ("file_bytes", ctypes.c_uint64),
                ("can_export", ctypes.c_bool), ("can_run", ctypes.c_bool), ("is_writable", ctypes.c_bool), ("owner", ctypes.c_uint),
                ("daemon", ctypes.c_int), ("backend", ctypes.c_char * 16), ("device_name", ctypes.c_char * 128),
                ("is_cuda", ctypes.c_bool), ("device_uuid", ctypes.c_uint8 * 16)]


class Chunk(ctypes.Structure):
    _fields_ = [("index", ctypes.c_uint64), ("state", ctypes.c_char * 8), ("shared_leases", ctypes.c_uint32),
                ("has_exclusive_lease", ctypes.c_bool), ("has_kernel_copies", ctypes.c_bool), ("has_error", ctypes.c_bool)]


class Argument(ctypes.Structure):
    _fields_ = [("is_out", ctypes.c_bool), ("bytes", ctypes.c_uint32), ("scalar", ctypes.c_uint8 * 8), ("out_bytes", ctypes.c_uint64)]


class Run(ctypes.Structure):
    _fields_ = [("kernel", ctypes.c_int), ("writes", ctypes.c_bool), ("byte", ctypes.c_uint8), ("pattern", ctypes.c_char_p),
                ("pattern_bytes", ctypes.c_size_t), ("source", ctypes.c_char_p), ("entry", ctypes.c_char_p),
                ("args", ctypes.POINTER(Argument)), ("n_args", ctypes.c_size_t), ("items", ctypes.c_uint64),
                ("timeout_ms", ctypes.c_uint), ("result", ctypes.c_void_p), ("result_bytes", ctypes.c_size_t),
                ("log", ctypes.c_void_p), ("times", ctypes.c_uint64 * 3), ("kernel_ns", ctypes.c_uint64),
                ("release_ns", ctypes.c_uint64)]


_lib = None


def lib():
    global _lib
    if _lib is None:
        # HMMFS_TEST_CLIENT: a library without sanitizers, which this interpreter could not load
        _lib = ctypes.CDLL(os.environ.get("HMMFS_TEST_CLIENT") or
                           (os.path.join(BUILD, "client/libhmmfs.so.0") if BUILD else "libhmmfs.so.0"))
        pointer, out = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        for name, result, *arguments in (
                ("hmmfs_map", ctypes.c_int, pointer, ctypes.c_size_t, out),
                ("hmmfs_map_fd", ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_size_t, out),
                ("hmmfs_unmap", None, pointer), ("hmmfs_data", pointer, pointer), ("hmmfs_end", ctypes.c_int, pointer),
                ("hmmfs_begin", ctypes.c_int, pointer, ctypes.c_int, ctypes.c_uint), ("hmmfs_wait", ctypes.c_int, pointer),
                ("hmmfs_device_pointer", ctypes.c_uint64, pointer), ("hmmfs_end_stream", ctypes.c_int, pointer, pointer),
                ("hmmfs_end_event", ctypes.c_int, pointer, pointer),
                ("hmmfs_open_fd", ctypes.c_int, ctypes.c_int, out), ("hmmfs_close", None, pointer),
                ("hmmfs_info", ctypes.POINTER(Info), pointer),
                ("hmmfs_get_chunks", ctypes.c_int, pointer, ctypes.c_uint64, ctypes.POINTER(Chunk), ctypes.c_size_t,
                 ctypes.POINTER(ctypes.c_size_t)),
                ("hmmfs_run", ctypes.c_int, pointer, ctypes.c_long, ctypes.c_uint64, ctypes.POINTER(Run))):
            f = getattr(_lib, name)
            f.argtypes, f.restype = arguments, result
    return _lib


def check(e):
    if e:
        raise OSError(-e, os.strerror(-e))


def address_of(m):
    return ctypes.addressof(ctypes.c_char.from_buffer(m))


class Region:
    """A region of an open file or, given address, of the file mapped there (whose offset is off then too).

    On cuda, load and store are copies. Where this process can't reach the device's memory they are kernels, which have
    leases of their own: the region's is given up for each of them and taken again."""
    def __init__(self, fd, off, length, address=None):
        self.r, self.off, self.length, self.session, self.mode = ctypes.c_void_p(), off, length, ctypes.c_void_p(), None
        check(lib().hmmfs_map(address, length, ctypes.byref(self.r)) if address is not None else
              lib().hmmfs_map_fd(fd, off, length, ctypes.byref(self.r)))
        check(lib().hmmfs_open_fd(fd, ctypes.byref(self.session)))
        self.is_addressable = lib().hmmfs_info(self.session).contents.can_export
        self.is_cuda = lib().hmmfs_info(self.session).contents.is_cuda

    def begin(self, mode, timeout_ms=0):
        if self.is_cuda:
            cuda.use()
        check(lib().hmmfs_begin(self.r, mode, timeout_ms))
        self.mode = mode
        return self

    def end(self):
        self.mode = None
        check(lib().hmmfs_end(self.r))

    def address(self):
        assert self.mode is not None
        return lib().hmmfs_device_pointer(self.r) if self.is_cuda else lib().hmmfs_data(self.r)

    def run(self, off, length, run):
        mode = self.mode
        self.end()
        check(lib().hmmfs_run(self.session, self.off + off, length, run))
        self.begin(mode)

    def load(self):
        if self.is_cuda:
            return cuda.read(self.address(), self.length)
        if self.is_addressable:
            return ctypes.string_at(self.address(), self.length)
        out = Argument(is_out=True, out_bytes=self.length)
        run = Run(kernel=SOURCE, source=COPY, entry=b"copy", args=ctypes.pointer(out), n_args=1)
        self.run(0, self.length, run)
        data = ctypes.string_at(run.result, run.result_bytes)
        ctypes.CDLL(None).free(ctypes.c_void_p(run.result)), ctypes.CDLL(None).free(ctypes.c_void_p(run.log))
        return data

    def store(self, off, data):
        if self.is_cuda:
            return cuda.write(self.address() + off, data)
        if self.is_addressable:
            ctypes.memmove(self.address() + off, data, len(data))
            return
        for i, byte in enumerate(data):
            self.run(off + i, 1, Run(kernel=FILL, writes=True, byte=byte))

    def close(self):
        lib().hmmfs_unmap(self.r), lib().hmmfs_close(self.session)


def store_at(address, data):
    """To memory of a region, also after its lease."""
    cuda.write(address, data) if DEVICE.startswith("cuda") else ctypes.memmove(address, data, len(data))


@contextlib.contextmanager
def leased(fd, mode, off=0, length=None, address=None):
    r = Region(fd, off, os.fstat(fd).st_size - off if length is None else length, address)
    try:
        r.begin(mode)
        yield r
        r.end()
    finally:
        r.close()


@contextlib.contextmanager
def session_of(fd):
    session = ctypes.c_void_p()
    check(lib().hmmfs_open_fd(fd, ctypes.byref(session)))
    try:
        yield session
    finally:
        lib().hmmfs_close(session)


def states(fd):
    """The states of a file's chunks, by index. (A child process would, closing its copy of fd, write them back.)"""
    chunks, n = (Chunk * 64)(), ctypes.c_size_t()
    with session_of(fd) as session:
        check(lib().hmmfs_get_chunks(session, 0, chunks, len(chunks), ctypes.byref(n)))
    return {c.index: c.state.decode() for c in chunks[:n.value]}


def cannot_address(fd):
    """Why a test can't be run whose point is what a client stores to memory that it has mapped; None: it can."""
    with session_of(fd) as session:
        info = lib().hmmfs_info(session).contents
        can = info.can_export or info.is_cuda
    return None if can else "a client can't store to this device's memory while it holds the lease"
