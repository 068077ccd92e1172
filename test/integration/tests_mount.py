"""tests_mount.py - mounting, and unmounting without loss."""
import ctypes, errno, os, pty, shutil, signal, socket, subprocess, tempfile, traceback
from device import EXCLUSIVE, Region
from harness import CAPACITY_CHUNKS, CHUNK, DEVICE, HMMFS, command, data_of, mounted, raises, wait_until, windows
from user import mounted_by_an_ordinary_user


def dirty_chunks(m, n, what):
    """Stores to each of n chunks of a file f; no close of the file comes after that writes them back."""
    fd = os.open(m.put("f", data_of(n * CHUNK)), os.O_RDWR)
    regions = [Region(fd, off, length) for off, length in windows(n * CHUNK)]
    os.close(fd)
    for r in regions:
        r.begin(EXCLUSIVE)
        for off in range(0, r.length, CHUNK):
            r.store(off, what)
        r.end()
    for r in regions:
        r.close()
    assert m.status()["dirty_bytes"] == min(n, CAPACITY_CHUNKS) * CHUNK
    want = bytearray(data_of(n * CHUNK))
    for c in range(n):
        want[c * CHUNK:c * CHUNK + len(what)] = what
    return want


def unmount(how):
    with mounted(writeback_interval="0") as m:
        want = dirty_chunks(m, 9, b"unmount")
        if isinstance(how, int):
            m.daemon.send_signal(how)
            assert m.wait() == 0
        else:
            m.umount(*[m.point if a == "." else a for a in how])
        assert m.backing("f") == want


def fusermount3_loses_nothing(): unmount(["fusermount3", "-u", "."])
def umount_loses_nothing(): unmount(["umount", "."])
def hmmfs_umount_loses_nothing(): unmount([HMMFS, "umount", "."])
def sigterm_loses_nothing(): unmount(signal.SIGTERM)
def sigint_loses_nothing(): unmount(signal.SIGINT)


def a_second_signal_loses_nothing():
    with mounted(writeback_interval="0") as m:
        want = dirty_chunks(m, 20, b"twice")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            m.daemon.send_signal(number)
        assert m.wait() == 0
        assert m.backing("f") == want


def lines_on(terminal):
    """What was written to a terminal that nobody has open any more."""
    said = b""
    while True:
        try:
            said += os.read(terminal, 4096)
        except OSError as e:  # a terminal's end of file
            assert e.errno == errno.EIO
            return said.decode().split("\r\n")


def unmount_shows_its_progress_on_a_terminal():
    with mounted(writeback_interval="0") as m:
        m.umount()
        terminal, daemons = pty.openpty()
        m.start(daemons)
        os.close(daemons)
        want = dirty_chunks(m, 24, b"progress")
        m.daemon.send_signal(signal.SIGTERM)
        assert m.wait() == 0
        said = lines_on(terminal)
        os.close(terminal)
        total = f"{min(24, CAPACITY_CHUNKS) * CHUNK / (1 << 20):.1f}"
        first = said.index("hmmfs: Terminated: writing everything back before the end")
        line, *after = said[first + 1:]
        assert after == [""], said
        states = line.split("\r")  # each replaces the one before
        assert states[0] == "" and states[-1] == f"hmmfs: writing back: {total} of {total} MiB", said
        assert all(s.startswith("hmmfs: writing back: ") and s.endswith(f" of {total} MiB") for s in states[1:]), said
        assert m.backing("f") == want


def busy_mount_says_who():
    with mounted() as m:
        with open(m.put("f", b"x")):
            assert str(os.getpid()) in command(HMMFS, "umount", m.point, ok=(1, 2))


def bad_options_are_one_line_and_no_mount():
    with mounted() as m:
        m.umount()
        for o in ("device=abacus", "capacity=1", "capacity=9999T", "chunk=3M", "chunk=1K", "bounce=x", "cpu_access=no", "nonsense",
                  "migrate=2", "writeback_interval=-1", "read_timeout=x", "lease_timeout=soon", "allow_kernels=me", "capacity="):
            e = command(HMMFS, "mount", m.source, m.point, "-o", o, ok=(2,))
            assert e.count("\n") == 1 and o.split("=")[0] in e, (o, e)
            assert not os.path.ismount(m.point), o
        inside = os.path.join(m.source, "inside")
        os.mkdir(inside)
        for a, b in ((m.source + "x", m.point), (HMMFS, m.point), (m.source, m.source), (m.source, m.point + "x"),
                     (m.point, m.point), (m.source, inside)):
            if b == inside:
                a, b = b, a  # SOURCE inside of the mount point
            assert command(HMMFS, "mount", a, b, "-o", f"device={DEVICE}", ok=(2,)).count("\n") == 1, (a, b)
            assert not os.path.ismount(b)


def daemon_without_privilege_serves_its_user():
    def served(hmmfs, source, point, mine):
        assert mine("sh", "-c", f"head -c 200000 /dev/zero > {point}/f").returncode == 0
        assert mine(hmmfs, "run", "fill", "7", f"{point}/f").returncode == 0
        assert b"1400000" in mine(hmmfs, "run", "sum", f"{point}/f").stdout
        raises(errno.EACCES, os.listdir, point)  # not even root gets in without allow_other
        assert mine(hmmfs, "umount", point).returncode == 0
        assert open(os.path.join(source, "f"), "rb").read() == b"\7" * 200000
    return mounted_by_an_ordinary_user(served)


