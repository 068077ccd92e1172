"""tests_cuda_client.py - clients of a mount with device=cuda: mappings, streams, programs that know nothing of hmmfs."""
import contextlib, ctypes, errno, os, shutil, subprocess, sys, tempfile
import cuda
from device import EXCLUSIVE, SHARED, Region, check, leased, lib
from harness import BUILD, CAPACITY_CHUNKS, CHUNK, HMMFS, command, data_of, mounted, raises
from tests_command import own_kernels

# Without sanitizers, whose runtime would have to be preloaded first
CLIENT_BUILD = os.path.dirname(os.path.dirname(os.environ["HMMFS_TEST_CLIENT"])) if "HMMFS_TEST_CLIENT" in os.environ else BUILD
PROGRAM = os.path.join(CLIENT_BUILD, "test/integration/hmmfs_cuda_program")
DEVICES = ["cuda"]


@contextlib.contextmanager
def _failing(rules):
    """Calls of this process fail by test/simcuda/fault.c's rules, which are read from a file."""
    path = os.environ["HMMFS_SIMCUDA_FAIL"][1:]
    with open(path, "w") as f:
        f.write(rules)
    try:
        yield
    finally:
        os.unlink(path)


def _can_fail():
    """The rules have to be known before the first call: once for all tests of this process."""
    if "HMMFS_SIMCUDA_FAIL" not in os.environ and not cuda.IS_REAL:
        os.environ["HMMFS_SIMCUDA_FAIL"] = "@" + os.path.join(tempfile.gettempdir(), f"hmmfs-simcuda-rules-{os.getpid()}")
    return os.environ.get("HMMFS_SIMCUDA_FAIL", "").startswith("@")


def _exec(path, how, **env):
    """What a program says that knows nothing of hmmfs, under hmmfs exec."""
    env = os.environ | {"HMMFS_EXEC_MIN": "1"} | env
    if not cuda.IS_REAL:
        env["LD_LIBRARY_PATH"] = os.path.join(CLIENT_BUILD, "test/simcuda")
    return command(os.path.join(CLIENT_BUILD, "tools/hmmfs") if CLIENT_BUILD else HMMFS, "exec", "--", PROGRAM, path, how, env=env)


def _stream():
    stream = ctypes.c_void_p()
    cuda.use()
    cuda.call("cuStreamCreate", ctypes.byref(stream), 1)
    return stream


def _fill(address, byte, n, stream):
    cuda.call("cuMemsetD8Async", ctypes.c_uint64(address), ctypes.c_ubyte(byte), ctypes.c_size_t(n), stream)


def lease_ends_when_the_work_queued_before_is_done():
    with mounted(read_timeout="0") as m:
        fd, stream, event = os.open(m.put("f", data_of(2 * CHUNK)), os.O_RDWR), _stream(), ctypes.c_void_p()
        cuda.call("cuEventCreate", ctypes.byref(event), 2)
        r = Region(fd, 0, 2 * CHUNK)
        for i in range(1, 40):
            r.begin(EXCLUSIVE)
            for byte in (0, 0, 0, i):  # that take their time
                _fill(r.address(), byte, 2 * CHUNK, stream)
            if i % 2:
                check(lib().hmmfs_end_stream(r.r, stream))
            else:
                cuda.call("cuEventRecord", event, stream)
                check(lib().hmmfs_end_event(r.r, event))
            if i % 3:
                assert os.pread(fd, 2 * CHUNK, 0) == bytes([i]) * 2 * CHUNK, i  # waits for the end
                check(lib().hmmfs_wait(r.r))
            # else the next begin waits for it
        raises(errno.EINVAL, lambda: check(lib().hmmfs_end_stream(r.r, stream)))
        r.close(), os.close(fd)
        m.umount()
        assert m.backing("f") == bytes([39]) * 2 * CHUNK


def mappings_stay_and_only_what_moved_is_mapped_anew():
    if not _can_fail():
        return "needs the simulated driver"
    with mounted() as m:
        fd = os.open(m.put("f", data_of(4 * CHUNK)), os.O_RDWR)
        r = Region(fd, 0, 4 * CHUNK).begin(SHARED)
        address = r.address()
        r.end()
        with _failing("cuMemMap:1+:999 cuMemImportFromShareableHandle:1+:999"):
            for mode in (SHARED, EXCLUSIVE, SHARED, EXCLUSIVE):  # another lease is another right to the same memory
                assert r.begin(mode).address() == address
                if mode == EXCLUSIVE:
                    r.store(CHUNK, b"stored")
                r.end()
        command(HMMFS, "evict", m.path("f"))
        with _failing("cuMemMap:5+:999"):  # four chunks moved
            r.begin(SHARED)
            assert r.address() == address and r.load()[CHUNK:CHUNK + 6] == b"stored"
            r.end()
        r.close(), os.close(fd)
        m.umount()


