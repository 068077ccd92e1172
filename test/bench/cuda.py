#!/usr/bin/env python3
"""cuda.py - how fast hmmfs is on cuda, each row beside its floor or rival, measured in turn with it. Prints JSON.

    HMMFS_TEST_BUILD=build HMMFS_TEST_DEVICE=cuda test/bench/cuda.py SIZE RUNS SECONDS

Medians of RUNS; what is not begun SECONDS after the start is left out, and says so. Needs /dev/fuse. gpu-check runs it."""
import ctypes, json, mmap, os, statistics, subprocess, sys, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../integration"))
import cuda
from device import EXCLUSIVE, SHARED, Region
from harness import BUILD, HMMFS, command, mounted

MIB, THREADS = 1 << 20, 8
SIZE, RUNS, SECONDS = int(sys.argv[1]) // (2 * MIB) * 2 * MIB, int(sys.argv[2]), float(sys.argv[3])
START, rows = time.monotonic(), []
u64, size_t = ctypes.c_uint64, ctypes.c_size_t


def seconds(f, *arguments):
    start = time.perf_counter()
    f(*arguments)
    return time.perf_counter() - start


def row(name, unit, measure, target, rival, is_higher_better=True):
    """measure() gives (ours, rival's) once; more than one rival: the best is given."""
    r = {"name": name, "unit": unit, "rival_is": rival, "target": target}
    rows.append(r)
    if time.monotonic() - START > SECONDS:
        r["skipped"] = "no time left"
        return
    try:
        pairs = [measure() for _ in range(RUNS)]
    except Exception as e:  # the other rows are still worth having
        r["skipped"] = f"{type(e).__name__}: {e}"
        return
    ours, theirs = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    ratio = ours / theirs if is_higher_better else theirs / ours
    r |= {"hmmfs": round(ours, 2), "rival": round(theirs, 2), "ratio": round(ratio, 3), "is_met": target is None or ratio >= target}


class Pinned:
    """Pinned host memory and a stream, of one thread."""
    def __init__(self, n):
        cuda.use()
        self.pointer, self.stream, self.n = ctypes.c_void_p(), ctypes.c_void_p(), n
        cuda.call("cuMemHostAlloc", ctypes.byref(self.pointer), size_t(n), 0)
        cuda.call("cuStreamCreate", ctypes.byref(self.stream), 1)
        self.view = memoryview((ctypes.c_char * n).from_address(self.pointer.value)).cast("B")

    def to_device(self, address, n):
        cuda.call("cuMemcpyHtoDAsync_v2", u64(address), self.pointer, size_t(n), self.stream)

    def from_device(self, address, n):
        cuda.call("cuMemcpyDtoHAsync_v2", self.pointer, u64(address), size_t(n), self.stream)

    def wait(self):
        cuda.call("cuStreamSynchronize", self.stream)


def allocate(n):
    address = u64()
    cuda.use()
    cuda.call("cuMemAlloc_v2", ctypes.byref(address), size_t(n))
    return address.value


def in_threads(work):
    """work(thread, off) for each 8 MiB of the file, by several threads."""
    def run(i):
        cuda.use()
        for off in range(i * 8 * MIB, SIZE, THREADS * 8 * MIB):
            work(i, off)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    [t.start() for t in threads], [t.join() for t in threads]


def forget(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd), os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED), os.close(fd)


class Kernel:
    """hmmfs_sum of tools/kernels.cu, in this process."""
    def __init__(self):
        with open(os.path.join(BUILD, "tools/kernels.ptx"), "rb") as f:
            image = f.read() + b"\0"
        self.module, self.function, self.result = ctypes.c_void_p(), ctypes.c_void_p(), allocate(8)
        cuda.call("cuModuleLoadData", ctypes.byref(self.module), image)
        cuda.call("cuModuleGetFunction", ctypes.byref(self.function), self.module, b"hmmfs_sum")
        count = ctypes.c_int()
        cuda.call("cuDeviceGetAttribute", ctypes.byref(count), 16, 0)
        self.blocks = 8 * count.value

    def run(self, address, n, times=8):
        parameters = [u64(address), u64(n), u64(self.result)]
        pointers = (ctypes.c_void_p * 3)(*(ctypes.addressof(p) for p in parameters))
        for _ in range(times):
            cuda.call("cuLaunchKernel", self.function, self.blocks, 1, 1, 256, 1, 1, 0, None, pointers, None)
        cuda.call("cuCtxSynchronize")