def background_mount_lets_go_of_its_callers_pipes():
    """A shell's $(hmmfs mount ... 2>&1) waits for every process that has the pipe, the device's too."""
    with mounted() as m:
        m.umount()
        said = command(HMMFS, "mount", m.source, m.point, "-o", m.options, timeout=30)
        try:
            assert said.startswith(f"hmmfs: {m.source} on {m.point}: device {DEVICE} "), said
            assert m.status()["device"]["backend"] == DEVICE
        finally:
            command(HMMFS, "umount", m.point)


def _with_helper(work):
    """work(mount) in a mount namespace whose /sbin has the helper, as an installation has."""
    if os.geteuid():
        return "needs root"
    reader, writer = os.pipe()
    with mounted() as m:
        m.umount()
        scratch = os.path.dirname(m.source)
        child = os.fork()
        if child == 0:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                flags = lambda n: ctypes.c_ulong(n)
                assert libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, flags(0x44000), None) == 0  # NEWNS; REC, PRIVATE
                room, sbin = os.path.join(scratch, "room"), os.path.realpath("/sbin")
                os.mkdir(room)
                assert libc.mount(b"none", room.encode(), b"tmpfs", flags(0), None) == 0
                os.mkdir(room + "/upper"), os.mkdir(room + "/work")
                if libc.mount(b"none", sbin.encode(), b"overlay", flags(0), f"lowerdir={sbin},upperdir={room}/upper,workdir={room}/work".encode()):
                    os.write(writer, b"this kernel or container has no overlayfs"), os._exit(0)
                os.symlink(os.path.abspath(HMMFS), f"{sbin}/mount.fuse.hmmfs")
                work(m)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                subprocess.run(["umount", "-i", "-l", m.point], stderr=subprocess.DEVNULL)
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as f:
            why_not = f.read()
        assert os.waitpid(child, 0)[1] == 0
        return why_not or None


def mount_and_umount_know_the_type():
    """mount -t fuse.hmmfs, a line of fstab; umount loses nothing, and works when the daemon is dead."""
    if DEVICE == "cuda":
        return "mount(8) hands no LD_LIBRARY_PATH on, and so no simulated driver"
    def work(m):
        daemon = lambda: command("pgrep", "-f", f"{m.source} {m.point}", ok=(0, 1)).split()
        fstab = os.path.join(os.path.dirname(m.source), "fstab")
        with open(fstab, "w") as f:
            f.write(f"{m.source} {m.point} fuse.hmmfs {m.options},writeback_interval=0,noauto,nofail,noatime,suid,x-systemd.automount,comment=x 0 0\n")
        for how in (["mount", "-t", "fuse.hmmfs", m.source, m.point, "-o", m.options + ",writeback_interval=0,nodev"], ["mount", "-T", fstab, m.point]):
            assert command(*how).startswith("hmmfs: ")
            line = [l.split() for l in open("/proc/self/mountinfo") if m.point in l][-1]
            assert "nosuid" not in line[5] and ("nodev" in line[5]) == ("-t" in how) and ("noatime" in line[5]) == ("-T" in how), line
            want = dirty_chunks(m, 5, str(how).encode()[:20])
            command("umount", m.point)
            wait_until(lambda: not daemon(), "the daemon has ended")
            assert not os.path.ismount(m.point) and m.backing("f") == want
        assert command("mount", "-f", "-t", "fuse.hmmfs", m.source, m.point) == "" and not os.path.ismount(m.point)
        assert command("mount", "-t", "fuse.hmmfs", m.source, m.point, "-o", "capacity=no", ok=(2, 32)).count("\n") == 1
        command("mount", "-t", "fuse.hmmfs", m.source, m.point, "-o", m.options)
        os.kill(int(daemon()[0]), signal.SIGKILL)
        wait_until(lambda: outcome_of(os.stat, m.point) == errno.ENOTCONN, "the daemon is dead")
        command("umount", m.point)
        assert not os.path.ismount(m.point)
    return _with_helper(work)


def outcome_of(call, *args):
    try:
        call(*args)
    except OSError as e:
        return e.errno


def service_manager_is_told_when_the_mount_is_ready():
    with mounted() as m:
        m.umount()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(os.path.join(os.path.dirname(m.source), "notify"))
            s.settimeout(60)
            os.environ["NOTIFY_SOCKET"] = s.getsockname()
            try:
                m.start()
            finally:
                del os.environ["NOTIFY_SOCKET"]
            assert s.recv(100) == b"READY=1"
        m.umount()


def units_are_well_formed():
    if not shutil.which("systemd-analyze"):
        return "needs systemd-analyze"
    with tempfile.TemporaryDirectory() as scratch:
        units = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/systemd")
        for name, kind in (("hmmfs@.service", "--user"), ("mnt-hmmfs.mount", "--system")):
            with open(os.path.join(units, name)) as f, open(os.path.join(scratch, name.replace("@", "@x")), "w") as g:
                g.write(f.read().replace("=hmmfs ", f"={os.path.abspath(HMMFS)} "))
            command("systemd-analyze", "verify", "--man=no", kind, os.path.join(scratch, name.replace("@", "@x")), env=os.environ | {"XDG_RUNTIME_DIR": scratch})
