"""harness.py - a real mount for a test: its own source, mount point and daemon, gone when the test ends, however it ends."""
import contextlib, ctypes, errno, fcntl, json, os, resource, shutil, subprocess, tempfile, time
import cuda

BUILD = os.environ.get("HMMFS_TEST_BUILD", "")
HMMFS = os.path.join(BUILD, "tools/hmmfs") if BUILD else "hmmfs"
DEVICE = os.environ.get("HMMFS_TEST_DEVICE", "host")
TRANSPORT = os.environ.get("HMMFS_TEST_TRANSPORT", "dev")
CPU_ACCESS = os.environ.get("HMMFS_TEST_CPU_ACCESS", "auto")


def bytes_of(size):
    return int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[-1]]


CHUNK = bytes_of(os.environ.get("HMMFS_TEST_CHUNK", "64K"))
CAPACITY = bytes_of(os.environ["HMMFS_TEST_CAPACITY"]) if "HMMFS_TEST_CAPACITY" in os.environ else 64 * CHUNK
CAPACITY_CHUNKS = CAPACITY // CHUNK
daemon_environment = {}  # what daemons and commands have beside our own
if DEVICE.startswith("cuda"):
    cuda.set_environment(CHUNK)


def command(*args, ok=(0,), **more):
    """Runs a command; its stdout. A status not in ok is a failure of the test."""
    r = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **({"timeout": 120, "env": os.environ | daemon_environment} | more))
    assert r.returncode in ok, f"{args}: status {r.returncode}, not {ok}: {r.stdout.decode()} {r.stderr.decode()}"
    return r.stdout.decode(errors="replace") if r.returncode == 0 else r.stderr.decode(errors="replace")


def pattern(n, seed=1):
    return bytes((i * 131 + (i >> 8) * 7 + seed) & 255 for i in range(min(n, 65536))) * (n // 65536 + 1) if n else b""


def data_of(n, seed=1):
    return pattern(n, seed)[:n]


def raises(number, call, *args):
    try:
        call(*args)
    except OSError as e:
        assert e.errno == number, e
    else:
        raise AssertionError(f"no {errno.errorcode[number]}")


def wait_until(holds, what):
    """Asks until it holds. The limit is for what will never hold: that is a failure, not a timing."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, f"never: {what}"


def windows(length, window=CAPACITY):
    """(offset, length) of parts of a file, each of which fits on the device."""
    return [(off, min(window, length - off)) for off in range(0, length, window)]


class Mount:
    def __init__(self, scratch, **options):
        self.source, self.point = os.path.join(scratch, "source"), os.path.join(scratch, "mount")
        os.makedirs(self.source, exist_ok=True)
        os.makedirs(self.point, exist_ok=True)
        o = dict(device=DEVICE, cpu_access=CPU_ACCESS, transport=TRANSPORT, capacity=CAPACITY, chunk=CHUNK, bounce="8M", migrate_min="0") | options
        self.options = ",".join(k if v is True else f"{k}={v}" for k, v in o.items() if v is not None)
        self.daemon, self.descriptors = None, None

    def limit(self):
        """In the child: no more descriptors than that, and no right to raise the limit."""
        if self.descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.descriptors, self.descriptors))
            ctypes.CDLL(None).prctl(24, 24)  # PR_CAPBSET_DROP, CAP_SYS_RESOURCE

    def start(self, terminal=None):
        self.daemon = subprocess.Popen([HMMFS, "mount", self.source, self.point, "-f", "-o", self.options],
                                       stderr=subprocess.PIPE if terminal is None else terminal, start_new_session=True, preexec_fn=self.limit,
                                       env=os.environ | daemon_environment)
        if terminal is not None:
            wait_until(lambda: os.path.ismount(self.point) or self.daemon.poll() is not None, "the daemon serves")
        self.said = ""
        for line in self.daemon.stderr or []:  # the daemon says when it serves
            self.said += line.decode()
            if os.path.ismount(self.point):
                break
        self.device_number = os.minor(os.stat(self.point).st_dev) if os.path.ismount(self.point) else 0
        assert os.path.ismount(self.point), "the daemon ended before it mounted: " + self.said

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
        assert self.wait() == 0, f"the daemon's exit status is {self.daemon.returncode}; it said: {self.said}"

    def wait(self):
        self.said = (self.daemon.communicate(timeout=60)[1] or b"").decode()
        return self.daemon.returncode

    def clean(self):
        if not self.daemon or (self.daemon.poll() is not None and not os.path.ismount(self.point)):
            return
        # A daemon that dies while the kernel waits for it inside an invalidation takes its connection with it into
        # limbo: only aborting that frees whoever waits.
        abort = f"/sys/fs/fuse/connections/{self.device_number}/abort"
        if os.path.exists(abort):
            with open(abort, "w") as f:
                f.write("1")
        if os.geteuid() == 0:  # the same, where nobody has mounted fusectl
            subprocess.run(["umount", "-f", self.point], stderr=subprocess.DEVNULL)
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


SWITCH = "/sys/module/fuse/parameters/enable_uring"
TURN = "/tmp/hmmfs-test-enable-uring"  # tests that need it one way or the other take turns


@contextlib.contextmanager
def switch(value, takes_turn=True):
    """Sets the kernel's switch of FUSE over io_uring for new mounts, and puts it back. Yields whether that was possible."""
    if os.geteuid() != 0 or not os.path.exists(SWITCH):
        yield False
        return
    with open(TURN, "w") as turn:
        if takes_turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
        with open(SWITCH) as f:
            before = f.read()
        try:
            with open(SWITCH, "w") as f:
                f.write(value)
            yield True
        finally:
            with open(SWITCH, "w") as f:
                f.write(before)
