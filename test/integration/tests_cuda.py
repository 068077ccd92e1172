"""tests_cuda.py - the cuda device on the simulated driver (test/simcuda), which fails when told to. Run with HMMFS_TEST_DEVICE=cuda."""
import contextlib, errno, os, struct, subprocess, sys, tempfile
import cuda
from device import EXCLUSIVE, SHARED, Region, states, store_at
from harness import CHUNK, HMMFS, command, daemon_environment, data_of, mounted, raises, wait_until

DEVICES = ["cuda"]
MIB = 1 << 20
REGION_OPEN, ACQUIRE, MAP = 2, 4, 2  # client/protocol.h
ECC, LAUNCH_FAILED, UNKNOWN, OUT_OF_MEMORY, OPERATING_SYSTEM = 214, 719, 999, 2, 304  # CUresult


def on_simcuda(test):
    def run():
        return "needs the simulated driver" if cuda.IS_REAL else test()
    run.__name__, run.__module__, run.__doc__ = test.__name__, test.__module__, test.__doc__
    return run


@contextlib.contextmanager
def environment(**more):
    """Of the daemons and commands: this process has a driver of its own, which is to be left alone."""
    before = dict(daemon_environment)
    daemon_environment.update({k if k == "LD_LIBRARY_PATH" else f"HMMFS_SIMCUDA_{k}": str(v) for k, v in more.items()})
    try:
        yield
    finally:
        daemon_environment.clear()
        daemon_environment.update(before)


class Driver:
    """The driver of the daemons started meanwhile: what it has of memory is shared by all processes, and it fails when told to."""
    def __init__(self, folder):
        self.rules = os.path.join(folder, "rules")

    def fail(self, *rules):
        """NAME:N:CODE[:HOW], counted from now on."""
        with open(self.rules + ".new", "w") as f:
            f.write(" ".join(rules))
        os.rename(self.rules + ".new", self.rules)


@contextlib.contextmanager
def driver(**more):
    with tempfile.TemporaryDirectory(prefix="hmmfs-test-") as folder:
        d = Driver(folder)
        with environment(FAIL="@" + d.rules, STATE=os.path.join(folder, "state"), **more):
            yield d


def lines_of(m):
    """What the daemon has said; it has ended."""
    return m.said.splitlines()


# ---- a mount that is refused ----

def refused(m, *words, **options):
    """hmmfs mount says one line with all the words in it."""
    o = dict(device="cuda", capacity=64 * CHUNK, chunk=CHUNK, bounce="8M") | options
    said = command(HMMFS, "mount", m.source, m.point, "-o", ",".join(f"{k}={v}" for k, v in o.items()), ok=(2,))
    assert said.count("\n") == 1 and all(w in said for w in words), (words, said)
    assert not os.path.ismount(m.point)


@on_simcuda
def what_is_wrong_with_driver_or_device_is_one_line():
    with mounted(device="host") as m:
        m.umount()
        with tempfile.TemporaryDirectory() as none:
            open(os.path.join(none, "libcuda.so.1"), "w").close()
            with environment(LD_LIBRARY_PATH=none):
                refused(m, "device=cuda", "no CUDA driver")
        with environment(VERSION=10010):
            refused(m, "device=cuda", "CUDA 10.1", "CUDA 10.2 (driver 440)", "525")
        with environment(VERSION=11080):
            refused(m, "device=cuda", "CUDA 11.8", "CUDA 12.0 (driver 525)")
        with environment(NO_VMM=1):
            refused(m, "device=cuda", "virtual memory management")
        with environment(DEVICES=2):
            refused(m, "device=cuda:2", "there are 2 CUDA devices", device="cuda:2")
        with environment(DEVICES=0):
            refused(m, "device=cuda")
        for spec in ("cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999999999"):
            refused(m, f"device={spec}", "cuda:N", device=spec)
        with environment(GRANULARITY=2 * MIB):
            refused(m, "chunk=1048576", "multiples of 2097152", chunk="1M", capacity="64M")
        with environment(MEMORY=256 * MIB):
            refused(m, f"capacity={512 * MIB}", "more than the device has", capacity="512M")


@on_simcuda
def capacity_over_free_memory_is_refused():
    with driver(MEMORY=64 * CHUNK), mounted(capacity=48 * CHUNK) as m:
        command(HMMFS, "prefetch", m.put("f", data_of(32 * CHUNK)))
        with mounted(device="host") as other:
            other.umount()
            refused(other, f"capacity={40 * CHUNK}", f"more than is free on the device (simcuda 0, {32 * CHUNK} bytes)", capacity=40 * CHUNK)
        m.umount()


