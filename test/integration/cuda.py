"""cuda.py - the CUDA driver for tests: the simulated one (test/simcuda), or, with HMMFS_TEST_REAL_CUDA=1, the machine's."""
import atexit, ctypes, os, tempfile, threading

BUILD = os.environ.get("HMMFS_TEST_BUILD", "")
IS_REAL = bool(os.environ.get("HMMFS_TEST_REAL_CUDA"))
FOLDER = os.path.join(BUILD, "test/simcuda")
# A library without sanitizers, as the interpreter has none
LIBRARY = "libcuda.so.1" if IS_REAL else os.path.join(
    os.path.dirname(os.environ.get("HMMFS_TEST_CLIENT") or os.path.join(BUILD, "client/x")), "../test/simcuda/libcuda.so.1")


def set_environment(chunk):
    """What the processes of a test need to find the simulated driver, and to share one device."""
    if IS_REAL:
        return
    os.environ["LD_LIBRARY_PATH"] = FOLDER + ":" + os.environ.get("LD_LIBRARY_PATH", "")
    os.environ.setdefault("HMMFS_SIMCUDA_GRANULARITY", str(chunk))
    if "HMMFS_SIMCUDA_STATE" not in os.environ:
        fd, os.environ["HMMFS_SIMCUDA_STATE"] = tempfile.mkstemp(prefix="hmmfs-simcuda-")
        os.close(fd)
        atexit.register(lambda path, of: os.getpid() == of and os.unlink(path), os.environ["HMMFS_SIMCUDA_STATE"], os.getpid())


class CudaError(Exception):
    def __init__(self, name, result):
        super().__init__(f"{name}: {result}")
        self.result = result


_library, _context, _of_thread = None, ctypes.c_void_p(), threading.local()


def call(name, *arguments):
    global _library
    if _library is None:
        _library = ctypes.CDLL(LIBRARY)
    result = getattr(_library, name)(*arguments)
    if result:
        raise CudaError(name, result)


def use():
    """Sees to it that this thread has a current context."""
    if getattr(_of_thread, "pid", 0) == os.getpid():
        return
    if not _context.value:
        call("cuInit", 0)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(_context), 0)
    call("cuCtxSetCurrent", _context)
    _of_thread.pid = os.getpid()


def forget():
    """This thread has no current context any more."""
    call("cuCtxSetCurrent", None)
    _of_thread.pid = 0


def read(address, n):
    data = ctypes.create_string_buffer(n)
    call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(n))
    return data.raw


def write(address, data):
    call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), bytes(data), ctypes.c_size_t(len(data)))


def memory():
    """(free, total)"""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    use()
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value