def shared_lease_is_read_only():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        r = Region(fd, 0, CHUNK)
        r.begin(EXCLUSIVE).store(0, b"x")
        r.end()
        r.begin(SHARED)
        try:
            r.store(0, b"y")
            return "this driver knows no read-only mappings"
        except cuda.CudaError:
            assert r.load()[:1] == b"x"
        r.end(), r.close(), os.close(fd)


def client_without_a_context_is_told_so():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        r = Region(fd, 0, CHUNK)
        cuda.use(), cuda.forget()
        raises(errno.ENXIO, lambda: check(lib().hmmfs_begin(r.r, SHARED, 0)))
        assert m.status()["leases"] == 0 and lib().hmmfs_device_pointer(r.r) == 0
        assert r.begin(SHARED).load() == data_of(CHUNK)  # with one, the same region works
        r.end(), r.close(), os.close(fd)


def lease_is_revoked_under_work_that_does_not_end():
    if cuda.IS_REAL:
        return "needs a host function that waits"
    with mounted(lease_timeout="100ms", read_timeout="0") as m:
        fd, stream = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR), _stream()
        gate_out, gate_in = os.pipe()
        wait = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: os.read(gate_out, 1) and None)
        r = Region(fd, 0, CHUNK).begin(EXCLUSIVE)
        cuda.call("cuLaunchHostFunc", stream, wait, None)
        _fill(r.address(), 9, CHUNK, stream)  # runs after the lease was revoked
        check(lib().hmmfs_end_stream(r.r, stream))
        assert os.pread(fd, CHUNK, 0) == data_of(CHUNK)  # has it revoked
        os.write(gate_in, b"!")
        raises(errno.ESTALE, lambda: check(lib().hmmfs_wait(r.r)))
        cuda.call("cuStreamSynchronize", stream)  # the store was to memory that is nobody's: no error
        other = m.put("other", data_of(20 * CHUNK))
        assert command(HMMFS, "run", "sum", other).endswith(f"{sum(data_of(20 * CHUNK))}\n")
        r.close(), os.close(fd)
        m.umount()
        assert m.backing("f") == data_of(CHUNK)


def work_that_fails_ends_its_lease_and_nothing_else():
    with mounted() as m:
        fd = os.open(m.put("f", data_of(CHUNK)), os.O_RDWR)
        code = ("import os,sys,ctypes\nsys.path.insert(0,sys.argv[2])\nimport cuda\nfrom device import *\nfd=os.open(sys.argv[1],os.O_RDWR)\n"
                f"r=Region(fd,0,{CHUNK}).begin(EXCLUSIVE)\ns=ctypes.c_void_p()\ncuda.call('cuStreamCreate',ctypes.byref(s),1)\n"
                "os.environ['HMMFS_SIMCUDA_FAIL']='x'\ncheck(lib().hmmfs_end_stream(r.r,s))\nprint(lib().hmmfs_wait(r.r))\nr.close()\n")
        env = os.environ | {"HMMFS_SIMCUDA_FAIL": "cuEventSynchronize:1:700:sticky"}
        if not cuda.IS_REAL:
            said = subprocess.run([sys.executable, "-c", code, m.path("f"), os.path.dirname(__file__)], env=env, stdout=subprocess.PIPE)
            assert said.returncode == 0 and int(said.stdout) == -errno.EIO, said
        assert os.pread(fd, CHUNK, 0) == data_of(CHUNK)
        with leased(fd, EXCLUSIVE) as r:
            r.store(0, b"goes on")
        assert os.pread(fd, 7, 0) == b"goes on"
        os.close(fd)
        m.umount()