@on_simcuda
def any_call_that_fails_when_the_device_is_opened_is_named():
    with mounted(device="host") as m:
        m.umount()
        for name in ("cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetUuid", "cuDeviceTotalMem",
                     "cuMemGetAllocationGranularity", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemAddressReserve",
                     "cuMemHostRegister", "cuStreamCreate", "cuEventCreate", "cuMemGetInfo"):
            with environment(FAIL=f"{name}:1:{UNKNOWN}"):
                refused(m, "device=cuda", name, "CUDA_ERROR_UNKNOWN")
        with environment(FAIL=f"cuInit:1:{UNKNOWN}"):
            refused(m, "device=cuda", "does not start", "CUDA_ERROR_UNKNOWN")


@on_simcuda
def auto_takes_cuda_first_and_devices_lists_them():
    with environment(DEVICES=2):
        said = command(HMMFS, "devices").splitlines()
        assert [line.split()[0] for line in said[:2]] == ["cuda:0", "cuda:1"] and said[-1].split()[0] == "host", said
        for spec, name in (("auto", "simcuda 0"), ("cuda", "simcuda 0"), ("cuda:1", "simcuda 1")):
            with mounted(device=spec) as m:
                assert m.status()["device"] == {"backend": "cuda", "name": name}
                m.umount()
    with environment(VERSION=10010):
        assert "cuda" not in command(HMMFS, "devices")
        with mounted(device="auto") as m:
            assert m.status()["device"]["backend"] != "cuda"
            m.umount()


# ---- a context that breaks ----

def store_and_leave_dirty(m, n):
    """A file with n chunks on the device, all of them stored to by write(2) since; its descriptor, and its bytes."""
    data = bytearray(data_of(n * CHUNK))
    command(HMMFS, "prefetch", m.put("f", data))
    fd = os.open(m.path("f"), os.O_RDWR)
    for c in range(n):
        os.pwrite(fd, b"dirty", c * CHUNK + 7)
        data[c * CHUNK + 7:c * CHUNK + 12] = b"dirty"
    assert states(fd) == {c: "DIRTY" for c in range(n)}
    return fd, bytes(data)


@on_simcuda
def a_poisoned_context_is_rebuilt_and_nothing_is_lost():
    """Whatever call finds it: copies both ways, waits, fills, allocations, and each of the first few calls."""
    calls = ("cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuEventSynchronize", "cuEventRecord", "cuMemsetD8Async", "cuMemCreate", "cuMemMap",
             "cuMemSetAccess", "cuStreamSynchronize")
    for call in calls:
        for nth in (1, 4):
            with driver() as d, mounted(writeback_interval="0", cpu_access="copy") as m:
                fd, data = store_and_leave_dirty(m, 4)
                hole = os.open(m.path("hole"), os.O_RDWR | os.O_CREAT)
                os.ftruncate(hole, 3 * CHUNK)
                d.fail(f"{call}:{nth}:{LAUNCH_FAILED}:sticky")
                command(HMMFS, "prefetch", m.put("g", data_of(6 * CHUNK, 3)), m.path("hole"))
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(fd, len(data), 0) == data, call
                os.pwrite(fd, b"again", CHUNK)
                data = data[:CHUNK] + b"again" + data[CHUNK + 5:]
                assert os.pread(fd, len(data), 0) == data, call
                os.fsync(fd)
                assert m.backing("f") == data, call
                with open(m.path("g"), "rb") as f:
                    assert f.read() == data_of(6 * CHUNK, 3), call
                assert os.pread(hole, 3 * CHUNK, 0) == bytes(3 * CHUNK), call
                assert m.status()["counters"]["lost_chunks"] == 0
                os.close(fd), os.close(hole)
                m.umount()
                assert any("building the CUDA context anew" in line for line in lines_of(m)), (call, nth, m.said)


@on_simcuda
def a_context_that_breaks_again_and_again_loses_nothing_while_something_gets_done():
    with driver() as d, mounted(writeback_interval="0", cpu_access="copy") as m:
        fd, data = store_and_leave_dirty(m, 4)
        d.fail(*[f"cuEventSynchronize:{n}:{LAUNCH_FAILED}:sticky" for n in (1, 3, 6, 9, 12)])
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, len(data), 0) == data
        os.fsync(fd)
        assert m.backing("f") == data and m.status()["counters"]["lost_chunks"] == 0
        os.close(fd)
        m.umount()