def bench(m):
    back, raw, path = os.path.join(m.source, "f"), os.path.join(m.source, "raw"), m.path("f")
    block = os.urandom(8 * MIB)
    for name in (back, raw):
        with open(name, "wb") as f:
            for off in range(0, SIZE, len(block)):
                f.write(block[:SIZE - off])
    fd, raw_fd = os.open(path, os.O_RDWR), os.open(raw, os.O_RDWR | os.O_DIRECT)
    pinned, buffer = [Pinned(8 * MIB) for _ in range(THREADS)], allocate(SIZE)
    free_before = cuda.memory()[0]
    region, mb = Region(fd, 0, SIZE), SIZE / 1e6

    def lease(mode=SHARED):
        region.begin(mode), region.end()

    def read_direct(then_copy):
        def work(i, off):
            n = min(8 * MIB, SIZE - off)
            pinned[i].wait()
            os.preadv(raw_fd, [pinned[i].view[:n]], off)
            if then_copy:
                pinned[i].to_device(buffer + off, n)
        in_threads(work), [p.wait() for p in pinned]

    def write_direct():
        in_threads(lambda i, off: os.pwritev(raw_fd, [pinned[i].view[:min(8 * MIB, SIZE - off)]], off)), os.fsync(raw_fd)

    def bus(is_to_device):
        for off in range(0, SIZE, 8 * MIB):
            p = pinned[off // (8 * MIB) % 2]
            (p.to_device if is_to_device else p.from_device)(buffer + off, min(8 * MIB, SIZE - off))
        [p.wait() for p in pinned]

    def fill():
        command(HMMFS, "evict", path), forget(back), forget(raw)
        ours = seconds(region.begin, SHARED)
        region.end(), forget(raw)
        return mb / ours, mb / max(seconds(read_direct, False), seconds(bus, True))
    row("cold fill", "MB/s", fill, 0.9, "the slower of an O_DIRECT read and pinned copies to the device")

    def writeback():
        lease(EXCLUSIVE)  # all of it is dirty
        return mb / seconds(os.fsync, fd), mb / max(seconds(write_direct), seconds(bus, False))
    row("writeback and fsync", "MB/s", writeback, 0.9, "the slower of an O_DIRECT write and fsync, and pinned copies from the device")

    lease()
    free_after = cuda.memory()[0]
    hot = lambda: statistics.median(seconds(lease) for _ in range(100))

    def read_and_copy():
        with open(raw, "rb", buffering=0) as f, mmap.mmap(-1, SIZE) as memory:
            f.readinto(memory)
            cuda.call("cuMemcpyHtoD_v2", u64(buffer), (ctypes.c_char * SIZE).from_buffer(memory), size_t(SIZE))

    def map_and_copy():
        f = os.open(raw, os.O_RDWR)
        memory = mmap.mmap(f, SIZE)
        cuda.call("cuMemcpyHtoD_v2", u64(buffer), (ctypes.c_char * SIZE).from_buffer(memory), size_t(SIZE))
        os.close(f)

    for name, how in (("read() and cuMemcpy", read_and_copy), ("O_DIRECT into pinned memory, pipelined", lambda: read_direct(True)),
                      ("mmap and cuMemcpy from the page cache", map_and_copy)):
        row(f"hot: file to bytes in my GPU memory, against {name}", "us", lambda: (1e6 * hot(), 1e6 * seconds(how)), 100, name, False)

    def fresh():
        r = Region(fd, 0, SIZE)
        r.begin(SHARED), r.end(), r.close()
    row("hot, with a region of its own each time", "us", lambda: (1e6 * seconds(fresh), 1e6 * seconds(map_and_copy)), None,
        "mmap and cuMemcpy from the page cache", False)

    kernel = Kernel() if os.path.exists(os.path.join(BUILD, "tools/kernels.ptx")) else None

    def reduction():
        region.begin(SHARED)
        ours = seconds(kernel.run, region.address(), SIZE)
        cuda.call("cuMemcpyDtoD_v2", u64(buffer), u64(region.address()), size_t(SIZE)), cuda.call("cuCtxSynchronize")
        region.end()
        return 8 * mb / ours, 8 * mb / seconds(kernel.run, buffer, SIZE)
    if kernel:
        reduction()
    row("reduction over the file", "MB/s", reduction, 0.98, "the same kernel on memory of cuMemAlloc")

    def cpu_read(size, n):
        lease(EXCLUSIVE)  # the kernel has no copies
        memory, step = bytearray(size), SIZE // n // 4096 * 4096
        ours = seconds(lambda: [os.preadv(fd, [memory], i * step) for i in range(n)])
        return n * size / 1e6 / ours, n * size / 1e6 / seconds(lambda: [(pinned[0].from_device(buffer + i * step, size), pinned[0].wait())
                                                                     for i in range(n)])
    count = min(256, SIZE // MIB)
    row("CPU reads resident data in 1 MiB", "MB/s", lambda: cpu_read(MIB, count), None, "pinned cuMemcpyDtoH of the same size")
    row("CPU reads resident data in 4 KiB", "MB/s", lambda: cpu_read(4096, count), None, "pinned cuMemcpyDtoH of the same size")

    code = ("import os,sys,time\nsys.path.insert(0,sys.argv[2])\nimport cuda\nfrom device import *\ncuda.use()\nt=time.perf_counter()\n"
            f"fd=os.open(sys.argv[1],os.O_RDONLY)\nr=Region(fd,0,{SIZE}).begin(SHARED)\nt=time.perf_counter()-t\n"
            "print(t,flush=True)\nsys.stdin.read()\nr.end(),r.close()\n")
    before = cuda.memory()[0]
    with subprocess.Popen([sys.executable, "-c", code, path, os.path.join(HERE, "../integration")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as second:
        start, used = float(second.stdout.readline() or "nan"), before - cuda.memory()[0]
        second.communicate()
    region.close(), os.close(fd), os.close(raw_fd)
    return {"first_process_bytes": free_before - free_after, "second_process_bytes": used, "second_process_start_us": round(1e6 * start, 1)}


with mounted(capacity=str(SIZE + 64 * MIB), chunk="2M", bounce="64M", cpu_access="copy", writeback_interval="0") as mount:
    two = bench(mount)
    mount.umount()
print(json.dumps({"size": SIZE, "runs": RUNS, "rows": rows, "two_processes": two}))