def processes_share_the_memory_once():
    with mounted(writeback_interval="0") as m:
        n = min(16, CAPACITY_CHUNKS) * CHUNK
        fd = os.open(m.put("f", data_of(n)), os.O_RDWR)
        before = cuda.memory()[0]
        with leased(fd, SHARED):
            after_one = cuda.memory()[0]
            code = ("import os,sys\nsys.path.insert(0,sys.argv[2])\nfrom device import *\nfd=os.open(sys.argv[1],os.O_RDONLY)\n"
                    f"r=Region(fd,0,{n}).begin(SHARED)\nos.write(1,r.load()[-8:])\nsys.stdin.read()\nr.end(),r.close()\n")
            others = [subprocess.Popen([sys.executable, "-c", code, m.path("f"), os.path.dirname(__file__)], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE) for _ in range(2)]
            for other in others:
                assert os.read(other.stdout.fileno(), 8) == data_of(n)[-8:]
            after_three = cuda.memory()[0]
            for other in others:
                other.communicate()
                assert other.returncode == 0
        os.close(fd)
        if cuda.IS_REAL:  # each has a context of its own
            return None
        assert before - after_one == n and after_three == after_one, (before, after_one, after_three)


def programs_that_know_nothing_get_their_bytes_from_the_cache():
    n = 5 * CHUNK + 1234
    with mounted(capacity=4 * CHUNK, cpu_access="copy") as m:  # less than the file: copied in parts
        path = m.put("f", data_of(n))
        fills = lambda: m.status()["counters"]["fills"]
        run = lambda how, **env: _exec(path, how, **env)
        for how, is_ours in (("linked", True), ("dlsym", True), ("next", True), ("proc", True), ("async", True), ("private", False),
                             ("anonymous", False)):
            command(HMMFS, "evict", path)
            before = fills()
            assert run(how) == "same\n", how
            assert (fills() - before >= 6) == is_ours, how
        command(HMMFS, "evict", path)
        before = fills()
        assert run("linked", HMMFS_EXEC_MIN=str(n + 1)) == "same\n" and fills() == before
        os.setxattr(path, "user.hmmfs.migrate", b"never")
        assert run("linked") == "same\n" and fills() == before
    with mounted(capacity=8 * CHUNK, cpu_access="copy") as m:
        path = m.put("f", data_of(n))
        run("linked")
        before = m.status()["counters"]["fills"]
        run("linked")  # hot
        assert m.status()["counters"]["fills"] == before
        m.umount()
    with tempfile.NamedTemporaryFile() as f:  # on no mount of ours
        f.write(data_of(n)), f.flush()
        path = f.name
        assert run("linked") == "same\n"


def programs_of_the_cuda_runtime_do_what_they_do_without_hmmfs_exec():
    """libcudart, linked statically and dynamically. It does not start on the simulated driver, whose lack of cuGetExportTable it
    reports; on a real one cudaMemcpy's bytes have to come from the cache."""
    programs = [p for p in (os.path.join(CLIENT_BUILD, "test/integration/hmmfs_cudart_program_" + how) for how in ("static", "shared")) if os.path.exists(p)]
    if not programs:
        return "the build had no nvcc"
    env = os.environ | {"HMMFS_EXEC_MIN": "1", "LD_LIBRARY_PATH": ":".join(
        ([] if cuda.IS_REAL else [os.path.join(CLIENT_BUILD, "test/simcuda")]) + ["/usr/local/cuda/lib64", os.environ.get("LD_LIBRARY_PATH", "")])}
    with mounted(cpu_access="copy") as m:
        path = m.put("f", data_of(3 * CHUNK))
        for program in programs:
            outcome = lambda *c: (lambda r: (r.returncode, r.stdout))(subprocess.run([*c, program, path], stdout=subprocess.PIPE, env=env))
            without, before = outcome(), m.status()["counters"]["fills"]
            if without[0] == 127 and program.endswith("shared"):
                continue  # the library is not on this machine
            assert without[0] in (0, 3), without
            assert outcome(os.path.join(CLIENT_BUILD, "tools/hmmfs"), "exec", "--") == without
            if cuda.IS_REAL:
                assert without == (0, b"same\n") and m.status()["counters"]["fills"] - before == 3
                command(HMMFS, "evict", path)
        m.umount()