@on_simcuda
def handles_that_do_not_survive_are_imported_again_from_their_descriptors():
    with driver() as d, mounted(writeback_interval="0", cpu_access="copy") as m:
        fd, data = store_and_leave_dirty(m, 4)
        d.fail(f"cuMemcpyDtoHAsync:1:{LAUNCH_FAILED}:sticky", f"cuMemMap:1:{UNKNOWN}", f"cuMemMap:3:{UNKNOWN}",
               f"cuDevicePrimaryCtxRetain:2:{UNKNOWN}")  # building the context once is enough
        os.fsync(fd)
        assert m.backing("f") == data and m.status()["counters"]["lost_chunks"] == 0
        os.close(fd)
        m.umount()


# ---- memory that is gone ----

@on_simcuda
def one_bad_chunk_is_lost_alone():
    """Memory with an error that ECC can't correct: the copy fails again and again, alone at last."""
    with driver() as d, mounted(writeback_interval="0", cpu_access="copy") as m:
        command(HMMFS, "prefetch", m.put("f", data_of(4 * CHUNK)))
        fd = os.open(m.path("f"), os.O_RDWR)
        d.fail(*3 * [f"cuMemcpyDtoHAsync:1:{ECC}:sticky"])
        assert os.pread(fd, 5, CHUNK) == data_of(4 * CHUNK)[CHUNK:CHUNK + 5]  # CLEAN: from the backing
        wait_until(lambda: states(fd) == {0: "CLEAN", 2: "CLEAN", 3: "CLEAN"}, "the chunk is dropped, and no other")
        assert m.status()["counters"]["lost_chunks"] == 1
        os.fsync(fd)
        command(HMMFS, "prefetch", m.path("f"))
        assert states(fd) == {c: "CLEAN" for c in range(4)}
        d.fail(*3 * [f"cuMemcpyHtoDAsync:1:{ECC}:sticky"])
        os.pwrite(fd, b"written", 3 * CHUNK)  # CLEAN: to the backing, and nothing is lost
        os.fsync(fd)
        assert m.backing("f")[3 * CHUNK:3 * CHUNK + 7] == b"written" and 3 not in states(fd)
        os.pwrite(fd, b"dirty", 2 * CHUNK)
        d.fail(*3 * [f"cuMemcpyDtoHAsync:1:{ECC}:sticky"])
        raises(errno.EIO, os.fsync, fd)
        wait_until(lambda: 2 not in states(fd), "the chunk is dropped")
        os.close(fd)
        m.umount()
        lost = [line for line in lines_of(m) if "were lost with the device's memory" in line]
        assert len(lost) == 1 and "source/f: " in lost[0] and f"bytes {2 * CHUNK}..{3 * CHUNK} " in lost[0], m.said