def programs_map_what_they_copy_again_once():
    """Counted by failures: the driver's own copy, and every mapping more than those of the first copy."""
    if cuda.IS_REAL:
        return "needs the simulated driver"
    n = 4 * CHUNK
    with mounted(capacity=8 * CHUNK, cpu_access="copy") as m:
        path, other = m.put("f", data_of(n)), m.put("g", data_of(n + CHUNK))
        rules = "cuMemcpyHtoD:1+:1 cuMemImportFromShareableHandle:5+:999 cuMemMap:6+:999 cuMemAddressReserve:2+:2"  # one cuMemMap is the program's
        assert _exec(path, "twice", HMMFS_SIMCUDA_FAIL=rules) == "same\n"
        assert _exec(path, "unmapped") == "same\n"
        assert _exec(path, "short", HMMFS_SIMCUDA_FAIL="cuMemAlloc:2:2") == "same\n"
        assert _exec(path, "closed") == "same\n"
        # More than half of the cache is copied in parts, and nothing of it is kept: no descriptor, which is status 6.
        command(os.path.join(CLIENT_BUILD, "tools/hmmfs"), "exec", "--", PROGRAM, other, "unmapped", ok=(6,),
                env=os.environ | {"HMMFS_EXEC_MIN": "1", "LD_LIBRARY_PATH": os.path.join(CLIENT_BUILD, "test/simcuda")})
        m.umount()


def programs_do_not_fail_where_hmmfs_does():
    """Each call that copying from the cache makes fails once; the program gets its bytes all the same."""
    if cuda.IS_REAL:
        return "needs the simulated driver"
    with mounted(cpu_access="copy") as m:
        path = m.put("f", data_of(3 * CHUNK))
        for rule in ("cuMemImportFromShareableHandle:2:1", "cuMemMap:5:2", "cuMemSetAccess:2:1", "cuMemAddressReserve:2:2",
                     "cuMemcpyDtoDAsync:1:1", "cuStreamSynchronize:1:1", "cuCtxGetDevice:1:201", "cuStreamIsCapturing:1:900",
                     "cuPointerGetAttribute:1+:999", "cuDeviceGetUuid:1:101"):
            assert _exec(path, "linked", HMMFS_SIMCUDA_FAIL=rule) == "same\n", rule
        m.daemon.kill()  # a mapping of its files then ends in SIGBUS, with us or without; one of another file does not
        with tempfile.NamedTemporaryFile() as f:
            f.write(data_of(CHUNK)), f.flush()
            assert _exec(f.name, "linked") == "same\n"


def kernels_that_do_not_load_say_why():
    with mounted() as m:
        path, scratch = m.put("f", data_of(CHUNK)), os.path.dirname(m.source)
        for name, text, words in (("a.ptx", b"nonsense", "version"), ("b.cubin", b"\x7fELF nonsense", "cuModuleLoadDataEx"),
                                  ("c.cu", b"#error nonsense\n", "nonsense"), ("d.cl", b"__kernel void k() {}", "device=cuda"),
                                  ("e.ptx", b".version 8.0\n.target sm_75\n.address_size 64\n", "no entry k")):
            kernel = os.path.join(scratch, name)
            with open(kernel, "wb") as f:
                f.write(text)
            assert words in command(HMMFS, "run", kernel + ":k", path, ok=(2,)), name
        assert m.status()["leases"] == 0 and str(sum(data_of(CHUNK))) in command(HMMFS, "run", "sum", path)
        m.umount()
        assert m.backing("f") == data_of(CHUNK)


def kernels_of_ones_own_come_compiled_too():
    nvcc = shutil.which("nvcc", path=os.environ["PATH"] + ":/usr/local/cuda/bin")
    if cuda.IS_REAL and not nvcc:
        return "needs nvcc"
    with mounted() as m:
        data, scratch, source = data_of(CHUNK + 5), os.path.dirname(m.source), own_kernels(m)
        path = m.put("f", data)
        for form, architecture in ("ptx", "compute_75"), ("cubin", "native"):
            kernel = os.path.join(scratch, "inc." + form)
            if nvcc and (form == "ptx" or cuda.IS_REAL):
                command(nvcc, "-" + form, "-arch=" + architecture, "-o", kernel, source)
            else:
                with open(kernel, "wb") as f:  # as test/simcuda/kernel.c has them
                    f.write((b"\x7fELFSIM\0" if form == "cubin" else b"") + b".version 8.0\n.visible .entry inc(\n")
            command(HMMFS, "run", kernel + ":inc", path)
            data = bytes((x + 1) & 255 for x in data)
            with open(path, "rb") as f:
                assert f.read() == data, form
        m.umount()
        assert m.backing("f") == data


def built_in_kernels_are_compiled_where_the_driver_does_not_take_the_builds():
    if cuda.IS_REAL:
        return "needs the simulated driver"
    with mounted() as m:
        path = m.put("f", data_of(CHUNK))
        env = os.environ | {"HMMFS_SIMCUDA_FAIL": "cuModuleLoadDataEx:1:222"}  # CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        assert str(sum(data_of(CHUNK))) in command(HMMFS, "run", "sum", path, env=env)
        m.umount()