@on_simcuda
def a_lost_device_costs_what_was_dirty_and_the_mount_goes_on():
    for rule in (f"any:1:{UNKNOWN}:lost", f"cuMemcpyDtoHAsync:1+:{ECC}:sticky"):
        with driver() as d, mounted(writeback_interval="0", cpu_access="copy") as m:
            old = data_of(3 * CHUNK)
            clean, dirty = (os.open(m.put(name, old), os.O_RDWR) for name in ("clean", "dirty"))
            command(HMMFS, "prefetch", m.path("clean"), m.path("dirty"))
            sample = os.open(m.path("dirty"), os.O_RDONLY)
            os.pwrite(dirty, b"dirty", CHUNK)
            assert states(dirty)[1] == "DIRTY"
            d.fail(rule)
            raises(errno.EIO, os.fsync, dirty)
            os.posix_fadvise(clean, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(clean, len(old), 0) == old
            wait_until(lambda: states(dirty).get(1) is None, "the dirty chunk is dropped")
            raises(errno.EIO, os.fsync, sample)  # who had it open is told, each once
            os.fsync(sample), os.close(sample)
            os.pwrite(clean, b"host", 5)
            os.fsync(clean)
            assert m.backing("clean") == old[:5] + b"host" + old[9:]
            os.pwrite(dirty, b"later", 0)
            os.fsync(dirty)
            assert m.backing("dirty") == b"later" + old[5:]
            if "any" in rule:
                wait_until(lambda: states(clean) == {} and states(dirty) == {}, "all chunks are dropped")
                raises(errno.ENODEV, Region(clean, 0, CHUNK).begin, SHARED)
                said = command(HMMFS, "prefetch", m.path("clean"), ok=(1,))
                assert said.count("\n") == 1 and "the device is lost" in said, said
            os.close(clean), os.close(dirty)
            m.umount()
            assert sum("source/dirty: bytes %d..%d were lost" % (CHUNK, 2 * CHUNK) in line for line in lines_of(m)) == 1, m.said
            assert sum(": lost: " in line for line in lines_of(m)) <= 1, m.said


# ---- memory that is short ----

@contextlib.contextmanager
def held(chunks):
    """Another process that has so much of the device's memory."""
    code = ("import ctypes,os,signal,sys\nc=ctypes.CDLL(sys.argv[2])\nassert c.cuInit(0)==0\nh=ctypes.c_ulonglong()\n"
            "class P(ctypes.Structure):\n _fields_=[('type',ctypes.c_int),('handles',ctypes.c_int),('location',ctypes.c_int),('id',ctypes.c_int),"
            "('win',ctypes.c_void_p),('flags',ctypes.c_uint64)]\n"
            "p=P(1,1,1,0,None,0)\nn=int(sys.argv[1])\nassert c.cuMemCreate(ctypes.byref(h),ctypes.c_size_t(n),ctypes.byref(p),ctypes.c_ulonglong(0))==0\n"
            "os.write(1,b'!')\nsignal.pause()\n")
    p = subprocess.Popen([sys.executable, "-c", code, str(chunks * CHUNK), cuda.LIBRARY], stdout=subprocess.PIPE,
                         env=os.environ | daemon_environment)
    try:
        assert os.read(p.stdout.fileno(), 1) == b"!"
        yield
    finally:
        p.kill(), p.wait()


def resident(m):
    return m.status()["resident_bytes"] // CHUNK


@on_simcuda
def automatic_capacity_gives_clean_chunks_back_under_pressure_and_takes_them_again():
    with driver(MEMORY=160 * CHUNK), mounted(capacity=None) as m:
        assert m.status()["capacity_bytes"] == 80 * CHUNK  # half of it
        data = data_of(80 * CHUNK)
        command(HMMFS, "prefetch", m.put("f", data))
        fd = os.open(m.path("f"), os.O_RDWR)
        os.pwrite(fd, b"dirty", CHUNK)
        with held(76):  # leaves 4, and the reserve is a sixteenth: 10
            wait_until(lambda: resident(m) == 74, "what is missing to the reserve is given back")
            assert m.status()["capacity_bytes"] == 74 * CHUNK
        wait_until(lambda: m.status()["capacity_bytes"] == 80 * CHUNK, "it grows again")
        assert os.pread(fd, 80 * CHUNK, 0) == data[:CHUNK] + b"dirty" + data[CHUNK + 5:]
        os.close(fd)
        m.umount()


@on_simcuda
def allocations_that_fail_make_the_cache_smaller_not_the_files():
    with driver(MEMORY=64 * CHUNK), mounted(capacity=60 * CHUNK) as m:
        data = data_of(60 * CHUNK)
        fd = os.open(m.put("f", data), os.O_RDWR)
        with held(40):
            command(HMMFS, "prefetch", m.path("f"))
            assert resident(m) <= 24 and m.status()["capacity_bytes"] <= 24 * CHUNK
            raises(errno.ENOMEM, Region, fd, 0, 60 * CHUNK)
            for c in range(60):
                os.pwrite(fd, b"%05d" % c, c * CHUNK)
                data = data[:c * CHUNK] + b"%05d" % c + data[c * CHUNK + 5:]
            assert os.pread(fd, 60 * CHUNK, 0) == data
        wait_until(lambda: m.status()["capacity_bytes"] == 60 * CHUNK, "it grows again")
        command(HMMFS, "prefetch", m.path("f"))
        assert resident(m) == 60
        os.close(fd)
        m.umount()
        assert m.backing("f") == data


@on_simcuda
def memory_of_chunks_on_their_way_out_is_waited_for():
    """The cache has all the memory there is: an eviction gives back what the next chunk needs."""
    with driver(MEMORY=64 * CHUNK), mounted(capacity=64 * CHUNK) as m:
        for name in "abcd":
            command(HMMFS, "prefetch", m.put(name, data_of(64 * CHUNK)))
            assert resident(m) == 64
        m.umount()
        assert "memory is short" not in m.said, m.said


@on_simcuda
def no_memory_at_all_is_told():
    with driver(MEMORY=64 * CHUNK), mounted(capacity=60 * CHUNK) as m:
        fd = os.open(m.put("f", data_of(3 * CHUNK)), os.O_RDWR)
        with held(64):
            said = command(HMMFS, "prefetch", m.path("f"), ok=(1,))
            assert said.count("\n") == 1, said
            assert os.pread(fd, 3 * CHUNK, 0) == data_of(3 * CHUNK)
        wait_until(lambda: m.status()["capacity_bytes"] == 60 * CHUNK, "it grows again")
        command(HMMFS, "prefetch", m.path("f"))
        assert resident(m) == 3
        os.close(fd)
        m.umount()


@on_simcuda
def descriptors_that_run_out_are_told():
    with driver() as d, mounted() as m:
        fd = os.open(m.put("f", data_of(3 * CHUNK)), os.O_RDWR)
        d.fail(f"cuMemExportToShareableHandle:1+:{OPERATING_SYSTEM}")
        said = command(HMMFS, "prefetch", m.path("f"), ok=(1,))
        assert said.count("\n") == 1 and os.strerror(errno.EMFILE) in said, said
        d.fail()
        command(HMMFS, "prefetch", m.path("f"))
        assert resident(m) == 3 and os.pread(fd, 3 * CHUNK, 0) == data_of(3 * CHUNK)
        os.close(fd)
        m.umount()


# ---- whose memory it is ----

@on_simcuda
def readers_who_are_not_the_owner_get_no_handle():
    """They could store through it. Root is let in, and who may write the file."""
    from tests_clients import HELLO, MAGIC, as_nobody, connected, ticket_of
    if os.geteuid() != 0:
        return "needs root to become another user"
    with mounted(allow_other=True) as m:
        m.put("f", data_of(CHUNK))
        os.chmod(os.path.join(m.source, "f"), 0o644)
        os.chmod(os.path.dirname(m.source), 0o755)

        def begin(mode):
            """A shared lease with the memory's handles, by the protocol: a process that was forked has no CUDA."""
            with open(m.path("f"), opener=lambda path, _: os.open(path, mode)) as f:
                token, path = ticket_of(f.fileno())
            with connected(path) as s:
                region = 0
                for op, flags, length in (HELLO, 0, 0), (REGION_OPEN, 0, CHUNK), (ACQUIRE, MAP, 0):
                    s.send(struct.pack("<8I2Q16s", MAGIC, 2, op, 1, region, flags, 0, 0, 0, length, token))
                    status, region = struct.unpack_from("<iI", s.recv(65536), 12)
                    if status:
                        raise OSError(-status, os.strerror(-status))
        assert as_nobody(lambda: begin(os.O_RDONLY)) == errno.EPERM
        os.chmod(m.path("f"), 0o666)
        assert as_nobody(lambda: begin(os.O_RDWR)) == 0
        begin(os.O_RDONLY)
        m.umount()


@on_simcuda
def memory_that_a_revoked_client_maps_is_used_for_nothing_else():
    """Neither when its lease was revoked, nor when the chunk has left the device since."""
    with mounted(capacity=40 * CHUNK, lease_timeout="100ms", read_timeout="0") as m:
        old = data_of(16 * CHUNK)
        fd, late = os.open(m.put("f", old), os.O_RDWR), os.open(m.put("late", old), os.O_RDWR)
        revoked, ended = Region(fd, 0, 16 * CHUNK).begin(EXCLUSIVE), Region(late, 0, 16 * CHUNK).begin(SHARED)
        addresses = revoked.address(), ended.address()
        ended.end()
        assert os.pread(fd, 5, 0) == old[:5]  # waits, and has the lease revoked
        raises(errno.ESTALE, revoked.end)
        command(HMMFS, "evict", m.path("f"), m.path("late"))
        other = data_of(40 * CHUNK, 2)
        reader = os.open(m.put("other", other), os.O_RDWR)
        command(HMMFS, "prefetch", m.path("other"))
        _zombie(addresses[0], 16 * CHUNK)
        assert os.pread(reader, 40 * CHUNK, 0) == other and os.pread(fd, 16 * CHUNK, 0) == old
        revoked.close(), ended.close()
        for f in (fd, late, reader):
            os.close(f)
        m.umount()
        assert (m.backing("f"), m.backing("late"), m.backing("other")) == (old, old, other)


def _zombie(address, length):
    for off in range(0, length, CHUNK):
        store_at(address + off, b"zombie")
